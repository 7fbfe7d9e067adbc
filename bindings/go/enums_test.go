package diffusion

import (
	"encoding/json"
	"errors"
	"flag"
	"io"
	"testing"
)

func TestEnumNames(t *testing.T) {
	for _, names := range []enum{
		deviceNames, scheduleNames, predictionNames, lossNames, optimizerNames, precisionNames, tableNames, methodNames,
		spacingNames, varianceNames, choiceNames, formatNames, stateNames, weightsNames, levelNames,
	} {
		for i, name := range names.names {
			value := names.first + int32(i)
			text, err := names.marshal(value)
			if err != nil || string(text) != name || names.string(value) != name {
				t.Errorf("%s %d is %q, %q, %v, want %q", names.what, value, text, names.string(value), err, name)
			}
			var back int32 = 99
			if err := names.unmarshal(text, &back); err != nil || back != value {
				t.Errorf("%s %q is %d, %v, want %d", names.what, name, back, err, value)
			}
		}
		if _, err := names.marshal(99); !errors.Is(err, ErrInvalidArgument) {
			t.Errorf("%s 99: %v", names.what, err)
		}
		var value int32 = 99
		if err := names.unmarshal([]byte("no such"), &value); !errors.Is(err, ErrInvalidArgument) || value != 99 {
			t.Errorf("%s %q: %v, %d", names.what, "no such", err, value)
		}
	}
	if got := Method(42).String(); got != "method 42" {
		t.Errorf("Method(42) is %q", got)
	}
}

func TestParseDevice(t *testing.T) {
	for _, test := range []struct {
		text   string
		device Device
		index  int
	}{
		{"auto", DeviceAuto, 0}, {"cpu", DeviceCPU, 0}, {"cuda", DeviceCUDA, 0}, {"cuda:0", DeviceCUDA, 0},
		{"cuda:7", DeviceCUDA, 7}, {"cuda:1023", DeviceCUDA, 1023},
	} {
		if device, index, err := ParseDevice(test.text); device != test.device || index != test.index || err != nil {
			t.Errorf("%q is %v, %d, %v", test.text, device, index, err)
		}
	}
	for _, text := range []string{"", "tpu", "CPU", "cpu:1", "auto:0", "cuda:", "cuda:-1", "cuda:+1", "cuda:1024", "cuda:1:2", ":1",
		"cuda:99999999999999999999"} {
		if device, index, err := ParseDevice(text); !errors.Is(err, ErrInvalidArgument) || device != DeviceAuto || index != 0 {
			t.Errorf("%q is %v, %d, %v", text, device, index, err)
		}
	}
}

func TestEnumsAsFlagsAndJSON(t *testing.T) {
	flags := flag.NewFlagSet("test", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	var method Method
	flags.TextVar(&method, "method", MethodDDIM, "")
	if method != MethodDDIM {
		t.Errorf("default is %v", method)
	}
	if err := flags.Parse([]string{"-method", "unipc"}); err != nil || method != MethodUniPC {
		t.Errorf("%v, %v", method, err)
	}
	text, err := json.Marshal(struct {
		Device   Device
		Schedule BetaSchedule
	}{DeviceCUDA, ScheduleLinear})
	if err != nil || string(text) != `{"Device":"cuda","Schedule":"linear"}` {
		t.Errorf("%s, %v", text, err)
	}
}
