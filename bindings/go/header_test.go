//go:build cgo && unix

package diffusion

// The binding against the header: that the copy is the original, the numbers are its numbers, and no function or
// field of it is missing here.

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// declarations is the header without its comments.
func declarations(t *testing.T) string {
	t.Helper()
	text := regexp.MustCompile(`(?s)/\*.*?\*/`).ReplaceAllString(read(t, "diffusion.h"), "")
	return regexp.MustCompile(`//[^\n]*`).ReplaceAllString(text, "")
}

func headerFunctions(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, match := range regexp.MustCompile(`\b(diffusion_\w+)\(`).FindAllStringSubmatch(declarations(t), -1) {
		names = append(names, match[1])
	}
	if len(names) < 30 {
		t.Fatalf("only %d functions found in diffusion.h: %v", len(names), names)
	}
	return names
}

func TestHeaderIsTheOriginal(t *testing.T) {
	if read(t, "diffusion.h") != read(t, "../../include/diffusion.h") {
		t.Error("bindings/go/diffusion.h is not include/diffusion.h: run `make header`")
	}
}

func TestEveryFunctionIsReachable(t *testing.T) {
	shim, header, abi := read(t, "shim.c"), read(t, "shim.h"), read(t, "abi_cgo.go")
	listed := 0
	for _, name := range headerFunctions(t) {
		if regexp.MustCompile(`X\(` + name + `\)`).MatchString(shim) {
			listed++
		} else {
			t.Errorf("%s is not in shim.c's DIFFUSION_FUNCTIONS", name)
		}
		if !regexp.MustCompile(`library\.` + name + `\(`).MatchString(shim) {
			t.Errorf("shim.c never calls %s", name)
		}
		if name == "diffusion_last_error_message" {
			continue // the shim's own
		}
		wrapper := strings.Replace(name, "diffusion_", "diffusion_go_", 1)
		if !regexp.MustCompile(`\b` + wrapper + `\(`).MatchString(header) {
			t.Errorf("shim.h does not declare %s", wrapper)
		}
		if !regexp.MustCompile(`C\.` + wrapper + `\(`).MatchString(abi) {
			t.Errorf("abi_cgo.go never calls %s", wrapper)
		}
	}
	if all := strings.Count(shim, "    X("); all != listed {
		t.Errorf("shim.c lists %d functions, the header has %d of them", all, listed)
	}
	// Each Go function over the ABI is called by the package, so that each is reachable from outside.
	var others string
	for _, file := range []string{"config.go", "errors.go", "job.go", "library.go", "log.go", "process.go", "samples.go"} {
		others += read(t, file)
	}
	for _, match := range regexp.MustCompile(`(?m)^func (abi\w+)\(`).FindAllStringSubmatch(abi, -1) {
		if !regexp.MustCompile(`\b` + match[1] + `\b`).MatchString(others) {
			t.Errorf("nothing uses %s", match[1])
		}
	}
}

func TestEveryFieldCrosses(t *testing.T) {
	abi := read(t, "abi_cgo.go")
	shim := read(t, "shim.c")
	structs := regexp.MustCompile(`(?s)typedef struct (\w+) \{(.*?)\n\}`).FindAllStringSubmatch(declarations(t), -1)
	if len(structs) != 3 {
		t.Fatalf("%d structs in the header, want 3", len(structs))
	}
	for _, s := range structs {
		for _, line := range strings.Split(s[2], "\n") {
			match := regexp.MustCompile(`(\w+)(\[\w+\])?;`).FindStringSubmatch(line)
			if match == nil {
				continue
			}
			field := match[1]
			inGo := len(regexp.MustCompile(`\bc\.`+field+`\b`).FindAllString(abi, -1)) > 0
			inShim := regexp.MustCompile(`(params\.|->)` + field + `\b`).MatchString(shim)
			if field != "struct_size" && !inGo && !inShim {
				t.Errorf("%s.%s does not cross", s[1], field)
			}
		}
	}
}

func TestConstants(t *testing.T) {
	ours := map[string]int64{
		"ABI_VERSION": wantedABI, "MAX_LEVELS": MaxLevels, "DEFAULT": int64(SpacingDefault),
		"DEVICE_AUTO": int64(DeviceAuto), "DEVICE_CPU": int64(DeviceCPU), "DEVICE_CUDA": int64(DeviceCUDA),
		"SCHEDULE_COSINE": int64(ScheduleCosine), "SCHEDULE_LINEAR": int64(ScheduleLinear),
		"SCHEDULE_COSINE_RAMP": int64(ScheduleCosineRamp), "SCHEDULE_SCALED_LINEAR": int64(ScheduleScaledLinear),
		"SCHEDULE_SIGMOID": int64(ScheduleSigmoid), "SCHEDULE_GIVEN": int64(ScheduleGiven),
		"PREDICTION_EPSILON": int64(PredictionEpsilon), "PREDICTION_SAMPLE": int64(PredictionSample),
		"PREDICTION_VELOCITY": int64(PredictionVelocity),
		"LOSS_MSE":            int64(LossMSE), "LOSS_HUBER": int64(LossHuber), "CLASSES_AS_TIMESTEPS": ClassesAsTimesteps,
		"OPTIMIZER_ADAM": int64(OptimizerAdam), "OPTIMIZER_ADAMW": int64(OptimizerAdamW),
		"PRECISION_F32": int64(PrecisionF32), "PRECISION_F16": int64(PrecisionF16), "PRECISION_BF16": int64(PrecisionBF16), "PRECISION_AUTO": int64(PrecisionAuto),
		"TABLE_BETA": int64(TableBeta), "TABLE_ALPHA": int64(TableAlpha), "TABLE_ALPHA_CUMPROD": int64(TableAlphaCumprod),
		"TABLE_SQRT_ALPHA_CUMPROD":           int64(TableSqrtAlphaCumprod),
		"TABLE_SQRT_ONE_MINUS_ALPHA_CUMPROD": int64(TableSqrtOneMinusAlphaCumprod),
		"METHOD_DDPM":                        int64(MethodDDPM), "METHOD_DDIM": int64(MethodDDIM),
		"METHOD_DPM_SOLVER_PP_2M": int64(MethodDPMSolver2M), "METHOD_DPM_SOLVER_PP_2M_SDE": int64(MethodDPMSolver2MSDE),
		"METHOD_UNIPC": int64(MethodUniPC), "METHOD_EULER": int64(MethodEuler), "METHOD_HEUN": int64(MethodHeun),
		"SPACING_LEADING": int64(SpacingLeading), "SPACING_TRAILING": int64(SpacingTrailing),
		"SPACING_LINSPACE": int64(SpacingLinspace), "SPACING_KARRAS": int64(SpacingKarras),
		"VARIANCE_FIXED_SMALL": int64(VarianceFixedSmall), "VARIANCE_FIXED_LARGE": int64(VarianceFixedLarge),
		"FORMAT_F32": int64(FormatF32), "FORMAT_F16": int64(FormatF16),
		"FORMAT_RGB8": int64(FormatRGB8), "FORMAT_RGBA8": int64(FormatRGBA8),
		"JOB_QUEUED": int64(JobQueued), "JOB_RUNNING": int64(JobRunning), "JOB_DONE": int64(JobDone),
		"JOB_FAILED": int64(JobFailed), "JOB_CANCELLED": int64(JobCancelled),
		"WEIGHTS_TRAINED": int64(WeightsTrained), "WEIGHTS_EMA": int64(WeightsEMA),
		"LOG_WARNING": int64(LogWarning), "LOG_INFO": int64(LogInfo),
		"OK": int64(StatusOK), "ERROR_INVALID_ARGUMENT": int64(StatusInvalidArgument),
		"ERROR_NULL_POINTER": int64(StatusNullPointer), "ERROR_INVALID_HANDLE": int64(StatusInvalidHandle),
		"ERROR_BUFFER_SIZE": int64(StatusBufferSize), "ERROR_OUT_OF_MEMORY": int64(StatusOutOfMemory),
		"ERROR_DEVICE_UNAVAILABLE": int64(StatusDeviceUnavailable), "ERROR_IO": int64(StatusIO),
		"ERROR_FORMAT": int64(StatusFormat), "ERROR_CANCELLED": int64(StatusCancelled),
		"ERROR_TIMEOUT": int64(StatusTimeout), "ERROR_NON_FINITE": int64(StatusNonFinite),
		"ERROR_TORCH": int64(StatusTorch), "ERROR_INTERNAL": int64(StatusInternal),
	}
	header := map[string]int64{}
	for _, match := range regexp.MustCompile(`(?m)^#define DIFFUSION_(\w+) (-?\d+)$`).FindAllStringSubmatch(declarations(t), -1) {
		value, err := strconv.ParseInt(match[2], 10, 64)
		must(t, err)
		header[match[1]] = value
	}
	for name, value := range header {
		if got, known := ours[name]; !known || got != value {
			t.Errorf("DIFFUSION_%s is %d, here %d (known: %v)", name, value, got, known)
		}
	}
	for name := range ours {
		if _, known := header[name]; !known {
			t.Errorf("the header has no DIFFUSION_%s", name)
		}
	}
	for status := StatusInvalidArgument; status <= StatusInternal; status++ {
		if statusErrors[status] == nil {
			t.Errorf("status %d has no error value", status)
		}
	}
}
