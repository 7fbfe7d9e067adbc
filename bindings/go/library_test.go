//go:build cgo && unix

package diffusion

// What the library says of itself, and where it is looked for.

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// child is what this test program does when a test runs it as another.
func child(program string) int {
	switch program {
	case "version":
		version, err := Version()
		if err != nil {
			fmt.Println(err)
			return 1
		}
		path, _ := LibraryPath()
		fmt.Printf("%s from %s\n", version, path)
	case "log-panic":
		return childLogPanic()
	}
	return 0
}

// runChild runs this test program, or a copy of it, with other environment variables.
func runChild(t *testing.T, executable, program string, environment ...string) (string, error) {
	t.Helper()
	command := exec.Command(executable)
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "DIFFUSION_LIB=") {
			command.Env = append(command.Env, variable)
		}
	}
	command.Env = append(command.Env, "DIFFUSION_GO_CHILD="+program)
	command.Env = append(command.Env, environment...)
	output, err := command.CombinedOutput()
	return string(output), err
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	must(t, err)
	return path
}

func TestVersions(t *testing.T) {
	version, err := Version()
	if err != nil || !strings.HasPrefix(version, "libdiffusion ") || !strings.Contains(version, "libtorch") {
		t.Errorf("Version() is %q, %v", version, err)
	}
	abi, err := ABIVersion()
	if err != nil || abi != wantedABI {
		t.Errorf("ABIVersion() is %d, %v", abi, err)
	}
	path, err := LibraryPath()
	if err != nil || !strings.Contains(filepath.Base(path), "libdiffusion") || !isFile(path) {
		t.Errorf("LibraryPath() is %q, %v", path, err)
	}
	if count, err := DeviceCount(DeviceCPU); err != nil || count != 1 {
		t.Errorf("DeviceCount(DeviceCPU) is %d, %v", count, err)
	}
	if count, err := DeviceCount(DeviceCUDA); err != nil || count < 0 {
		t.Errorf("DeviceCount(DeviceCUDA) is %d, %v", count, err)
	}
	if _, err := DeviceCount(DeviceAuto); !errors.Is(err, ErrInvalidArgument) {
		t.Errorf("DeviceCount(DeviceAuto): %v", err)
	}
	for status := StatusOK; status <= StatusInternal; status++ {
		if name := status.String(); name == "" || strings.Contains(name, "unknown") {
			t.Errorf("status %d is %q", status, name)
		}
	}
	if name := Status(99).String(); name != "unknown status" {
		t.Errorf("status 99 is %q", name)
	}
}

func TestFind(t *testing.T) {
	folder := resolve(t.TempDir())
	file := func(name string) string {
		path := filepath.Join(folder, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, nil, 0o644))
		return path
	}
	program := file("app/program")
	executable := func() (string, error) { return program, nil }
	unknown := func() (string, error) { return "", errors.New("not known") }

	expect := func(what, variable string, executable func() (string, error), want string) {
		t.Helper()
		if got, err := find(variable, executable); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", what, got, err, want)
		}
	}
	expect("nothing anywhere", "", executable, soname)
	expect("program's folder unknown", "", unknown, soname)
	beside := file("app/" + soname)
	expect("beside the program", "", executable, beside)
	numbered := file("one/" + soname)
	file("one/libdiffusion.so")
	expect("folder", filepath.Join(folder, "one"), executable, numbered)
	plain := file("two/libdiffusion.so")
	expect("folder with the plain name only", filepath.Join(folder, "two"), executable, plain)
	other := file("three/other-name.so")
	expect("file", other, executable, other)
	link := filepath.Join(folder, "link.so")
	must(t, os.Symlink(other, link))
	expect("link", link, executable, other)

	_, err := find(filepath.Join(folder, "app", "nowhere"), executable)
	var e *LibraryError
	if !errors.As(err, &e) || !errors.Is(err, ErrLibrary) || !strings.Contains(err.Error(), "nowhere") ||
		!strings.Contains(err.Error(), "DIFFUSION_LIB") {
		t.Errorf("a DIFFUSION_LIB that is not there: %v", err)
	}
}
