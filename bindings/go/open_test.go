//go:build cgo && unix && !diffusion_link

package diffusion

// Opening the library at run time, with stand-ins that a C compiler makes on the spot.

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// standIn compiles C text to a shared object. Where cgo works, so does a C compiler.
func standIn(t *testing.T, text string) string {
	t.Helper()
	folder := t.TempDir()
	source, library := filepath.Join(folder, "stand_in.c"), filepath.Join(folder, soname)
	must(t, os.WriteFile(source, []byte(text), 0o644))
	compiler := os.Getenv("CC")
	if compiler == "" {
		compiler = "cc"
	}
	if output, err := exec.Command(compiler, "-shared", "-fPIC", "-o", library, source).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	return library
}

func TestOpenRefuses(t *testing.T) {
	notALibrary := filepath.Join(t.TempDir(), soname)
	must(t, os.WriteFile(notALibrary, []byte("not a library"), 0o644))
	for _, test := range []struct {
		path  string
		found uint32
		parts []string
	}{
		{notALibrary, 0, []string{"cannot be opened"}},
		{standIn(t, "int nothing;"), 0, []string{"is not libdiffusion", "diffusion_abi_version"}},
		{standIn(t, "unsigned diffusion_abi_version(void) { return 2; }"), 2,
			[]string{"has ABI version 2", "needs version 1"}},
		{standIn(t, "unsigned diffusion_abi_version(void) { return 1; }"), 1, []string{"older", "diffusion_status_string"}},
	} {
		err := abiOpen(test.path)
		var e *LibraryError
		if !errors.As(err, &e) || !errors.Is(err, ErrLibrary) || e.Path != test.path || e.Found != test.found {
			t.Errorf("%s: %#v", test.path, err)
			continue
		}
		for _, part := range append(test.parts, test.path) {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q does not say %q", err, part)
			}
		}
	}
	// The library that was opened before is as good as it was.
	if version, err := Version(); err != nil || !strings.HasPrefix(version, "libdiffusion ") {
		t.Errorf("%q, %v", version, err)
	}
}

func TestProgramsWithAndWithoutTheLibrary(t *testing.T) {
	output, err := runChild(t, self(t), "version", "DIFFUSION_LIB=/nonexistent/folder")
	if err == nil || !strings.Contains(output, "/nonexistent/folder") || strings.Count(output, "\n") != 1 {
		t.Errorf("%v: %s", err, output)
	}
	output, err = runChild(t, self(t), "version", "LD_LIBRARY_PATH=/nonexistent")
	if err == nil || !strings.Contains(output, "set DIFFUSION_LIB") || strings.Count(output, "\n") != 1 {
		t.Errorf("%v: %s", err, output)
	}
	mismatch := standIn(t, "unsigned diffusion_abi_version(void) { return 7; }")
	output, err = runChild(t, self(t), "version", "DIFFUSION_LIB="+filepath.Dir(mismatch))
	if err == nil || !strings.Contains(output, mismatch) || !strings.Contains(output, "version 7") ||
		!strings.Contains(output, "version 1") {
		t.Errorf("%v: %s", err, output)
	}

	path, err := LibraryPath()
	must(t, err)
	// By LD_LIBRARY_PATH, as an installed library would be found by its name.
	folder := t.TempDir()
	must(t, os.Symlink(path, filepath.Join(folder, soname)))
	output, err = runChild(t, self(t), "version", "LD_LIBRARY_PATH="+filepath.Dir(path))
	if err != nil || !strings.Contains(output, "libdiffusion ") {
		t.Errorf("by LD_LIBRARY_PATH: %v: %s", err, output)
	}
	// Beside the program.
	program, err := os.ReadFile(self(t))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(folder, "program"), program, 0o755))
	output, err = runChild(t, filepath.Join(folder, "program"), "version", "LD_LIBRARY_PATH=/nonexistent")
	if err != nil || !strings.Contains(output, "from "+path) {
		t.Errorf("beside the program: %v: %s", err, output)
	}
}
