package main

// The model that comes with the repository.

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
)

func TestTheTextureModel(t *testing.T) {
	o := tinyOptions()
	o.model, o.maxSize = "../../../models/textures", 64
	s, alone := start(t, o), newReference(t, o.model)
	const textures, steps = 5, 4
	bodies := make([][]byte, textures)
	var together sync.WaitGroup
	for seed := range textures {
		together.Add(1)
		go func() {
			defer together.Done()
			bodies[seed] = fetch(t, fmt.Sprintf("%s/texture?seed=%d&steps=%d&size=64", s.url, seed, steps)).body
		}()
	}
	together.Wait()
	for seed, body := range bodies {
		if err := alone.checkPNG(body, uint64(seed), steps, 64); err != nil {
			t.Error(err)
		}
		if bytes.Equal(body, bodies[(seed+1)%textures]) {
			t.Errorf("seeds %d and %d give the same texture", seed, (seed+1)%textures)
		}
	}
}
