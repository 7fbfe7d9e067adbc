package main

// What each route answers, one request at a time.

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestTexture(t *testing.T) {
	s, alone := start(t, tinyOptions()), newReference(t, models.tiny)
	for _, test := range []struct {
		query       string
		seed        uint64
		steps, size int
	}{
		{"", 0, 20, 64},
		{"?seed=5", 5, 20, 64},
		{"?seed=9007199254740991&steps=1&size=8", maxSeed, 1, 8},
		{"?seed=5&steps=100&size=24&format=png", 5, 100, 24},
	} {
		r := fetch(t, s.url+"/texture"+test.query)
		if r.status != http.StatusOK || r.header.Get("Content-Type") != "image/png" {
			t.Errorf("%s: %d %v %s", test.query, r.status, r.header, r.body)
			continue
		}
		if err := alone.checkPNG(r.body, test.seed, test.steps, test.size); err != nil {
			t.Errorf("%s: %v", test.query, err)
		}
	}
	r := fetch(t, s.url+"/texture?seed=5&steps=3&size=8&format=rgba")
	if r.header.Get("Content-Type") != "application/octet-stream" || !bytes.Equal(r.body, alone.pixels(5, 3)) {
		t.Errorf("rgba: %v, %d bytes", r.header, len(r.body))
	}
	if bytes.Equal(alone.pixels(5, 3), alone.pixels(6, 3)) {
		t.Error("two seeds give the same texture")
	}
}

func TestWrongParameters(t *testing.T) {
	s := start(t, tinyOptions())
	long := strings.Repeat("9", 5000)
	for _, test := range []struct{ query, parameter, allowed string }{
		{"seed=-1", "seed", "0..=9007199254740991"},
		{"seed=9007199254740992", "seed", "0..=9007199254740991"},
		{"seed=" + long, "seed", "0..=9007199254740991"},
		{"seed=0x10", "seed", "integer"},
		{"seed=", "seed", "integer"},
		{"seed=1&seed=2", "seed", "given once"},
		{"steps=0", "steps", "1..=100"},
		{"steps=101", "steps", "1..=100"},
		{"steps=1e3", "steps", "1..=100"},
		{"steps=NaN", "steps", "1..=100"},
		{"size=0", "size", "multiple of 8 in 8..=64"},
		{"size=12", "size", "multiple of 8"},
		{"size=72", "size", "8..=64"},
		{"size=4294967304", "size", "8..=64"},
		{"format=jpeg", "format", "png or rgba"},
		{"stepz=5", "query", "seed, steps, size, format"},
	} {
		p := problemOf(t, fetch(t, s.url+"/texture?"+test.query), http.StatusBadRequest)
		if p.Parameter != test.parameter || !strings.Contains(p.Allowed, test.allowed) || !strings.Contains(p.Detail, test.allowed) {
			t.Errorf("%.40s: %+v", test.query, p)
		}
		if _, value, _ := strings.Cut(test.query, "="); p.Parameter != "query" && test.parameter != "seed" && p.Value != value {
			t.Errorf("%.40s: the value is %q", test.query, p.Value)
		}
	}
	problemOf(t, fetch(t, s.url+"/texture?seed=%zz"), http.StatusBadRequest)
	problemOf(t, fetch(t, s.url+"/texture?seed=1;steps=2"), http.StatusBadRequest)
	for _, query := range []string{"count=0", "count=65", "count=x", "seed=9007199254740991&count=2", "format=png"} {
		problemOf(t, fetch(t, s.url+"/events?"+query), http.StatusBadRequest)
	}
	for _, test := range []struct{ body, parameter string }{
		{``, ""}, {`{`, ""}, {`[]`, ""}, {`null`, "textures"}, {"\x00\xff", ""},
		{`{"textures":[{"seed":1}]} {}`, ""},
		{`{"textures":[{"seed":1}],"stepz":3}`, ""},
		{`{"textures":[{"seed":-1}]}`, ""},
		{`{"textures":[{"seed":"1"}]}`, ""},
		{`{"textures":[]}`, "textures"},
		{`{"textures":[` + strings.Repeat(`{},`, 64) + `{}]}`, "textures"},
		{`{"textures":[{"seed":1},{"seed":9007199254740992}]}`, "textures[1].seed"},
		{`{"textures":[{"steps":0}]}`, "textures[0].steps"},
		{`{"textures":[{}],"size":9}`, "textures[0].size"},
		{`{"textures":[{}],"format":"bmp"}`, "textures[0].format"},
	} {
		if p := problemOf(t, postJSON(t, s.url+"/batch", test.body), http.StatusBadRequest); p.Parameter != test.parameter {
			t.Errorf("%.60q: %+v", test.body, p)
		}
	}
	problemOf(t, postJSON(t, s.url+"/batch", `{"textures":[`+strings.Repeat(" ", maxBody)), http.StatusRequestEntityTooLarge)
	problemOf(t, do(t, client(), newRequest(t, "POST", s.url+"/batch", "{}", "Content-Type", "text/plain")),
		http.StatusUnsupportedMediaType)
	if images := s.metric(t, "texture_images_total"); images != 0 {
		t.Errorf("%v textures were made of nonsense", images)
	}
}

func TestMethodsAndPaths(t *testing.T) {
	s := start(t, tinyOptions())
	for _, test := range []struct{ method, path, allow string }{
		{"POST", "/texture", "GET, HEAD"}, {"DELETE", "/texture", "GET, HEAD"}, {"GET", "/batch", "POST"},
		{"PUT", "/events", "GET, HEAD"}, {"POST", "/", "GET, HEAD"}, {"BREW", "/healthz", "GET, HEAD"},
	} {
		r := do(t, client(), newRequest(t, test.method, s.url+test.path, ""))
		problemOf(t, r, http.StatusMethodNotAllowed)
		if got := r.header.Get("Allow"); got != test.allow {
			t.Errorf("%s %s: Allow is %q, want %q", test.method, test.path, got, test.allow)
		}
	}
	problemOf(t, fetch(t, s.url+"/textures"), http.StatusNotFound)
	problemOf(t, fetch(t, s.url+"/web/index.html"), http.StatusNotFound)
	for path, kind := range map[string]string{
		"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript", "/icon.svg": "image/svg+xml",
		"/healthz": "text/plain", "/readyz": "text/plain", "/limits": "application/json", "/metrics": "text/plain",
	} {
		r := fetch(t, s.url+path)
		if r.status != http.StatusOK || !strings.HasPrefix(r.header.Get("Content-Type"), kind) || len(r.body) == 0 ||
			r.header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %d %v", path, r.status, r.header)
		}
	}
	if policy := fetch(t, s.url+"/").header.Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") {
		t.Errorf("the page's policy is %q", policy)
	}
}

func TestSameTextureFromAnyReplica(t *testing.T) {
	copied := filepath.Join(t.TempDir(), "copy")
	must(t, os.CopyFS(copied, os.DirFS(models.tiny)))
	must(t, os.WriteFile(filepath.Join(copied, "README.md"), []byte("not a part of the model"), 0o644))
	o := tinyOptions()
	one := start(t, o)
	o.model, o.batch, o.queue = copied, 3, 7
	other := start(t, o)
	o.model = models.endless
	third := start(t, o)

	const path = "/texture?seed=11&steps=6&size=16"
	a, b, c := fetch(t, one.url+path), fetch(t, other.url+path), fetch(t, third.url+path)
	etag := a.header.Get("ETag")
	if etag == "" || strings.HasPrefix(etag, "W/") || etag != b.header.Get("ETag") || !bytes.Equal(a.body, b.body) {
		t.Errorf("two replicas: %q and %q, %d and %d bytes", etag, b.header.Get("ETag"), len(a.body), len(b.body))
	}
	if etag == c.header.Get("ETag") {
		t.Error("another model has the same ETag")
	}
	if !strings.Contains(a.header.Get("Cache-Control"), "public") {
		t.Errorf("Cache-Control is %q", a.header.Get("Cache-Control"))
	}
	seen := map[string]string{etag: path}
	for _, path := range []string{"?seed=12&steps=6&size=16", "?seed=11&steps=7&size=16", "?seed=11&steps=6&size=24",
		"?seed=11&steps=6&size=16&format=rgba"} {
		r := do(t, client(), newRequest(t, "HEAD", one.url+"/texture"+path, ""))
		if tag := r.header.Get("ETag"); r.status != http.StatusOK || tag == "" || seen[tag] != "" {
			t.Errorf("HEAD %s: %d, ETag %q as of %s", path, r.status, tag, seen[tag])
		} else {
			seen[tag] = path
		}
	}

	// The other replica knows what one of them made, and nothing is made for it.
	made := other.metric(t, "texture_images_total")
	for _, value := range []string{etag, "W/" + etag, `"x", ` + etag, "*"} {
		r := fetch(t, other.url+path, "If-None-Match", value)
		if r.status != http.StatusNotModified || len(r.body) != 0 || r.header.Get("ETag") != etag {
			t.Errorf("If-None-Match %s: %d %v", value, r.status, r.header)
		}
	}
	if now := other.metric(t, "texture_images_total"); now != made {
		t.Errorf("%v textures were made for nothing", now-made)
	}
	if r := fetch(t, other.url+path, "If-None-Match", `"x"`); r.status != http.StatusOK || !bytes.Equal(r.body, a.body) {
		t.Errorf("If-None-Match of another: %d", r.status)
	}
}

func TestBatch(t *testing.T) {
	s, alone := start(t, tinyOptions()), newReference(t, models.tiny)
	r := postJSON(t, s.url+"/batch",
		`{"textures":[{"seed":1},{"seed":2,"steps":40},{"seed":3,"size":8},{"seed":1},{}],"steps":5,"size":16}`)
	if r.status != http.StatusOK || r.header.Get("Content-Type") != "application/x-ndjson" {
		t.Fatalf("%d %v %s", r.status, r.header, r.body)
	}
	want := []texture{{1, 5, 16, "png"}, {2, 40, 16, "png"}, {3, 5, 8, "png"}, {1, 5, 16, "png"}, {0, 5, 16, "png"}}
	told := map[int]line{}
	for _, text := range bytes.Split(bytes.TrimSpace(r.body), []byte("\n")) {
		var l line
		if err := json.Unmarshal(text, &l); err != nil || l.Error != nil {
			t.Fatalf("%v: %s", err, text)
		}
		if _, twice := told[l.Index]; twice || (texture{l.Seed, l.Steps, l.Size, l.Format}) != want[l.Index] {
			t.Errorf("line of %d: %+v", l.Index, l)
		}
		told[l.Index] = l
		if err := alone.checkPNG(l.Data, l.Seed, l.Steps, l.Size); err != nil {
			t.Error(err)
		}
		single := fetch(t, fmt.Sprintf("%s/texture?seed=%d&steps=%d&size=%d", s.url, l.Seed, l.Steps, l.Size))
		if single.header.Get("ETag") != l.ETag || !bytes.Equal(single.body, l.Data) {
			t.Errorf("texture %d is another one alone", l.Index)
		}
	}
	if len(told) != len(want) {
		t.Errorf("%d lines, want %d", len(told), len(want))
	}
	r = postJSON(t, s.url+"/batch", `{"textures":[{"seed":4,"steps":2,"size":8}],"format":"rgba"}`)
	var l line
	must(t, json.Unmarshal(r.body, &l))
	if !bytes.Equal(l.Data, alone.pixels(4, 2)) {
		t.Error("rgba differs")
	}
}

// sse is one server-sent event.
type sse struct {
	name string
	event
}

func readEvents(t testing.TB, body []byte) (list []sse) {
	t.Helper()
	scanner := bufio.NewScanner(bytes.NewReader(body))
	scanner.Buffer(nil, 1<<22)
	var e sse
	for scanner.Scan() {
		field, value, _ := strings.Cut(scanner.Text(), ": ")
		switch field {
		case "event":
			e.name = value
		case "data":
			must(t, json.Unmarshal([]byte(value), &e.event))
			list = append(list, e)
			e = sse{}
		}
	}
	must(t, scanner.Err())
	return list
}

func (e sse) png(t testing.TB) []byte {
	t.Helper()
	text, found := strings.CutPrefix(e.Image, "data:image/png;base64,")
	data, err := base64.StdEncoding.DecodeString(text)
	if !found || err != nil {
		t.Fatalf("%s has the image %.40q", e.name, e.Image)
	}
	return data
}

func TestEvents(t *testing.T) {
	s, alone := start(t, tinyOptions()), newReference(t, models.tiny)
	r := fetch(t, s.url+"/events?seed=30&count=3&steps=100&size=16")
	if r.status != http.StatusOK || r.header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%d %v %s", r.status, r.header, r.body)
	}
	list := readEvents(t, r.body)
	if last := list[len(list)-1]; last.name != "end" {
		t.Errorf("the last event is %+v", last)
	}
	steps, estimates, textures := map[int]uint64{}, 0, 0
	for _, e := range list[:len(list)-1] {
		if e.Seed != 30+uint64(e.Index) || e.Total != 100 {
			t.Errorf("%s: %d of %d, index %d, seed %d", e.name, e.Done, e.Total, e.Index, e.Seed)
		}
		if e.Done < steps[e.Index] {
			t.Errorf("texture %d goes back from %d to %d", e.Index, steps[e.Index], e.Done)
		}
		steps[e.Index] = e.Done
		switch {
		case e.name == "texture":
			textures++
			if err := alone.checkPNG(e.png(t), e.Seed, 100, 16); err != nil {
				t.Error(err)
			}
			if r := fetch(t, s.url+e.URL); !bytes.Equal(r.body, e.png(t)) {
				t.Errorf("%s is another texture", e.URL)
			}
		case e.name == "progress" && e.Image != "" && e.Done < 50:
			if alone.checkPNG(e.png(t), e.Seed, 100, 8) != nil {
				estimates++ // it can be read, or png would have failed, and is not yet the texture
			}
		case e.name != "progress":
			t.Errorf("event %+v", e)
		}
	}
	if textures != 3 || estimates == 0 {
		t.Errorf("%d textures, %d estimates that differ from them", textures, estimates)
	}
}

func TestMetricsAreWellFormed(t *testing.T) {
	s := start(t, tinyOptions())
	fetch(t, s.url+"/texture?steps=7&size=8")
	problems, err := testutil.GatherAndLint(s.studio.metrics.registry)
	must(t, err)
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	for name, want := range map[string]float64{
		"texture_images_total": 1, "texture_denoising_steps_total": 7, "texture_queue_capacity": 512,
		"texture_first_step_seconds_count": 1, `texture_cancelled_total{reason="client"}`: 0,
		`texture_http_request_duration_seconds_count{route="/texture",status="200"}`: 1,
	} {
		if got := s.metric(t, name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if s.metric(t, "texture_batch_size_sum") != s.metric(t, "texture_batch_size_count") {
		t.Error("one texture was not alone in its batch")
	}
}
