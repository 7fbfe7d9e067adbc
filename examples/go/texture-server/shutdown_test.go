package main

// How the service ends, and the options it starts with.

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// child is the program in a process of its own.
type child struct {
	*exec.Cmd
	url string
	log *logBuffer
}

// launch runs this test program as the server.
func launch(t *testing.T, arguments ...string) *child {
	t.Helper()
	program, err := os.Executable()
	must(t, err)
	c := &child{Cmd: exec.Command(program, append([]string{"-addr", "127.0.0.1:0", "-threads", "1"}, arguments...)...), log: &logBuffer{}}
	c.Env = append(os.Environ(), "TEXTURE_SERVER_CHILD=1")
	stderr, err := c.StderrPipe()
	must(t, err)
	must(t, c.Start())
	killer := time.AfterFunc(watchdog, func() { _ = c.Process.Kill() })
	t.Cleanup(func() {
		killer.Stop()
		_ = c.Process.Kill()
		_, _ = c.Process.Wait()
	})
	lines := bufio.NewScanner(stderr)
	address := regexp.MustCompile(`msg=listening addr=(\S+)`)
	for c.url == "" && lines.Scan() {
		fmt.Fprintln(c.log, lines.Text())
		if found := address.FindStringSubmatch(lines.Text()); found != nil {
			c.url = "http://" + found[1]
		}
	}
	if c.url == "" {
		t.Fatalf("the server does not listen:\n%s", c.log)
	}
	go func() {
		for lines.Scan() {
			fmt.Fprintln(c.log, lines.Text())
		}
	}()
	return c
}

func (c *child) metric(t *testing.T, name string) float64 {
	t.Helper()
	return (&service{url: c.url}).metric(t, name)
}

// exit waits for the end and returns the exit code.
func (c *child) exit() int {
	_ = c.Wait()
	return c.ProcessState.ExitCode()
}

func TestSIGTERMFinishes(t *testing.T) {
	c, alone := launch(t, "-model", models.endless, "-max-steps", "100000", "-grace", "1h"), newReference(t, models.endless)
	const steps = 2000
	answers := make(chan reply, 1)
	go func() { answers <- fetch(t, fmt.Sprintf("%s/texture?seed=4&steps=%d&size=8", c.url, steps)) }()
	await(t, "a texture in flight", func() bool { return c.metric(t, "texture_jobs_in_flight") == 1 })
	must(t, c.Process.Signal(syscall.SIGTERM))
	r := <-answers
	if r.status != http.StatusOK {
		t.Fatalf("%d %s", r.status, r.body)
	}
	if err := alone.checkPNG(r.body, 4, steps, 8); err != nil {
		t.Error(err)
	}
	if code := c.exit(); code != 0 {
		t.Errorf("exit code %d\n%s", code, c.log)
	}
	if response, err := http.Get(c.url); err == nil {
		response.Body.Close()
		t.Error("it still answers")
	}
}

func TestSIGTERMCancels(t *testing.T) {
	c := launch(t, "-model", models.endless, "-max-steps", "100000", "-grace", "200ms")
	answers, streams := make(chan reply, 1), make(chan reply, 1)
	go func() { answers <- fetch(t, fmt.Sprintf("%s/texture?steps=%d&size=8", c.url, endlessSteps)) }()
	go func() { streams <- fetch(t, fmt.Sprintf("%s/events?steps=%d&count=2", c.url, endlessSteps)) }()
	await(t, "three textures in flight", func() bool { return c.metric(t, "texture_jobs_in_flight") == 3 })
	must(t, c.Process.Signal(syscall.SIGTERM))
	r := <-answers
	if p := problemOf(t, r, http.StatusServiceUnavailable); r.header.Get("Retry-After") == "" || !strings.Contains(p.Detail, "shutting down") {
		t.Errorf("%v %+v", r.header, p)
	}
	failed := 0
	list := readEvents(t, (<-streams).body)
	for _, e := range list {
		if e.name == "failed" && e.Error.Status == http.StatusServiceUnavailable {
			failed++
		}
	}
	if failed != 2 || list[len(list)-1].name != "end" {
		t.Errorf("%d textures of the stream failed, the last event is %s", failed, list[len(list)-1].name)
	}
	if code := c.exit(); code != 0 {
		t.Errorf("exit code %d\n%s", code, c.log)
	}
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	c := launch(t, "-model", models.endless, "-max-steps", "100000", "-grace", "1h")
	go func() {
		if response, err := http.Get(fmt.Sprintf("%s/texture?steps=%d", c.url, endlessSteps)); err == nil {
			response.Body.Close()
		}
	}()
	await(t, "a texture in flight", func() bool { return c.metric(t, "texture_jobs_in_flight") == 1 })
	must(t, c.Process.Signal(syscall.SIGINT))
	await(t, "shutting down", func() bool { return strings.Contains(c.log.String(), "shutting down") })
	// Until the first signal's handler is off, a second is as the first.
	ended := make(chan int, 1)
	go func() { ended <- c.exit() }()
	for {
		select {
		case code := <-ended:
			if code != -1 {
				t.Errorf("exit code %d, want the signal's end", code)
			}
			return
		case <-time.After(20 * time.Millisecond):
			_ = c.Process.Signal(syscall.SIGINT)
		}
	}
}

func TestUnreadyBeforeItStops(t *testing.T) {
	s := start(t, tinyOptions())
	s.studio.drain()
	problemOf(t, fetch(t, s.url+"/readyz"), http.StatusServiceUnavailable)
	r := fetch(t, s.url+"/texture")
	problemOf(t, r, http.StatusServiceUnavailable)
	if r.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	if r := fetch(t, s.url+"/healthz"); r.status != http.StatusOK {
		t.Errorf("healthz: %d", r.status)
	}
	must(t, s.stop())
}

func TestOptions(t *testing.T) {
	environment := map[string]string{"TEXTURE_QUEUE": "9", "TEXTURE_MAX_SIZE": "256", "TEXTURE_GRACE": "3s", "TEXTURE_DEVICE": "cuda:1"}
	getenv := func(name string) string { return environment[name] }
	o, err := parseOptions([]string{"-queue", "5", "-model", "m"}, getenv, io.Discard)
	if err != nil || o.queue != 5 || o.maxSize != 256 || o.grace != 3*time.Second || o.deviceIndex != 1 || o.maxSteps != 100 || o.model != "m" {
		t.Errorf("%+v, %v", o, err)
	}
	none := func(string) string { return "" }
	for _, test := range []struct{ arguments, says string }{
		{"-queue 0", "1..=4096"}, {"-max-steps -1", "-max-steps is -1"}, {"-threads 9999", "1024"}, {"-batch 0", "-batch"},
		{"-grace -1s", "-grace"}, {"-device tpu", `device is "tpu"`}, {"-device cpu:1", "cuda:N"}, {"-log xml", "text or json"},
		{"extra", `"extra" is no option`}, {"-nope", "nope"}, {"-queue x", "queue"}, {"-max-size 0", "4096"},
	} {
		if _, err := parseOptions(strings.Fields(test.arguments), none, io.Discard); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v", test.arguments, err)
		}
	}
	environment["TEXTURE_QUEUE"] = "many"
	if _, err := parseOptions(nil, getenv, io.Discard); err == nil || !strings.Contains(err.Error(), "TEXTURE_QUEUE") {
		t.Errorf("TEXTURE_QUEUE=many: %v", err)
	}
	var help, errors bytes.Buffer
	if code := run(context.Background(), []string{"-help"}, none, &help, &errors); code != 0 ||
		!strings.Contains(help.String(), "TEXTURE_MAX_STEPS") || errors.Len() != 0 {
		t.Errorf("-help: %d %s%s", code, &help, &errors)
	}
}

func TestStartsThatFail(t *testing.T) {
	empty := t.TempDir()
	none := func(string) string { return "" }
	for _, test := range []struct {
		arguments []string
		code      int
		says      string
	}{
		{[]string{"-nope"}, 2, "-help"},
		{[]string{"-model", filepath.Join(empty, "nothing")}, 1, "-model is"},
		{[]string{"-model", empty}, 1, "has no model"},
		{[]string{"-model", models.tiny, "-max-size", "7"}, 1, "at least the model's 8"},
		{[]string{"-model", models.tiny, "-addr", "127.0.0.1:x"}, 1, "unknown port"},
	} {
		var errors bytes.Buffer
		if code := run(context.Background(), test.arguments, none, io.Discard, &errors); code != test.code || !strings.Contains(errors.String(), test.says) {
			t.Errorf("%v: exit code %d: %s", test.arguments, code, &errors)
		}
	}
}
