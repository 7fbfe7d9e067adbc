package main

// The one diffusion process, and who may use it.

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"image"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/libdiffusion/go-diffusion"
)

var (
	errShutdown   = errors.New("the server is shutting down: ask another replica, or again")
	errClientGone = errors.New("the client is gone")
)

// studio makes textures. Every texture is a job of its own: the library computes the jobs that are under way
// together and lets new ones join at any denoising step, so there is nothing here that collects requests.
type studio struct {
	process *diffusion.Process
	limits  limits
	metrics *metrics

	digest      string // of the model's files
	version     string // of the library
	device      string
	fingerprint string // of all that the bytes of a texture depend on beside the request

	mutex    sync.Mutex
	capacity int
	admitted int           // textures waiting or being made
	running  int           // of these, those that have begun
	usual    time.Duration // what a texture lately took, from request to picture
	draining bool
}

func openStudio(o options, log *slog.Logger) (*studio, error) {
	if _, err := diffusion.Version(); err != nil {
		return nil, err // there is no library, or not the right one
	}
	digest, err := digest(o.model)
	if err != nil {
		return nil, fmt.Errorf("-model is %q: %w", o.model, err)
	}
	overrides := diffusion.DefaultConfig()
	overrides.Device, overrides.DeviceIndex = o.device, o.deviceIndex
	overrides.NumThreads, overrides.MaxBatch = o.threads, o.batch
	process, err := diffusion.Load(o.model, &overrides)
	if err != nil {
		return nil, err
	}
	s, err := newStudio(process, digest, o)
	if err != nil {
		_ = process.Close()
		return nil, err
	}
	err = process.SetLog(func(level diffusion.LogLevel, message string) {
		if level == diffusion.LogWarning {
			log.Warn(message, "from", "libdiffusion")
			return
		}
		log.Info(message, "from", "libdiffusion")
	})
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func newStudio(process *diffusion.Process, digest string, o options) (*studio, error) {
	config, err := process.Config()
	if err != nil {
		return nil, err
	}
	if c := config.Channels; c != 1 && c != 3 && c != 4 {
		return nil, fmt.Errorf("-model is %q: has %d channels: must have 1, 3 or 4", o.model, c)
	}
	if o.maxSize < config.ImageSize {
		return nil, fmt.Errorf("-max-size is %d: must be at least the model's %d", o.maxSize, config.ImageSize)
	}
	version, err := diffusion.Version()
	if err != nil {
		return nil, err
	}
	s := &studio{
		process: process,
		limits: limits{
			modelSize: config.ImageSize, maxSize: o.maxSize,
			maxSteps:    min(o.maxSteps, config.NoiseSteps),
			maxTextures: min(64, o.queue),
		},
		digest:   digest,
		version:  version,
		device:   config.Device.String(),
		capacity: o.queue,
		usual:    time.Second,
	}
	s.fingerprint = fmt.Sprintf("%s, %s, %s, %v", s.digest, s.version, s.device, method)
	s.metrics = newMetrics(s)
	return s, nil
}

// method is a fast one: 20 steps look as good as 50 of DDIM.
const method = diffusion.MethodDPMSolver2M

func (s *studio) close() { _ = s.process.Close() }

// digest is of the files that make up a model.
func digest(folder string) (string, error) {
	folder, err := filepath.EvalSymlinks(folder)
	if err != nil {
		return "", err
	}
	sum, files := sha256.New(), 0
	err = filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		if extension := filepath.Ext(path); extension != ".json" && extension != ".safetensors" {
			return nil
		}
		name, err := filepath.Rel(folder, path)
		if err != nil {
			return err
		}
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		info, err := file.Stat()
		if err != nil {
			return err
		}
		files++
		fmt.Fprintf(sum, "%s %d\n", name, info.Size())
		_, err = io.Copy(sum, file)
		return err
	})
	if err == nil && files == 0 {
		err = errors.New("it has no model in it")
	}
	return hex.EncodeToString(sum.Sum(nil)), err
}

// reserve takes places for n textures, or none. Each must be given back with release.
func (s *studio) reserve(n int) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.draining {
		return errShutdown
	}
	if s.admitted+n > s.capacity {
		s.metrics.rejected.Add(float64(n))
		p := newProblem(http.StatusTooManyRequests, "%d of %d places are taken and %d are needed: ask again",
			s.admitted, s.capacity, n)
		// Places become free all the time; who waits as long as a texture takes finds others than now.
		p.RetryAfter = int(min(max(math.Ceil(s.usual.Seconds()), 1), 60))
		return p
	}
	s.admitted += n
	return nil
}

func (s *studio) release(n int) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.admitted -= n
}

// drain lets no more textures in.
func (s *studio) drain() {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.draining = true
}

func (s *studio) isDraining() bool {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.draining
}

func (s *studio) counts() (queued, running int) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.admitted - s.running, s.running
}

// begin and end are of a texture's job. begin returns how many are being made.
func (s *studio) begin(first bool) int {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if first {
		s.running++
	}
	return s.running
}

func (s *studio) end(begun bool, took time.Duration, made bool) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if begun {
		s.running--
	}
	if made {
		s.usual += (took - s.usual) / 8
	}
}

// watch is told how far a texture is, and what it is estimated to become; nil before there is an estimate.
type watch func(done, total uint64, estimate *image.NRGBA)

// paint makes a texture, in the model's size. It needs a place of reserve's. When ctx ends, the job is cancelled.
func (s *studio) paint(ctx context.Context, t texture, watch watch) (picture *image.NRGBA, err error) {
	submitted := time.Now()
	last, steps, begun := submitted, uint64(0), false
	defer func() {
		if value := recover(); value != nil {
			// Those who call are goroutines that nobody waits for: a panic there would end the program.
			s.metrics.panics.Inc()
			err = fmt.Errorf("panic: %v\n%s", value, debug.Stack())
		}
		s.end(begun, time.Since(submitted), err == nil)
		switch {
		case err == nil:
			s.metrics.images.Inc()
		case ctx.Err() != nil && errors.Is(context.Cause(ctx), errShutdown):
			s.metrics.cancelled.WithLabelValues("shutdown").Inc()
			err = errShutdown
		case ctx.Err() != nil:
			s.metrics.cancelled.WithLabelValues("client").Inc()
			err = errClientGone
		default:
			s.metrics.failed.Inc()
		}
	}()

	var job *diffusion.Job
	params := t.params()
	params.Progress = func(done, total uint64) error {
		batch := s.begin(!begun)
		now := time.Now()
		if begun {
			// Steps that came together are told together.
			s.metrics.stepTime.Observe(now.Sub(last).Seconds() / float64(done-steps))
		} else {
			s.metrics.waited.Observe(now.Sub(submitted).Seconds())
		}
		s.metrics.batch.Observe(float64(batch))
		s.metrics.steps.Add(float64(done - steps))
		last, steps, begun = now, done, true
		if watch == nil {
			return nil
		}
		estimate, stems, err := job.Preview()
		switch {
		case err != nil:
			return err
		case stems == 0:
			watch(done, total, nil)
		default:
			watch(stems, total, estimate.Image(0))
		}
		return nil
	}
	if job, err = s.process.Submit(ctx, params); err != nil {
		return nil, err
	}
	defer job.Close()
	if watch != nil {
		// Estimates are kept from the first call on.
		if _, _, err := job.Preview(); err != nil {
			return nil, err
		}
		watch(0, uint64(t.Steps), nil)
	}
	if err := job.Wait(ctx); err != nil {
		return nil, err
	}
	samples, err := job.Fetch()
	if err != nil {
		return nil, err
	}
	return samples.Image(0), nil
}

// params is how a texture is sampled.
func (t texture) params() diffusion.SampleParams {
	params := diffusion.DefaultSampleParams()
	params.Method, params.Steps, params.Seed = method, t.Steps, t.Seed
	params.Format = diffusion.FormatRGBA8
	return params
}

func (s *studio) warmUp(ctx context.Context) error {
	_, err := s.process.SampleWith(ctx, texture{Steps: 1}.params())
	return err
}
