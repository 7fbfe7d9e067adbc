package diffusion

// Where the library is looked for, and what is said when it is not there or does not fit.

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
)

// wantedABI is the DIFFUSION_ABI_VERSION of the header that this package was written against.
const wantedABI = 1

// soname is what the system's loader knows the library by, and its usual file name.
const soname = "libdiffusion.so.0"

var library struct {
	mutex  sync.Mutex
	opened atomic.Bool
}

// open opens the library if that has not been done. A failure is not remembered: the next call tries again.
func open() error {
	if isOpen() {
		return nil
	}
	library.mutex.Lock()
	defer library.mutex.Unlock()
	if isOpen() {
		return nil
	}
	if !haveABI {
		return abiOpen("")
	}
	var path string
	if !linked {
		var err error
		if path, err = find(os.Getenv("DIFFUSION_LIB"), os.Executable); err != nil {
			return err
		}
	}
	if err := abiOpen(path); err != nil {
		return err
	}
	library.opened.Store(true)
	return nil
}

func isOpen() bool { return library.opened.Load() }

// find returns what to give to dlopen: a path, or the bare name for the system's loader to look for. variable is
// the value of DIFFUSION_LIB.
func find(variable string, executable func() (string, error)) (string, error) {
	if variable != "" {
		for _, path := range []string{filepath.Join(variable, soname), filepath.Join(variable, "libdiffusion.so"), variable} {
			if isFile(path) {
				return resolve(path), nil
			}
		}
		return "", &LibraryError{Path: variable, Reason: "DIFFUSION_LIB names it, but it is neither a file nor a folder with " +
			soname + " in it"}
	}
	if program, err := executable(); err == nil {
		if path := filepath.Join(filepath.Dir(resolve(program)), soname); isFile(path) {
			return resolve(path), nil
		}
	}
	return soname, nil
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && !info.IsDir()
}

// resolve follows symbolic links: the loader's $ORIGIN, by which the library finds libtorch beside itself, does not.
func resolve(path string) string {
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		path = resolved
	}
	// Without a slash dlopen would look in the system's folders instead.
	if absolute, err := filepath.Abs(path); err == nil {
		path = absolute
	}
	return path
}

// What can come of opening a file, as the shim numbers it.
const (
	openOK         = 0
	openFailed     = 1 // detail: dlerror's text
	openForeign    = 2 // it has no diffusion_abi_version
	openMismatch   = 3 // found: its version
	openIncomplete = 4 // detail: the first function that it lacks
)

// openError puts the shim's answer into words.
func openError(path string, outcome int, found uint32, detail string) error {
	e := &LibraryError{Path: path, Found: found}
	switch outcome {
	case openOK:
		return nil
	case openFailed:
		e.Reason = "cannot be opened: " + detail
		if path == soname {
			e.Path = ""
			e.Reason = fmt.Sprintf("%s was not found: DIFFUSION_LIB is not set, it is not in the program's folder, and the "+
				"system's loader says %q; set DIFFUSION_LIB to the file or to its folder", soname, detail)
		}
	case openForeign:
		e.Reason = "is not libdiffusion: it has no function diffusion_abi_version"
	case openMismatch:
		e.Wanted = wantedABI
		e.Reason = fmt.Sprintf("has ABI version %d, but this Go package needs version %d: use a %s that belongs to it",
			found, wantedABI, soname)
	case openIncomplete:
		e.Reason = "is older than this Go package: it has no function " + detail
	default:
		e.Reason = fmt.Sprintf("unknown outcome %d", outcome)
	}
	return e
}

// ABIVersion returns the interface version of the library, always the one that this package needs.
func ABIVersion() (uint32, error) {
	if err := open(); err != nil {
		return 0, err
	}
	return abiVersion(), nil
}

// Version returns the versions of the library, libtorch and CUDA, for logs: "libdiffusion 0.1.0, libtorch 2.11.0,
// CUDA 13.0".
func Version() (string, error) {
	if err := open(); err != nil {
		return "", err
	}
	return abiVersionString(), nil
}

// LibraryPath returns the file that the library was loaded from.
func LibraryPath() (string, error) {
	if err := open(); err != nil {
		return "", err
	}
	return abiPath(), nil
}

// DeviceCount returns how many devices of a kind can be used: for DeviceCPU 1; for DeviceCUDA the number of CUDA
// devices, 0 where there are none or libtorch's CUDA libraries are missing.
func DeviceCount(device Device) (int, error) {
	if err := open(); err != nil {
		return 0, err
	}
	return abiDeviceCount(device)
}
