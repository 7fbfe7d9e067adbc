package diffusion

// The way of a log message from the library's thread to the program's function.

import (
	"fmt"
	"runtime/debug"
	"sync"
)

// logSink is one function that SetLog was given. The library knows it by ref.
type logSink struct {
	receive func(level LogLevel, message string)
	ref     callbackRef

	mutex sync.Mutex
	// While SetLog is at work, messages come to its own goroutine, and a panic can go on there afterwards.
	setting  bool
	panicked any
}

func newLogSink(receive func(level LogLevel, message string)) *logSink {
	s := &logSink{receive: receive, setting: true}
	s.ref = newCallbackRef(s)
	return s
}

// release ends the library's way to the sink, which must not be in use any more.
func (s *logSink) release() {
	if s != nil {
		s.ref.release()
	}
}

// settled ends SetLog's work.
func (s *logSink) settled() {
	if s == nil {
		return
	}
	s.mutex.Lock()
	s.setting = false
	panicked := s.panicked
	s.panicked = nil
	s.mutex.Unlock()
	if panicked != nil {
		panic(panicked)
	}
}

// deliver calls the function. Nothing may unwind from here into the library, neither a panic nor runtime.Goexit: it
// would leave the library's frames half-done.
func (s *logSink) deliver(level LogLevel, message string) {
	s.mutex.Lock()
	skip := s.panicked != nil
	s.mutex.Unlock()
	if skip {
		return
	}
	returned := false
	defer func() {
		if returned {
			return
		}
		value := recover()
		s.mutex.Lock()
		defer s.mutex.Unlock()
		if s.setting && value != nil {
			s.panicked = value
			return
		}
		if value == nil {
			value = "runtime.Goexit called by the log function"
		}
		// There is no caller to panic in: end the program, as a panic in any goroutine does.
		text := fmt.Sprintf("%v [in the log function of a diffusion.Process]\n\n%s", value, debug.Stack())
		go func() { panic(text) }()
		select {}
	}()
	s.receive(level, message)
	returned = true
}
