//go:build cgo && unix

package diffusion

// Jobs, progress, cancelling, closing, and what the garbage collector does to all of these.

import (
	"context"
	"errors"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestJob(t *testing.T) {
	p := tiny(t)
	params := DefaultSampleParams()
	params.NumSamples, params.Steps = 2, 5
	job, err := p.Submit(background, params)
	must(t, err)
	defer job.Close()
	must(t, job.Wait(background))
	if state, err := job.Poll(); err != nil || state != JobDone {
		t.Errorf("Poll() is %v, %v", state, err)
	}
	if done, total, err := job.Progress(); err != nil || done != 10 || total != 10 {
		t.Errorf("Progress() is %d, %d, %v", done, total, err)
	}
	want, err := p.SampleWith(background, params)
	must(t, err)
	for range 2 {
		got, err := job.Fetch()
		must(t, err)
		same(t, "Fetch", got.F32, want.F32)
	}
	preview, done, err := job.Preview()
	must(t, err)
	same(t, "Preview", preview.F32, want.F32)
	if done != 10 {
		t.Errorf("Preview() stems from %d steps of 10", done)
	}
	wantErr(t, job.FetchInto(make([]byte, 3)), ErrBufferSize)
	wantErr(t, job.FetchInto(nil), ErrNullPointer)
	if ended, err := job.WaitFor(0); !ended || err != nil {
		t.Errorf("WaitFor(0) is %v, %v", ended, err)
	}
	must(t, job.Cancel()) // too late
	must(t, job.Wait(background))

	must(t, job.Close())
	must(t, job.Close())
	_, pollErr := job.Poll()
	_, _, progressErr := job.Progress()
	_, waitForErr := job.WaitFor(time.Second)
	_, _, previewErr := job.Preview()
	for name, err := range map[string]error{
		"Preview": previewErr, "Poll": pollErr, "Progress": progressErr, "Wait": job.Wait(background), "WaitFor": waitForErr,
		"Cancel": job.Cancel(), "Fetch": second(job.Fetch()), "FetchInto": job.FetchInto(make([]byte, 8)),
	} {
		if !errors.Is(err, ErrClosed) || !errors.Is(err, ErrInvalidHandle) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
	var none *Job
	wantErr(t, none.Wait(background), ErrClosed)
	_, err = none.WaitFor(time.Second)
	wantErr(t, err, ErrClosed)
	wantErr(t, second((&Job{}).Fetch()), ErrClosed)
	must(t, none.Close())
}

func TestJobUnderWay(t *testing.T) {
	p := tiny(t, slow)
	job, err := p.Submit(background, slowParams())
	must(t, err)
	defer job.Close()
	await(t, "the job runs", func() bool { state, _ := job.Poll(); return state == JobRunning })
	if ended, err := job.WaitFor(time.Millisecond); ended || err != nil {
		t.Errorf("WaitFor is %v, %v", ended, err)
	}
	if ended, err := job.WaitFor(-time.Hour); ended || err != nil {
		t.Errorf("WaitFor is %v, %v", ended, err)
	}
	wantErr(t, second(job.Fetch()), ErrInvalidArgument)
	// Others go on when one is cancelled.
	other, err := p.Submit(background, slowParams())
	must(t, err)
	defer other.Close()
	waits := make(chan error, 3)
	for range cap(waits) {
		go func() { waits <- other.Wait(background) }()
	}
	must(t, other.Cancel())
	for range cap(waits) {
		wantErr(t, result(t, "a cancelled job", waits), ErrCancelled)
	}
	if state, err := other.Poll(); err != nil || state != JobCancelled {
		t.Errorf("Poll() is %v, %v", state, err)
	}
	wantErr(t, second(other.Fetch()), ErrCancelled)
	if state, err := job.Poll(); err != nil || state != JobRunning {
		t.Errorf("the other job: %v, %v", state, err)
	}
	// Cancel on the process ends all, and the process works on.
	must(t, p.Cancel())
	wantErr(t, job.Wait(background), ErrCancelled)
	if _, err := p.Schedule(TableBeta); err != nil {
		t.Error(err)
	}
}

func TestProgress(t *testing.T) {
	p := tiny(t)
	params := DefaultSampleParams()
	params.NumSamples, params.Steps = 3, 10
	var ticks []uint64
	params.Progress = func(done, total uint64) error {
		if total != 30 {
			t.Errorf("total is %d", total)
		}
		ticks = append(ticks, done)
		// The library may be used from here, this Process included.
		if _, err := p.Schedule(TableBeta); err != nil {
			t.Error(err)
		}
		return nil
	}
	_, err := p.SampleWith(background, params)
	must(t, err)
	if len(ticks) == 0 || ticks[len(ticks)-1] != 30 {
		t.Errorf("ticks are %v", ticks)
	}
	for i := 1; i < len(ticks); i++ {
		if ticks[i] <= ticks[i-1] {
			t.Errorf("ticks are %v", ticks)
		}
	}
	// Sampling within sampling.
	params.Progress = func(uint64, uint64) error {
		return second(p.SampleDDIM(background, 1, 2, 0, 0))
	}
	_, err = p.SampleImages(background, params)
	must(t, err)
}

func TestProgressCancels(t *testing.T) {
	p := tiny(t, slow)
	enough := errors.New("enough")
	calls := 0
	params := slowParams()
	params.Progress = func(done, total uint64) error {
		calls++
		return enough
	}
	_, err := p.SampleWith(background, params)
	wantErr(t, err, enough, ErrCancelled)
	if calls != 1 {
		t.Errorf("%d calls", calls)
	}
	job, err := p.Submit(background, params)
	must(t, err)
	defer job.Close()
	for {
		ended, err := job.WaitFor(time.Second)
		if ended {
			wantErr(t, err, enough, ErrCancelled)
			break
		}
		must(t, err)
	}
	wantErr(t, job.Wait(background), enough, ErrCancelled)
}

// TestPanicInProgress: it arrives in the caller, as if there were no C in between, and the job is gone.
func TestPanicInProgress(t *testing.T) {
	p := tiny(t, slow)
	params := slowParams()
	params.Progress = func(done, total uint64) error { panic("boom") }
	recovered := func(call func()) (value any) {
		defer func() { value = recover() }()
		call()
		return nil
	}
	for range 3 {
		if value := recovered(func() { _, _ = p.SampleWith(background, params) }); value != "boom" {
			t.Errorf("recovered %v", value)
		}
	}
	job, err := p.Submit(background, params)
	must(t, err)
	defer job.Close()
	if value := recovered(func() { _ = job.Wait(background) }); value != "boom" {
		t.Errorf("recovered %v", value)
	}
	wantErr(t, job.Wait(background), ErrCancelled)

	// runtime.Goexit, as testing's FailNow calls it.
	params.Progress = func(done, total uint64) error { runtime.Goexit(); return nil }
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = p.SampleWith(background, params)
		t.Error("Goexit came back")
	}()
	result(t, "Goexit in a progress function", ended)
	if jobs := len(p.state.jobs); jobs != 1 || p.state.calls != 0 {
		t.Errorf("%d jobs and %d calls left", jobs, p.state.calls)
	}
}

// TestSeveralWaitWithProgress: one of them runs the function, all learn the end.
func TestSeveralWaitWithProgress(t *testing.T) {
	p := tiny(t)
	params := DefaultSampleParams()
	params.NumSamples = 2
	var mutex sync.Mutex
	calls := 0
	params.Progress = func(done, total uint64) error {
		mutex.Lock()
		defer mutex.Unlock()
		calls++
		return nil
	}
	job, err := p.Submit(background, params)
	must(t, err)
	defer job.Close()
	waits := make(chan error, 5)
	for range cap(waits) {
		go func() { waits <- job.Wait(background) }()
	}
	for range cap(waits) {
		must(t, result(t, "a wait", waits))
	}
	if calls == 0 {
		t.Error("no progress")
	}
}

func TestContextCancelsSampling(t *testing.T) {
	p := tiny(t, slow)
	reason := errors.New("the client went away")
	ctx, cancel := context.WithCancelCause(background)
	params := slowParams()
	params.Progress = func(done, total uint64) error { cancel(reason); return nil }
	_, err := p.SampleWith(ctx, params)
	wantErr(t, err, ErrCancelled, context.Canceled, reason)
	if errors.Is(err, ErrClosed) {
		t.Errorf("%v says closed", err)
	}

	deadline, cancelDeadline := context.WithTimeout(background, 10*time.Millisecond)
	defer cancelDeadline()
	for name, call := range map[string]func(context.Context) error{
		"Sample":         func(ctx context.Context) error { return second(p.Sample(ctx, 1, 0)) },
		"SampleDDIM":     func(ctx context.Context) error { return second(p.SampleDDIM(ctx, 1, slowSteps, 0, 0)) },
		"SampleImages":   func(ctx context.Context) error { return second(p.SampleImages(ctx, slowParams())) },
		"SampleWithInto": func(ctx context.Context) error { return p.SampleWithInto(ctx, slowParams(), make([]byte, 4*imageLen)) },
	} {
		if err := call(deadline); !errors.Is(err, ErrCancelled) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		ctx, cancel := context.WithCancel(background)
		ended := make(chan error, 1)
		go func() { ended <- call(ctx) }()
		await(t, name+" is under way", func() bool { return p.busy() })
		cancel()
		err := result(t, name, ended)
		if !errors.Is(err, ErrCancelled) || !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// busy says whether a job is being computed.
func (p *Process) busy() bool {
	p.state.mutex.Lock()
	defer p.state.mutex.Unlock()
	for job := range p.state.jobs {
		if job.underWay() {
			return true
		}
	}
	return false
}

func TestContextOfSubmitAndWait(t *testing.T) {
	p := tiny(t, slow)
	submitted, cancelSubmitted := context.WithCancel(background)
	job, err := p.Submit(submitted, slowParams())
	must(t, err)
	defer job.Close()
	waits := make(chan error, 1)
	go func() { waits <- job.Wait(background) }()
	cancelSubmitted()
	wantErr(t, result(t, "a wait", waits), ErrCancelled, context.Canceled)
	_, err = job.WaitFor(0)
	wantErr(t, err, ErrCancelled, context.Canceled)

	waiting, cancelWaiting := context.WithCancel(background)
	job, err = p.Submit(background, slowParams())
	must(t, err)
	defer job.Close()
	cancelWaiting()
	wantErr(t, job.Wait(waiting), ErrCancelled, context.Canceled)
	if state, err := job.Poll(); err != nil || state != JobCancelled {
		t.Errorf("Poll() is %v, %v", state, err)
	}
}

// TestContextOfOtherCalls: what has no job is cancelled when it is alone, and never at the cost of others.
func TestContextOfOtherCalls(t *testing.T) {
	p := tiny(t, slow)
	ctx, cancel := context.WithCancel(background)
	job, err := p.Submit(background, slowParams())
	must(t, err)
	defer job.Close()
	await(t, "the job runs", func() bool { state, _ := job.Poll(); return state == JobRunning })
	trained := make(chan error, 1)
	go func() { trained <- second(p.TrainStep(ctx, pattern(1), 1)) }()
	// The training step waits for the job, which its context must not end.
	await(t, "the training step is under way", func() bool {
		p.state.mutex.Lock()
		defer p.state.mutex.Unlock()
		return p.state.calls == 1
	})
	cancel()
	for range 20 {
		p.state.cancelIfAlone(nil)
		time.Sleep(time.Millisecond)
	}
	if state, err := job.Poll(); err != nil || state != JobRunning {
		t.Fatalf("the job of others: %v, %v", state, err)
	}
	must(t, job.Cancel())
	// Now it is alone: it was cancelled, or was quicker than that.
	err = result(t, "the training step", trained)
	count, countErr := p.StepCount()
	must(t, countErr)
	switch {
	case err == nil && count == 1:
	case errors.Is(err, ErrCancelled) && errors.Is(err, context.Canceled) && count == 0:
	default:
		t.Errorf("%d steps, %v", count, err)
	}

	// One blocking call alone is cancelled; of two, neither.
	first, secondly := make(chan error, 1), make(chan error, 1)
	sample := func(ended chan<- error) { ended <- second(p.Sample(background, 1, 0)) }
	calls := func() int {
		p.state.mutex.Lock()
		defer p.state.mutex.Unlock()
		return p.state.calls
	}
	go sample(first)
	go sample(secondly)
	await(t, "two calls", func() bool { return calls() == 2 })
	for range 20 {
		p.state.cancelIfAlone(nil)
		time.Sleep(time.Millisecond)
	}
	select {
	case err := <-first:
		t.Fatalf("the first ended with %v", err)
	case err := <-secondly:
		t.Fatalf("the second ended with %v", err)
	default:
	}
	// Both are in the library by now or soon; Cancel ends those that are.
	for ended := 0; ended < 2; {
		must(t, p.Cancel())
		select {
		case err := <-first:
			wantErr(t, err, ErrCancelled)
			ended++
		case err := <-secondly:
			wantErr(t, err, ErrCancelled)
			ended++
		case <-time.After(time.Millisecond):
		}
	}
	go sample(first)
	await(t, "one call", func() bool { return calls() == 1 })
	// A watcher that is late must not hit the call after its own.
	over := make(chan struct{})
	close(over)
	for range 20 {
		p.state.cancelIfAlone(over)
		time.Sleep(time.Millisecond)
	}
	select {
	case err := <-first:
		t.Fatalf("a late watcher ended another's call: %v", err)
	default:
	}
	finished := make(chan struct{})
	go p.state.cancelWhenAlone(finished)
	wantErr(t, result(t, "a call alone", first), ErrCancelled)
	close(finished)
}

// TestTrainStepIsCancelled: a step that is cancelled has changed nothing, one that is not counts.
func TestTrainStepIsCancelled(t *testing.T) {
	p := tiny(t)
	images := pattern(64)
	var taken uint64
	for i := range 20 {
		ctx, cancel := context.WithCancel(background)
		time.AfterFunc(time.Duration(i)*time.Millisecond, cancel)
		switch _, err := p.TrainStep(ctx, images, 64); {
		case err == nil:
			taken++
		case !errors.Is(err, ErrCancelled) || !errors.Is(err, context.Canceled):
			t.Errorf("TrainStep: %v", err)
		}
		cancel()
		if count, err := p.StepCount(); err != nil || count != taken {
			t.Fatalf("%d steps, %v, want %d", count, err, taken)
		}
	}
}

func TestClose(t *testing.T) {
	p := tiny(t)
	must(t, p.Close())
	must(t, p.Close())
	images := pattern(1)
	_, configErr := p.Config()
	_, countErr := p.StepCount()
	_, rateErr := p.LearningRate()
	_, scaleErr := p.GradientScale()
	_, _, noiseErr := p.AddNoise(background, images, []int64{0}, 0)
	_, sizeErr := p.SampleSize(DefaultSampleParams())
	for name, err := range map[string]error{
		"Config": configErr, "StepCount": countErr, "LearningRate": rateErr, "GradientScale": scaleErr,
		"AddNoise": noiseErr, "SampleSize": sizeErr,
		"Schedule":             second(p.Schedule(TableBeta)),
		"Save":                 p.Save(background, filepath.Join(t.TempDir(), "x")),
		"Export":               p.Export(background, filepath.Join(t.TempDir(), "x"), PrecisionF16),
		"Cancel":               p.Cancel(),
		"SetLog":               p.SetLog(func(LogLevel, string) {}),
		"SetLog(nil)":          p.SetLog(nil),
		"PredictNoise":         second(p.PredictNoise(background, images, []int64{0})),
		"Sample":               second(p.Sample(background, 1, 0)),
		"SampleDDIM":           second(p.SampleDDIM(background, 1, 1, 0, 0)),
		"SampleWith":           second(p.SampleWith(background, DefaultSampleParams())),
		"SampleWithInto":       p.SampleWithInto(background, DefaultSampleParams(), make([]byte, 4)),
		"SampleImages":         second(p.SampleImages(background, DefaultSampleParams())),
		"Submit":               second(p.Submit(background, DefaultSampleParams())),
		"TrainStep":            second(p.TrainStep(background, images, 1)),
		"TrainStepWithoutLoss": p.TrainStepWithoutLoss(background, images, 1),
		"SetLearningRate":      p.SetLearningRate(1),
		"Parameters":           second(p.Parameters()),
		"ReadParameter":        second(p.ReadParameter(background, WeightsTrained, "conv_in.bias")),
		"WriteParameter":       p.WriteParameter(background, WeightsTrained, "conv_in.bias", make([]float32, 8)),
	} {
		if !errors.Is(err, ErrClosed) || !errors.Is(err, ErrInvalidHandle) || !strings.Contains(err.Error(), "closed") {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
	var none *Process
	must(t, none.Close())
	must(t, (&Process{}).Close())
	wantErr(t, none.SetLearningRate(1), ErrClosed)
	wantErr(t, second(none.Sample(background, 1, 0)), ErrClosed)
	wantErr(t, second((&Process{}).ReadParameter(background, WeightsTrained, "conv_in.bias")), ErrClosed)
}

// TestCloseDuringCalls: all that is under way ends, soon and as cancelled or closed.
func TestCloseDuringCalls(t *testing.T) {
	for range 3 {
		p := tiny(t, slow)
		ctx, cancel := context.WithCancel(background)
		defer cancel()
		job, err := p.Submit(ctx, slowParams())
		must(t, err)
		withProgress := slowParams()
		withProgress.Progress = func(uint64, uint64) error { return nil }
		calls := []func() error{
			func() error { return second(p.Sample(background, 1, 0)) },
			func() error { return second(p.Sample(ctx, 1, 0)) },
			func() error { return second(p.SampleWith(ctx, withProgress)) },
			func() error { return second(p.TrainStep(ctx, pattern(1), 1)) },
			func() error { return job.Wait(ctx) },
			func() error { return job.Wait(background) },
		}
		ended := make(chan error, len(calls))
		for _, call := range calls {
			go func() { ended <- call() }()
		}
		await(t, "the job runs", func() bool { state, _ := job.Poll(); return state == JobRunning })
		closed := make(chan error, 2)
		for range cap(closed) {
			go func() { closed <- p.Close() }()
		}
		for range calls {
			wantErr(t, result(t, "a call during Close", ended), ErrClosed)
		}
		for range cap(closed) {
			must(t, result(t, "Close", closed))
		}
		if state, err := job.Poll(); err != nil || state != JobCancelled {
			t.Errorf("the job of a closed process: %v, %v", state, err)
		}
		must(t, job.Close())
	}
}

// TestCloseFromProgress: the function may even close what is under way.
func TestCloseFromProgress(t *testing.T) {
	p := tiny(t, slow)
	params := slowParams()
	params.Progress = func(uint64, uint64) error { return p.Close() }
	_, err := p.SampleWith(background, params)
	wantErr(t, err, ErrCancelled, ErrClosed)

	p = tiny(t, slow)
	var job *Job
	params.Progress = func(uint64, uint64) error { return job.Close() }
	job, err = p.Submit(background, params)
	must(t, err)
	wantErr(t, job.Wait(background), ErrCancelled, ErrClosed)
}

// TestCloseBetween: a Close that comes between taking the handle and using it is no different.
func TestCloseBetween(t *testing.T) {
	p := tiny(t)
	testHook = func() {
		testHook = nil
		_ = p.Close()
	}
	defer func() { testHook = nil }()
	wantErr(t, second(p.Sample(background, 1, 0)), ErrClosed)
}

// TestGarbage: a collection in the midst of each call, and values that nobody holds any more.
func TestGarbage(t *testing.T) {
	testHook = runtime.GC
	func() {
		// No variable holds the Process during its calls but the calls themselves.
		config := tinyConfig()
		make1 := func() *Process {
			p, err := New(config)
			must(t, err)
			return p
		}
		must(t, second(make1().SampleDDIM(background, 1, 3, 0, 0)))
		must(t, second(make1().TrainStep(background, pattern(1), 1)))
		ctx, cancel := context.WithCancel(background)
		defer cancel()
		must(t, second(make1().SampleDDIM(ctx, 1, 3, 0, 0)))
		params := DefaultSampleParams()
		params.Progress = func(uint64, uint64) error { runtime.GC(); return nil }
		must(t, second(make1().SampleWith(ctx, params)))
		job, err := make1().Submit(ctx, params)
		must(t, err)
		// The job holds its process.
		must(t, job.Wait(ctx))
		must(t, second(job.Fetch()))
	}()
	testHook = nil

	var processes []uintptr
	var jobs []uintptr
	func() {
		for range 3 {
			p, err := New(tinyConfig())
			must(t, err)
			must(t, p.SetLog(func(LogLevel, string) {}))
			params := DefaultSampleParams()
			params.Progress = func(uint64, uint64) error { return nil }
			// A context that lives on must not hold what it could cancel.
			ctx, cancel := context.WithCancel(background)
			t.Cleanup(cancel)
			job, err := p.Submit(ctx, params)
			must(t, err)
			processes = append(processes, p.state.handle.Load())
			jobs = append(jobs, job.state.handle.Load())
		}
	}()
	await(t, "forgotten processes and jobs are closed", func() bool {
		runtime.GC()
		for i := range processes {
			if _, err := abiGetConfig(processes[i]); !errors.Is(err, ErrInvalidHandle) {
				return false
			}
			if _, err := abiJobPoll(jobs[i]); !errors.Is(err, ErrInvalidHandle) {
				return false
			}
		}
		return true
	})
}

// TestManyLives: the handles and callbacks of the dead do not pile up.
func TestManyLives(t *testing.T) {
	for range 30 {
		p, err := New(tinyConfig())
		must(t, err)
		must(t, p.SetLog(func(LogLevel, string) {}))
		params := DefaultSampleParams()
		params.Steps, params.Progress = 2, func(uint64, uint64) error { return nil }
		must(t, second(p.SampleWith(background, params)))
		must(t, p.Close())
		if p.state.log != nil || len(p.state.jobs) != 0 {
			t.Fatalf("%d jobs and log %v left", len(p.state.jobs), p.state.log)
		}
	}
}
