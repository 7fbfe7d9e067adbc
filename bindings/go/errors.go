package diffusion

// What can go wrong, in the form that errors.Is and errors.As want.

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Status is a status code of the C ABI (DIFFUSION_OK, DIFFUSION_ERROR_*).
type Status int32

// The status codes. Each but StatusOK has an error value for errors.Is, see ErrInvalidArgument.
const (
	StatusOK                Status = 0
	StatusInvalidArgument   Status = 1
	StatusNullPointer       Status = 2
	StatusInvalidHandle     Status = 3
	StatusBufferSize        Status = 4
	StatusOutOfMemory       Status = 5
	StatusDeviceUnavailable Status = 6
	StatusIO                Status = 7
	StatusFormat            Status = 8
	StatusCancelled         Status = 9
	StatusTimeout           Status = 10
	StatusNonFinite         Status = 11
	StatusTorch             Status = 12
	StatusInternal          Status = 13
)

// String returns the library's own short name of the status, such as "buffer size".
func (s Status) String() string {
	if isOpen() {
		return abiStatusString(int32(s))
	}
	return fmt.Sprintf("status %d", int32(s))
}

// What errors.Is compares with.
var (
	// ErrInvalidArgument: an argument's value is not allowed; the message names it, its value and what it may be.
	ErrInvalidArgument = errors.New("diffusion: invalid argument")
	// ErrNullPointer: a slice that must not be nil is.
	ErrNullPointer = errors.New("diffusion: null pointer")
	// ErrInvalidHandle: a Process or Job that has ended, or is from before a fork.
	ErrInvalidHandle = errors.New("diffusion: invalid handle")
	// ErrBufferSize: a slice has not exactly the length that the call needs; the message says which that is.
	ErrBufferSize = errors.New("diffusion: buffer size")
	// ErrOutOfMemory: not enough memory on the host or the device. The Process works on.
	ErrOutOfMemory = errors.New("diffusion: out of memory")
	// ErrDeviceUnavailable: the device is not there, or this libtorch cannot use it.
	ErrDeviceUnavailable = errors.New("diffusion: device unavailable")
	// ErrIO: the operating system refused to read or write a file.
	ErrIO = errors.New("diffusion: input/output")
	// ErrFormat: a file is damaged, or uses something that the library does not support.
	ErrFormat = errors.New("diffusion: format")
	// ErrCancelled: the call or job was cancelled, or its Process closed.
	ErrCancelled = errors.New("diffusion: cancelled")
	// ErrTimeout: the given time ran out.
	ErrTimeout = errors.New("diffusion: timeout")
	// ErrNonFinite: NaN or infinity in an input, in the training loss or in the images that came out.
	ErrNonFinite = errors.New("diffusion: not finite")
	// ErrTorch: libtorch reported an error that none of the others describes.
	ErrTorch = errors.New("diffusion: libtorch")
	// ErrInternal: a bug in the library; the message says where.
	ErrInternal = errors.New("diffusion: internal")

	// ErrClosed: the Process or Job was closed before or during the call.
	ErrClosed = errors.New("diffusion: closed")
	// ErrLibrary: libdiffusion could not be opened, or does not fit; see LibraryError.
	ErrLibrary = errors.New("diffusion: library not usable")
)

var statusErrors = map[Status]error{
	StatusInvalidArgument:   ErrInvalidArgument,
	StatusNullPointer:       ErrNullPointer,
	StatusInvalidHandle:     ErrInvalidHandle,
	StatusBufferSize:        ErrBufferSize,
	StatusOutOfMemory:       ErrOutOfMemory,
	StatusDeviceUnavailable: ErrDeviceUnavailable,
	StatusIO:                ErrIO,
	StatusFormat:            ErrFormat,
	StatusCancelled:         ErrCancelled,
	StatusTimeout:           ErrTimeout,
	StatusNonFinite:         ErrNonFinite,
	StatusTorch:             ErrTorch,
	StatusInternal:          ErrInternal,
}

// Error is what a function of the C ABI returned. It matches the ErrX of its status, and ErrClosed if the Process
// or Job was closed before or during the call.
type Error struct {
	Status  Status
	Message string // one line: the argument, its value and what it may be
	Func    string // the function of the C ABI, e.g. "diffusion_create"

	closed bool
}

// Error returns the function and the message.
func (e *Error) Error() string {
	message := e.Message
	if message == "" {
		message = e.Status.String()
	}
	return e.Func + ": " + message
}

// Unwrap makes errors.Is work.
func (e *Error) Unwrap() []error {
	var kinds []error
	if kind := statusErrors[e.Status]; kind != nil {
		kinds = append(kinds, kind)
	}
	if e.closed {
		kinds = append(kinds, ErrClosed)
	}
	return kinds
}

// LibraryError says why libdiffusion could not be opened. It matches ErrLibrary.
type LibraryError struct {
	Path   string // the file that was tried last; "" if none was
	Found  uint32 // the ABI version of the library at Path; 0 if that is not known
	Wanted uint32 // the ABI version that this package needs; 0 if the versions are not what is wrong
	Reason string // one sentence
}

// Error returns the path and the reason.
func (e *LibraryError) Error() string {
	if e.Path == "" {
		return "diffusion: " + e.Reason
	}
	return "diffusion: " + e.Path + ": " + e.Reason
}

// Unwrap returns ErrLibrary.
func (e *LibraryError) Unwrap() error { return ErrLibrary }

// argumentError is the binding's own refusal of a value that cannot even cross into C.
func argumentError(function, format string, arguments ...any) error {
	return &Error{Status: StatusInvalidArgument, Func: function, Message: fmt.Sprintf(format, arguments...)}
}

func closedError(function, kind string) error {
	return &Error{Status: StatusInvalidHandle, Func: function, Message: kind + " is closed", closed: true}
}

// explainClosed marks an error that came of a Close during the call.
func explainClosed(err error, closed bool) error {
	var e *Error
	if closed && errors.As(err, &e) && (e.Status == StatusInvalidHandle || e.Status == StatusCancelled) {
		marked := *e
		marked.closed = true
		return &marked
	}
	return err
}

// explainContext joins the end of a context to the cancellation that it caused.
func explainContext(ctx context.Context, err error) error {
	if ctx == nil || ctx.Err() == nil || !errors.Is(err, ErrCancelled) {
		return err
	}
	if cause := context.Cause(ctx); !errors.Is(cause, ctx.Err()) {
		return fmt.Errorf("%w (%w): %w", ctx.Err(), cause, err)
	}
	return fmt.Errorf("%w: %w", ctx.Err(), err)
}

// contextDone is the answer to a context that ended before the call.
func contextDone(ctx context.Context, function string) error {
	if ctx.Err() == nil {
		return nil
	}
	return explainContext(ctx, &Error{
		Status: StatusCancelled, Func: function, Message: "not called: the context had already ended",
	})
}

// noNUL refuses a string that C would take for a shorter one.
func noNUL(function, name, value string) error {
	if strings.IndexByte(value, 0) >= 0 {
		return argumentError(function, "%s is %q: must have no NUL byte", name, value)
	}
	return nil
}
