//go:build cgo && unix

package diffusion

// What the tests share. They run the real library, which DIFFUSION_LIB names; without it they fail.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if program := os.Getenv("DIFFUSION_GO_CHILD"); program != "" {
		os.Exit(child(program))
	}
	if err := open(); err != nil {
		fmt.Fprintf(os.Stderr, "these tests need the library, see `make`: DIFFUSION_LIB=%q: %v\n", os.Getenv("DIFFUSION_LIB"), err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// watchdog is long enough for the slowest machine: no test depends on it unless something hangs.
const watchdog = 5 * time.Minute

var background = context.Background()

// tinyConfig is a net that computes in well under a millisecond.
func tinyConfig() Config {
	c := DefaultConfig()
	c.Device = DeviceCPU
	c.NumThreads = 1
	c.ImageSize, c.Channels, c.HiddenDims = 8, 3, []int{8, 16}
	c.NoiseSteps = 20
	c.Seed = 7
	return c
}

const imageLen = 3 * 8 * 8

// slowSteps is how many steps make a DDPM job that no test would wait for to its end.
const slowSteps = 100000

func tiny(t testing.TB, change ...func(*Config)) *Process {
	t.Helper()
	c := tinyConfig()
	for _, f := range change {
		f(&c)
	}
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func slow(c *Config) { c.NoiseSteps = slowSteps }

func slowParams() SampleParams {
	params := DefaultSampleParams()
	params.Method = MethodDDPM
	return params
}

// pattern is n smooth images in [-1, 1].
func pattern(n int) []float32 {
	images := make([]float32, n*imageLen)
	for i := range images {
		images[i] = float32(i%8)/4 - 0.875
	}
	return images
}

func wantErr(t testing.TB, err error, kinds ...error) {
	t.Helper()
	for _, kind := range kinds {
		if !errors.Is(err, kind) {
			t.Errorf("error is %v, want one that matches %v", err, kind)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// await polls until a condition holds.
func await(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for start := time.Now(); !condition(); time.Sleep(time.Millisecond) {
		if time.Since(start) > watchdog {
			t.Fatalf("%s: not within %v", what, watchdog)
		}
	}
}

// result receives from a channel.
func result[T any](t testing.TB, what string, channel <-chan T) T {
	t.Helper()
	select {
	case value := <-channel:
		return value
	case <-time.After(watchdog):
		t.Fatalf("%s: not within %v", what, watchdog)
		panic("unreachable")
	}
}

// same compares images that may have been computed in different batches: libtorch's kernels for small ones round
// otherwise, and the first steps from pure noise magnify that. Images of different seeds are far further apart.
func same(t testing.TB, what string, got, want []float32) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", what, len(got), len(want))
	}
	for i := range got {
		if d := got[i] - want[i]; d > 1e-3 || d < -1e-3 || d != d {
			t.Fatalf("%s: value %d is %v, want %v", what, i, got[i], want[i])
		}
	}
}
