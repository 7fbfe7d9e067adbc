//go:build cgo && unix

package diffusion

// Process, but for sampling: configuration, tables, noise, training, parameters, checkpoints, and all that is refused.

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestDefaults(t *testing.T) {
	want := Config{
		ImageSize: 32, Channels: 3, HiddenDims: []int{64, 128, 256},
		BetaStart: 0.0001, BetaEnd: 0.999, NoiseSteps: 1000, LayersPerBlock: 2, AttentionLevels: -1,
		LearningRate: 0.0001, AdamBeta1: 0.9, AdamBeta2: 0.999, AdamEpsilon: 1e-8, HuberDelta: 1, AccumulationSteps: 1,
	}
	if got := DefaultConfig(); !reflect.DeepEqual(got, want) {
		t.Errorf("DefaultConfig() is\n%+v, want\n%+v", got, want)
	}
	cifar := CIFAR10Config()
	if !reflect.DeepEqual(cifar.HiddenDims, []int{128, 256, 256, 256}) || cifar.BetaSchedule != ScheduleLinear ||
		cifar.BetaEnd != 0.02 || cifar.Optimizer != OptimizerAdamW || cifar.LearningRate != 0.0002 ||
		cifar.WeightDecay != 0.00001 || cifar.GradientClip != 1 || cifar.EMADecay != 0.999 || cifar.Dropout != 0.1 {
		t.Errorf("CIFAR10Config() is %+v", cifar)
	}
	params := SampleParams{Method: MethodDDIM, NumSamples: 1, Spacing: SpacingDefault, Variance: VarianceDefault, ClipSample: ChoiceDefault}
	if got := DefaultSampleParams(); !reflect.DeepEqual(got, params) {
		t.Errorf("DefaultSampleParams() is\n%+v, want\n%+v", got, params)
	}
}

// TestConfigRoundTrip: every field that is set comes back.
func TestConfigRoundTrip(t *testing.T) {
	want := Config{
		ImageSize: 8, Channels: 4, HiddenDims: []int{8, 16},
		BetaStart: 0.001, BetaEnd: 0.03, NoiseSteps: 30, BetaSchedule: ScheduleLinear,
		PredictionType: PredictionVelocity, RescaleBetasZeroSNR: true,
		Device: DeviceCPU, NumThreads: 1, MaxBatch: 3, Seed: math.MaxUint64,
		LayersPerBlock: 1, AttentionLevels: 2, AttentionHeadDim: 4, NormNumGroups: 4, Dropout: 0.25,
		Optimizer: OptimizerAdamW, MixedPrecision: PrecisionBF16, LearningRate: 0.002,
		AdamBeta1: 0.8, AdamBeta2: 0.99, AdamEpsilon: 1e-7, WeightDecay: 0.01, GradientClip: 0.5, EMADecay: 0.9,
		Loss: LossHuber, HuberDelta: 0.5, MinSNRGamma: 5, WarmupSteps: 3, DecaySteps: 9, AccumulationSteps: 2,
		InferencePrecision: PrecisionBF16, Deterministic: true,
		NumClassEmbeds: 7,
	}
	p, err := New(want)
	must(t, err)
	defer p.Close()
	got, err := p.Config()
	must(t, err)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("Config() is\n%+v, want\n%+v", got, want)
	}
}

func TestSchedule(t *testing.T) {
	p := tiny(t)
	tables := map[Table][]float32{}
	for table := TableBeta; table <= TableSqrtOneMinusAlphaCumprod; table++ {
		values, err := p.Schedule(table)
		must(t, err)
		if len(values) != 20 {
			t.Fatalf("%v has %d values", table, len(values))
		}
		tables[table] = values
	}
	product := 1.0
	for i := range tables[TableBeta] {
		product *= 1 - float64(tables[TableBeta][i])
		for table, want := range map[Table]float64{
			TableAlpha:                    1 - float64(tables[TableBeta][i]),
			TableAlphaCumprod:             product,
			TableSqrtAlphaCumprod:         math.Sqrt(product),
			TableSqrtOneMinusAlphaCumprod: math.Sqrt(1 - product),
		} {
			if got := float64(tables[table][i]); math.Abs(got-want) > 1e-5 {
				t.Errorf("%v[%d] is %v, want %v", table, i, got, want)
			}
		}
	}
	_, err := p.Schedule(Table(9))
	wantErr(t, err, ErrInvalidArgument)
}

func TestNewWithBetas(t *testing.T) {
	config := tinyConfig()
	betas := make([]float64, config.NoiseSteps)
	for i := range betas {
		betas[i] = 0.01 + 0.02*float64(i)
	}
	p, err := NewWithBetas(config, betas)
	must(t, err)
	defer p.Close()
	values, err := p.Schedule(TableBeta)
	must(t, err)
	for i := range betas {
		if values[i] != float32(betas[i]) {
			t.Errorf("beta[%d] is %v, want %v", i, values[i], betas[i])
		}
	}
	got, err := p.Config()
	must(t, err)
	if got.BetaSchedule != ScheduleGiven {
		t.Errorf("the schedule is %v", got.BetaSchedule)
	}
	_, err = NewWithBetas(config, betas[1:])
	wantErr(t, err, ErrBufferSize)
	_, err = NewWithBetas(config, nil)
	wantErr(t, err, ErrNullPointer)
	betas[3] = 2
	_, err = NewWithBetas(config, betas)
	wantErr(t, err, ErrInvalidArgument)
}

func TestNewRefuses(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"image_size":          func(c *Config) { c.ImageSize = 0 },
		"channels":            func(c *Config) { c.Channels = 65 },
		"hidden_dims_len":     func(c *Config) { c.HiddenDims = nil },
		"hidden_dims":         func(c *Config) { c.HiddenDims = make([]int, 9) },
		"hidden_dims[1]":      func(c *Config) { c.HiddenDims[1] = 1 << 33 },
		"beta_start":          func(c *Config) { c.BetaStart = math.NaN() },
		"noise_steps":         func(c *Config) { c.NoiseSteps = 1 << 40 },
		"beta_schedule":       func(c *Config) { c.BetaSchedule = 77 },
		"device":              func(c *Config) { c.Device = -1 },
		"layers_per_block":    func(c *Config) { c.LayersPerBlock = math.MinInt },
		"dropout":             func(c *Config) { c.Dropout = 1 },
		"learning_rate":       func(c *Config) { c.LearningRate = -1 },
		"norm_num_groups":     func(c *Config) { c.NormNumGroups = 3 },
		"mixed_precision":     func(c *Config) { c.MixedPrecision = 9 },
		"attention_levels":    func(c *Config) { c.AttentionLevels = 4 },
		"num_threads":         func(c *Config) { c.NumThreads = 5000 },
		"max_batch":           func(c *Config) { c.MaxBatch = -1 },
		"optimizer":           func(c *Config) { c.Optimizer = 5 },
		"prediction_type":     func(c *Config) { c.PredictionType = 5 },
		"loss":                func(c *Config) { c.Loss = 2 },
		"huber_delta":         func(c *Config) { c.HuberDelta = 0 },
		"min_snr_gamma":       func(c *Config) { c.MinSNRGamma = -1 },
		"warmup_steps":        func(c *Config) { c.WarmupSteps = -1 },
		"decay_steps":         func(c *Config) { c.WarmupSteps, c.DecaySteps = 5, 5 },
		"accumulation_steps":  func(c *Config) { c.AccumulationSteps = 0 },
		"inference_precision": func(c *Config) { c.InferencePrecision = 9 },
		"num_class_embeds":    func(c *Config) { c.NumClassEmbeds = -2 },
		"ema_decay":           func(c *Config) { c.EMADecay = 1 },
	} {
		config := tinyConfig()
		change(&config)
		p, err := New(config)
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%s: process %v, error %v", name, p, err)
			continue
		}
		wantErr(t, err, ErrInvalidArgument)
		if e.Status != StatusInvalidArgument || e.Func != "diffusion_create" || !strings.Contains(e.Message, name) {
			t.Errorf("%s: %#v", name, e)
		}
		if errors.Is(err, ErrIO) || errors.Is(err, ErrClosed) {
			t.Errorf("%s: matches too much", name)
		}
	}
	if count, err := DeviceCount(DeviceCUDA); err == nil && count == 0 {
		config := tinyConfig()
		config.Device = DeviceCUDA
		_, err := New(config)
		wantErr(t, err, ErrDeviceUnavailable)
	}
}

func TestAddNoiseAndPredict(t *testing.T) {
	p := tiny(t)
	images := pattern(3)
	timesteps := []int64{0, 10, 19}
	noisy, noise, err := p.AddNoise(background, images, timesteps, 5)
	must(t, err)
	signal, err := p.Schedule(TableSqrtAlphaCumprod)
	must(t, err)
	amount, err := p.Schedule(TableSqrtOneMinusAlphaCumprod)
	must(t, err)
	for i := range images {
		step := timesteps[i/imageLen]
		want := signal[step]*images[i] + amount[step]*noise[i]
		if math.Abs(float64(noisy[i]-want)) > 1e-5 {
			t.Fatalf("noisy[%d] is %v, want %v", i, noisy[i], want)
		}
	}
	// In place, and image i whatever the batch.
	inPlace := append([]float32(nil), images[:imageLen]...)
	again := make([]float32, imageLen)
	must(t, p.AddNoiseInto(background, inPlace, timesteps[:1], 5, inPlace, again))
	same(t, "noise", again, noise[:imageLen])
	same(t, "noisy in place", inPlace, noisy[:imageLen])

	predicted, err := p.PredictNoise(background, noisy, timesteps)
	must(t, err)
	one, err := p.PredictNoise(background, noisy[:imageLen], timesteps[:1])
	must(t, err)
	same(t, "prediction", one, predicted[:imageLen])

	for name, test := range map[string]struct {
		kind error
		call func() error
	}{
		"no images":  {ErrNullPointer, func() error { return second(p.PredictNoise(background, nil, timesteps)) }},
		"no batch":   {ErrInvalidArgument, func() error { return second(p.PredictNoise(background, images, nil)) }},
		"short":      {ErrBufferSize, func() error { return second(p.PredictNoise(background, images[1:], timesteps)) }},
		"short out":  {ErrBufferSize, func() error { return p.PredictNoiseInto(background, images, timesteps, predicted[1:]) }},
		"nil out":    {ErrNullPointer, func() error { return p.PredictNoiseInto(background, images, timesteps, nil) }},
		"timestep":   {ErrInvalidArgument, func() error { return second(p.PredictNoise(background, images, []int64{0, 20, 0})) }},
		"long noisy": {ErrBufferSize, func() error { return p.AddNoiseInto(background, images[:imageLen], timesteps[:1], 0, noisy, again) }},
		"short noise": {ErrBufferSize, func() error {
			return p.AddNoiseInto(background, images, timesteps, 0, noisy, again)
		}},
		"NaN": {ErrNonFinite, func() error {
			bad := append([]float32(nil), images...)
			bad[100] = float32(math.NaN())
			_, _, err := p.AddNoise(background, bad, timesteps, 0)
			return err
		}},
		"negative timestep": {ErrInvalidArgument, func() error {
			_, _, err := p.AddNoise(background, images, []int64{-1, 0, 0}, 0)
			return err
		}},
	} {
		before := append([]float32(nil), predicted...)
		if err := test.call(); !errors.Is(err, test.kind) {
			t.Errorf("%s: %v, want %v", name, err, test.kind)
		}
		same(t, name, predicted, before)
	}
}

func second[T any](_ T, err error) error { return err }

func TestClasses(t *testing.T) {
	p := tiny(t, func(c *Config) { c.NumClassEmbeds = 3; c.LearningRate = 0.01; c.AccumulationSteps = 2 })
	images, labels := pattern(2), []int64{0, 2}
	must(t, second(p.TrainStepWithClasses(background, images, labels)))
	if count, err := p.StepCount(); err != nil || count != 0 {
		t.Errorf("after half a step StepCount() is %d, %v", count, err)
	}
	must(t, second(p.TrainStepWithClasses(background, images, labels)))
	if count, err := p.StepCount(); err != nil || count != 1 {
		t.Errorf("StepCount() is %d, %v", count, err)
	}
	first, err := p.PredictNoiseWithClasses(background, images, []int64{3, 3}, labels)
	must(t, err)
	other, err := p.PredictNoiseWithClasses(background, images, []int64{3, 3}, []int64{1, 2})
	must(t, err)
	if slices.Equal(first[:imageLen], other[:imageLen]) || !slices.Equal(first[imageLen:], other[imageLen:]) {
		t.Error("the class of an image must matter to it, and to it alone")
	}
	params := DefaultSampleParams()
	params.NumSamples, params.Steps, params.ClassLabels = 2, 4, labels
	both, err := p.SampleWith(background, params)
	must(t, err)
	job, err := p.Submit(background, params)
	must(t, err)
	defer job.Close()
	must(t, job.Wait(background))
	again, err := job.Fetch()
	must(t, err)
	same(t, "a job with classes", again.F32, both.F32)

	params.ClassLabels = []int64{0, 3}
	wantErr(t, second(p.SampleWith(background, params)), ErrInvalidArgument)
	params.ClassLabels = []int64{0}
	wantErr(t, second(p.SampleWith(background, params)), ErrBufferSize)
	wantErr(t, second(p.Sample(background, 1, 0)), ErrNullPointer)
	wantErr(t, second(p.TrainStep(background, images, 2)), ErrNullPointer)
	wantErr(t, second(p.PredictNoise(background, images, []int64{3, 3})), ErrNullPointer)
	wantErr(t, second(p.PredictNoiseWithClasses(background, images, []int64{3, 3}, labels[:1])), ErrInvalidArgument)
	plain := tiny(t, func(*Config) {})
	wantErr(t, second(plain.TrainStepWithClasses(background, images, labels)), ErrInvalidArgument)
}

func TestTraining(t *testing.T) {
	p := tiny(t, func(c *Config) { c.LearningRate = 0.01; c.EMADecay = 0.5 })
	images := pattern(4)
	var first, last float32
	for i := 0; i < 60; i++ {
		loss, err := p.TrainStep(background, images, 4)
		must(t, err)
		if i == 0 {
			first = loss
		}
		last = loss
	}
	if !(last < first) || !(first > 0) {
		t.Errorf("loss goes from %v to %v", first, last)
	}
	must(t, p.TrainStepWithoutLoss(background, images, 4))
	if count, err := p.StepCount(); err != nil || count != 61 {
		t.Errorf("StepCount() is %d, %v", count, err)
	}
	if rate, err := p.LearningRate(); err != nil || rate != 0.01 {
		t.Errorf("LearningRate() is %v, %v", rate, err)
	}
	must(t, p.SetLearningRate(0.5))
	if rate, err := p.LearningRate(); err != nil || rate != 0.5 {
		t.Errorf("LearningRate() is %v, %v", rate, err)
	}
	wantErr(t, p.SetLearningRate(0), ErrInvalidArgument)
	wantErr(t, p.SetLearningRate(math.Inf(1)), ErrInvalidArgument)
	if scale, err := p.GradientScale(); err != nil || scale != 1 {
		t.Errorf("GradientScale() is %v, %v", scale, err)
	}
	for name, test := range map[string]struct {
		images []float32
		batch  int
		kind   error
	}{
		"nil":      {nil, 4, ErrNullPointer},
		"short":    {images[1:], 4, ErrBufferSize},
		"no batch": {images, 0, ErrInvalidArgument},
		"negative": {images, -1, ErrInvalidArgument},
		"infinite": {[]float32{imageLen - 1: float32(math.Inf(1))}, 1, ErrNonFinite},
	} {
		_, err := p.TrainStep(background, test.images, test.batch)
		if !errors.Is(err, test.kind) {
			t.Errorf("%s: %v, want %v", name, err, test.kind)
		}
	}
	if count, err := p.StepCount(); err != nil || count != 61 {
		t.Errorf("after the refusals StepCount() is %d, %v", count, err)
	}
}

func TestParameters(t *testing.T) {
	p := tiny(t, func(c *Config) { c.EMADecay = 0.9 })
	parameters, err := p.Parameters()
	must(t, err)
	for _, parameter := range parameters {
		product := 1
		for _, dimension := range parameter.Shape {
			product *= dimension
		}
		values, err := p.ReadParameter(background, WeightsTrained, parameter.Name)
		must(t, err)
		if product != parameter.Len || len(values) != parameter.Len || parameter.Len == 0 {
			t.Errorf("%+v has %d values", parameter, len(values))
		}
	}
	const name = "conv_in.weight"
	if parameters[0].Name != name || !reflect.DeepEqual(parameters[0].Shape, []int{8, 3, 3, 3}) {
		t.Errorf("the first parameter is %+v", parameters[0])
	}
	old, err := p.ReadParameter(background, WeightsTrained, name)
	must(t, err)
	values := make([]float32, len(old))
	for i := range values {
		values[i] = float32(i) / 100
	}
	must(t, p.WriteParameter(background, WeightsEMA, name, values))
	got, err := p.ReadParameter(background, WeightsEMA, name)
	must(t, err)
	kept, err := p.ReadParameter(background, WeightsTrained, name)
	must(t, err)
	if !reflect.DeepEqual(got, values) || !reflect.DeepEqual(kept, old) {
		t.Error("WriteParameter(WeightsEMA) wrote something else")
	}
	wantErr(t, second(p.ReadParameter(background, WeightsTrained, "no.such")), ErrInvalidArgument)
	wantErr(t, second(p.ReadParameter(background, WeightsTrained, "")), ErrInvalidArgument)
	wantErr(t, second(p.ReadParameter(background, WeightsTrained, "a\x00b")), ErrInvalidArgument)
	wantErr(t, second(p.ReadParameter(background, Weights(3), name)), ErrInvalidArgument)
	wantErr(t, p.WriteParameter(background, WeightsTrained, name, values[1:]), ErrBufferSize)
	wantErr(t, p.WriteParameter(background, WeightsTrained, name, nil), ErrNullPointer)
	values[7] = float32(math.NaN())
	wantErr(t, p.WriteParameter(background, WeightsTrained, name, values), ErrNonFinite)
}

func TestSaveAndLoad(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "checkpoint")
	p := tiny(t)
	for range 3 {
		must(t, second(p.TrainStep(background, pattern(2), 2)))
	}
	must(t, p.Save(background, folder))
	want, err := p.SampleDDIM(background, 2, 5, 0, 1)
	must(t, err)
	loss, err := p.TrainStep(background, pattern(2), 2)
	must(t, err)

	loaded, err := Load(folder, nil)
	must(t, err)
	defer loaded.Close()
	got, err := loaded.SampleDDIM(background, 2, 5, 0, 1)
	must(t, err)
	same(t, "images after Load", got, want)
	if count, err := loaded.StepCount(); err != nil || count != 3 {
		t.Errorf("StepCount() is %d, %v", count, err)
	}
	again, err := loaded.TrainStep(background, pattern(2), 2)
	must(t, err)
	same(t, "loss after Load", []float32{again}, []float32{loss})

	overrides := DefaultConfig()
	overrides.Device, overrides.LearningRate, overrides.MaxBatch = DeviceCPU, 0.25, 2
	changed, err := Load(folder, &overrides)
	must(t, err)
	defer changed.Close()
	config, err := changed.Config()
	must(t, err)
	if config.LearningRate != 0.25 || config.MaxBatch != 2 || config.ImageSize != 8 {
		t.Errorf("Config() after overrides is %+v", config)
	}
	overrides.ImageSize = 16
	_, err = Load(folder, &overrides)
	wantErr(t, err, ErrInvalidArgument)

	_, err = Load(filepath.Join(folder, "nothing"), nil)
	wantErr(t, err, ErrIO)
	_, err = Load("", nil)
	wantErr(t, err, ErrInvalidArgument)
	_, err = Load("a\x00b", nil)
	wantErr(t, err, ErrInvalidArgument)
	wantErr(t, p.Save(background, "a\x00b"), ErrInvalidArgument)
	other := t.TempDir()
	must(t, os.WriteFile(filepath.Join(other, "diary.txt"), []byte("dear diary"), 0o644))
	wantErr(t, p.Save(background, other), ErrInvalidArgument)
	if os.Geteuid() != 0 {
		wantErr(t, p.Save(background, "/proc/checkpoint"), ErrIO)
	}
	weights := damage(t, folder)
	_, err = Load(folder, nil)
	wantErr(t, err, ErrFormat)
	if err != nil && !strings.Contains(err.Error(), filepath.Base(weights)) {
		t.Errorf("%v does not name %s", err, weights)
	}
}

func TestExport(t *testing.T) {
	p := tiny(t, func(c *Config) { c.EMADecay = 0.5 })
	must(t, second(p.TrainStep(background, pattern(2), 2)))
	want, err := p.SampleDDIM(background, 2, 5, 0, 1)
	must(t, err)
	sizes := map[Precision]int64{}
	for _, precision := range []Precision{PrecisionF32, PrecisionF16, PrecisionBF16} {
		folder := filepath.Join(t.TempDir(), precision.String())
		must(t, p.Export(background, folder, precision))
		sizes[precision] = weightsSize(t, folder)
		loaded, err := Load(folder, nil)
		must(t, err)
		if count, err := loaded.StepCount(); err != nil || count != 0 {
			t.Errorf("%v: StepCount() is %d, %v", precision, count, err)
		}
		if precision == PrecisionF32 {
			got, err := loaded.SampleDDIM(background, 2, 5, 0, 1)
			must(t, err)
			same(t, "images of the exported model", got, want)
		}
		must(t, loaded.Close())
	}
	if sizes[PrecisionF16] > sizes[PrecisionF32]*2/3 || sizes[PrecisionBF16] > sizes[PrecisionF32]*2/3 {
		t.Errorf("sizes are %v", sizes)
	}
	wantErr(t, p.Export(background, filepath.Join(t.TempDir(), "x"), Precision(7)), ErrInvalidArgument)
	wantErr(t, p.Export(background, "a\x00b", PrecisionF16), ErrInvalidArgument)
	huge := make([]float32, 8)
	huge[0] = 1e6
	must(t, p.WriteParameter(background, WeightsEMA, "conv_in.bias", huge))
	wantErr(t, p.Export(background, filepath.Join(t.TempDir(), "x"), PrecisionF16), ErrNonFinite)
}

// weightsSize is the bytes of a model's weights.
func weightsSize(t *testing.T, folder string) int64 {
	t.Helper()
	var size int64
	must(t, filepath.Walk(folder, func(path string, info os.FileInfo, err error) error {
		if err == nil && strings.HasSuffix(path, ".safetensors") {
			size += info.Size()
		}
		return err
	}))
	return size
}

// damage cuts the largest file of a checkpoint short and returns its name.
func damage(t *testing.T, folder string) string {
	t.Helper()
	var largest string
	var size int64
	must(t, filepath.Walk(folder, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() && strings.HasSuffix(path, ".safetensors") && !strings.Contains(path, "train") && info.Size() > size {
			largest, size = path, info.Size()
		}
		return err
	}))
	if largest == "" {
		t.Fatal("the checkpoint has no safetensors file")
	}
	must(t, os.Truncate(largest, size/2))
	return largest
}

func TestContextThatHasEnded(t *testing.T) {
	p := tiny(t)
	ctx, cancel := context.WithCancelCause(background)
	reason := errors.New("the reason")
	cancel(reason)
	images := pattern(1)
	for name, err := range map[string]error{
		"TrainStep":            second(p.TrainStep(ctx, images, 1)),
		"TrainStepWithoutLoss": p.TrainStepWithoutLoss(ctx, images, 1),
		"Save":                 p.Save(ctx, filepath.Join(t.TempDir(), "checkpoint")),
		"Export":               p.Export(ctx, filepath.Join(t.TempDir(), "model"), PrecisionF16),
		"PredictNoise":         second(p.PredictNoise(ctx, images, []int64{0})),
		"AddNoise":             p.AddNoiseInto(ctx, images, []int64{0}, 0, like(images), like(images)),
		"Sample":               second(p.Sample(ctx, 1, 0)),
		"SampleDDIM":           second(p.SampleDDIM(ctx, 1, 5, 0, 0)),
		"SampleWith":           second(p.SampleWith(ctx, DefaultSampleParams())),
		"SampleWithInto":       p.SampleWithInto(ctx, DefaultSampleParams(), make([]byte, imageLen*4)),
		"SampleImages":         second(p.SampleImages(ctx, DefaultSampleParams())),
		"Submit":               second(p.Submit(ctx, DefaultSampleParams())),
		"ReadParameter":        second(p.ReadParameter(ctx, WeightsTrained, "conv_in.bias")),
		"WriteParameter":       p.WriteParameter(ctx, WeightsTrained, "conv_in.bias", make([]float32, 8)),
	} {
		if !errors.Is(err, ErrCancelled) || !errors.Is(err, context.Canceled) || !errors.Is(err, reason) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if count, err := p.StepCount(); err != nil || count != 0 {
		t.Errorf("StepCount() is %d, %v", count, err)
	}
}

// BenchmarkAddNoise is what one call costs: the arithmetic of one 3x32x32 image is small beside it.
func BenchmarkAddNoise(b *testing.B) {
	p := tiny(b, func(c *Config) { c.ImageSize = 32 })
	images := make([]float32, 3*32*32)
	noisy, noise := like(images), like(images)
	timesteps := []int64{3}
	ctx, cancel := context.WithCancel(background)
	defer cancel()
	for b.Loop() {
		must(b, p.AddNoiseInto(ctx, images, timesteps, 1, noisy, noise))
	}
}
