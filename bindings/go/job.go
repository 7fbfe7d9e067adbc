package diffusion

// Job: sampling in the background, and what every sampling call with a context or a progress function is made of.

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// A Job is sampling that goes on while the program does something else. All methods may be called from any
// goroutine at any time. Close it when it is no longer needed, also after its Process was closed.
type Job struct {
	process  *Process // a Process stays while one of its jobs is in use
	state    *jobState
	cleanup  runtime.Cleanup
	progress func(done, total uint64) error

	format     Format
	numSamples int
	size       int // bytes of the result
}

// jobState is what outlives the Job where the garbage collector finds it unreachable: it must lead back neither to
// it nor to the caller's functions.
type jobState struct {
	process *processState
	handle  atomic.Uintptr // the library's key; 0 when closed
	ctx     context.Context
	detach  func() bool // ends ctx's power over the job
	link    *progressLink

	mutex       sync.Mutex
	users       int // calls under way
	closed      bool
	refused     bool  // the progress function returned an error or panicked: it is not called again
	progressErr error // what it returned
}

// progressLink is what the library's progress callback reaches, by ref: a channel to the goroutine that waits.
//
// The library calls back on the thread that is inside diffusion_job_wait. Where there is a progress function, a
// goroutine of our own makes that call, and the caller's goroutine receives the ticks and runs the function. So the
// function may panic or call runtime.Goexit (testing's FailNow does), and nothing ever unwinds through C.
type progressLink struct {
	ref   callbackRef
	ticks chan tick
}

type tick struct {
	done, total uint64
	goOn        chan<- bool
}

// report hands one tick over and returns whether the job is to go on.
func (l *progressLink) report(done, total uint64) bool {
	answer := make(chan bool, 1)
	l.ticks <- tick{done, total, answer}
	return <-answer
}

func (l *progressLink) release() {
	if l != nil {
		l.ref.release()
	}
}

// Submit starts sampling and returns at once. Jobs of one Process are computed together. When ctx ends, the job is
// cancelled. params.Progress, if set, is called by Job.Wait and Job.WaitFor.
//
// Errors: ErrInvalidArgument for any field of params, ErrBufferSize, ErrNonFinite (InitialNoise), ErrCancelled.
func (p *Process) Submit(ctx context.Context, params SampleParams) (*Job, error) {
	const function = "diffusion_sample_submit"
	if err := contextDone(ctx, function); err != nil {
		return nil, err
	}
	var job *Job
	err := p.do(function, func(handle uintptr) error {
		size, err := abiSampleSize(handle, &params)
		if err != nil {
			return err
		}
		s := &jobState{process: p.state, ctx: ctx}
		var ref callbackRef
		if params.Progress != nil {
			s.link = &progressLink{ticks: make(chan tick)}
			s.link.ref = newCallbackRef(s.link)
			ref = s.link.ref
		}
		key, err := abiSampleSubmit(handle, &params, ref)
		if err != nil {
			s.link.release()
			return err
		}
		s.handle.Store(key)
		s.process.mutex.Lock()
		s.process.jobs[s] = struct{}{}
		s.process.mutex.Unlock()
		s.detach = context.AfterFunc(ctx, s.cancel)
		job = &Job{
			process: p, state: s, progress: params.Progress,
			format: params.Format, numSamples: params.NumSamples, size: size,
		}
		job.cleanup = runtime.AddCleanup(job, func(s *jobState) { _ = s.close() }, s)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return job, nil
}

// Close ends the job, if it is still under way, and frees its images. Calls under way in other goroutines end with an
// error that matches ErrCancelled and ErrClosed. A second Close does nothing and returns nil.
func (j *Job) Close() error {
	if j == nil || j.state == nil {
		return nil
	}
	j.cleanup.Stop()
	err := j.state.close()
	runtime.KeepAlive(j)
	return err
}

func (s *jobState) close() error {
	handle := s.handle.Swap(0)
	if handle == 0 {
		return nil
	}
	s.detach()
	err := abiJobDestroy(handle)
	s.process.mutex.Lock()
	delete(s.process.jobs, s)
	s.process.mutex.Unlock()
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.closed = true
	if s.users == 0 {
		s.link.release()
	}
	return err
}

// do makes one call of the ABI on the job's handle. As long as one is under way, its callback stays reachable.
func (j *Job) do(function string, call func(handle uintptr) error) error {
	if j == nil || j.state == nil {
		return closedError(function, "job")
	}
	s := j.state
	s.mutex.Lock()
	handle := s.handle.Load()
	if handle == 0 {
		s.mutex.Unlock()
		return closedError(function, "job")
	}
	s.users++
	s.mutex.Unlock()
	defer func() {
		s.mutex.Lock()
		defer s.mutex.Unlock()
		s.users--
		if s.users == 0 && s.closed {
			s.link.release()
		}
	}()
	if testHook != nil {
		testHook()
	}
	err := call(handle)
	runtime.KeepAlive(j)
	return explainClosed(err, s.handle.Load() == 0 || s.process.handle.Load() == 0)
}

// cancel is for contexts: whether it was in time is seen by whoever waits.
func (s *jobState) cancel() {
	if handle := s.handle.Load(); handle != 0 {
		_ = abiJobCancel(handle)
	}
}

// underWay says whether the job has yet to end.
func (s *jobState) underWay() bool {
	handle := s.handle.Load()
	if handle == 0 {
		return false
	}
	state, err := abiJobPoll(handle)
	return err == nil && (state == JobQueued || state == JobRunning)
}

// Poll returns the job's state and never waits.
func (j *Job) Poll() (JobState, error) {
	var state JobState
	err := j.do("diffusion_job_poll", func(handle uintptr) (err error) {
		state, err = abiJobPoll(handle)
		return err
	})
	return state, err
}

// Progress returns how far the job is, in denoising steps of images, and never waits.
func (j *Job) Progress() (done, total uint64, err error) {
	err = j.do("diffusion_job_progress", func(handle uintptr) (err error) {
		done, total, err = abiJobProgress(handle)
		return err
	})
	return done, total, err
}

// Cancel ends the job, if it has not ended already, with ErrCancelled, and returns at once. The other jobs of its
// Process go on.
func (j *Job) Cancel() error {
	return j.do("diffusion_job_cancel", abiJobCancel)
}

// Wait waits until the job has ended and returns how: nil if the images are ready for Fetch, else the job's error. When
// ctx ends, the job is cancelled. To wait for a while without ending the job, use WaitFor.
func (j *Job) Wait(ctx context.Context) error {
	if j == nil || j.state == nil {
		return closedError("diffusion_job_wait", "job")
	}
	stop := context.AfterFunc(ctx, j.state.cancel)
	defer stop()
	err := j.wait(-1)
	if explained := explainContext(ctx, err); explained != err {
		return explained
	}
	return explainContext(j.state.ctx, err)
}

// WaitFor waits at most d, rounded up to milliseconds. ended is false if the job is still under way; otherwise err is
// how it ended, as with Wait.
func (j *Job) WaitFor(d time.Duration) (ended bool, err error) {
	err = j.wait(milliseconds(max(d, 0)))
	if errors.Is(err, ErrTimeout) {
		if j.state.underWay() {
			return false, nil
		}
		// It ended just now, or by its own params.Timeout.
		err = j.wait(0)
	}
	if j == nil || j.state == nil {
		return true, err
	}
	return true, explainContext(j.state.ctx, err)
}

// milliseconds rounds away from 0, which is a value of its own to the library.
func milliseconds(d time.Duration) int64 {
	ms := int64(d / time.Millisecond)
	switch rest := d % time.Millisecond; {
	case rest > 0:
		ms++
	case rest < 0:
		ms--
	}
	return ms
}

// wait waits at most ms milliseconds, without limit if that is negative.
func (j *Job) wait(ms int64) error {
	return j.do("diffusion_job_wait", func(handle uintptr) error {
		if j.progress == nil {
			return abiJobWait(handle, ms)
		}
		return j.waitWithProgress(handle, ms)
	})
}

func (s *jobState) refuse(err error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.refused, s.progressErr = true, err
}

func (s *jobState) hasRefused() bool {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.refused
}

func (j *Job) waitWithProgress(handle uintptr, ms int64) error {
	s := j.state
	ended := make(chan error, 1)
	go func() { ended <- abiJobWait(handle, ms) }()

	var current tick
	returned := false
	defer func() {
		if returned {
			return
		}
		// The progress function panicked or called Goexit, which goes on when the library has let go of us.
		s.refuse(nil)
		s.cancel()
		current.goOn <- false
		for {
			select {
			case t := <-s.link.ticks:
				t.goOn <- false
			case <-ended:
				return
			}
		}
	}()
	for {
		select {
		case current = <-s.link.ticks:
			if s.hasRefused() {
				current.goOn <- false
				continue
			}
			err := j.progress(current.done, current.total)
			if err != nil {
				s.refuse(err)
			}
			current.goOn <- err == nil
		case err := <-ended:
			returned = true
			s.mutex.Lock()
			defer s.mutex.Unlock()
			if s.progressErr != nil && errors.Is(err, ErrCancelled) {
				return fmt.Errorf("%w: %w", s.progressErr, err)
			}
			return err
		}
	}
}

// Fetch copies the images of a finished job out. It may be called again, and never waits.
//
// Errors: ErrInvalidArgument (the job has not ended), or the error that the job ended with.
func (j *Job) Fetch() (*Samples, error) {
	var samples *Samples
	err := j.do("diffusion_job_fetch", func(handle uintptr) (err error) {
		samples, err = newSamples(j.format, j.numSamples, j.process.channels, j.process.imageSize, j.size)
		if err != nil {
			return err
		}
		return abiJobFetch(handle, samples.memory())
	})
	if err != nil {
		return nil, err
	}
	return samples, nil
}

// FetchInto is Fetch with the caller's memory, which has exactly Process.SampleSize bytes.
func (j *Job) FetchInto(out []byte) error {
	return j.do("diffusion_job_fetch", func(handle uintptr) error { return abiJobFetch(handle, out) })
}

// Preview returns the images as they are now estimated to become, and how many denoising steps that stems from: 0, and
// mid-gray images, until the step after the first call. It never waits, and may be called at any time; of a finished
// job it gives what Fetch gives.
//
// Errors: the error that the job ended with.
func (j *Job) Preview() (samples *Samples, done uint64, err error) {
	err = j.do("diffusion_job_preview", func(handle uintptr) (err error) {
		samples, err = newSamples(j.format, j.numSamples, j.process.channels, j.process.imageSize, j.size)
		if err != nil {
			return err
		}
		done, err = abiJobPreview(handle, samples.memory())
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	return samples, done, nil
}

// checkSize refuses a wrong buffer before the work, not after it.
func (j *Job) checkSize(function string, out []byte) error {
	if len(out) == j.size {
		return nil
	}
	return &Error{Status: StatusBufferSize, Func: function, Message: fmt.Sprintf(
		"out has %d bytes: must be %d (see SampleSize)", len(out), j.size)}
}
