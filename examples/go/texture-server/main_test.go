package main

// What the tests share: models of a few weights, servers on loopback, and what a texture must be.

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"image"
	"image/png"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libdiffusion/go-diffusion"
)

// models are folders that TestMain made. Their nets compute in well under a millisecond.
var models struct {
	tiny    string
	endless string // has so many timesteps that no test would wait for them
}

const (
	tinySize     = 8
	endlessSteps = 100000

	// watchdog is long enough for the slowest machine: nothing depends on it unless something hangs.
	watchdog = 4 * time.Minute
)

func TestMain(m *testing.M) {
	if os.Getenv("TEXTURE_SERVER_CHILD") != "" {
		main()
	}
	os.Exit(func() int {
		folder, err := os.MkdirTemp("", "texture-server")
		if err == nil {
			defer os.RemoveAll(folder)
			models.tiny, models.endless = filepath.Join(folder, "tiny"), filepath.Join(folder, "endless")
			err = saveModel(models.tiny, 1000)
		}
		if err == nil {
			err = saveModel(models.endless, endlessSteps)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "these tests need the library, see `make`: %v\n", err)
			return 1
		}
		return m.Run()
	}())
}

func saveModel(folder string, noiseSteps int) error {
	config := diffusion.DefaultConfig()
	config.Device, config.NumThreads = diffusion.DeviceCPU, 1
	config.ImageSize, config.HiddenDims, config.NoiseSteps = tinySize, []int{8, 16}, noiseSteps
	config.Seed = 7
	process, err := diffusion.New(config)
	if err != nil {
		return err
	}
	defer process.Close()
	return process.Save(context.Background(), folder)
}

func tinyOptions() options {
	return options{
		addr: "127.0.0.1:0", model: models.tiny, queue: 512, maxSteps: 100, maxSize: 64, threads: 1, batch: 16,
		device: diffusion.DeviceCPU, grace: watchdog, log: "text",
	}
}

// service is a running server.
type service struct {
	*server
	url  string
	stop func() error // as SIGTERM; returns how serve ended
	log  *logBuffer
}

// logBuffer is for several goroutines.
type logBuffer struct {
	mutex sync.Mutex
	text  bytes.Buffer
}

func (b *logBuffer) Write(data []byte) (int, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.text.Write(data)
}

func (b *logBuffer) String() string {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.text.String()
}

// start runs a server until the test ends.
func start(t *testing.T, o options, change ...func(*server)) *service {
	t.Helper()
	s := &service{log: &logBuffer{}}
	log := slog.New(slog.NewTextHandler(s.log, nil))
	studio, err := openStudio(o, log)
	must(t, err)
	listener, err := net.Listen("tcp", o.addr)
	must(t, err)
	s.server = newServer(studio, log, defaultTimeouts)
	for _, f := range change {
		f(s.server)
	}
	s.url = "http://" + listener.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.serve(ctx, listener, o.grace) }()
	s.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-ended:
			studio.close()
			return err
		case <-time.After(watchdog):
			return fmt.Errorf("the server has not stopped within %v", watchdog)
		}
	})
	t.Cleanup(func() {
		s.cancel(errShutdown) // nothing that a failed test left behind is waited for
		must(t, s.stop())
	})
	return s
}

// client keeps no connection, and so no goroutine, when its request is over.
func client() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: watchdog}
}

// reply is an answer, read whole.
type reply struct {
	status int
	header http.Header
	body   []byte
}

func do(t testing.TB, client *http.Client, request *http.Request) reply {
	t.Helper()
	response, err := client.Do(request)
	must(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	must(t, err)
	return reply{response.StatusCode, response.Header, body}
}

func newRequest(t testing.TB, method, url, body string, headers ...string) *http.Request {
	t.Helper()
	request, err := http.NewRequest(method, url, strings.NewReader(body))
	must(t, err)
	for i := 0; i < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	return request
}

func fetch(t testing.TB, url string, headers ...string) reply {
	t.Helper()
	return do(t, client(), newRequest(t, http.MethodGet, url, "", headers...))
}

func postJSON(t testing.TB, url, body string) reply {
	t.Helper()
	return do(t, client(), newRequest(t, http.MethodPost, url, body, "Content-Type", "application/json"))
}

// problemOf checks that an answer is a problem of this status, and returns it.
func problemOf(t testing.TB, r reply, status int) problem {
	t.Helper()
	var p problem
	if err := json.Unmarshal(r.body, &p); err != nil || r.status != status || p.Status != status ||
		r.header.Get("Content-Type") != "application/problem+json" || p.Detail == "" {
		t.Fatalf("status %d, %v, want a problem of %d: %s", r.status, r.header, status, r.body)
	}
	return p
}

// reference samples with a process of its own, one texture after the other: what the server's must equal.
type reference struct {
	t       testing.TB
	mutex   sync.Mutex
	process *diffusion.Process
	made    map[texture][]byte
}

func newReference(t testing.TB, model string) *reference {
	overrides := diffusion.DefaultConfig()
	overrides.Device, overrides.NumThreads = diffusion.DeviceCPU, 1
	process, err := diffusion.Load(model, &overrides)
	must(t, err)
	t.Cleanup(func() { _ = process.Close() })
	return &reference{t: t, process: process, made: map[texture][]byte{}}
}

// pixels are of the texture in the model's size, RGBA.
func (r *reference) pixels(seed uint64, steps int) []byte {
	r.t.Helper()
	r.mutex.Lock()
	defer r.mutex.Unlock()
	key := texture{Seed: seed, Steps: steps}
	if made := r.made[key]; made != nil {
		return made
	}
	params := diffusion.DefaultSampleParams()
	params.Method, params.Seed, params.Steps = diffusion.MethodDPMSolver2M, seed, steps
	params.Format = diffusion.FormatRGBA8
	samples, err := r.process.SampleWith(context.Background(), params)
	must(r.t, err)
	r.made[key] = samples.Pix
	return samples.Pix
}

// check compares a picture of any size, pixel by pixel, with what was sampled alone.
func (r *reference) check(got image.Image, seed uint64, steps, size int) error {
	want := r.pixels(seed, steps)
	side := isqrt(len(want) / 4)
	if bounds := got.Bounds(); bounds != image.Rect(0, 0, size, size) {
		return fmt.Errorf("seed %d: the picture is %v, want %dx%d", seed, bounds, size, size)
	}
	for y := range size {
		for x := range size {
			i := 4 * (y*side/size*side + x*side/size)
			red, green, blue, alpha := got.At(x, y).RGBA()
			if [4]byte{byte(red >> 8), byte(green >> 8), byte(blue >> 8), byte(alpha >> 8)} != [4]byte(want[i:i+4]) {
				return fmt.Errorf("seed %d, %d steps: pixel %d, %d differs from what is sampled alone", seed, steps, x, y)
			}
		}
	}
	return nil
}

func (r *reference) checkPNG(body []byte, seed uint64, steps, size int) error {
	picture, err := png.Decode(bytes.NewReader(body))
	if err != nil {
		return err
	}
	return r.check(picture, seed, steps, size)
}

func isqrt(n int) int {
	root := 0
	for (root+1)*(root+1) <= n {
		root++
	}
	return root
}

// metric reads one value of /metrics; a name may have labels.
func (s *service) metric(t testing.TB, name string) float64 {
	t.Helper()
	for _, line := range strings.Split(string(fetch(t, s.url+"/metrics").body), "\n") {
		if value, found := strings.CutPrefix(line, name+" "); found {
			number, err := strconv.ParseFloat(value, 64)
			must(t, err)
			return number
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// idle waits until no texture is waiting or being made.
func (s *service) idle(t testing.TB) {
	t.Helper()
	await(t, "no jobs", func() bool {
		return s.metric(t, "texture_queue_depth") == 0 && s.metric(t, "texture_jobs_in_flight") == 0
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// await polls until a condition holds.
func await(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for started := time.Now(); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Since(started) > watchdog {
			buffer := make([]byte, 1<<20)
			t.Fatalf("%s: not within %v\n%s", what, watchdog, buffer[:runtime.Stack(buffer, true)])
		}
	}
}
