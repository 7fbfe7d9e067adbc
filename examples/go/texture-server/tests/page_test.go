package tests

// The page, in a real browser: Chromium without a window, driven over the DevTools protocol.

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"image"
	"image/png"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// watchdog is for things that hang; nothing else depends on it.
const watchdog = 5 * time.Minute

// startServer runs the program that TEXTURE_SERVER names and returns its address.
func startServer(t *testing.T, arguments ...string) string {
	t.Helper()
	program := os.Getenv("TEXTURE_SERVER")
	if program == "" {
		t.Fatal("TEXTURE_SERVER names no program: these tests run by `make test-server`")
	}
	command := exec.Command(program, append([]string{"-addr", "127.0.0.1:0", "-model", "../../../../models/textures"}, arguments...)...)
	stderr, err := command.StderrPipe()
	must(t, err)
	must(t, command.Start())
	t.Cleanup(func() {
		_ = command.Process.Signal(os.Interrupt)
		killer := time.AfterFunc(watchdog, func() { _ = command.Process.Kill() })
		defer killer.Stop()
		if err := command.Wait(); err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	lines, address := bufio.NewScanner(stderr), regexp.MustCompile(`msg=listening addr=(\S+)`)
	for lines.Scan() {
		if found := address.FindStringSubmatch(lines.Text()); found != nil {
			go func() { _, _ = io.Copy(io.Discard, stderr) }()
			return "http://" + found[1]
		}
	}
	t.Fatal("the server does not listen")
	return ""
}

// browser is a tab, and what its console said.
type browser struct {
	context.Context
	mutex   sync.Mutex
	console []string
}

func open(t *testing.T) *browser {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.NoSandbox, // CI runs as root
		chromedp.Flag("force-color-profile", "srgb"),
		chromedp.WSURLReadTimeout(watchdog),
	)
	if path := os.Getenv("CHROMIUM"); path != "" {
		options = append(options, chromedp.ExecPath(path))
	}
	ctx, endProcess := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, endTab := chromedp.NewContext(ctx, chromedp.WithErrorf(func(format string, arguments ...any) {
		// A Chromium that is newer than the protocol's Go types has values that they do not know.
		if text := fmt.Sprintf(format, arguments...); !strings.HasPrefix(text, "could not unmarshal event") {
			t.Log(text)
		}
	}))
	ctx, endTime := context.WithTimeout(ctx, watchdog)
	t.Cleanup(func() {
		endTime()
		endTab()
		endProcess()
	})
	b := &browser{Context: ctx}
	chromedp.ListenTarget(ctx, func(event any) {
		b.mutex.Lock()
		defer b.mutex.Unlock()
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			b.console = append(b.console, e.ExceptionDetails.Error())
		case *log.EventEntryAdded:
			if e.Entry.Level == log.LevelError || e.Entry.Level == log.LevelWarning {
				b.console = append(b.console, e.Entry.Text+" "+e.Entry.URL)
			}
		case *runtime.EventConsoleAPICalled:
			if e.Type == runtime.APITypeError || e.Type == runtime.APITypeWarning {
				b.console = append(b.console, fmt.Sprint(e.Args))
			}
		}
	})
	b.do(t, runtime.Enable(), log.Enable())
	return b
}

func (b *browser) do(t *testing.T, actions ...chromedp.Action) {
	t.Helper()
	must(t, chromedp.Run(b, actions...))
}

// is waits until JavaScript's expression is true.
func (b *browser) is(t *testing.T, expression string) {
	t.Helper()
	b.do(t, chromedp.Poll(expression, nil, chromedp.WithPollingTimeout(watchdog), chromedp.WithPollingInterval(20*time.Millisecond)))
}

func eval[T any](t *testing.T, b *browser, expression string) (value T) {
	t.Helper()
	b.do(t, chromedp.Evaluate(expression, &value))
	return value
}

func (b *browser) quiet(t *testing.T) {
	t.Helper()
	b.mutex.Lock()
	defer b.mutex.Unlock()
	for _, text := range b.console {
		t.Errorf("the console says: %s", text)
	}
	b.console = nil
}

// size makes the window's inside so large.
func size(width, height int64) chromedp.Action {
	return emulation.SetDeviceMetricsOverride(width, height, 1, width < 600)
}

func scheme(name string) chromedp.Action {
	return emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}})
}

// shot takes a picture of what the window shows, and keeps it in out/.
func (b *browser) shot(t *testing.T, name string) image.Image {
	t.Helper()
	var data []byte
	b.do(t, chromedp.CaptureScreenshot(&data))
	folder := "../../../../out"
	must(t, os.MkdirAll(folder, 0o755))
	must(t, os.WriteFile(filepath.Join(folder, name), data, 0o644))
	picture, err := png.Decode(bytes.NewReader(data))
	must(t, err)
	return picture
}

// flat says whether all pixels of a part are nearly the same, summary what it looks like, roughly.
func flat(picture image.Image, part image.Rectangle) bool {
	least, most := uint32(1<<16), uint32(0)
	for y := part.Min.Y; y < part.Max.Y; y++ {
		for x := part.Min.X; x < part.Max.X; x++ {
			r, g, b, _ := picture.At(x, y).RGBA()
			least, most = min(least, r+g+b), max(most, r+g+b)
		}
	}
	return most-least < 3*20*257
}

func summary(picture image.Image, part image.Rectangle) string {
	var text strings.Builder
	for y := part.Min.Y; y < part.Max.Y; y += 8 {
		for x := part.Min.X; x < part.Max.X; x += 8 {
			r, g, b, _ := picture.At(x, y).RGBA()
			fmt.Fprint(&text, r>>12, g>>12, b>>12, " ")
		}
	}
	return text.String()
}

// tiles are where the images of the wall lie in the window, as far as they are wholly in it.
func tiles(t *testing.T, b *browser) (parts []image.Rectangle) {
	t.Helper()
	for _, box := range eval[[][4]float64](t, b, `[...document.querySelectorAll("#wall img")].map((image) => {
		const box = image.getBoundingClientRect();
		return [box.left, box.top, box.right, box.bottom];
	}).filter((box) => box[1] >= 0 && box[3] <= innerHeight)`) {
		parts = append(parts, image.Rect(int(box[0])+1, int(box[1])+1, int(box[2])-1, int(box[3])-1))
	}
	return parts
}

func checkWall(t *testing.T, b *browser, picture image.Image, atLeast int) {
	t.Helper()
	parts, seen := tiles(t, b), map[string]int{}
	if len(parts) < atLeast {
		t.Errorf("%d textures in the window, want at least %d", len(parts), atLeast)
	}
	for i, part := range parts {
		if flat(picture, part) {
			t.Errorf("texture %d at %v is flat", i, part)
		}
		key := summary(picture, part)
		if twin, twice := seen[key]; twice {
			t.Errorf("textures %d and %d look the same", twin, i)
		}
		seen[key] = i
	}
	if over := eval[float64](t, b, `document.documentElement.scrollWidth - innerWidth`); over > 0 {
		t.Errorf("the page is %v pixels wider than the window", over)
	}
}

func metric(t *testing.T, url, name string) float64 {
	t.Helper()
	response, err := http.Get(url + "/metrics")
	must(t, err)
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		if value, found := strings.CutPrefix(lines.Text(), name+" "); found {
			number, err := strconv.ParseFloat(value, 64)
			must(t, err)
			return number
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func set(id, value string) chromedp.Action {
	return chromedp.Evaluate(fmt.Sprintf(`{const control = document.getElementById(%q);
		control.value = %q; control.dispatchEvent(new Event("input", {bubbles: true}));}`, id, value), nil)
}

const (
	over  = `document.querySelector("#wall[aria-busy=false]") !== null`
	ready = `document.querySelectorAll("#wall li.ready").length`
)

func TestPage(t *testing.T) {
	url := startServer(t, "-threads", "2", "-max-steps", "1000", "-batch", "64")
	b := open(t)
	b.do(t, size(1280, 800), scheme("light"), chromedp.Navigate(url+"/#seed=7&steps=12&size=64&count=12"))
	b.is(t, over)
	if made := eval[int](t, b, ready); made != 12 {
		t.Fatalf("%d textures of 12: %s", made, eval[string](t, b, `document.getElementById("status").textContent`))
	}
	checkWall(t, b, b.shot(t, "page-desktop.png"), 10)
	b.quiet(t)

	// What the page shows is what GET /texture gives: seed 7 by its pixels in the page.
	same := `(async () => {
		const pixels = async (source) => {
			const image = new Image();
			image.src = source;
			await image.decode();
			const canvas = new OffscreenCanvas(image.width, image.height).getContext("2d");
			canvas.drawImage(image, 0, 0);
			return canvas.getImageData(0, 0, image.width, image.height).data.join();
		};
		const shown = await pixels(document.querySelector("#wall img").src);
		return shown === await pixels("/texture?seed=7&steps=12&size=64") && shown !== await pixels("/texture?seed=8&steps=12&size=64");
	})()`
	var equal bool
	b.do(t, chromedp.Evaluate(same, &equal, func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }))
	if !equal {
		t.Error("the page's texture is not the service's")
	}

	// While it is made, estimates come that are neither each other nor the texture.
	before := eval[string](t, b, `document.querySelector("#wall img").src`)
	b.do(t, set("seed", "100"), set("steps", "40"), set("count", "6"),
		chromedp.Evaluate(`window.seen = new Set(); new MutationObserver(() => {
			const image = document.querySelector("#wall li img[src]");
			if (image) seen.add(image.src);
		}).observe(document.getElementById("wall"), {subtree: true, childList: true, attributes: true});`, nil),
		chromedp.Click("#make"))
	b.is(t, `seen.size >= 3`)
	b.shot(t, "page-half.png")
	b.is(t, over+` && `+ready+` === 6`)
	last := eval[string](t, b, `document.querySelector("#wall img").src`)
	if last == before {
		t.Error("another seed gives the same texture")
	}
	if n := eval[int](t, b, `seen.size`); n < 4 {
		t.Errorf("%d different images of one texture were shown", n)
	}
	if value := eval[float64](t, b, `document.getElementById("progress").value`); value != 1 {
		t.Errorf("at the end the progress is %v", value)
	}

	// A closer look, by keyboard alone: the texture repeated, Esc back.
	b.do(t, chromedp.Focus("#wall button"), chromedp.KeyEvent("\r"))
	b.is(t, `document.getElementById("detail").open`)
	picture := b.shot(t, "page-detail.png")
	box := eval[[4]float64](t, b, `(() => { const b = document.getElementById("tiled").getBoundingClientRect();
		return [b.left, b.top, b.right, b.bottom]; })()`)
	if flat(picture, image.Rect(int(box[0]), int(box[1]), int(box[2]), int(box[3]))) {
		t.Error("the texture in the dialog is flat")
	}
	if address := eval[string](t, b, `document.getElementById("download").getAttribute("href")`); address !=
		"/texture?seed=100&steps=40&size=64&format=png" {
		t.Errorf("the download is %s", address)
	}
	b.do(t, chromedp.KeyEvent("\x1b"))
	b.is(t, `!document.getElementById("detail").open && document.activeElement.matches("#wall button")`)
	b.quiet(t)

	// Every control can be reached by Tab and has a name.
	names := eval[[]string](t, b, `[...document.querySelectorAll("input, select, main button, progress")].filter((control) =>
		!control.labels?.length && !control.textContent.trim() && !control.getAttribute("aria-label")).map((control) => control.outerHTML)`)
	for _, name := range names {
		t.Errorf("a control has no name: %s", name)
	}
	b.do(t, chromedp.Evaluate(`document.querySelector("#seed").focus(); window.visited = ["seed"]; addEventListener("focusin", (e) => visited.push(e.target.id))`, nil))
	for range 5 {
		b.do(t, chromedp.KeyEvent("\t"))
	}
	if visited := eval[string](t, b, `visited.join()`); visited != "seed,random,steps,size,count,make" {
		t.Errorf("Tab goes to %s", visited)
	}

	// Stop, and leaving the page, cancel what is being made.
	for _, leave := range []chromedp.Action{chromedp.Click("#stop"), chromedp.Navigate("about:blank")} {
		cancelled := metric(t, url, `texture_cancelled_total{reason="client"}`)
		b.do(t, chromedp.Evaluate(`document.getElementById("steps").max = 1000`, nil), set("steps", "1000"), set("count", "24"),
			chromedp.Click("#make"))
		b.is(t, `document.querySelector("#wall img[src]") !== null`)
		b.do(t, leave)
		for started := time.Now(); metric(t, url, `texture_cancelled_total{reason="client"}`) < cancelled+24; time.Sleep(10 * time.Millisecond) {
			if time.Since(started) > watchdog {
				t.Fatal("the textures go on being made")
			}
		}
	}
	if running := metric(t, url, "texture_jobs_in_flight"); running != 0 {
		t.Errorf("%v textures are still being made", running)
	}
	b.quiet(t)

	// A telephone, in the dark.
	b.do(t, size(390, 844), scheme("dark"), chromedp.Navigate(url+"/#seed=7&steps=12&size=64&count=12"))
	b.is(t, over+` && `+ready+` === 12`)
	checkWall(t, b, b.shot(t, "page-mobile.png"), 2)
	b.do(t, chromedp.Evaluate(`document.getElementById("wall").scrollIntoView()`, nil))
	checkWall(t, b, b.shot(t, "page-mobile-wall.png"), 4)
	b.do(t, size(1280, 800))
	b.shot(t, "page-dark.png")
	b.quiet(t)
}

func TestPageOfAFullServer(t *testing.T) {
	url := startServer(t, "-threads", "1", "-queue", "2", "-max-steps", "1000")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, "GET", url+"/events?count=2&steps=1000", nil)
	must(t, err)
	response, err := http.DefaultClient.Do(request)
	must(t, err)
	defer response.Body.Close()

	b := open(t)
	b.do(t, size(1280, 800), chromedp.Navigate(url+"/#seed=1&steps=3&count=1"))
	b.is(t, `document.getElementById("status").textContent.startsWith("The server is busy. Asking again in")`)
	cancel()
	b.is(t, over+` && `+ready+` === 1`)
}
