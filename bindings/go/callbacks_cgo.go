//go:build cgo && unix

package diffusion

// What the library calls back. A callback's user_data is a cgo.Handle, a number: C never keeps a Go pointer.

// #include <stdint.h>
import "C"

import "runtime/cgo"

// callbackRef is what C knows a Go value by; 0 is none.
type callbackRef uintptr

func newCallbackRef(value any) callbackRef { return callbackRef(cgo.NewHandle(value)) }

func (r callbackRef) release() { cgo.Handle(r).Delete() }

//export diffusionGoProgress
func diffusionGoProgress(done, total C.uint64_t, link C.uintptr_t) C.int32_t {
	if cgo.Handle(link).Value().(*progressLink).report(uint64(done), uint64(total)) {
		return 0
	}
	return 1
}

//export diffusionGoLog
func diffusionGoLog(level C.int32_t, message *C.char, sink C.uintptr_t) {
	cgo.Handle(sink).Value().(*logSink).deliver(LogLevel(level), C.GoString(message))
}
