// Command texture-server makes textures for whoever asks over HTTP, from one diffusion model.
//
//	texture-server -model models/textures -addr 127.0.0.1:8080
//
// All requests share one diffusion.Process, which computes them together. The service keeps no state: a texture is
// determined by the model and the request, so any replica gives the same one. README.md has the API.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the program at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// run is the program: it returns the exit code when ctx has ended and the requests with it.
func run(ctx context.Context, arguments []string, getenv func(string) string, stdout, stderr io.Writer) int {
	o, err := parseOptions(arguments, getenv, stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "texture-server: %v (-help lists the options)\n", err)
		return 2
	}
	log := newLog(o.log, stderr)
	if err := listenAndServe(ctx, o, log); err != nil {
		log.Error("ended", "error", err)
		return 1
	}
	return 0
}

func newLog(format string, out io.Writer) *slog.Logger {
	if format == "json" {
		return slog.New(slog.NewJSONHandler(out, nil))
	}
	return slog.New(slog.NewTextHandler(out, nil))
}

func listenAndServe(ctx context.Context, o options, log *slog.Logger) error {
	studio, err := openStudio(o, log)
	if err != nil {
		return err
	}
	defer studio.close()
	// The first texture pays for what libtorch sets up; better now than in somebody's request.
	if err := studio.warmUp(ctx); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", o.addr)
	if err != nil {
		return err
	}
	log.Info("listening", "addr", listener.Addr().String(), "model", o.model, "digest", studio.digest,
		"library", studio.version, "device", studio.device)
	return newServer(studio, log, defaultTimeouts).serve(ctx, listener, o.grace)
}
