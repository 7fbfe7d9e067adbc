// Command consumer uses an installed libdiffusion: consumer MODEL PREFIX CHECKOUT
package main

import (
	"context"
	"fmt"
	"log"
	"math"
	"os"
	"strings"

	"github.com/libdiffusion/go-diffusion"
)

const count, length = 3, 3 * 32 * 32

func main() {
	log.SetFlags(0)
	if len(os.Args) != 4 {
		log.Fatal("usage: consumer MODEL PREFIX CHECKOUT")
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		log.Fatal(err)
	}
}

func run(model, prefix, checkout string) error {
	process, err := diffusion.Load(model, nil)
	if err != nil {
		return err
	}
	defer process.Close()
	images, err := process.SampleDDIM(context.Background(), count, 8, 0, 7)
	if err != nil {
		return err
	}
	if len(images) != count*length {
		return fmt.Errorf("%d values: want %d", len(images), count*length)
	}
	for i := range count {
		var sum, squares float64
		for _, value := range images[i*length : (i+1)*length] {
			sum += float64(value)
			squares += float64(value) * float64(value)
		}
		// Also false for NaN.
		if deviation := math.Sqrt(squares/length - sum*sum/length/length); !(deviation > 0.02 && deviation < 10) {
			return fmt.Errorf("image %d is no picture: deviation %f", i, deviation)
		}
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	found := false
	for line := range strings.Lines(string(maps)) {
		at := strings.Index(line, "/")
		if at < 0 {
			continue
		}
		path := strings.TrimSuffix(line[at:], "\n")
		ours := strings.Contains(path, "libdiffusion.so") || strings.Contains(path, "libtorch") || strings.Contains(path, "libgomp")
		found = found || strings.Contains(path, "libdiffusion.so")
		if strings.HasPrefix(path, checkout) || ours && !strings.HasPrefix(path, prefix) {
			return fmt.Errorf("loaded from a strange place: %s", path)
		}
	}
	if !found {
		return fmt.Errorf("libdiffusion.so is not among the files of this process")
	}
	version, err := diffusion.Version()
	fmt.Printf("%s: %d pictures\n", version, count)
	return err
}
