// Package diffusion trains and samples image diffusion models inside a Go program, through the C ABI of
// libdiffusion. There is no Python in it; it runs on the CPU and on CUDA.
//
//	cfg := diffusion.DefaultConfig()
//	cfg.ImageSize, cfg.Channels, cfg.HiddenDims = 16, 3, []int{32, 64}
//	process, err := diffusion.New(cfg) // or diffusion.Load("models/textures", nil)
//	if err != nil {
//		return err
//	}
//	defer process.Close()
//
//	loss, err := process.TrainStep(ctx, images, batch)
//
//	params := diffusion.DefaultSampleParams()
//	params.NumSamples, params.Seed = 16, 42
//	pictures, err := process.SampleImages(ctx, params) // []image.Image
//
// # The library
//
// libdiffusion.so.0 is opened when it is first needed. It is looked for, in this order:
//
//  1. where the environment variable DIFFUSION_LIB says: the file, or the folder that it lies in;
//  2. in the folder of the running program;
//  3. where the system's loader looks (LD_LIBRARY_PATH, ldconfig).
//
// The first that is there is used, and if that one does not fit, the error says so ([LibraryError]) and no other is
// tried. With the build tag diffusion_link the program is linked to the library through pkg-config (package
// "diffusion") instead, and the system's loader finds it when the program starts.
//
// The package needs cgo. Built without it (CGO_ENABLED=0) it compiles, and every call that needs the library
// returns an error that says so and matches [ErrLibrary].
//
// # Images
//
// Numbers are 32-bit floats in [-1, 1], laid out [batch, channels, height, width], rows from the top. Image i of a
// sampling call is determined by (seed, i), whatever else is computed at the same time.
//
// # Contexts
//
// A context that ends cancels the work that it was given to, and the call returns an error that matches both
// ctx.Err() and [ErrCancelled].
//
// For sampling calls and [Job] that is exact: the job in question is cancelled, at its next denoising step at the
// latest, and no other. The C ABI has no such handle on the other calls (TrainStep, AddNoise, PredictNoise, Save,
// Export, ReadParameter, WriteParameter), only a diffusion_cancel for all that a process is doing. So a context that ends
// during one of these cancels it as soon as no other call or job of the same Process is under way, and never at
// the cost of another; until then the call waits for its turn as if nothing had happened, and may succeed.
// A TrainStep that returns an error has changed no weight.
//
// # Errors
//
// What the library refuses is an [*Error] with its status and a message that names the argument, its value and
// what it may be. Use errors.Is with [ErrInvalidArgument] and its like, errors.As for the rest. After an error the
// Process works on.
//
// # Goroutines and memory
//
// All functions and methods may be used from any number of goroutines at a time. Sampling calls that are under way
// together are computed together. Each call that waits for the library occupies an operating-system thread.
//
// Process and Job hold memory outside Go's heap: Close them. A value that the garbage collector finds unreachable
// is closed as well, but the collector knows nothing of the size of what hangs on it. Slices that are passed in
// must not be written by others until the call returns; none is kept.
package diffusion
