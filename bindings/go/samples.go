package diffusion

// What goes into sampling, and what comes out.

import (
	"image"
	"time"
	"unsafe"
)

// SampleParams is what and how to sample. Begin with DefaultSampleParams and change what you need.
type SampleParams struct {
	Method     Method // default MethodDDIM
	NumSamples int    // images to make, 1..=1048576. Default 1
	Seed       uint64 // image i is determined by (Seed, i). Default 0

	// Seeds is empty, or has NumSamples entries: image i is then what the seed Seeds[i] gives as its image 0.
	Seeds []uint64
	// InitialNoise is empty, or the noise to start from, [NumSamples, channels, size, size], in place of the seeds'.
	InitialNoise []float32
	// ClassLabels is the class of each image, NumSamples of them, for a network with classes; empty for one without.
	ClassLabels []int64

	Steps    int      // denoising steps, 1..=NoiseSteps; 0: 50, and for DDPM NoiseSteps. Default 0
	Spacing  Spacing  // default SpacingDefault
	Eta      float64  // DDIM: 0 is deterministic, 1 is as random as DDPM. Default 0
	Variance Variance // DDPM's. Default VarianceDefault

	ClipSample            Choice        // clamp the estimate of the clean image at each step. Default ChoiceDefault
	UseClippedModelOutput bool          // DDIM: recompute the noise from the clipped estimate. Default false
	DynamicThresholding   float64       // arXiv 2205.11487: the percentile in (0, 1), in place of ClipSample; 0: off
	Timeout               time.Duration // after which the job ends with ErrTimeout, in whole milliseconds; 0: never
	Format                Format        // of the images. Default FormatF32

	// Progress, if not nil, is called about once for each denoising step, by the goroutine that called SampleWith,
	// SampleImages or Job.Wait (if several wait for a job, by one of them). done and total count denoising steps of
	// images. It may use this package, the same Process included. If it returns an error, the job is cancelled, and
	// the call returns an error that matches that one and ErrCancelled. If it panics, the job is cancelled and the
	// panic goes on in the caller.
	Progress func(done, total uint64) error
}

// DefaultSampleParams returns the defaults that the fields' comments name: one image by DDIM. Without a library it
// does as DefaultConfig.
func DefaultSampleParams() SampleParams {
	if open() != nil {
		return SampleParams{}
	}
	params, err := abiSampleParamsInit()
	if err != nil {
		return SampleParams{}
	}
	return params
}

// Samples are images that were sampled. Of F32, F16 and Pix, the one that Format names is not nil.
type Samples struct {
	Format     Format
	NumSamples int
	Channels   int // of the model; for FormatRGB8 3 and for FormatRGBA8 4
	Size       int // height and width in pixels

	F32 []float32 // FormatF32: [NumSamples, Channels, Size, Size] in [-1, 1]
	F16 []uint16  // FormatF16: the same, each value the bits of an IEEE half
	Pix []byte    // FormatRGB8, FormatRGBA8: [NumSamples, Size, Size, Channels]
}

// newSamples makes room for the images of a call.
func newSamples(format Format, numSamples, channels, size, bytes int) (*Samples, error) {
	s := &Samples{Format: format, NumSamples: numSamples, Channels: channels, Size: size}
	var err error
	switch format {
	case FormatF32:
		s.F32, err = allocate[float32](bytes / 4)
	case FormatF16:
		s.F16, err = allocate[uint16](bytes / 2)
	case FormatRGB8:
		s.Channels = 3
		s.Pix, err = allocate[byte](bytes)
	default:
		s.Channels = 4
		s.Pix, err = allocate[byte](bytes)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// memory is where the library is to write the images.
func (s *Samples) memory() []byte {
	switch s.Format {
	case FormatF32:
		return asBytes(s.F32)
	case FormatF16:
		return asBytes(s.F16)
	}
	return s.Pix
}

// Image returns image i of FormatRGB8 or FormatRGBA8, for image/png and its like; those of FormatRGBA8 share
// memory with Pix. For another format, or if there is no image i, it returns nil.
func (s *Samples) Image(i int) *image.NRGBA {
	if s.Pix == nil || i < 0 || i >= s.NumSamples {
		return nil
	}
	rectangle := image.Rect(0, 0, s.Size, s.Size)
	pixels := s.Size * s.Size
	if s.Format == FormatRGBA8 {
		from, to := i*pixels*4, (i+1)*pixels*4
		return &image.NRGBA{Pix: s.Pix[from:to:to], Stride: s.Size * 4, Rect: rectangle}
	}
	picture := image.NewNRGBA(rectangle)
	source := s.Pix[i*pixels*3:]
	for k := 0; k < pixels; k++ {
		copy(picture.Pix[4*k:], source[3*k:3*k+3])
		picture.Pix[4*k+3] = 255
	}
	return picture
}

// Images returns all images, as Image does.
func (s *Samples) Images() []image.Image {
	if s.Pix == nil {
		return nil
	}
	pictures := make([]image.Image, s.NumSamples)
	for i := range pictures {
		pictures[i] = s.Image(i)
	}
	return pictures
}

// allocate is make, with an error for what make would panic about: the sizes are the caller's of the package.
func allocate[T any](n int) (values []T, err error) {
	defer func() {
		if recover() != nil {
			err = &Error{Status: StatusOutOfMemory, Func: "make", Message: "the images do not fit into a Go slice"}
		}
	}()
	return make([]T, n), nil
}

func asBytes[T float32 | uint16](values []T) []byte {
	if len(values) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(values))), len(values)*int(unsafe.Sizeof(values[0])))
}
