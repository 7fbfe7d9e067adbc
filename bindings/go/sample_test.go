//go:build cgo && unix

package diffusion

// Sampling: every call, every format, and many goroutines at a time.

import (
	"context"
	"errors"
	"image"
	"math"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"
)

// TestSampleEitherWay: with a context that can end a call goes another way than without, to the same images.
func TestSampleEitherWay(t *testing.T) {
	p := tiny(t)
	ctx, cancel := context.WithCancel(background)
	defer cancel()

	plain, err := p.Sample(background, 3, 11)
	must(t, err)
	cancellable, err := p.Sample(ctx, 3, 11)
	must(t, err)
	same(t, "Sample", cancellable, plain)
	params := DefaultSampleParams()
	params.Method, params.NumSamples, params.Seed = MethodDDPM, 3, 11
	with, err := p.SampleWith(background, params)
	must(t, err)
	same(t, "SampleWith", with.F32, plain)
	if with.NumSamples != 3 || with.Channels != 3 || with.Size != 8 || with.Format != FormatF32 || len(plain) != 3*imageLen {
		t.Errorf("%+v, %d values", with, len(plain))
	}
	for i, value := range plain {
		if !(value >= -1 && value <= 1) {
			t.Fatalf("value %d is %v", i, value)
		}
	}

	plain, err = p.SampleDDIM(background, 2, 7, 0, 11)
	must(t, err)
	cancellable, err = p.SampleDDIM(ctx, 2, 7, 0, 11)
	must(t, err)
	same(t, "SampleDDIM", cancellable, plain)
	random, err := p.SampleDDIM(background, 2, 7, 1, 11)
	must(t, err)
	if random[0] == plain[0] && random[50] == plain[50] {
		t.Error("eta makes no difference")
	}
	one, err := p.SampleDDIM(background, 1, 7, 0, 11)
	must(t, err)
	same(t, "the first image alone", one, plain[:imageLen])
}

func TestSeedsAndInitialNoise(t *testing.T) {
	p := tiny(t)
	params := DefaultSampleParams()
	params.Steps = 5
	params.NumSamples, params.Seeds = 3, []uint64{4, math.MaxUint64, 4}
	some, err := p.SampleWith(background, params)
	must(t, err)
	same(t, "the same seed", some.F32[:imageLen], some.F32[2*imageLen:])
	params.NumSamples, params.Seeds, params.Seed = 1, nil, math.MaxUint64
	one, err := p.SampleWith(background, params)
	must(t, err)
	same(t, "a seed of its own", one.F32, some.F32[imageLen:2*imageLen])

	params.Seed = 0
	params.NumSamples = 2
	params.InitialNoise = make([]float32, 2*imageLen)
	for i := range params.InitialNoise {
		params.InitialNoise[i] = float32(i%imageLen%7)/3 - 1
	}
	started, err := p.SampleWith(background, params)
	must(t, err)
	same(t, "the same noise", started.F32[:imageLen], started.F32[imageLen:])
	ctx, cancel := context.WithCancel(background)
	defer cancel()
	again, err := p.SampleWith(ctx, params)
	must(t, err)
	same(t, "through a job", again.F32, started.F32)
}

// half is the value of an IEEE half.
func half(bits uint16) float64 {
	exponent, fraction := int(bits>>10&31), float64(bits&1023)
	value := math.Ldexp(1024+fraction, exponent-25)
	if exponent == 0 {
		value = math.Ldexp(fraction, -24)
	}
	if bits>>15 == 1 {
		value = -value
	}
	return value
}

func TestFormats(t *testing.T) {
	for channels := 1; channels <= 4; channels++ {
		p := tiny(t, func(c *Config) { c.Channels = channels })
		params := DefaultSampleParams()
		params.Steps, params.NumSamples = 4, 2
		f32, err := p.SampleWith(background, params)
		must(t, err)
		params.Format = FormatF16
		f16, err := p.SampleWith(background, params)
		must(t, err)
		if f16.F32 != nil || f16.Pix != nil || len(f16.F16) != len(f32.F32) || f16.Images() != nil || f16.Image(0) != nil {
			t.Fatalf("%+v", f16)
		}
		for i, bits := range f16.F16 {
			if math.Abs(half(bits)-float64(f32.F32[i])) > 1e-3 {
				t.Fatalf("f16[%d] is %v, want %v", i, half(bits), f32.F32[i])
			}
		}
		params.Format = FormatRGB8
		if channels == 2 {
			wantErr(t, second(p.SampleWith(background, params)), ErrInvalidArgument)
			wantErr(t, second(p.SampleImages(background, params)), ErrInvalidArgument)
			continue
		}
		rgb, err := p.SampleWith(background, params)
		must(t, err)
		pictures, err := p.SampleImages(background, params)
		must(t, err)
		if len(pictures) != 2 || len(rgb.Images()) != 2 || rgb.Channels != 3 || rgb.Image(2) != nil || rgb.Image(-1) != nil {
			t.Fatalf("%d pictures, %d images, %+v", len(pictures), len(rgb.Images()), rgb)
		}
		for i, picture := range pictures {
			if picture.Bounds() != image.Rect(0, 0, 8, 8) {
				t.Fatalf("bounds are %v", picture.Bounds())
			}
			for y := 0; y < 8; y++ {
				for x := 0; x < 8; x++ {
					pixel := picture.(*image.NRGBA).NRGBAAt(x, y)
					got := []byte{pixel.R, pixel.G, pixel.B, pixel.A}
					for c := range got {
						from := c
						switch {
						case c == 3 && channels < 4:
							if got[3] != 255 {
								t.Fatalf("alpha is %d", got[3])
							}
							continue
						case channels == 1:
							from = 0
						}
						value := float64(f32.F32[((i*channels+from)*8+y)*8+x])
						if math.Abs(float64(got[c])-(value+1)*127.5) > 1 {
							t.Fatalf("image %d (%d, %d) channel %d is %d, want about %v", i, x, y, c, got[c], (value+1)*127.5)
						}
					}
					opaque := rgb.Image(i).NRGBAAt(x, y)
					if opaque.R != pixel.R || opaque.G != pixel.G || opaque.B != pixel.B || opaque.A != 255 {
						t.Fatalf("rgb8 has %v where rgba8 has %v", opaque, pixel)
					}
				}
			}
		}
	}
}

func TestSampleInto(t *testing.T) {
	p := tiny(t)
	params := DefaultSampleParams()
	params.Steps, params.NumSamples, params.Format = 4, 2, FormatRGB8
	size, err := p.SampleSize(params)
	if err != nil || size != 2*imageLen {
		t.Fatalf("SampleSize() is %d, %v", size, err)
	}
	ctx, cancel := context.WithCancel(background)
	defer cancel()
	want, err := p.SampleWith(background, params)
	must(t, err)
	for _, ctx := range []context.Context{background, ctx} {
		out := make([]byte, size)
		must(t, p.SampleWithInto(ctx, params, out))
		if string(out) != string(want.Pix) {
			t.Error("other bytes")
		}
		wantErr(t, p.SampleWithInto(ctx, params, make([]byte, size+1)), ErrBufferSize)
		wantErr(t, p.SampleWithInto(ctx, params, out[1:]), ErrBufferSize)
		if string(out) != string(want.Pix) {
			t.Error("a refused call wrote")
		}
	}
	wantErr(t, p.SampleWithInto(background, params, nil), ErrNullPointer)
	params.Format = FormatF32
	aligned := make([]float32, 2*imageLen)
	must(t, p.SampleWithInto(background, params, unsafe.Slice((*byte)(unsafe.Pointer(&aligned[0])), 8*imageLen)))
	images, err := p.SampleWith(background, params)
	must(t, err)
	same(t, "floats", aligned, images.F32)
}

func TestSamplingRefuses(t *testing.T) {
	p := tiny(t)
	ctx, cancel := context.WithCancel(background)
	defer cancel()
	for _, ctx := range []context.Context{background, ctx} {
		for _, n := range []int{0, -1, math.MinInt, math.MaxInt, 1<<20 + 1} {
			wantErr(t, second(p.Sample(ctx, n, 0)), ErrInvalidArgument)
			wantErr(t, second(p.SampleDDIM(ctx, n, 5, 0, 0)), ErrInvalidArgument)
		}
		for _, steps := range []int{0, -1, 21, math.MaxInt} {
			wantErr(t, second(p.SampleDDIM(ctx, 1, steps, 0, 0)), ErrInvalidArgument)
		}
		for _, eta := range []float32{-0.1, 1.1, float32(math.NaN())} {
			wantErr(t, second(p.SampleDDIM(ctx, 1, 5, eta, 0)), ErrInvalidArgument)
		}
		for name, test := range map[string]struct {
			kind   error
			change func(*SampleParams)
		}{
			"method":               {ErrInvalidArgument, func(s *SampleParams) { s.Method = 70 }},
			"num_samples":          {ErrInvalidArgument, func(s *SampleParams) { *s = SampleParams{} }},
			"seeds":                {ErrBufferSize, func(s *SampleParams) { s.Seeds = []uint64{1, 2} }},
			"initial_noise":        {ErrBufferSize, func(s *SampleParams) { s.InitialNoise = make([]float32, 3) }},
			"steps":                {ErrInvalidArgument, func(s *SampleParams) { s.Steps = 21 }},
			"spacing":              {ErrInvalidArgument, func(s *SampleParams) { s.Spacing = 9 }},
			"eta":                  {ErrInvalidArgument, func(s *SampleParams) { s.Eta = math.Inf(1) }},
			"variance":             {ErrInvalidArgument, func(s *SampleParams) { s.Variance = -2 }},
			"clip_sample":          {ErrInvalidArgument, func(s *SampleParams) { s.ClipSample = 2 }},
			"format":               {ErrInvalidArgument, func(s *SampleParams) { s.Format = 4 }},
			"dynamic_thresholding": {ErrInvalidArgument, func(s *SampleParams) { s.DynamicThresholding = 2 }},
			"timeout_ms":           {ErrInvalidArgument, func(s *SampleParams) { s.Timeout = -1 }},
		} {
			params := DefaultSampleParams()
			test.change(&params)
			_, err := p.SampleWith(ctx, params)
			if !errors.Is(err, test.kind) || !strings.Contains(err.Error(), name) {
				t.Errorf("%s: %v, want %v", name, err, test.kind)
			}
		}
		params := DefaultSampleParams()
		params.InitialNoise = make([]float32, imageLen)
		params.InitialNoise[9] = float32(math.NaN())
		wantErr(t, second(p.SampleWith(ctx, params)), ErrNonFinite)
	}
	if _, err := p.Sample(background, 1, 0); err != nil {
		t.Errorf("after the refusals: %v", err)
	}
}

// TestBrokenWeights: the library's answer to a net that computes NaN.
func TestBrokenWeights(t *testing.T) {
	p := tiny(t)
	huge := make([]float32, 3*8*3*3)
	for i := range huge {
		huge[i] = math.MaxFloat32
	}
	must(t, p.WriteParameter(background, WeightsTrained, "conv_out.weight", huge))
	params := DefaultSampleParams()
	params.ClipSample = ChoiceNo
	wantErr(t, second(p.SampleWith(background, params)), ErrNonFinite)
}

func TestTimeout(t *testing.T) {
	p := tiny(t, slow)
	params := slowParams()
	params.Timeout = time.Microsecond // rounded up to 1 ms
	_, err := p.SampleWith(background, params)
	wantErr(t, err, ErrTimeout)
	if errors.Is(err, ErrCancelled) {
		t.Errorf("%v is a cancellation", err)
	}
	job, err := p.Submit(background, params)
	must(t, err)
	defer job.Close()
	ended, err := job.WaitFor(watchdog)
	if !ended || !errors.Is(err, ErrTimeout) {
		t.Errorf("WaitFor: %v, %v", ended, err)
	}
}

// TestManyGoroutines: 50 goroutines that want one image each, and others that train and look, all on one Process.
func TestManyGoroutines(t *testing.T) {
	const count = 50
	p := tiny(t)
	params := DefaultSampleParams()
	params.Steps, params.NumSamples = 6, count
	for i := range count {
		params.Seeds = append(params.Seeds, uint64(1000+i))
	}
	want, err := p.SampleWith(background, params)
	must(t, err)
	for i := 1; i < count; i++ {
		far := 0.0
		for k := range imageLen {
			far = max(far, math.Abs(float64(want.F32[k]-want.F32[i*imageLen+k])))
		}
		if far < 0.1 {
			t.Fatalf("images 0 and %d are alike: no mix-up would be seen", i)
		}
	}

	ctx, cancel := context.WithCancel(background)
	defer cancel()
	images := make([][]float32, count)
	failures := make([]error, count)
	var group sync.WaitGroup
	for i := range count {
		group.Add(1)
		go func() {
			defer group.Done()
			ctx := ctx
			if i%2 == 0 {
				ctx = background
			}
			images[i], failures[i] = p.SampleDDIM(ctx, 1, 6, 0, uint64(1000+i))
		}()
	}
	for range 8 {
		group.Add(1)
		go func() {
			defer group.Done()
			for range 5 {
				if _, err := p.StepCount(); err != nil {
					t.Error(err)
				}
				if _, _, err := p.AddNoise(background, pattern(1), []int64{3}, 1); err != nil {
					t.Error(err)
				}
				if _, err := p.Config(); err != nil {
					t.Error(err)
				}
				if _, err := p.SampleWith(background, SampleParams{}); !errors.Is(err, ErrInvalidArgument) ||
					!strings.Contains(err.Error(), "num_samples") {
					t.Errorf("another goroutine's message: %v", err)
				}
				if err := p.SetLearningRate(-2); !strings.Contains(err.Error(), "learning_rate") {
					t.Errorf("another goroutine's message: %v", err)
				}
			}
		}()
	}
	group.Wait()
	for i := range count {
		must(t, failures[i])
		same(t, "image of a goroutine", images[i], want.F32[i*imageLen:(i+1)*imageLen])
	}
}
