package main

// The program with a checkpoint that the test makes: a net of a few weights, which gives noise.

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"image"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/libdiffusion/go-diffusion"
)

func TestMain(m *testing.M) {
	if os.Getenv("MAKE_TEXTURES_CHILD") != "" {
		main()
	}
	if version, err := diffusion.Version(); err != nil {
		fmt.Fprintf(os.Stderr, "these tests need the library, see `make`: %q, %v\n", version, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// model saves an untrained net and returns its folder.
func model(t *testing.T, noiseSteps int) string {
	t.Helper()
	config := diffusion.DefaultConfig()
	config.Device = diffusion.DeviceCPU
	config.ImageSize, config.HiddenDims, config.NoiseSteps = 16, []int{8, 16}, noiseSteps
	process, err := diffusion.New(config)
	if err != nil {
		t.Fatal(err)
	}
	defer process.Close()
	folder := filepath.Join(t.TempDir(), "model")
	if err := process.Save(context.Background(), folder); err != nil {
		t.Fatal(err)
	}
	return folder
}

func runHere(arguments ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	code = run(context.Background(), arguments, &out, &err)
	return code, out.String(), err.String()
}

func readPNG(t *testing.T, path string) image.Image {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	picture, err := png.Decode(file)
	if err != nil {
		t.Fatal(err)
	}
	return picture
}

func TestTextures(t *testing.T) {
	folder := model(t, 20)
	out := filepath.Join(t.TempDir(), "out.png")
	code, stdout, stderr := runHere("--model", folder, "--out", out, "--count", "5", "--columns", "3", "--steps", "4",
		"--scale", "2", "--seed", "9", "--device", "cpu")
	if code != 0 || !strings.Contains(stdout, "open "+out) || !strings.Contains(stdout, "5 textures of 16x16") {
		t.Fatalf("exit code %d\n%s%s", code, stdout, stderr)
	}
	if !strings.Contains(stderr, "denoising 20/20 (100%)") {
		t.Errorf("progress is %q", stderr)
	}
	picture := readPNG(t, out)
	if want := image.Rect(0, 0, 3*(32+margin)+margin, 2*(32+margin)+margin); picture.Bounds() != want {
		t.Errorf("the picture is %v, want %v", picture.Bounds(), want)
	}
	// Each pixel twice each way, and textures that differ.
	cell := 32 + margin
	equal := 0
	for i := range 16 {
		at := picture.At(margin+2*i, margin)
		if at != picture.At(margin+2*i+1, margin+1) {
			t.Errorf("pixel %d is not enlarged", i)
		}
		if at == picture.At(margin+cell+2*i, margin) {
			equal++
		}
	}
	if equal == 16 {
		t.Error("two textures are the same")
	}

	// The same seed gives the same picture, another method another.
	again, other := filepath.Join(t.TempDir(), "again.png"), filepath.Join(t.TempDir(), "other.png")
	arguments := []string{"--model", folder, "--count", "5", "--columns", "3", "--steps", "4", "--scale", "2", "--seed", "9"}
	if code, _, stderr := runHere(append(arguments, "--out", again)...); code != 0 {
		t.Fatal(stderr)
	}
	if code, _, stderr := runHere(append(arguments, "--out", other, "--method", "dpm-solver++")...); code != 0 {
		t.Fatal(stderr)
	}
	first, _ := os.ReadFile(out)
	second, _ := os.ReadFile(again)
	third, _ := os.ReadFile(other)
	if !bytes.Equal(first, second) || bytes.Equal(first, third) {
		t.Error("seed and method do not determine the picture")
	}
	// Columns and scale by default: 2 x 2, 8 pixels each.
	if code, _, stderr := runHere("--model", folder, "--count", "4", "--steps", "1", "--out", out); code != 0 {
		t.Fatal(stderr)
	}
	if bounds := readPNG(t, out).Bounds(); bounds.Dx() != 2*(16*8+margin)+margin || bounds.Dy() != bounds.Dx() {
		t.Errorf("by default the picture is %v", bounds)
	}
}

func TestHelpAndRefusals(t *testing.T) {
	code, stdout, stderr := runHere("--help")
	if code != 0 || stderr != "" {
		t.Errorf("--help: exit code %d, %q", code, stderr)
	}
	for _, option := range []string{"--model", "--out", "--count", "--columns", "--method", "--steps", "--device", "--seed", "--scale"} {
		if !strings.Contains(stdout, option+" ") {
			t.Errorf("--help does not mention %s", option)
		}
	}
	folder := model(t, 20)
	out := filepath.Join(t.TempDir(), "out.png")
	for _, test := range []struct {
		arguments []string
		says      string
	}{
		{[]string{"--no-such"}, "no-such"},
		{[]string{"stray"}, "stray"},
		{[]string{"--count", "0"}, "1..=4096"},
		{[]string{"--count", "x"}, "count"},
		{[]string{"--scale", "65"}, "0..=64"},
		{[]string{"--method", "magic"}, "ddim"},
		{[]string{"--device", "cpu:1"}, "cuda:N"},
		{[]string{"--device", "tpu"}, "cuda:N"},
		{[]string{"--steps", "21"}, "steps"},
		{[]string{"--model", filepath.Join(folder, "nothing")}, "nothing"},
		{[]string{"--steps", "1", "--out", filepath.Join(folder, "no", "such", "folder.png")}, "folder.png"},
	} {
		arguments := append([]string{"--model", folder, "--out", out}, test.arguments...)
		code, _, stderr := runHere(arguments...)
		if lines := strings.Split(strings.TrimSpace(stderr), "\n"); code != 1 || !strings.Contains(lines[len(lines)-1], test.says) {
			t.Errorf("%v: exit code %d, %q", test.arguments, code, stderr)
		}
		if _, err := os.Stat(out); err == nil {
			t.Errorf("%v wrote a picture", test.arguments)
		}
	}
}

// TestInterrupt: Ctrl-C in the midst of a job that would take minutes.
func TestInterrupt(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out.png")
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command(program, "--model", model(t, 100000), "--method", "ddpm", "--out", out, "--count", "1")
	command.Env = append(os.Environ(), "MAKE_TEXTURES_CHILD=1")
	stderr, err := command.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		if text.Len() == 0 {
			// The first line: it denoises.
			if err := command.Process.Signal(os.Interrupt); err != nil {
				t.Error(err)
			}
		}
		fmt.Fprintln(&text, lines.Text())
	}
	_ = command.Wait()
	if code := command.ProcessState.ExitCode(); code != 130 || !strings.Contains(text.String(), "cancelled") {
		t.Errorf("exit code %d\n%s", code, text.String())
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("a picture was written")
	}
}
