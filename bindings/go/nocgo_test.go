//go:build !(cgo && unix)

package diffusion

import (
	"errors"
	"strings"
	"testing"
)

// TestWithoutCgo: what needs the library says in one sentence why it cannot be had.
func TestWithoutCgo(t *testing.T) {
	config := DefaultConfig()
	_, newErr := New(config)
	_, loadErr := Load("somewhere", nil)
	_, versionErr := Version()
	_, deviceErr := DeviceCount(DeviceCPU)
	for _, err := range []error{newErr, loadErr, versionErr, deviceErr} {
		if !errors.Is(err, ErrLibrary) || !strings.Contains(err.Error(), "CGO_ENABLED=1") {
			t.Errorf("error is %v", err)
		}
	}
	if (*Process)(nil).Close() != nil || (&Process{}).Close() != nil {
		t.Error("closing nothing is an error")
	}
}
