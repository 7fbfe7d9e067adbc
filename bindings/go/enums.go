package diffusion

// The ABI's enumerations. Their numbers are the header's; a test holds them against it. Each has a short name for
// flags and configuration files: String gives it, MarshalText and UnmarshalText make flag.TextVar and
// encoding/json use it.

import (
	"fmt"
	"strconv"
	"strings"
)

// Device is where a Process computes.
type Device int32

// The devices.
const (
	DeviceAuto Device = 0 // "auto": CUDA if a usable device and libtorch's CUDA libraries are there, else the CPU
	DeviceCPU  Device = 1 // "cpu"
	DeviceCUDA Device = 2 // "cuda": the device numbered Config.DeviceIndex, or ErrDeviceUnavailable
)

// BetaSchedule is how the variance of the noise grows with the timestep.
type BetaSchedule int32

// The noise schedules.
const (
	ScheduleCosine       BetaSchedule = 0 // "cosine": Nichol and Dhariwal (arXiv 2102.09672), clipped to [BetaStart, BetaEnd]
	ScheduleLinear       BetaSchedule = 1 // "linear": evenly from BetaStart to BetaEnd (arXiv 2006.11239)
	ScheduleCosineRamp   BetaSchedule = 2 // "cosine-ramp": half a cosine wave from BetaStart up to BetaEnd
	ScheduleScaledLinear BetaSchedule = 3 // "scaled-linear": squares of an even spacing of the square roots
	ScheduleSigmoid      BetaSchedule = 4 // "sigmoid": a logistic curve
	ScheduleGiven        BetaSchedule = 5 // "given": a table, from NewWithBetas or a checkpoint
)

// Prediction is what the network is trained to predict.
type Prediction int32

// The predictions.
const (
	PredictionEpsilon  Prediction = 0 // "epsilon": the noise that was added
	PredictionSample   Prediction = 1 // "sample": the clean image
	PredictionVelocity Prediction = 2 // "velocity": arXiv 2202.00512
)

// Loss is what training minimises.
type Loss int32

// What a Config may name.
const (
	LossMSE   Loss = 0 // "mse": the mean of squared differences (arXiv 2006.11239)
	LossHuber Loss = 1 // "huber": half the square of a difference up to HuberDelta, linear beyond
)

// ClassesAsTimesteps is a Config.NumClassEmbeds: labels are any whole numbers, embedded as timesteps are.
const ClassesAsTimesteps = -1

// Optimizer is how TrainStep changes the weights.
type Optimizer int32

// The optimizers.
const (
	OptimizerAdam  Optimizer = 0 // "adam": arXiv 1412.6980; WeightDecay is added to the gradient
	OptimizerAdamW Optimizer = 1 // "adamw": arXiv 1711.05101; WeightDecay shrinks the weights directly
)

// Precision is the arithmetic of training or of sampling.
type Precision int32

// The precisions.
const (
	PrecisionF32  Precision = 0 // "f32"
	PrecisionF16  Precision = 1 // "f16": autocast with a gradient scaler; CUDA only
	PrecisionBF16 Precision = 2 // "bf16": autocast; CPU and CUDA
	PrecisionAuto Precision = 3 // "auto": the fastest that is close enough; for sampling only
)

// Table is one of the noise schedule's tables, each [NoiseSteps].
type Table int32

// The tables.
const (
	TableBeta                     Table = 0 // "beta": the variance of the noise that step t adds
	TableAlpha                    Table = 1 // "alpha": 1 - beta
	TableAlphaCumprod             Table = 2 // "alpha-cumprod": the product of alpha up to and including t
	TableSqrtAlphaCumprod         Table = 3 // "sqrt-alpha-cumprod": how much of the image is left at t
	TableSqrtOneMinusAlphaCumprod Table = 4 // "sqrt-one-minus-alpha-cumprod": how much noise there is at t
)

// Method is a sampling method.
type Method int32

// The sampling methods.
const (
	MethodDDPM           Method = 0 // "ddpm": ancestral sampling (arXiv 2006.11239)
	MethodDDIM           Method = 1 // "ddim": arXiv 2010.02502
	MethodDPMSolver2M    Method = 2 // "dpm-solver++": DPM-Solver++ 2M (arXiv 2211.01095), deterministic
	MethodDPMSolver2MSDE Method = 3 // "dpm-solver++-sde": the SDE form of it
	MethodUniPC          Method = 4 // "unipc": arXiv 2302.04867
	MethodEuler          Method = 5 // "euler": on the probability-flow ODE (arXiv 2206.00364)
	MethodHeun           Method = 6 // "heun": second order on the same ODE; two network calls a step
)

// Spacing is which timesteps a sampler visits.
type Spacing int32

// The spacings.
const (
	SpacingDefault  Spacing = -1 // "default": what the checkpoint says, or else the library's choice
	SpacingLeading  Spacing = 0  // "leading": multiples of NoiseSteps / Steps, counted from 0
	SpacingTrailing Spacing = 1  // "trailing": counted down from NoiseSteps - 1
	SpacingLinspace Spacing = 2  // "linspace": evenly from 0 to NoiseSteps - 1, both included
	SpacingKarras   Spacing = 3  // "karras": noise levels after Karras et al. (arXiv 2206.00364, rho 7)
)

// Variance is the noise that DDPM adds at each step.
type Variance int32

// The variances.
const (
	VarianceDefault    Variance = -1 // "default": what the checkpoint says, or else the library's choice
	VarianceFixedSmall Variance = 0  // "fixed-small": the posterior's variance
	VarianceFixedLarge Variance = 1  // "fixed-large": beta itself
)

// Choice is yes, no, or what the checkpoint says.
type Choice int32

// The choices.
const (
	ChoiceDefault Choice = -1 // "default"
	ChoiceNo      Choice = 0  // "no"
	ChoiceYes     Choice = 1  // "yes"
)

// Format is how sampled images are laid out.
type Format int32

// The formats.
const (
	FormatF32   Format = 0 // "f32": float32 [n, channels, size, size] in [-1, 1]
	FormatF16   Format = 1 // "f16": the same in IEEE half precision, as its 16 bits
	FormatRGB8  Format = 2 // "rgb8": bytes [n, size, size, 3]; for 1, 3 or 4 channels: gray is repeated, alpha dropped
	FormatRGBA8 Format = 3 // "rgba8": bytes [n, size, size, 4], alpha not premultiplied; 255 where there is none
)

// JobState is how far a Job has come.
type JobState int32

// The states.
const (
	JobQueued    JobState = 0 // "queued": waits for its first denoising step
	JobRunning   JobState = 1 // "running"
	JobDone      JobState = 2 // "done": the images are ready for Fetch
	JobFailed    JobState = 3 // "failed": Wait returns why
	JobCancelled JobState = 4 // "cancelled": or ran out of its time, or its Process was closed
)

// Weights is which values of a parameter are meant.
type Weights int32

// The weights.
const (
	WeightsTrained Weights = 0 // "trained": those that the optimizer trains
	WeightsEMA     Weights = 1 // "ema": their moving average, which sampling uses; the trained ones if EMADecay is 0
)

// LogLevel is how much a log message matters.
type LogLevel int32

// The levels.
const (
	LogWarning LogLevel = 1 // "warning": something is likely to give poor results
	LogInfo    LogLevel = 2 // "info"
)

// enum is one enumeration's names; the first belongs to the number first.
type enum struct {
	what  string
	first int32
	names []string
}

var (
	deviceNames     = enum{"device", 0, []string{"auto", "cpu", "cuda"}}
	scheduleNames   = enum{"beta schedule", 0, []string{"cosine", "linear", "cosine-ramp", "scaled-linear", "sigmoid", "given"}}
	predictionNames = enum{"prediction", 0, []string{"epsilon", "sample", "velocity"}}
	optimizerNames  = enum{"optimizer", 0, []string{"adam", "adamw"}}
	lossNames       = enum{"loss", 0, []string{"mse", "huber"}}
	precisionNames  = enum{"precision", 0, []string{"f32", "f16", "bf16", "auto"}}
	tableNames      = enum{"table", 0, []string{"beta", "alpha", "alpha-cumprod", "sqrt-alpha-cumprod", "sqrt-one-minus-alpha-cumprod"}}
	methodNames     = enum{"method", 0, []string{"ddpm", "ddim", "dpm-solver++", "dpm-solver++-sde", "unipc", "euler", "heun"}}
	spacingNames    = enum{"spacing", -1, []string{"default", "leading", "trailing", "linspace", "karras"}}
	varianceNames   = enum{"variance", -1, []string{"default", "fixed-small", "fixed-large"}}
	choiceNames     = enum{"choice", -1, []string{"default", "no", "yes"}}
	formatNames     = enum{"format", 0, []string{"f32", "f16", "rgb8", "rgba8"}}
	stateNames      = enum{"job state", 0, []string{"queued", "running", "done", "failed", "cancelled"}}
	weightsNames    = enum{"weights", 0, []string{"trained", "ema"}}
	levelNames      = enum{"log level", 1, []string{"warning", "info"}}
)

func (e enum) string(value int32) string {
	if i := int64(value) - int64(e.first); i >= 0 && i < int64(len(e.names)) {
		return e.names[i]
	}
	return fmt.Sprintf("%s %d", e.what, value)
}

func (e enum) marshal(value int32) ([]byte, error) {
	if i := int64(value) - int64(e.first); i >= 0 && i < int64(len(e.names)) {
		return []byte(e.names[i]), nil
	}
	return nil, fmt.Errorf("%w: %s is %d: has no name", ErrInvalidArgument, e.what, value)
}

func (e enum) unmarshal(text []byte, value *int32) error {
	for i, name := range e.names {
		if name == string(text) {
			*value = e.first + int32(i)
			return nil
		}
	}
	return fmt.Errorf("%w: %s is %q: must be one of %s", ErrInvalidArgument, e.what, text, strings.Join(e.names, ", "))
}

// String returns the short name.
func (v Device) String() string { return deviceNames.string(int32(v)) }

// MarshalText returns the short name.
func (v Device) MarshalText() ([]byte, error) { return deviceNames.marshal(int32(v)) }

// UnmarshalText takes the short name.
func (v *Device) UnmarshalText(text []byte) error { return deviceNames.unmarshal(text, (*int32)(v)) }

// ParseDevice reads what a program's option says: auto, cpu, cuda or cuda:N, N being the device's index, 0..=1023. They
// are for Config.Device and Config.DeviceIndex. The error is an ErrInvalidArgument.
func ParseDevice(text string) (device Device, index int, err error) {
	name, number, numbered := strings.Cut(text, ":")
	wrong := device.UnmarshalText([]byte(name)) != nil || numbered && device != DeviceCUDA
	if numbered && !wrong {
		index, err = strconv.Atoi(number)
		wrong = err != nil || index < 0 || index > 1023 || number[0] == '+'
	}
	if wrong {
		return DeviceAuto, 0, fmt.Errorf("%w: device is %q: must be auto, cpu, cuda or cuda:N with N in 0..=1023",
			ErrInvalidArgument, text)
	}
	return device, index, nil
}

// String returns the short name.
func (v BetaSchedule) String() string { return scheduleNames.string(int32(v)) }

// MarshalText returns the short name.
func (v BetaSchedule) MarshalText() ([]byte, error) { return scheduleNames.marshal(int32(v)) }

// UnmarshalText takes the short name.
func (v *BetaSchedule) UnmarshalText(text []byte) error {
	return scheduleNames.unmarshal(text, (*int32)(v))
}

// String returns the short name.
func (v Prediction) String() string { return predictionNames.string(int32(v)) }

// MarshalText returns the short name.
func (v Prediction) MarshalText() ([]byte, error) { return predictionNames.marshal(int32(v)) }

// UnmarshalText takes the short name.
func (v *Prediction) UnmarshalText(text []byte) error {
	return predictionNames.unmarshal(text, (*int32)(v))
}

// String returns the short name.
func (v Loss) String() string { return lossNames.string(int32(v)) }

// MarshalText returns the short name.
func (v Loss) MarshalText() ([]byte, error) { return lossNames.marshal(int32(v)) }

// UnmarshalText takes the short name.
func (v *Loss) UnmarshalText(text []byte) error { return lossNames.unmarshal(text, (*int32)(v)) }

// String returns the short name.
func (v Optimizer) String() string { return optimizerNames.string(int32(v)) }

// MarshalText returns the short name.
func (v Optimizer) MarshalText() ([]byte, error) { return optimizerNames.marshal(int32(v)) }

// UnmarshalText takes the short name.
func (v *Optimizer) UnmarshalText(text []byte) error {
	return optimizerNames.unmarshal(text, (*int32)(v))
}

// String returns the short name.
func (v Precision) String() string { return precisionNames.string(int32(v)) }

// MarshalText returns the short name.
func (v Precision) MarshalText() ([]byte, error) { return precisionNames.marshal(int32(v)) }

// UnmarshalText takes the short name.
func (v *Precision) UnmarshalText(text []byte) error {
	return precisionNames.unmarshal(text, (*int32)(v))
}

// String returns the short name.
func (v Table) String() string { return tableNames.string(int32(v)) }

// MarshalText returns the short name.
func (v Table) MarshalText() ([]byte, error) { return tableNames.marshal(int32(v)) }

// UnmarshalText takes the short name.
func (v *Table) UnmarshalText(text []byte) error { return tableNames.unmarshal(text, (*int32)(v)) }

// String returns the short name.
func (v Method) String() string { return methodNames.string(int32(v)) }

// MarshalText returns the short name.
func (v Method) MarshalText() ([]byte, error) { return methodNames.marshal(int32(v)) }

// UnmarshalText takes the short name.
func (v *Method) UnmarshalText(text []byte) error { return methodNames.unmarshal(text, (*int32)(v)) }

// String returns the short name.
func (v Spacing) String() string { return spacingNames.string(int32(v)) }

// MarshalText returns the short name.
func (v Spacing) MarshalText() ([]byte, error) { return spacingNames.marshal(int32(v)) }

// UnmarshalText takes the short name.
func (v *Spacing) UnmarshalText(text []byte) error { return spacingNames.unmarshal(text, (*int32)(v)) }

// String returns the short name.
func (v Variance) String() string { return varianceNames.string(int32(v)) }

// MarshalText returns the short name.
func (v Variance) MarshalText() ([]byte, error) { return varianceNames.marshal(int32(v)) }

// UnmarshalText takes the short name.
func (v *Variance) UnmarshalText(text []byte) error {
	return varianceNames.unmarshal(text, (*int32)(v))
}

// String returns the short name.
func (v Choice) String() string { return choiceNames.string(int32(v)) }

// MarshalText returns the short name.
func (v Choice) MarshalText() ([]byte, error) { return choiceNames.marshal(int32(v)) }

// UnmarshalText takes the short name.
func (v *Choice) UnmarshalText(text []byte) error { return choiceNames.unmarshal(text, (*int32)(v)) }

// String returns the short name.
func (v Format) String() string { return formatNames.string(int32(v)) }

// MarshalText returns the short name.
func (v Format) MarshalText() ([]byte, error) { return formatNames.marshal(int32(v)) }

// UnmarshalText takes the short name.
func (v *Format) UnmarshalText(text []byte) error { return formatNames.unmarshal(text, (*int32)(v)) }

// String returns the short name.
func (v JobState) String() string { return stateNames.string(int32(v)) }

// MarshalText returns the short name.
func (v JobState) MarshalText() ([]byte, error) { return stateNames.marshal(int32(v)) }

// UnmarshalText takes the short name.
func (v *JobState) UnmarshalText(text []byte) error { return stateNames.unmarshal(text, (*int32)(v)) }

// String returns the short name.
func (v Weights) String() string { return weightsNames.string(int32(v)) }

// MarshalText returns the short name.
func (v Weights) MarshalText() ([]byte, error) { return weightsNames.marshal(int32(v)) }

// UnmarshalText takes the short name.
func (v *Weights) UnmarshalText(text []byte) error { return weightsNames.unmarshal(text, (*int32)(v)) }

// String returns the short name.
func (v LogLevel) String() string { return levelNames.string(int32(v)) }

// MarshalText returns the short name.
func (v LogLevel) MarshalText() ([]byte, error) { return levelNames.marshal(int32(v)) }

// UnmarshalText takes the short name.
func (v *LogLevel) UnmarshalText(text []byte) error { return levelNames.unmarshal(text, (*int32)(v)) }
