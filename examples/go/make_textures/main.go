// Command make_textures samples textures from a trained model and writes them as one PNG.
//
//	make_textures --model models/textures --count 16 --out textures.png
//
// It shows what a Go program does with libdiffusion: load a checkpoint, sample with a context and a progress
// function, and use the results as image.Image.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"
	"math"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/libdiffusion/go-diffusion"
)

const help = `Samples textures from a diffusion model and writes them as one PNG.

Usage: make_textures [options]

  --model FOLDER   checkpoint folder, of this library or of diffusers (default models/textures)
  --out PNG        picture to write (default textures.png)
  --count N        textures to make, 1 to 4096 (default 16)
  --columns N      textures in a row (default: as square as it goes)
  --method NAME    ddpm, ddim, dpm-solver++, dpm-solver++-sde, unipc, euler or heun (default ddim)
  --steps N        denoising steps (default: 50; for ddpm all of the model's)
  --device NAME    auto, cpu, cuda or cuda:N (default auto)
  --seed N         texture i is determined by the seed and i (default 0)
  --scale N        pixels of the picture per pixel of a texture, 1 to 64 (default: enough to see)
  --help           this text

The library is found by DIFFUSION_LIB (its file or folder), beside the program, or by the system's loader.
Ctrl-C stops and writes nothing.
`

// margin is the pixels between two textures.
const margin = 4

type options struct {
	model, out     string
	count, columns int
	method         diffusion.Method
	steps          int
	device         diffusion.Device
	deviceIndex    int
	seed           uint64
	scale          int
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second Ctrl-C ends the program at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the program: it returns the exit code.
func run(ctx context.Context, arguments []string, stdout, stderr io.Writer) int {
	o, err := parse(arguments)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, help)
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "make_textures: %v (--help lists the options)\n", err)
		return 1
	}
	err = makeTextures(ctx, o, stdout, stderr)
	switch {
	case err != nil && ctx.Err() != nil:
		fmt.Fprintln(stderr, "make_textures: cancelled, nothing written")
		return 130 // what a shell expects after Ctrl-C
	case err != nil:
		fmt.Fprintf(stderr, "make_textures: %v\n", err)
		return 1
	}
	return 0
}

func parse(arguments []string) (options, error) {
	o := options{count: 16}
	flags := flag.NewFlagSet("make_textures", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.model, "model", "models/textures", "")
	flags.StringVar(&o.out, "out", "textures.png", "")
	flags.Func("count", "", within(&o.count, 1, 4096))
	flags.Func("columns", "", within(&o.columns, 0, 4096))
	flags.TextVar(&o.method, "method", diffusion.MethodDDIM, "")
	flags.Func("steps", "", within(&o.steps, 0, math.MaxInt32))
	flags.Func("device", "", func(text string) (err error) {
		o.device, o.deviceIndex, err = diffusion.ParseDevice(text)
		return err
	})
	flags.Uint64Var(&o.seed, "seed", 0, "")
	flags.Func("scale", "", within(&o.scale, 0, 64))
	if err := flags.Parse(arguments); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("%q is no option", flags.Arg(0))
	}
	return o, nil
}

// within makes an option of a whole number in least..=most.
func within(value *int, least, most int) func(string) error {
	return func(text string) error {
		n, err := strconv.Atoi(text)
		if err != nil || n < least || n > most {
			return fmt.Errorf("must be in %d..=%d", least, most)
		}
		*value = n
		return nil
	}
}

func makeTextures(ctx context.Context, o options, stdout, stderr io.Writer) error {
	overrides := diffusion.DefaultConfig()
	overrides.Device, overrides.DeviceIndex = o.device, o.deviceIndex
	process, err := diffusion.Load(o.model, &overrides)
	if err != nil {
		return err
	}
	defer process.Close()
	version, err := diffusion.Version()
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout, version)

	progress := newProgress(stderr)
	params := diffusion.DefaultSampleParams()
	params.NumSamples = o.count
	params.Method = o.method
	params.Steps = o.steps
	params.Seed = o.seed
	params.Progress = progress.update
	textures, err := process.SampleImages(ctx, params)
	progress.end()
	if err != nil {
		return err
	}

	size := textures[0].Bounds().Dx()
	if o.scale == 0 {
		o.scale = max(1, 128/size)
	}
	if o.columns == 0 {
		o.columns = int(math.Ceil(math.Sqrt(float64(o.count))))
	}
	var file bytes.Buffer
	if err := png.Encode(&file, grid(textures, min(o.columns, o.count), o.scale)); err != nil {
		return err
	}
	if err := os.WriteFile(o.out, file.Bytes(), 0o644); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "open %s to see %d textures of %dx%d\n", o.out, o.count, size, size)
	return nil
}

// grid lays the textures out in rows, each of their pixels as a square of scale x scale.
func grid(textures []image.Image, columns, scale int) image.Image {
	size := textures[0].Bounds().Dx()
	cell := size*scale + margin
	rows := (len(textures) + columns - 1) / columns
	picture := image.NewNRGBA(image.Rect(0, 0, columns*cell+margin, rows*cell+margin))
	draw.Draw(picture, picture.Bounds(), image.NewUniform(color.Gray{Y: 24}), image.Point{}, draw.Src)
	for i, texture := range textures {
		left, top := i%columns*cell+margin, i/columns*cell+margin
		for y := range size * scale {
			for x := range size * scale {
				picture.Set(left+x, top+y, texture.At(x/scale, y/scale))
			}
		}
	}
	return picture
}

// progress is one line on a terminal that is written over, and a line for each tenth elsewhere.
type progress struct {
	out      io.Writer
	terminal bool
	started  time.Time
	tenth    uint64
	shown    bool
}

func newProgress(out io.Writer) *progress {
	p := &progress{out: out, started: time.Now()}
	if file, ok := out.(*os.File); ok {
		info, err := file.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

// update is the progress function of the sampling call: done and total count denoising steps of images.
func (p *progress) update(done, total uint64) error {
	text := fmt.Sprintf("denoising %d/%d (%d%%) %s", done, total, 100*done/total,
		time.Since(p.started).Round(time.Second/10))
	switch tenth := 10 * done / total; {
	case p.terminal:
		fmt.Fprintf(p.out, "\r\x1b[K%s", text)
	case tenth > p.tenth || !p.shown:
		p.tenth = tenth
		fmt.Fprintln(p.out, text)
	}
	p.shown = true
	return nil
}

func (p *progress) end() {
	if p.terminal && p.shown {
		fmt.Fprintln(p.out)
	}
}
