package tests

// The manifests against Kubernetes' own types, and the Dockerfile against what the repository has. That is not the
// same as running them: neither a cluster nor Docker is needed for these tests.

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

type manifest struct {
	deployment appsv1.Deployment
	service    corev1.Service
	budget     policyv1.PodDisruptionBudget
	scaler     autoscalingv2.HorizontalPodAutoscaler
}

// read decodes a manifest; a field that Kubernetes does not have is an error.
func read(t *testing.T, name string) (m manifest) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../deploy", name))
	must(t, err)
	for _, document := range regexp.MustCompile(`(?m)^---$`).Split(string(text), -1) {
		var kind metav1.TypeMeta
		must(t, yaml.Unmarshal([]byte(document), &kind))
		into := map[string]any{
			"apps/v1 Deployment": &m.deployment, "v1 Service": &m.service, "policy/v1 PodDisruptionBudget": &m.budget,
			"autoscaling/v2 HorizontalPodAutoscaler": &m.scaler,
		}[kind.APIVersion+" "+kind.Kind]
		if into == nil {
			t.Fatalf("%s: a document is %q %q", name, kind.APIVersion, kind.Kind)
		}
		if err := yaml.UnmarshalStrict([]byte(document), into); err != nil {
			t.Fatalf("%s: %s: %v", name, kind.Kind, err)
		}
	}
	return m
}

func TestManifests(t *testing.T) {
	for _, name := range []string{"kubernetes.yaml", "kubernetes-gpu.yaml"} {
		m := read(t, name)
		pod := m.deployment.Spec.Template
		if *m.deployment.Spec.Replicas < 2 {
			t.Errorf("%s: %d replicas", name, *m.deployment.Spec.Replicas)
		}
		for what, selector := range map[string]map[string]string{
			"deployment": m.deployment.Spec.Selector.MatchLabels, "service": m.service.Spec.Selector,
			"budget": m.budget.Spec.Selector.MatchLabels,
		} {
			if len(selector) == 0 || !labels.SelectorFromSet(selector).Matches(labels.Set(pod.Labels)) {
				t.Errorf("%s: the %s selects %v, the pods are %v", name, what, selector, pod.Labels)
			}
		}
		if len(pod.Spec.Containers) != 1 {
			t.Fatalf("%s: %d containers", name, len(pod.Spec.Containers))
		}
		c := pod.Spec.Containers[0]
		ports := map[string]bool{}
		for _, port := range c.Ports {
			ports[port.Name] = true
		}
		if !ports[m.service.Spec.Ports[0].TargetPort.StrVal] {
			t.Errorf("%s: the service's port is %v, the container has %v", name, m.service.Spec.Ports[0].TargetPort, ports)
		}
		for path, probe := range map[string]*corev1.Probe{"/readyz": c.ReadinessProbe, "/healthz": c.LivenessProbe} {
			if probe == nil || probe.HTTPGet == nil || probe.HTTPGet.Path != path || !ports[probe.HTTPGet.Port.StrVal] {
				t.Errorf("%s: the probe of %s is %v", name, path, probe)
			}
		}
		if c.StartupProbe == nil || c.Resources.Limits.Memory().IsZero() || c.Resources.Requests.Cpu().IsZero() {
			t.Errorf("%s: no startup probe, memory limit or CPU request", name)
		}
		if s := c.SecurityContext; s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem || s.RunAsNonRoot == nil {
			t.Errorf("%s: the container may do more than it needs", name)
		}
		// Each variable is one that the program knows.
		options, err := os.ReadFile("../options.go")
		must(t, err)
		grace := int64(0)
		for _, variable := range c.Env {
			flag, ours := strings.CutPrefix(variable.Name, "TEXTURE_")
			flag = strings.ToLower(strings.ReplaceAll(flag, "_", "-"))
			if ours && !bytes.Contains(options, []byte(`"`+flag+`"`)) {
				t.Errorf("%s: %s is no option", name, variable.Name)
			}
			if variable.Name == "TEXTURE_GRACE" {
				for _, digit := range strings.TrimSuffix(variable.Value, "s") {
					grace = 10*grace + int64(digit-'0')
				}
			}
		}
		// The pod must live longer than the pause before SIGTERM, the grace, and the time for cancelled requests.
		if period := pod.Spec.TerminationGracePeriodSeconds; period == nil || grace == 0 || c.Lifecycle == nil ||
			*period < c.Lifecycle.PreStop.Sleep.Seconds+grace+10 {
			t.Errorf("%s: the pod is killed before its grace of %d s is over", name, grace)
		}
		gpus := c.Resources.Limits["nvidia.com/gpu"]
		if (gpus.Value() == 1) != (name == "kubernetes-gpu.yaml") {
			t.Errorf("%s: %v GPUs", name, gpus.Value())
		}
		if target := m.scaler.Spec.ScaleTargetRef; target.Name != "" && target.Name != m.deployment.Name {
			t.Errorf("%s: the scaler is of %s", name, target.Name)
		}
	}
}

func TestDockerfile(t *testing.T) {
	text, err := os.ReadFile("../deploy/Dockerfile")
	must(t, err)
	const root = "../../../.."
	stages := map[string]bool{}
	for _, line := range strings.Split(string(text), "\n") {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		switch {
		case words[0] == "FROM":
			if len(words) == 4 {
				stages[words[3]] = true
			}
		case words[0] == "COPY" && strings.HasPrefix(words[1], "--from="):
			if stage := strings.TrimPrefix(words[1], "--from="); !stages[stage] {
				t.Errorf("%s: there is no stage %s", line, stage)
			}
		case words[0] == "COPY":
			for _, source := range words[1 : len(words)-1] {
				if strings.Contains(source, "$") { // the tarball of `make dist`
					continue
				}
				if _, err := os.Stat(filepath.Join(root, source)); err != nil {
					t.Errorf("%s: %v", line, err)
				}
			}
		}
	}
	if !bytes.Contains(text, []byte("\nUSER ")) || !bytes.Contains(text, []byte(`ENTRYPOINT ["`)) {
		t.Error("the image runs as root, or its program does not get signals")
	}
}
