package main

// Many clients at a time, who come, go and misbehave.

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// hold occupies a place of an endless server until the test lets go, and returns when the texture is being made.
func hold(t *testing.T, s *service) (let func()) {
	t.Helper()
	_, running := s.studio.counts()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	request := newRequest(t, "GET", fmt.Sprintf("%s/texture?steps=%d&size=8", s.url, endlessSteps), "").WithContext(ctx)
	visitor := client()
	go func() {
		defer close(done)
		if response, err := visitor.Do(request); err == nil {
			response.Body.Close()
		}
	}()
	await(t, "a texture being made", func() bool {
		_, now := s.studio.counts()
		return now > running
	})
	return func() {
		cancel()
		<-done
	}
}

func endlessOptions() options {
	o := tinyOptions()
	o.model, o.maxSteps = models.endless, endlessSteps
	return o
}

func TestOverload(t *testing.T) {
	o := endlessOptions()
	o.queue = 3
	s := start(t, o)
	lets := []func(){hold(t, s), hold(t, s)}
	if s.metric(t, "texture_jobs_in_flight") != 2 {
		t.Error("two textures are not in flight")
	}
	// One place is left: not enough for two, enough for one.
	for _, r := range []reply{
		fetch(t, s.url+"/events?count=2&steps=1"),
		postJSON(t, s.url+"/batch", `{"textures":[{},{}]}`),
	} {
		p := problemOf(t, r, http.StatusTooManyRequests)
		seconds, err := strconv.Atoi(r.header.Get("Retry-After"))
		if err != nil || seconds < 1 || seconds > 60 || p.RetryAfter != seconds {
			t.Errorf("Retry-After is %q, %+v", r.header.Get("Retry-After"), p)
		}
	}
	if r := fetch(t, s.url+"/texture?steps=1"); r.status != http.StatusOK {
		t.Errorf("the last place: %d %s", r.status, r.body)
	}
	lets = append(lets, hold(t, s))
	r := fetch(t, s.url+"/texture?steps=1")
	problemOf(t, r, http.StatusTooManyRequests)
	if rejected := s.metric(t, "texture_rejected_total"); rejected != 5 {
		t.Errorf("%v textures rejected, want 5", rejected)
	}
	// What costs nothing works all the same, and an overloaded server is neither ill nor unready.
	etag := do(t, client(), newRequest(t, "HEAD", s.url+"/texture?steps=1", "")).header.Get("ETag")
	if r := fetch(t, s.url+"/texture?steps=1", "If-None-Match", etag); r.status != http.StatusNotModified {
		t.Errorf("304 under load: %d", r.status)
	}
	for _, path := range []string{"/healthz", "/readyz", "/"} {
		if r := fetch(t, s.url+path); r.status != http.StatusOK {
			t.Errorf("%s under load: %d", path, r.status)
		}
	}
	for _, let := range lets {
		let()
	}
	s.idle(t)
	if r := fetch(t, s.url+"/texture?steps=1"); r.status != http.StatusOK {
		t.Errorf("after the load: %d %s", r.status, r.body)
	}
	if cancelled := s.metric(t, `texture_cancelled_total{reason="client"}`); cancelled != 3 {
		t.Errorf("%v textures cancelled, want 3", cancelled)
	}
}

func TestClientsThatGoAway(t *testing.T) {
	s := start(t, endlessOptions())
	fetch(t, s.url+"/texture?steps=1")
	before := runtime.NumGoroutine()
	body := fmt.Sprintf(`{"textures":[{},{"seed":1}],"steps":%d}`, endlessSteps)
	for _, text := range []string{
		fmt.Sprintf("GET /texture?steps=%d HTTP/1.1\r\nHost: x\r\n\r\n", endlessSteps),
		fmt.Sprintf("GET /events?steps=%d&count=3 HTTP/1.1\r\nHost: x\r\n\r\n", endlessSteps),
		fmt.Sprintf("POST /batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body),
	} {
		for _, reset := range []bool{false, true} {
			connection, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
			must(t, err)
			_, err = connection.Write([]byte(text))
			must(t, err)
			await(t, "being made", func() bool { _, running := s.studio.counts(); return running > 0 })
			if reset {
				must(t, connection.(*net.TCPConn).SetLinger(0)) // Close sends RST
			}
			must(t, connection.Close())
			s.idle(t)
		}
	}
	if cancelled := s.metric(t, `texture_cancelled_total{reason="client"}`); cancelled != 2*(1+3+2) {
		t.Errorf("%v textures cancelled, want 12", cancelled)
	}
	if failed := s.metric(t, "texture_failed_total"); failed != 0 {
		t.Errorf("%v textures failed", failed)
	}
	await(t, "no goroutines left behind", func() bool { return runtime.NumGoroutine() <= before+2 })
}

func TestSlowClients(t *testing.T) {
	o := endlessOptions()
	o.maxSize = 4096
	short := timeouts{header: 300 * time.Millisecond, body: 300 * time.Millisecond, write: 300 * time.Millisecond,
		idle: time.Minute, heartbeat: 50 * time.Millisecond, cancelled: watchdog}
	s := start(t, o, func(s *server) { s.timeouts = short })
	address := strings.TrimPrefix(s.url, "http://")
	dial := func(text string) *net.TCPConn {
		connection, err := net.Dial("tcp", address)
		must(t, err)
		t.Cleanup(func() { connection.Close() })
		_, err = io.WriteString(connection, text)
		must(t, err)
		must(t, connection.SetReadDeadline(time.Now().Add(watchdog)))
		return connection.(*net.TCPConn)
	}
	// Headers that never end, and a body that never comes, do not hold a connection.
	for _, text := range []string{
		"GET /texture HTTP/1.1\r\nHost: x\r\nX-Slow: ",
		"POST /batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
	} {
		if _, err := io.Copy(io.Discard, dial(text)); err != nil && !errors.Is(err, net.ErrClosed) && os.IsTimeout(err) {
			t.Errorf("%.20q: the connection is held", text)
		}
	}
	// A client that does not read has its texture made, and neither its connection nor its place is held: 64 MB do not
	// fit into the buffers in between.
	unread := dial("GET /texture?steps=1&size=4096&format=rgba HTTP/1.1\r\nHost: x\r\n\r\n")
	await(t, "the slow reader's request over", func() bool {
		return strings.Contains(string(fetch(t, s.url+"/metrics").body),
			`texture_http_request_duration_seconds_count{route="/texture",status="499"} 1`)
	})
	s.idle(t)
	if n, err := io.Copy(io.Discard, unread); err == nil && n >= 64<<20 {
		t.Error("the slow reader got all of it")
	}
	// A texture takes longer than any of these times: nothing cuts it off as long as the client reads.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	response, err := client().Do(newRequest(t, "GET", fmt.Sprintf("%s/events?steps=%d", s.url, endlessSteps), "").WithContext(ctx))
	must(t, err)
	defer response.Body.Close()
	reader, until := bufio.NewReader(response.Body), time.Now().Add(4*short.write)
	for time.Now().Before(until) {
		if _, err := reader.ReadString('\n'); err != nil {
			t.Fatalf("a stream that is read ended: %v", err)
		}
	}
	cancel()
	s.idle(t)
}

func TestPanics(t *testing.T) {
	s := start(t, tinyOptions(), func(s *server) {
		s.handle("/panic", get, func(http.ResponseWriter, *http.Request) error { panic("a bug") })
		s.handle("/late", get, func(w http.ResponseWriter, _ *http.Request) error {
			_, _ = w.Write([]byte("half"))
			panic("a bug")
		})
	})
	problemOf(t, fetch(t, s.url+"/panic"), http.StatusInternalServerError)
	if !strings.Contains(s.log.String(), "a bug") || !strings.Contains(s.log.String(), "crowd_test.go") {
		t.Error("the log does not say where")
	}
	response, err := client().Get(s.url + "/late")
	if err == nil {
		_, err = io.ReadAll(response.Body)
		response.Body.Close()
	}
	if err == nil {
		t.Error("half an answer looks whole")
	}
	if panics := s.metric(t, "texture_panics_total"); panics != 2 {
		t.Errorf("%v panics", panics)
	}
	if r := fetch(t, s.url+"/texture?steps=1"); r.status != http.StatusOK {
		t.Errorf("after a panic: %d", r.status)
	}
}

// TestCrowd: whatever the others do, each complete answer is bit for bit what the texture is when sampled alone.
func TestCrowd(t *testing.T) {
	visitors := 300
	if text := os.Getenv("TEXTURE_VISITORS"); text != "" {
		n, err := strconv.Atoi(text)
		must(t, err)
		visitors = n
	}
	o := tinyOptions()
	o.queue = 40 // fewer than there are visitors: some are refused and come again
	s, alone := start(t, o), newReference(t, models.tiny)
	before := runtime.NumGoroutine()
	transport := &http.Transport{MaxIdleConnsPerHost: 32}
	shared := &http.Client{Transport: transport, Timeout: watchdog}
	address := strings.TrimPrefix(s.url, "http://")
	var complete, refused atomic.Int64

	// again repeats a request while the server is full.
	again := func(request func() (*http.Response, error)) (*http.Response, error) {
		for started := time.Now(); ; time.Sleep(10 * time.Millisecond) {
			response, err := request()
			if err != nil || response.StatusCode != http.StatusTooManyRequests {
				return response, err
			}
			_, _ = io.Copy(io.Discard, response.Body)
			response.Body.Close()
			refused.Add(1)
			if response.Header.Get("Retry-After") == "" {
				return nil, errors.New("429 without Retry-After")
			}
			if time.Since(started) > watchdog {
				return nil, errors.New("refused for ever")
			}
		}
	}
	get := func(path string) ([]byte, error) {
		response, err := again(func() (*http.Response, error) { return shared.Get(s.url + path) })
		if err != nil {
			return nil, err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err == nil && response.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %d %s", path, response.StatusCode, body)
		}
		return body, err
	}
	raw := func(text string, pause time.Duration) error {
		connection, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		defer connection.Close()
		_, _ = io.WriteString(connection, text) // the server may have closed it
		time.Sleep(pause)
		return nil
	}
	behaviours := []func(i int) error{
		func(i int) error { // a texture
			seed, steps := uint64(i%40), 1+i%23
			body, err := get(fmt.Sprintf("/texture?seed=%d&steps=%d&size=16", seed, steps))
			if err != nil {
				return err
			}
			complete.Add(1)
			return alone.checkPNG(body, seed, steps, 16)
		},
		func(i int) error { // several
			text := fmt.Sprintf(`{"textures":[{"seed":%d},{"seed":%d,"steps":9},{"seed":3}],"steps":4,"size":8}`, i%40, i%7)
			response, err := again(func() (*http.Response, error) {
				return shared.Post(s.url+"/batch", "application/json", strings.NewReader(text))
			})
			if err != nil {
				return err
			}
			defer response.Body.Close()
			lines, decoder := 0, json.NewDecoder(response.Body)
			for ; ; lines++ {
				var l line
				if err := decoder.Decode(&l); errors.Is(err, io.EOF) {
					break
				} else if err != nil || l.Error != nil {
					return fmt.Errorf("%v, %+v", err, l.Error)
				}
				if err := alone.checkPNG(l.Data, l.Seed, l.Steps, l.Size); err != nil {
					return err
				}
			}
			if lines != 3 {
				return fmt.Errorf("%d lines of 3", lines)
			}
			complete.Add(1)
			return nil
		},
		func(i int) error { // a wall
			body, err := get(fmt.Sprintf("/events?seed=%d&count=2&steps=5&size=8", i%40))
			if err != nil {
				return err
			}
			textures := 0
			for _, e := range readEvents(t, body) {
				if e.name == "texture" {
					textures++
					if err := alone.checkPNG(e.png(t), e.Seed, 5, 8); err != nil {
						return err
					}
				}
			}
			if textures != 2 {
				return fmt.Errorf("%d textures of 2", textures)
			}
			complete.Add(1)
			return nil
		},
		func(i int) error { // goes away soon
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i%20)*time.Millisecond)
			defer cancel()
			path := []string{"/texture?steps=100", "/events?count=3&steps=100"}[i%2]
			request, err := http.NewRequestWithContext(ctx, "GET", s.url+path, nil)
			if err != nil {
				return err
			}
			if response, err := shared.Do(request); err == nil {
				_, _ = io.Copy(io.Discard, response.Body)
				response.Body.Close()
			}
			return nil
		},
		func(i int) error { // talks nonsense
			return raw([]string{
				"GET /texture?seed=" + strings.Repeat("9", 3000) + " HTTP/1.1\r\nHost: x\r\n\r\n",
				"GET /texture HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("y", 2*maxHeader) + "\r\n\r\n",
				"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", // TLS
				"POST /batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
				"BREW /texture HTTP/1.1\r\nHost: x\r\n\r\n",
				"GET /texture?size=-8&steps=99999999999999999999 HTTP/1.1\r\nHost: x\r\n\r\n",
				strings.Repeat("\x00", 1000),
			}[i%7], time.Millisecond)
		},
		func(i int) error { // asks and leaves at once, or does not read
			return raw("GET /events?count=2&steps=60 HTTP/1.1\r\nHost: x\r\n\r\n", time.Duration(i%30)*time.Millisecond)
		},
	}
	var crowd sync.WaitGroup
	wrong := make(chan error, visitors)
	for i := range visitors {
		crowd.Add(1)
		go func() {
			defer crowd.Done()
			if err := behaviours[i%len(behaviours)](i); err != nil {
				wrong <- fmt.Errorf("visitor %d: %w", i, err)
			}
		}()
	}
	crowd.Wait()
	close(wrong)
	for err := range wrong {
		t.Error(err)
	}
	t.Logf("%d complete answers, %d refusals, %v of %v steps in batches of more than one", complete.Load(), refused.Load(),
		s.metric(t, "texture_batch_size_count")-s.metric(t, `texture_batch_size_bucket{le="1"}`), s.metric(t, "texture_batch_size_count"))
	if want := int64(visitors / 2); complete.Load() < want {
		t.Errorf("%d complete answers, want at least %d", complete.Load(), want)
	}
	s.idle(t)
	if s.metric(t, `texture_batch_size_bucket{le="1"}`) == s.metric(t, "texture_batch_size_count") {
		t.Error("no two textures were ever made together")
	}
	for name, want := range map[string]float64{"texture_failed_total": 0, "texture_panics_total": 0} {
		if got := s.metric(t, name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	transport.CloseIdleConnections()
	await(t, "no goroutines left behind", func() bool { return runtime.NumGoroutine() <= before+4 })
}
