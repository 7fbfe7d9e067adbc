//go:build cgo && unix

package diffusion

// The log: who gets it, and what a log function must not do.

import (
	"strings"
	"testing"
)

// warned is a config that the library warns about: so few steps of a linear schedule leave a faint image at the end.
func warned(c *Config) {
	c.BetaSchedule, c.BetaEnd = ScheduleLinear, 0.02
}

type record struct {
	level   LogLevel
	message string
}

func TestLog(t *testing.T) {
	p := tiny(t, warned)
	records := make(chan record, 64)
	// The warning may come while SetLog is at work or right after it, by the library's own thread.
	must(t, p.SetLog(func(level LogLevel, message string) { records <- record{level, message} }))
	got := result(t, "a warning", records)
	if got.level != LogWarning || !strings.Contains(got.message, "alpha_cumprod") {
		t.Errorf("%v: %q", got.level, got.message)
	}
	must(t, p.SetLog(nil))
	must(t, p.SetLog(func(LogLevel, string) { t.Error("delivered twice") }))
	must(t, p.SetLog(nil))
}

// TestLogFunctionMustNotUseTheProcess: it gets an error, not a deadlock.
func TestLogFunctionMustNotUseTheProcess(t *testing.T) {
	p := tiny(t, warned)
	errs := make(chan error, 64)
	must(t, p.SetLog(func(LogLevel, string) {
		errs <- p.Close()
		errs <- p.SetLog(nil)
		errs <- second(p.StepCount())
	}))
	for range 3 {
		wantErr(t, result(t, "a call in the log function", errs), ErrInvalidArgument)
	}
	if _, err := p.StepCount(); err != nil {
		t.Errorf("the process after that: %v", err)
	}
}

// TestPanicInLog: it arrives in SetLog's caller if SetLog delivers, else it ends the program.
func TestPanicInLog(t *testing.T) {
	output, err := runChild(t, self(t), "log-panic", "DIFFUSION_LIB="+libraryFile(t))
	if err == nil || !strings.Contains(output, "boom in the log") {
		t.Errorf("%v: %s", err, output)
	}
	if strings.Contains(output, "child goes on") {
		t.Errorf("the panic was lost: %s", output)
	}
}

func libraryFile(t *testing.T) string {
	t.Helper()
	path, err := LibraryPath()
	must(t, err)
	return path
}

// childLogPanic runs as a program of its own: either way a panic in a log function is not survived unnoticed.
func childLogPanic() int {
	config := tinyConfig()
	warned(&config)
	p, err := New(config)
	if err != nil {
		println(err.Error())
		return 0
	}
	delivered := make(chan struct{})
	_ = p.SetLog(func(LogLevel, string) {
		defer close(delivered)
		panic("boom in the log")
	})
	<-delivered
	// The library's thread does not come back from that.
	_, _ = p.StepCount()
	println("child goes on")
	return 0
}

// TestPanicWhileSettingLog drives the sink by itself, since which thread delivers is the library's choice.
func TestPanicWhileSettingLog(t *testing.T) {
	calls := 0
	sink := newLogSink(func(LogLevel, string) {
		calls++
		panic("boom")
	})
	defer sink.release()
	sink.deliver(LogInfo, "one")
	sink.deliver(LogInfo, "two")
	defer func() {
		if value := recover(); value != "boom" || calls != 1 {
			t.Errorf("recovered %v after %d calls", value, calls)
		}
	}()
	sink.settled()
}
