//go:build !(cgo && unix)

package diffusion

// What remains of the C ABI where there is no cgo: programs compile, and opening the library says what is missing.
// No other function here is ever reached, since each Process and Job begins with an opened library.

const haveABI = false

func abiOpen(string) error {
	return &LibraryError{Reason: "this program was built without cgo, which libdiffusion needs: build it on Linux with " +
		"CGO_ENABLED=1 and a C compiler"}
}

type callbackRef uintptr

func newCallbackRef(any) callbackRef { return 0 }

func (callbackRef) release() {}

func unreachable() error { return abiOpen("") }

func abiPath() string                                        { return "" }
func abiInLog() bool                                         { return false }
func abiVersion() uint32                                     { return 0 }
func abiVersionString() string                               { return "" }
func abiStatusString(int32) string                           { return "" }
func abiDeviceCount(Device) (int, error)                     { return 0, unreachable() }
func abiConfigInit() (Config, error)                         { return Config{}, unreachable() }
func abiConfigInitCIFAR10() (Config, error)                  { return Config{}, unreachable() }
func abiCreate(*Config) (uintptr, error)                     { return 0, unreachable() }
func abiCreateWithBetas(*Config, []float64) (uintptr, error) { return 0, unreachable() }
func abiLoad(string, *Config) (uintptr, error)               { return 0, unreachable() }
func abiSave(uintptr, string) error                          { return unreachable() }
func abiExport(uintptr, string, Precision) error             { return unreachable() }
func abiDestroy(uintptr) error                               { return unreachable() }
func abiCancel(uintptr) error                                { return unreachable() }
func abiGetConfig(uintptr) (Config, error)                   { return Config{}, unreachable() }
func abiGetSchedule(uintptr, Table, []float32) error         { return unreachable() }
func abiSetLog(uintptr, *logSink) error                      { return unreachable() }
func abiSampleParamsInit() (SampleParams, error)             { return SampleParams{}, unreachable() }
func abiAddNoise(uintptr, []float32, []int64, uint64, []float32, []float32) error {
	return unreachable()
}
func abiPredictNoise(uintptr, []float32, []int64, []float32) error { return unreachable() }
func abiPredictNoiseWithClasses(uintptr, []float32, []int64, []int64, []float32) error {
	return unreachable()
}
func abiSample(uintptr, int, uint64, []float32) error { return unreachable() }
func abiSampleDDIM(uintptr, int, int, float32, uint64, []float32) error {
	return unreachable()
}
func abiSampleWith(uintptr, *SampleParams, []byte) error                   { return unreachable() }
func abiSampleSize(uintptr, *SampleParams) (int, error)                    { return 0, unreachable() }
func abiSampleSubmit(uintptr, *SampleParams, callbackRef) (uintptr, error) { return 0, unreachable() }
func abiJobPoll(uintptr) (JobState, error)                                 { return 0, unreachable() }
func abiJobWait(uintptr, int64) error                                      { return unreachable() }
func abiJobProgress(uintptr) (uint64, uint64, error)                       { return 0, 0, unreachable() }
func abiJobCancel(uintptr) error                                           { return unreachable() }
func abiJobPreview(uintptr, []byte) (uint64, error)                        { return 0, unreachable() }
func abiJobFetch(uintptr, []byte) error                                    { return unreachable() }
func abiJobDestroy(uintptr) error                                          { return unreachable() }
func abiTrainStep(uintptr, []float32, int, *float32) error                 { return unreachable() }
func abiTrainStepWithClasses(uintptr, []float32, []int64, *float32) error  { return unreachable() }
func abiGetStepCount(uintptr) (uint64, error)                              { return 0, unreachable() }
func abiGetLearningRate(uintptr) (float64, error)                          { return 0, unreachable() }
func abiSetLearningRate(uintptr, float64) error                            { return unreachable() }
func abiGetGradientScale(uintptr) (float64, error)                         { return 0, unreachable() }
func abiParameterCount(uintptr) (int, error)                               { return 0, unreachable() }
func abiParameterDescribe(uintptr, int) (Parameter, error)                 { return Parameter{}, unreachable() }
func abiParameterRead(uintptr, Weights, string, []float32) error           { return unreachable() }
func abiParameterWrite(uintptr, Weights, string, []float32) error          { return unreachable() }
