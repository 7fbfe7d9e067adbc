//go:build cgo && unix

package diffusion

// The C ABI in Go's types, one function for each; nothing else in this package touches C. Errors are *Error.

/*
#cgo !diffusion_link LDFLAGS: -ldl
#cgo diffusion_link CFLAGS: -DDIFFUSION_GO_LINK
#cgo diffusion_link pkg-config: diffusion
#include <stdlib.h>
#include "shim.h"
*/
import "C"

import (
	"fmt"
	"math"
	"unsafe"
)

// haveABI: abi_nocgo.go has another.
const haveABI = true

func abiOpen(path string) error {
	text := C.CString(path)
	defer C.free(unsafe.Pointer(text))
	opened := C.diffusion_go_open(text, wantedABI)
	defer C.free(unsafe.Pointer(opened.detail))
	return openError(path, int(opened.outcome), uint32(opened.found), C.GoString(opened.detail))
}

func abiPath() string { return C.GoString(C.diffusion_go_path()) }

func abiInLog() bool { return C.diffusion_go_in_log() != 0 }

func abiVersion() uint32 { return uint32(C.diffusion_go_abi_version()) }

func abiVersionString() string { return C.GoString(C.diffusion_go_version()) }

func abiStatusString(status int32) string {
	return C.GoString(C.diffusion_go_status_string(C.int32_t(status)))
}

// check turns the end of a call into an error.
func check(function string, r C.diffusion_go_result) error {
	if r.status == C.DIFFUSION_OK {
		return nil
	}
	defer C.free(unsafe.Pointer(r.message))
	return &Error{Status: Status(r.status), Message: C.GoString(r.message), Func: function}
}

func abiDeviceCount(device Device) (int, error) {
	var count C.int32_t
	err := check("diffusion_device_count", C.diffusion_go_device_count(C.int32_t(device), &count))
	return int(count), err
}

// narrow converts the ints of Go's structs to the ABI's 32 bits and keeps the first that does not fit.
type narrow struct {
	function string
	err      error
}

func (n *narrow) int32(name string, value int) C.int32_t {
	if value < math.MinInt32 || value > math.MaxInt32 {
		n.refuse("%s is %d: must fit in 32 bits", name, value)
	}
	return C.int32_t(value)
}

func (n *narrow) size(name string, value int) C.size_t {
	if value < 0 {
		n.refuse("%s is %d: must not be negative", name, value)
	}
	return C.size_t(value)
}

func (n *narrow) refuse(format string, arguments ...any) {
	if n.err == nil {
		n.err = argumentError(n.function, format, arguments...)
	}
}

func boolean(value bool) C.int32_t {
	if value {
		return 1
	}
	return 0
}

// configToC begins with the library's defaults, so that fields that this package does not know have theirs.
func configToC(function string, config *Config) (C.diffusion_config, error) {
	var c C.diffusion_config
	if err := check("diffusion_config_init", C.diffusion_go_config_init(&c)); err != nil {
		return c, err
	}
	n := narrow{function: function}
	if len(config.HiddenDims) > MaxLevels {
		n.refuse("hidden_dims has %d entries: must have 1..=%d", len(config.HiddenDims), MaxLevels)
	}
	c.image_size = n.int32("image_size", config.ImageSize)
	c.channels = n.int32("channels", config.Channels)
	c.hidden_dims_len = C.int32_t(len(config.HiddenDims))
	for i := range c.hidden_dims {
		c.hidden_dims[i] = 0
		if i < len(config.HiddenDims) {
			c.hidden_dims[i] = n.int32(fmt.Sprintf("hidden_dims[%d]", i), config.HiddenDims[i])
		}
	}
	c.beta_start = C.double(config.BetaStart)
	c.beta_end = C.double(config.BetaEnd)
	c.noise_steps = n.int32("noise_steps", config.NoiseSteps)
	c.beta_schedule = C.int32_t(config.BetaSchedule)
	c.prediction_type = C.int32_t(config.PredictionType)
	c.rescale_betas_zero_snr = boolean(config.RescaleBetasZeroSNR)
	c.device = C.int32_t(config.Device)
	c.device_index = n.int32("device_index", config.DeviceIndex)
	c.num_threads = n.int32("num_threads", config.NumThreads)
	c.max_batch = n.int32("max_batch", config.MaxBatch)
	c.seed = C.uint64_t(config.Seed)
	c.layers_per_block = n.int32("layers_per_block", config.LayersPerBlock)
	c.attention_levels = n.int32("attention_levels", config.AttentionLevels)
	c.attention_head_dim = n.int32("attention_head_dim", config.AttentionHeadDim)
	c.norm_num_groups = n.int32("norm_num_groups", config.NormNumGroups)
	c.dropout = C.double(config.Dropout)
	c.optimizer = C.int32_t(config.Optimizer)
	c.mixed_precision = C.int32_t(config.MixedPrecision)
	c.learning_rate = C.double(config.LearningRate)
	c.adam_beta1 = C.double(config.AdamBeta1)
	c.adam_beta2 = C.double(config.AdamBeta2)
	c.adam_epsilon = C.double(config.AdamEpsilon)
	c.weight_decay = C.double(config.WeightDecay)
	c.gradient_clip = C.double(config.GradientClip)
	c.ema_decay = C.double(config.EMADecay)
	c.loss = C.int32_t(config.Loss)
	c.num_class_embeds = n.int32("num_class_embeds", config.NumClassEmbeds)
	c.huber_delta = C.double(config.HuberDelta)
	c.min_snr_gamma = C.double(config.MinSNRGamma)
	c.warmup_steps = C.int64_t(config.WarmupSteps)
	c.decay_steps = C.int64_t(config.DecaySteps)
	c.accumulation_steps = C.int64_t(config.AccumulationSteps)
	c.inference_precision = C.int32_t(config.InferencePrecision)
	c.deterministic = boolean(config.Deterministic)
	return c, n.err
}

func configFromC(c *C.diffusion_config) Config {
	config := Config{
		ImageSize:           int(c.image_size),
		Channels:            int(c.channels),
		BetaStart:           float64(c.beta_start),
		BetaEnd:             float64(c.beta_end),
		NoiseSteps:          int(c.noise_steps),
		BetaSchedule:        BetaSchedule(c.beta_schedule),
		PredictionType:      Prediction(c.prediction_type),
		RescaleBetasZeroSNR: c.rescale_betas_zero_snr != 0,
		Device:              Device(c.device),
		DeviceIndex:         int(c.device_index),
		NumThreads:          int(c.num_threads),
		MaxBatch:            int(c.max_batch),
		Seed:                uint64(c.seed),
		LayersPerBlock:      int(c.layers_per_block),
		AttentionLevels:     int(c.attention_levels),
		AttentionHeadDim:    int(c.attention_head_dim),
		NormNumGroups:       int(c.norm_num_groups),
		Dropout:             float64(c.dropout),
		Optimizer:           Optimizer(c.optimizer),
		MixedPrecision:      Precision(c.mixed_precision),
		LearningRate:        float64(c.learning_rate),
		AdamBeta1:           float64(c.adam_beta1),
		AdamBeta2:           float64(c.adam_beta2),
		AdamEpsilon:         float64(c.adam_epsilon),
		WeightDecay:         float64(c.weight_decay),
		GradientClip:        float64(c.gradient_clip),
		EMADecay:            float64(c.ema_decay),
		Loss:                Loss(c.loss),
		NumClassEmbeds:      int(c.num_class_embeds),
		HuberDelta:          float64(c.huber_delta),
		MinSNRGamma:         float64(c.min_snr_gamma),
		WarmupSteps:         int(c.warmup_steps),
		DecaySteps:          int(c.decay_steps),
		AccumulationSteps:   int(c.accumulation_steps),
		InferencePrecision:  Precision(c.inference_precision),
		Deterministic:       c.deterministic != 0,
	}
	levels := min(max(int(c.hidden_dims_len), 0), len(c.hidden_dims))
	for _, dims := range c.hidden_dims[:levels] {
		config.HiddenDims = append(config.HiddenDims, int(dims))
	}
	return config
}

func abiConfigInit() (Config, error) {
	var c C.diffusion_config
	err := check("diffusion_config_init", C.diffusion_go_config_init(&c))
	return configFromC(&c), err
}

func abiConfigInitCIFAR10() (Config, error) {
	var c C.diffusion_config
	err := check("diffusion_config_init_cifar10", C.diffusion_go_config_init_cifar10(&c))
	return configFromC(&c), err
}

func abiCreate(config *Config) (uintptr, error) {
	const function = "diffusion_create"
	c, err := configToC(function, config)
	if err != nil {
		return 0, err
	}
	var process C.uintptr_t
	err = check(function, C.diffusion_go_create(c, &process))
	return uintptr(process), err
}

func abiCreateWithBetas(config *Config, betas []float64) (uintptr, error) {
	const function = "diffusion_create_with_betas"
	c, err := configToC(function, config)
	if err != nil {
		return 0, err
	}
	var process C.uintptr_t
	err = check(function, C.diffusion_go_create_with_betas(
		c, (*C.double)(unsafe.SliceData(betas)), C.size_t(len(betas)), &process))
	return uintptr(process), err
}

func abiLoad(path string, overrides *Config) (uintptr, error) {
	const function = "diffusion_load"
	var c C.diffusion_config
	if overrides != nil {
		var err error
		if c, err = configToC(function, overrides); err != nil {
			return 0, err
		}
	}
	text := C.CString(path)
	defer C.free(unsafe.Pointer(text))
	var process C.uintptr_t
	err := check(function, C.diffusion_go_load(text, c, boolean(overrides != nil), &process))
	return uintptr(process), err
}

func abiSave(process uintptr, path string) error {
	text := C.CString(path)
	defer C.free(unsafe.Pointer(text))
	return check("diffusion_save", C.diffusion_go_save(C.uintptr_t(process), text))
}

func abiExport(process uintptr, path string, precision Precision) error {
	text := C.CString(path)
	defer C.free(unsafe.Pointer(text))
	return check("diffusion_export", C.diffusion_go_export(C.uintptr_t(process), text, C.int32_t(precision)))
}

func abiDestroy(process uintptr) error {
	return check("diffusion_destroy", C.diffusion_go_destroy(C.uintptr_t(process)))
}

func abiCancel(process uintptr) error {
	return check("diffusion_cancel", C.diffusion_go_cancel(C.uintptr_t(process)))
}

func abiGetConfig(process uintptr) (Config, error) {
	var c C.diffusion_config
	err := check("diffusion_get_config", C.diffusion_go_get_config(C.uintptr_t(process), &c))
	return configFromC(&c), err
}

func abiGetSchedule(process uintptr, table Table, out []float32) error {
	return check("diffusion_get_schedule", C.diffusion_go_get_schedule(
		C.uintptr_t(process), C.int32_t(table), floats(out), C.size_t(len(out))))
}

func abiSetLog(process uintptr, sink *logSink) error {
	var ref callbackRef
	if sink != nil {
		ref = sink.ref
	}
	return check("diffusion_set_log_callback",
		C.diffusion_go_set_log_callback(C.uintptr_t(process), C.uintptr_t(ref)))
}

// floats is a slice as C sees it; a nil slice is NULL.
func floats(values []float32) *C.float { return (*C.float)(unsafe.SliceData(values)) }

func steps(timesteps []int64) *C.int64_t { return (*C.int64_t)(unsafe.SliceData(timesteps)) }

func abiSampleParamsInit() (SampleParams, error) {
	var c C.diffusion_sample_params
	err := check("diffusion_sample_params_init", C.diffusion_go_sample_params_init(&c))
	return SampleParams{
		Method:                Method(c.method),
		NumSamples:            int(c.num_samples),
		Seed:                  uint64(c.seed),
		Steps:                 int(c.steps),
		Spacing:               Spacing(c.spacing),
		Eta:                   float64(c.eta),
		Variance:              Variance(c.variance),
		ClipSample:            Choice(c.clip_sample),
		UseClippedModelOutput: c.use_clipped_model_output != 0,
		Format:                Format(c.format),
		DynamicThresholding:   float64(c.dynamic_thresholding),
	}, err
}

// paramsToC leaves the pointers out: the shim sets them. As configToC, it begins with the library's defaults.
func paramsToC(function string, params *SampleParams) (C.diffusion_sample_params, error) {
	var c C.diffusion_sample_params
	if err := check("diffusion_sample_params_init", C.diffusion_go_sample_params_init(&c)); err != nil {
		return c, err
	}
	n := narrow{function: function}
	c.method = C.int32_t(params.Method)
	c.num_samples = n.size("num_samples", params.NumSamples)
	c.seed = C.uint64_t(params.Seed)
	c.seeds_len = C.size_t(len(params.Seeds))
	c.initial_noise_len = C.size_t(len(params.InitialNoise))
	c.class_labels_len = C.size_t(len(params.ClassLabels))
	c.steps = n.int32("steps", params.Steps)
	c.spacing = C.int32_t(params.Spacing)
	c.eta = C.double(params.Eta)
	c.variance = C.int32_t(params.Variance)
	c.clip_sample = C.int32_t(params.ClipSample)
	c.use_clipped_model_output = boolean(params.UseClippedModelOutput)
	c.format = C.int32_t(params.Format)
	c.dynamic_thresholding = C.double(params.DynamicThresholding)
	c.timeout_ms = C.int64_t(milliseconds(params.Timeout))
	return c, n.err
}

// given is a slice's memory, or NULL for an empty one.
func given[T any](values []T) *T {
	if len(values) == 0 {
		return nil
	}
	return unsafe.SliceData(values)
}

func abiAddNoise(process uintptr, images []float32, timesteps []int64, seed uint64, noisy, noise []float32) error {
	return check("diffusion_add_noise", C.diffusion_go_add_noise(
		C.uintptr_t(process), floats(images), C.size_t(len(images)), steps(timesteps), C.size_t(len(timesteps)),
		C.uint64_t(seed), floats(noisy), C.size_t(len(noisy)), floats(noise), C.size_t(len(noise))))
}

func abiPredictNoise(process uintptr, images []float32, timesteps []int64, out []float32) error {
	return check("diffusion_predict_noise", C.diffusion_go_predict_noise(
		C.uintptr_t(process), floats(images), C.size_t(len(images)), steps(timesteps), C.size_t(len(timesteps)),
		floats(out), C.size_t(len(out))))
}

func abiPredictNoiseWithClasses(process uintptr, images []float32, timesteps, classLabels []int64, out []float32) error {
	return check("diffusion_predict_noise_with_classes", C.diffusion_go_predict_noise_with_classes(
		C.uintptr_t(process), floats(images), C.size_t(len(images)), steps(timesteps), steps(classLabels),
		C.size_t(len(timesteps)), floats(out), C.size_t(len(out))))
}

func abiSample(process uintptr, numSamples int, seed uint64, out []float32) error {
	const function = "diffusion_sample"
	n := narrow{function: function}
	count := n.size("num_samples", numSamples)
	if n.err != nil {
		return n.err
	}
	return check(function, C.diffusion_go_sample(
		C.uintptr_t(process), count, C.uint64_t(seed), floats(out), C.size_t(len(out))))
}

func abiSampleDDIM(process uintptr, numSamples, ddimSteps int, eta float32, seed uint64, out []float32) error {
	const function = "diffusion_sample_ddim"
	n := narrow{function: function}
	count, steps := n.size("num_samples", numSamples), n.int32("ddim_steps", ddimSteps)
	if n.err != nil {
		return n.err
	}
	return check(function, C.diffusion_go_sample_ddim(
		C.uintptr_t(process), count, steps, C.float(eta), C.uint64_t(seed), floats(out), C.size_t(len(out))))
}

func abiSampleWith(process uintptr, params *SampleParams, out []byte) error {
	const function = "diffusion_sample_with"
	c, err := paramsToC(function, params)
	if err != nil {
		return err
	}
	return check(function, C.diffusion_go_sample_with(
		C.uintptr_t(process), c, (*C.uint64_t)(given(params.Seeds)), (*C.float)(given(params.InitialNoise)),
		(*C.int64_t)(given(params.ClassLabels)), unsafe.Pointer(unsafe.SliceData(out)), C.size_t(len(out))))
}

func abiSampleSize(process uintptr, params *SampleParams) (int, error) {
	const function = "diffusion_sample_size"
	c, err := paramsToC(function, params)
	if err != nil {
		return 0, err
	}
	var bytes C.size_t
	err = check(function, C.diffusion_go_sample_size(C.uintptr_t(process), c, &bytes))
	return int(bytes), err
}

func abiSampleSubmit(process uintptr, params *SampleParams, link callbackRef) (uintptr, error) {
	const function = "diffusion_sample_submit"
	c, err := paramsToC(function, params)
	if err != nil {
		return 0, err
	}
	var job C.uintptr_t
	err = check(function, C.diffusion_go_sample_submit(
		C.uintptr_t(process), c, (*C.uint64_t)(given(params.Seeds)), (*C.float)(given(params.InitialNoise)),
		(*C.int64_t)(given(params.ClassLabels)), C.uintptr_t(link), &job))
	return uintptr(job), err
}

func abiJobPoll(job uintptr) (JobState, error) {
	var state C.int32_t
	err := check("diffusion_job_poll", C.diffusion_go_job_poll(C.uintptr_t(job), &state))
	return JobState(state), err
}

func abiJobWait(job uintptr, ms int64) error {
	return check("diffusion_job_wait", C.diffusion_go_job_wait(C.uintptr_t(job), C.int64_t(ms)))
}

func abiJobProgress(job uintptr) (done, total uint64, err error) {
	var d, t C.uint64_t
	err = check("diffusion_job_progress", C.diffusion_go_job_progress(C.uintptr_t(job), &d, &t))
	return uint64(d), uint64(t), err
}

func abiJobCancel(job uintptr) error {
	return check("diffusion_job_cancel", C.diffusion_go_job_cancel(C.uintptr_t(job)))
}

func abiJobFetch(job uintptr, out []byte) error {
	return check("diffusion_job_fetch", C.diffusion_go_job_fetch(
		C.uintptr_t(job), unsafe.Pointer(unsafe.SliceData(out)), C.size_t(len(out))))
}

func abiJobPreview(job uintptr, out []byte) (uint64, error) {
	var done C.uint64_t
	err := check("diffusion_job_preview", C.diffusion_go_job_preview(
		C.uintptr_t(job), unsafe.Pointer(unsafe.SliceData(out)), C.size_t(len(out)), &done))
	return uint64(done), err
}

func abiJobDestroy(job uintptr) error {
	return check("diffusion_job_destroy", C.diffusion_go_job_destroy(C.uintptr_t(job)))
}

func abiTrainStep(process uintptr, images []float32, batch int, loss *float32) error {
	const function = "diffusion_train_step"
	n := narrow{function: function}
	count := n.size("batch", batch)
	if n.err != nil {
		return n.err
	}
	return check(function, C.diffusion_go_train_step(
		C.uintptr_t(process), floats(images), C.size_t(len(images)), count, (*C.float)(loss)))
}

func abiTrainStepWithClasses(process uintptr, images []float32, classLabels []int64, loss *float32) error {
	return check("diffusion_train_step_with_classes", C.diffusion_go_train_step_with_classes(
		C.uintptr_t(process), floats(images), C.size_t(len(images)), steps(classLabels), C.size_t(len(classLabels)),
		(*C.float)(loss)))
}

func abiGetStepCount(process uintptr) (uint64, error) {
	var count C.uint64_t
	err := check("diffusion_get_step_count", C.diffusion_go_get_step_count(C.uintptr_t(process), &count))
	return uint64(count), err
}

func abiGetLearningRate(process uintptr) (float64, error) {
	var rate C.double
	err := check("diffusion_get_learning_rate", C.diffusion_go_get_learning_rate(C.uintptr_t(process), &rate))
	return float64(rate), err
}

func abiSetLearningRate(process uintptr, rate float64) error {
	return check("diffusion_set_learning_rate",
		C.diffusion_go_set_learning_rate(C.uintptr_t(process), C.double(rate)))
}

func abiGetGradientScale(process uintptr) (float64, error) {
	var scale C.double
	err := check("diffusion_get_gradient_scale", C.diffusion_go_get_gradient_scale(C.uintptr_t(process), &scale))
	return float64(scale), err
}

func abiParameterCount(process uintptr) (int, error) {
	var count C.size_t
	err := check("diffusion_parameter_count", C.diffusion_go_parameter_count(C.uintptr_t(process), &count))
	return int(count), err
}

func abiParameterDescribe(process uintptr, index int) (Parameter, error) {
	var c C.diffusion_parameter
	err := check("diffusion_parameter_describe",
		C.diffusion_go_parameter_describe(C.uintptr_t(process), C.size_t(index), &c))
	if err != nil {
		return Parameter{}, err
	}
	parameter := Parameter{Name: C.GoString(&c.name[0]), Len: int(c.len)}
	rank := min(max(int(c.rank), 0), len(c.shape))
	for _, dimension := range c.shape[:rank] {
		parameter.Shape = append(parameter.Shape, int(dimension))
	}
	return parameter, nil
}

func abiParameterRead(process uintptr, weights Weights, name string, out []float32) error {
	text := C.CString(name)
	defer C.free(unsafe.Pointer(text))
	return check("diffusion_parameter_read", C.diffusion_go_parameter_read(
		C.uintptr_t(process), C.int32_t(weights), text, floats(out), C.size_t(len(out))))
}

func abiParameterWrite(process uintptr, weights Weights, name string, values []float32) error {
	text := C.CString(name)
	defer C.free(unsafe.Pointer(text))
	return check("diffusion_parameter_write", C.diffusion_go_parameter_write(
		C.uintptr_t(process), C.int32_t(weights), text, floats(values), C.size_t(len(values))))
}
