package main

// What the person who starts the service decides: flags, each with an environment variable behind it.

import (
	"flag"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/libdiffusion/go-diffusion"
)

type options struct {
	addr, model, log         string
	queue, maxSteps, maxSize int
	threads, batch           int
	device                   diffusion.Device
	deviceIndex              int
	grace                    time.Duration
}

// parseOptions reads the flags. A flag that is not given is the environment variable TEXTURE_<NAME>, if that is set.
func parseOptions(arguments []string, getenv func(string) string, stdout io.Writer) (options, error) {
	var o options
	var device string
	flags := flag.NewFlagSet("texture-server", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.addr, "addr", "127.0.0.1:8080", "`address` to listen on; :8080 is every interface")
	flags.StringVar(&o.model, "model", "models/textures", "checkpoint `folder`, of this library or of diffusers")
	flags.IntVar(&o.queue, "queue", 64, "most textures waiting or being made; more are refused with 429")
	flags.IntVar(&o.maxSteps, "max-steps", 100, "most denoising steps of a texture")
	flags.IntVar(&o.maxSize, "max-size", 1024, "most pixels along a side of a texture")
	flags.IntVar(&o.threads, "threads", 0, "threads to compute with; 0: one a core")
	flags.IntVar(&o.batch, "batch", 16, "most textures in one evaluation of the network")
	flags.StringVar(&device, "device", "auto", "auto, cpu, cuda or cuda:N")
	flags.DurationVar(&o.grace, "grace", 20*time.Second, "how long requests under way may go on after SIGTERM")
	flags.StringVar(&o.log, "log", "text", "text or json")

	var err error
	flags.VisitAll(func(f *flag.Flag) {
		name := variable(f.Name)
		if value := getenv(name); value != "" && err == nil {
			if wrong := f.Value.Set(value); wrong != nil {
				err = fmt.Errorf("%s is %q: %v", name, value, wrong)
			}
		}
	})
	if err != nil {
		return o, err
	}
	if err := flags.Parse(arguments); err != nil {
		if err == flag.ErrHelp {
			usage(flags, stdout)
		}
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("%q is no option", flags.Arg(0))
	}
	for _, check := range []struct {
		name               string
		value, least, most int
	}{
		{"queue", o.queue, 1, 4096},
		{"max-steps", o.maxSteps, 1, 100000},
		{"max-size", o.maxSize, 1, 4096},
		{"threads", o.threads, 0, 1024},
		{"batch", o.batch, 1, 1024},
	} {
		if check.value < check.least || check.value > check.most {
			return o, fmt.Errorf("-%s is %d: must be in %d..=%d", check.name, check.value, check.least, check.most)
		}
	}
	if o.grace < 0 || o.grace > time.Hour {
		return o, fmt.Errorf("-grace is %v: must be in 0s..=1h", o.grace)
	}
	if o.log != "text" && o.log != "json" {
		return o, fmt.Errorf("-log is %q: must be text or json", o.log)
	}
	if o.device, o.deviceIndex, err = diffusion.ParseDevice(device); err != nil {
		return o, fmt.Errorf("-device: %w", err)
	}
	return o, nil
}

// variable is the environment variable behind a flag: TEXTURE_MAX_SIZE for -max-size.
func variable(flag string) string {
	return "TEXTURE_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

func usage(flags *flag.FlagSet, out io.Writer) {
	fmt.Fprint(out, "Makes textures over HTTP from a diffusion model.\n\nUsage: texture-server [options]\n\n")
	flags.VisitAll(func(f *flag.Flag) {
		kind, text := flag.UnquoteUsage(f)
		fmt.Fprintf(out, "  %-22s %s (default %s; %s)\n", "-"+f.Name+" "+kind, text, f.DefValue, variable(f.Name))
	})
	fmt.Fprint(out, "\nlibdiffusion is found by DIFFUSION_LIB (its file or folder), beside the program, or by the system's loader.\n")
}
