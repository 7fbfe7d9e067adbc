//go:build cgo && unix

package diffusion_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/libdiffusion/go-diffusion"
)

// tiny is a net small enough for an example.
func tiny() *diffusion.Process {
	config := diffusion.DefaultConfig()
	config.Device = diffusion.DeviceCPU
	config.ImageSize, config.Channels, config.HiddenDims = 8, 1, []int{8, 16}
	config.NoiseSteps = 50
	process, err := diffusion.New(config)
	if err != nil {
		log.Fatal(err)
	}
	return process
}

// Train on a batch of images, save, load, and sample pictures.
func Example() {
	process := tiny()
	defer process.Close()
	ctx := context.Background()

	images := make([]float32, 4*1*8*8) // four gray images, [batch, channels, height, width] in [-1, 1]
	for i := range images {
		images[i] = float32(i%8)/4 - 1
	}
	for range 10 {
		if _, err := process.TrainStep(ctx, images, 4); err != nil {
			log.Fatal(err)
		}
	}

	folder, err := os.MkdirTemp("", "diffusion")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(folder)
	checkpoint := filepath.Join(folder, "gradients")
	if err := process.Save(ctx, checkpoint); err != nil {
		log.Fatal(err)
	}

	loaded, err := diffusion.Load(checkpoint, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer loaded.Close()
	steps, _ := loaded.StepCount()
	params := diffusion.DefaultSampleParams()
	params.NumSamples, params.Steps, params.Seed = 2, 20, 42
	pictures, err := loaded.SampleImages(ctx, params)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(steps, "steps;", len(pictures), "pictures of", pictures[0].Bounds().Max)
	// Output: 10 steps; 2 pictures of (8,8)
}

// What the library refuses says which argument, what it was and what it may be.
func ExampleError() {
	process := tiny()
	defer process.Close()

	_, err := process.SampleDDIM(context.Background(), 1, 51, 0, 0)
	fmt.Println(errors.Is(err, diffusion.ErrInvalidArgument))
	var refused *diffusion.Error
	if errors.As(err, &refused) {
		fmt.Println(refused.Func, refused.Status)
	}
	// Output:
	// true
	// diffusion_sample_ddim invalid argument
}

// A context that ends cancels the sampling, here from the progress function.
func ExampleProcess_SampleWith() {
	process := tiny()
	defer process.Close()
	ctx, cancel := context.WithCancel(context.Background())

	params := diffusion.DefaultSampleParams()
	params.Method = diffusion.MethodDDPM // all 50 steps
	params.Progress = func(done, total uint64) error {
		if done >= 10 {
			cancel()
			<-ctx.Done()
		}
		return nil
	}
	_, err := process.SampleWith(ctx, params)
	fmt.Println(errors.Is(err, context.Canceled), errors.Is(err, diffusion.ErrCancelled))
	// Output: true true
}

// Jobs of one Process are computed together while the program does something else.
func ExampleProcess_Submit() {
	process := tiny()
	defer process.Close()
	ctx := context.Background()

	var jobs []*diffusion.Job
	for seed := range uint64(3) {
		params := diffusion.DefaultSampleParams()
		params.Seed, params.Format = seed, diffusion.FormatRGB8
		job, err := process.Submit(ctx, params)
		if err != nil {
			log.Fatal(err)
		}
		defer job.Close()
		jobs = append(jobs, job)
	}
	for _, job := range jobs {
		if err := job.Wait(ctx); err != nil {
			log.Fatal(err)
		}
		samples, err := job.Fetch()
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(samples.Size, samples.Channels, len(samples.Pix))
	}
	// Output:
	// 8 3 192
	// 8 3 192
	// 8 3 192
}

// The noise schedule's tables are those of the papers.
func ExampleProcess_Schedule() {
	process := tiny()
	defer process.Close()

	left, err := process.Schedule(diffusion.TableSqrtAlphaCumprod)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d timesteps, of the image %.2f is left at the first and %.2f at the last\n", len(left), left[0], left[49])
	// Output: 50 timesteps, of the image 1.00 is left at the first and 0.00 at the last
}

// Where the log goes is the program's choice.
func ExampleProcess_SetLog() {
	process := tiny()
	defer process.Close()

	err := process.SetLog(func(level diffusion.LogLevel, message string) {
		log.Printf("diffusion: %v: %s", level, message)
	})
	fmt.Println(err)
	// Output: <nil>
}
