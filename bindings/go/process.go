package diffusion

// Process: its life, and every call on it but the sampling jobs.

import (
	"context"
	"image"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// A Process is a diffusion model with its noise schedule, weights, optimizer and the thread that computes.
//
// All methods may be called from any goroutine at any time. Calls on one Process take their turn; sampling calls
// are computed together. Close it when it is no longer needed: a call that is under way then, or made later,
// returns an error that matches ErrClosed.
type Process struct {
	state   *processState
	cleanup runtime.Cleanup

	// What of the config the sizes of results depend on; it never changes.
	imageSize, channels, noiseSteps int
}

// processState is what outlives the Process where the garbage collector finds it unreachable: it must not lead
// back to it.
type processState struct {
	handle atomic.Uintptr // the library's key (not an address); 0 when closed

	mutex sync.Mutex
	calls int                    // calls under way
	jobs  map[*jobState]struct{} // jobs not closed
	sizes map[string]int         // parameters' lengths, once asked for

	logMutex sync.Mutex
	log      *logSink
}

// testHook is called by tests between taking a handle and using it.
var testHook func()

// New makes a process with fresh weights, determined by config.Seed.
//
// Errors: ErrLibrary, ErrInvalidArgument, ErrDeviceUnavailable, ErrOutOfMemory, ErrTorch.
func New(config Config) (*Process, error) {
	return newProcess(func() (uintptr, error) { return abiCreate(&config) })
}

// NewWithBetas is New with a table of betas in place of a formula: betas[t] in (0, 1] is the variance of the noise
// that step t adds. Their number must be config.NoiseSteps; BetaStart, BetaEnd and BetaSchedule are ignored.
//
// Errors: as New, and ErrBufferSize, ErrNullPointer.
func NewWithBetas(config Config, betas []float64) (*Process, error) {
	return newProcess(func() (uintptr, error) { return abiCreateWithBetas(&config, betas) })
}

// Load makes a process from a checkpoint folder: one that Save wrote, or a diffusers folder with a UNet2DModel.
//
// overrides may be nil. Otherwise each field of it that differs from DefaultConfig's replaces the checkpoint's value
// (Device, MaxBatch, LearningRate, ...). What makes up the network and the noise schedule cannot be replaced: such a
// field that contradicts the checkpoint is an ErrInvalidArgument. A checkpoint without training state starts
// training afresh, at step 0. Nothing in a checkpoint is ever executed.
//
// Errors: as New, and ErrIO (unreadable), ErrFormat (damaged or not supported; the message names file and field).
func Load(path string, overrides *Config) (*Process, error) {
	if err := noNUL("diffusion_load", "path", path); err != nil {
		return nil, err
	}
	return newProcess(func() (uintptr, error) { return abiLoad(path, overrides) })
}

func newProcess(create func() (uintptr, error)) (*Process, error) {
	if err := open(); err != nil {
		return nil, err
	}
	handle, err := create()
	if err != nil {
		return nil, err
	}
	config, err := abiGetConfig(handle)
	if err != nil {
		_ = abiDestroy(handle)
		return nil, err
	}
	p := &Process{
		state:      &processState{jobs: map[*jobState]struct{}{}},
		imageSize:  config.ImageSize,
		channels:   config.Channels,
		noiseSteps: config.NoiseSteps,
	}
	p.state.handle.Store(handle)
	// Destroying waits for a step under way; the runtime's cleanup goroutine has others to serve.
	p.cleanup = runtime.AddCleanup(p, func(s *processState) { go s.close() }, p.state)
	return p, nil
}

// Close ends the process and frees its memory. Calls under way in other goroutines, and its jobs, end with an error
// that matches ErrCancelled and ErrClosed; Close waits until its thread is gone, which can take as long as one step of
// denoising or training. A second Close does nothing and returns nil. It must not be called by the log function.
func (p *Process) Close() error {
	if p == nil || p.state == nil {
		return nil
	}
	if abiInLog() {
		return argumentError("diffusion_destroy", "called by the log function: must not be")
	}
	p.cleanup.Stop()
	err := p.state.close()
	runtime.KeepAlive(p)
	return err
}

func (s *processState) close() error {
	handle := s.handle.Swap(0)
	if handle == 0 {
		return nil
	}
	err := abiDestroy(handle)
	// The library's thread is gone: nobody uses the log function any more.
	s.logMutex.Lock()
	defer s.logMutex.Unlock()
	s.log.release()
	s.log = nil
	return err
}

// do makes one call of the ABI on the process's handle, as one of the calls under way.
func (p *Process) do(function string, call func(handle uintptr) error) error {
	if p == nil || p.state == nil {
		return closedError(function, "process")
	}
	s := p.state
	s.mutex.Lock()
	handle := s.handle.Load()
	if handle == 0 {
		s.mutex.Unlock()
		return closedError(function, "process")
	}
	s.calls++
	s.mutex.Unlock()
	defer func() {
		s.mutex.Lock()
		s.calls--
		s.mutex.Unlock()
	}()
	if testHook != nil {
		testHook()
	}
	err := call(handle)
	runtime.KeepAlive(p)
	return explainClosed(err, s.handle.Load() == 0)
}

// doContext is do for a call that has no handle by which it could be cancelled alone: see the package's comment.
func (p *Process) doContext(ctx context.Context, function string, call func(handle uintptr) error) error {
	if err := contextDone(ctx, function); err != nil {
		return err
	}
	return p.do(function, func(handle uintptr) error {
		finished := make(chan struct{})
		stop := context.AfterFunc(ctx, func() { p.state.cancelWhenAlone(finished) })
		defer func() {
			close(finished)
			stop()
		}()
		return explainContext(ctx, call(handle))
	})
}

// cancelWhenAlone cancels all that the process is doing as soon as that is one call and no job, until that call is
// finished. It repeats, since the call may not have reached the library when it looks, or others may be under way.
func (s *processState) cancelWhenAlone(finished <-chan struct{}) {
	pause := time.NewTicker(5 * time.Millisecond)
	defer pause.Stop()
	for {
		s.cancelIfAlone(finished)
		select {
		case <-finished:
			return
		case <-pause.C:
		}
	}
}

func (s *processState) cancelIfAlone(finished <-chan struct{}) {
	// While the mutex is held no call is counted in or out. So if our call has not finished it is among them, and if
	// there is only one it is ours.
	s.mutex.Lock()
	defer s.mutex.Unlock()
	select {
	case <-finished:
		return
	default:
	}
	handle := s.handle.Load()
	if handle == 0 || s.calls != 1 {
		return
	}
	for job := range s.jobs {
		if job.underWay() {
			return
		}
	}
	_ = abiCancel(handle)
}

// Cancel ends every call and job of the process that is waiting or under way with ErrCancelled, and returns at once.
// A TrainStep that is under way ends as cancelled if it has not yet changed the weights, else it succeeds. The
// process works on.
func (p *Process) Cancel() error {
	return p.do("diffusion_cancel", abiCancel)
}

// Config returns what the process is: every field resolved, nothing left at DeviceAuto or 0-for-default.
func (p *Process) Config() (Config, error) {
	var config Config
	err := p.do("diffusion_get_config", func(handle uintptr) (err error) {
		config, err = abiGetConfig(handle)
		return err
	})
	return config, err
}

// Save writes a checkpoint folder: diffusers' layout, which DDPMPipeline.from_pretrained opens in Python, and beside
// it the training state. A crash at any moment leaves the old checkpoint or the new one. An existing folder is
// replaced if it is empty or holds a checkpoint; any other is refused. It waits for training calls made before.
//
// Errors: ErrInvalidArgument (the folder has something else in it), ErrIO, ErrCancelled.
func (p *Process) Save(ctx context.Context, path string) error {
	const function = "diffusion_save"
	if err := noNUL(function, "path", path); err != nil {
		return err
	}
	return p.doContext(ctx, function, func(handle uintptr) error { return abiSave(handle, path) })
}

// Export writes the model alone, to be shipped: the folder of Save with the weights that sampling uses, in a smaller
// format, and without training state. PrecisionF16 and PrecisionBF16 halve the file; computing is done in 32 bits all
// the same.
//
// Errors: as Save, and ErrInvalidArgument (precision), ErrNonFinite (a weight is beyond what f16 can hold).
func (p *Process) Export(ctx context.Context, path string, precision Precision) error {
	const function = "diffusion_export"
	if err := noNUL(function, "path", path); err != nil {
		return err
	}
	return p.doContext(ctx, function, func(handle uintptr) error { return abiExport(handle, path, precision) })
}

// Schedule returns one of the noise schedule's tables, [NoiseSteps].
func (p *Process) Schedule(table Table) ([]float32, error) {
	var values []float32
	err := p.do("diffusion_get_schedule", func(handle uintptr) error {
		values = make([]float32, p.noiseSteps)
		return abiGetSchedule(handle, table, values)
	})
	if err != nil {
		return nil, err
	}
	return values, nil
}

// SetLog sets who receives the process's log, in place of nobody or of an earlier function; nil ends it. What was
// logged before and not delivered is delivered first, by this goroutine. When SetLog returns, the earlier function
// is not running and will not be called again.
//
// The function is called by the process's own thread, one call at a time. It must be quick and must not use this
// package; a panic in it ends the program, as in any goroutine that nobody waits for.
func (p *Process) SetLog(receive func(level LogLevel, message string)) error {
	const function = "diffusion_set_log_callback"
	if abiInLog() {
		return argumentError(function, "called by the log function: must not be")
	}
	var sink *logSink
	err := p.do(function, func(handle uintptr) error {
		s := p.state
		s.logMutex.Lock()
		defer s.logMutex.Unlock()
		if receive != nil {
			sink = newLogSink(receive)
		}
		if err := abiSetLog(handle, sink); err != nil {
			sink.release()
			return err
		}
		s.log.release()
		s.log = sink
		return nil
	})
	sink.settled()
	return err
}

// AddNoise noises images to given timesteps: noisy = sqrt_alpha_cumprod[t] * image +
// sqrt_one_minus_alpha_cumprod[t] * noise, with noise from N(0, 1) that is determined for image i by (seed, i).
// It returns the noisy images and the noise.
//
// images: [len(timesteps), channels, size, size]; timesteps: each in 0..NoiseSteps.
// Errors: ErrInvalidArgument, ErrNullPointer, ErrBufferSize, ErrNonFinite, ErrCancelled, ErrOutOfMemory.
func (p *Process) AddNoise(ctx context.Context, images []float32, timesteps []int64, seed uint64) (noisy, noise []float32, err error) {
	noisy, noise = like(images), like(images)
	if err := p.AddNoiseInto(ctx, images, timesteps, seed, noisy, noise); err != nil {
		return nil, nil, err
	}
	return noisy, noise, nil
}

// AddNoiseInto is AddNoise with the caller's memory: noisy and noise have the length of images. noisy may be images
// itself.
func (p *Process) AddNoiseInto(ctx context.Context, images []float32, timesteps []int64, seed uint64, noisy, noise []float32) error {
	return p.doContext(ctx, "diffusion_add_noise", func(handle uintptr) error {
		return abiAddNoise(handle, images, timesteps, seed, noisy, noise)
	})
}

// PredictNoise evaluates the U-Net: what it predicts (by Config.PredictionType) for noisy images at given timesteps.
// With the moving average's weights where EMADecay is not 0.
//
// images and the result: [len(timesteps), channels, size, size]; timesteps: each in 0..NoiseSteps.
// Errors: as AddNoise.
func (p *Process) PredictNoise(ctx context.Context, images []float32, timesteps []int64) ([]float32, error) {
	out := like(images)
	if err := p.PredictNoiseInto(ctx, images, timesteps, out); err != nil {
		return nil, err
	}
	return out, nil
}

// PredictNoiseInto is PredictNoise with the caller's memory: out has the length of images.
func (p *Process) PredictNoiseInto(ctx context.Context, images []float32, timesteps []int64, out []float32) error {
	return p.doContext(ctx, "diffusion_predict_noise", func(handle uintptr) error {
		return abiPredictNoise(handle, images, timesteps, out)
	})
}

// PredictNoiseWithClasses is PredictNoise for a network with classes: classLabels has the class of each image, in
// 0..NumClassEmbeds.
func (p *Process) PredictNoiseWithClasses(ctx context.Context, images []float32, timesteps, classLabels []int64) ([]float32, error) {
	const function = "diffusion_predict_noise_with_classes"
	if len(classLabels) != len(timesteps) {
		return nil, argumentError(function, "class_labels has %d entries: must have %d, one for each image", len(classLabels), len(timesteps))
	}
	out := like(images)
	err := p.doContext(ctx, function, func(handle uintptr) error {
		return abiPredictNoiseWithClasses(handle, images, timesteps, classLabels, out)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func like(images []float32) []float32 {
	if images == nil {
		return nil
	}
	return make([]float32, len(images))
}

// Sample samples images by DDPM over all NoiseSteps. The result is [numSamples, channels, size, size] in [-1, 1];
// image i is determined by (seed, i).
//
// Errors: ErrInvalidArgument, ErrCancelled, ErrOutOfMemory, ErrNonFinite (the weights are broken).
func (p *Process) Sample(ctx context.Context, numSamples int, seed uint64) ([]float32, error) {
	const function = "diffusion_sample"
	params := DefaultSampleParams()
	params.Method, params.NumSamples, params.Seed = MethodDDPM, numSamples, seed
	if ctx.Done() != nil {
		return p.sampleF32(ctx, params)
	}
	out, err := p.room(function, &params)
	if err != nil {
		return nil, err
	}
	err = p.do(function, func(handle uintptr) error { return abiSample(handle, numSamples, seed, out.F32) })
	if err != nil {
		return nil, err
	}
	return out.F32, nil
}

// SampleDDIM samples images by DDIM over steps of the NoiseSteps, 1..=NoiseSteps. eta in [0, 1]: 0 is deterministic
// from the starting noise, 1 is as random as DDPM. Otherwise as Sample.
func (p *Process) SampleDDIM(ctx context.Context, numSamples, steps int, eta float32, seed uint64) ([]float32, error) {
	const function = "diffusion_sample_ddim"
	if most := p.steps(); most > 0 && (steps < 1 || steps > most) {
		// In a SampleParams 0 would be "choose for me", and the name is another.
		return nil, argumentError(function, "ddim_steps is %d: must be in 1..=%d", steps, most)
	}
	params := DefaultSampleParams()
	params.Method, params.NumSamples, params.Seed = MethodDDIM, numSamples, seed
	params.Steps, params.Eta = steps, float64(eta)
	if ctx.Done() != nil {
		return p.sampleF32(ctx, params)
	}
	out, err := p.room(function, &params)
	if err != nil {
		return nil, err
	}
	err = p.do(function, func(handle uintptr) error {
		return abiSampleDDIM(handle, numSamples, steps, eta, seed, out.F32)
	})
	if err != nil {
		return nil, err
	}
	return out.F32, nil
}

func (p *Process) steps() int {
	if p == nil {
		return 0
	}
	return p.noiseSteps
}

func (p *Process) sampleF32(ctx context.Context, params SampleParams) ([]float32, error) {
	samples, err := p.SampleWith(ctx, params)
	if err != nil {
		return nil, err
	}
	return samples.F32, nil
}

// SampleWith samples images with every choice there is. Any number of goroutines may sample from one Process at a
// time: their images are computed together.
//
// Errors: as Sample, ErrInvalidArgument for any field of params, ErrTimeout, and what params.Progress returned.
func (p *Process) SampleWith(ctx context.Context, params SampleParams) (*Samples, error) {
	if ctx.Done() == nil && params.Progress == nil {
		// Nothing can end it early: one blocking call does.
		out, err := p.room("diffusion_sample_with", &params)
		if err != nil {
			return nil, err
		}
		if err := p.sampleInto(&params, out.memory()); err != nil {
			return nil, err
		}
		return out, nil
	}
	job, err := p.Submit(ctx, params)
	if err != nil {
		return nil, err
	}
	defer job.Close()
	if err := job.Wait(ctx); err != nil {
		return nil, err
	}
	return job.Fetch()
}

// SampleWithInto is SampleWith with the caller's memory, which has exactly SampleSize bytes.
func (p *Process) SampleWithInto(ctx context.Context, params SampleParams, out []byte) error {
	if ctx.Done() == nil && params.Progress == nil {
		return p.sampleInto(&params, out)
	}
	job, err := p.Submit(ctx, params)
	if err != nil {
		return err
	}
	defer job.Close()
	if err := job.checkSize("diffusion_sample_with", out); err != nil {
		return err
	}
	if err := job.Wait(ctx); err != nil {
		return err
	}
	return job.FetchInto(out)
}

// SampleImages is SampleWith with results as pictures, each an *image.NRGBA; params.Format is ignored. For models
// of 1, 3 or 4 channels.
func (p *Process) SampleImages(ctx context.Context, params SampleParams) ([]image.Image, error) {
	params.Format = FormatRGBA8
	samples, err := p.SampleWith(ctx, params)
	if err != nil {
		return nil, err
	}
	return samples.Images(), nil
}

// SampleSize returns how many bytes SampleWithInto and Job.FetchInto write for these parameters.
func (p *Process) SampleSize(params SampleParams) (int, error) {
	var size int
	err := p.do("diffusion_sample_size", func(handle uintptr) (err error) {
		size, err = abiSampleSize(handle, &params)
		return err
	})
	return size, err
}

func (p *Process) sampleInto(params *SampleParams, out []byte) error {
	return p.do("diffusion_sample_with", func(handle uintptr) error { return abiSampleWith(handle, params, out) })
}

// room allocates what a sampling call writes into.
func (p *Process) room(function string, params *SampleParams) (*Samples, error) {
	var samples *Samples
	err := p.do(function, func(handle uintptr) error {
		size, err := abiSampleSize(handle, params)
		if err != nil {
			return err
		}
		samples, err = newSamples(params.Format, params.NumSamples, p.channels, p.imageSize, size)
		return err
	})
	return samples, err
}

// TrainStep takes one optimizer step on a batch of images and returns the loss: a random timestep for each image,
// AddNoise, the U-Net's prediction, backpropagation, clipping, optimizer, moving average. With
// Config.AccumulationSteps above 1 so many calls make one step.
//
// images: [batch, channels, size, size], meant to be in [-1, 1]. It waits for the sampling jobs submitted before;
// those submitted later see the new weights. If it returns an error, no weight has changed.
// Errors: ErrInvalidArgument, ErrNullPointer, ErrBufferSize, ErrNonFinite (images or loss), ErrCancelled,
// ErrOutOfMemory.
func (p *Process) TrainStep(ctx context.Context, images []float32, batch int) (float32, error) {
	var loss float32
	err := p.doContext(ctx, "diffusion_train_step", func(handle uintptr) error {
		return abiTrainStep(handle, images, batch, &loss)
	})
	if err != nil {
		return 0, err
	}
	return loss, nil
}

// TrainStepWithoutLoss is TrainStep for those who do not look at every loss: on CUDA it need not wait for the
// device.
func (p *Process) TrainStepWithoutLoss(ctx context.Context, images []float32, batch int) error {
	return p.doContext(ctx, "diffusion_train_step", func(handle uintptr) error {
		return abiTrainStep(handle, images, batch, nil)
	})
}

// TrainStepWithClasses is TrainStep for a network with classes: classLabels has the class of each image, in
// 0..NumClassEmbeds, and so many images there are.
func (p *Process) TrainStepWithClasses(ctx context.Context, images []float32, classLabels []int64) (float32, error) {
	var loss float32
	err := p.doContext(ctx, "diffusion_train_step_with_classes", func(handle uintptr) error {
		return abiTrainStepWithClasses(handle, images, classLabels, &loss)
	})
	if err != nil {
		return 0, err
	}
	return loss, nil
}

// StepCount returns how many optimizer steps have been taken since the weights were made, those before the last Save
// included.
func (p *Process) StepCount() (uint64, error) {
	var count uint64
	err := p.do("diffusion_get_step_count", func(handle uintptr) (err error) {
		count, err = abiGetStepCount(handle)
		return err
	})
	return count, err
}

// LearningRate returns the optimizer's learning rate.
func (p *Process) LearningRate() (float64, error) {
	var rate float64
	err := p.do("diffusion_get_learning_rate", func(handle uintptr) (err error) {
		rate, err = abiGetLearningRate(handle)
		return err
	})
	return rate, err
}

// SetLearningRate sets the optimizer's learning rate, > 0, from the next training step on.
func (p *Process) SetLearningRate(rate float64) error {
	return p.do("diffusion_set_learning_rate", func(handle uintptr) error { return abiSetLearningRate(handle, rate) })
}

// GradientScale returns the factor by which the loss is scaled so that f16 gradients do not vanish; 1 unless
// Config.MixedPrecision is PrecisionF16.
func (p *Process) GradientScale() (float64, error) {
	var scale float64
	err := p.do("diffusion_get_gradient_scale", func(handle uintptr) (err error) {
		scale, err = abiGetGradientScale(handle)
		return err
	})
	return scale, err
}

// Parameter is what one tensor of the U-Net's parameters is called and how large it is.
type Parameter struct {
	Name  string // diffusers' name of it, e.g. "down_blocks.0.resnets.0.conv1.weight"
	Shape []int
	Len   int // the number of floats: the product of Shape
}

// Parameters returns the U-Net's tensors, in diffusers' order.
func (p *Process) Parameters() ([]Parameter, error) {
	var parameters []Parameter
	err := p.do("diffusion_parameter_describe", func(handle uintptr) error {
		count, err := abiParameterCount(handle)
		if err != nil {
			return err
		}
		parameters = make([]Parameter, count)
		for i := range parameters {
			if parameters[i], err = abiParameterDescribe(handle, i); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return parameters, nil
}

// ReadParameter returns the values of the tensor called name. It waits for training calls made before.
//
// Errors: ErrInvalidArgument (weights, name), ErrCancelled.
func (p *Process) ReadParameter(ctx context.Context, weights Weights, name string) ([]float32, error) {
	const function = "diffusion_parameter_read"
	if err := noNUL(function, "name", name); err != nil {
		return nil, err
	}
	size, err := p.parameterLen(name)
	if err != nil {
		return nil, err
	}
	values := make([]float32, size)
	err = p.doContext(ctx, function, func(handle uintptr) error {
		return abiParameterRead(handle, weights, name, values)
	})
	if err != nil {
		return nil, err
	}
	return values, nil
}

// parameterLen is the length of a parameter, or 1 for a name that is none: the library then says so.
func (p *Process) parameterLen(name string) (int, error) {
	if p != nil && p.state != nil {
		p.state.mutex.Lock()
		sizes := p.state.sizes
		p.state.mutex.Unlock()
		if sizes != nil {
			return max(sizes[name], 1), nil
		}
	}
	parameters, err := p.Parameters()
	if err != nil {
		return 0, err
	}
	sizes := make(map[string]int, len(parameters))
	for _, parameter := range parameters {
		sizes[parameter.Name] = parameter.Len
	}
	p.state.mutex.Lock()
	p.state.sizes = sizes
	p.state.mutex.Unlock()
	return max(sizes[name], 1), nil
}

// WriteParameter replaces the values of the tensor called name; there must be Parameter.Len of them. To set both
// kinds of weights, call it twice. The optimizer's averages stay. It waits for the sampling jobs and training calls
// made before.
//
// Errors: ErrInvalidArgument (weights, name), ErrNullPointer, ErrBufferSize, ErrNonFinite, ErrCancelled.
func (p *Process) WriteParameter(ctx context.Context, weights Weights, name string, values []float32) error {
	const function = "diffusion_parameter_write"
	if err := noNUL(function, "name", name); err != nil {
		return err
	}
	return p.doContext(ctx, function, func(handle uintptr) error {
		return abiParameterWrite(handle, weights, name, values)
	})
}
