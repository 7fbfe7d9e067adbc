package main

// The HTTP server around the studio: routes, what holds for each of them, and the way to stop.

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"path"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
)

type server struct {
	studio   *studio
	log      *slog.Logger
	timeouts timeouts
	mux      *http.ServeMux

	// The requests' context: its end, with errShutdown, cancels all textures.
	base   context.Context
	cancel context.CancelCauseFunc
}

// timeouts are for clients that are slow by accident or on purpose. How long a texture takes is not limited: the
// queue is, and its client can go away.
type timeouts struct {
	header    time.Duration // to send a request's headers
	body      time.Duration // to send its body
	write     time.Duration // to take 64 KiB of the answer, or an event
	idle      time.Duration // between two requests of a connection
	heartbeat time.Duration // between two signs of life in a stream
	cancelled time.Duration // for requests to end once they are cancelled
}

var defaultTimeouts = timeouts{
	header: 5 * time.Second, body: 10 * time.Second, write: 15 * time.Second, idle: 2 * time.Minute,
	heartbeat: 10 * time.Second, cancelled: 10 * time.Second,
}

const maxHeader = 16 << 10

func newServer(studio *studio, log *slog.Logger, timeouts timeouts) *server {
	s := &server{studio: studio, log: log, timeouts: timeouts, mux: http.NewServeMux()}
	s.base, s.cancel = context.WithCancelCause(context.Background())
	s.handle("/texture", get, s.texture)
	s.handle("/batch", post, s.batch)
	s.handle("/events", get, s.events)
	s.handle("/limits", get, s.limits)
	s.handle("/healthz", get, s.healthy)
	s.handle("/readyz", get, s.ready)
	metrics := studio.metrics.handler()
	s.handle("/metrics", get, func(w http.ResponseWriter, r *http.Request) error {
		metrics.ServeHTTP(w, r)
		return nil
	})
	for _, page := range pages() {
		s.handle(page.route, get, page.serve)
	}
	s.handle("/", get, func(w http.ResponseWriter, r *http.Request) error {
		return newProblem(http.StatusNotFound, "there is nothing at %q", r.URL.Path)
	})
	return s
}

var (
	get  = []string{http.MethodGet, http.MethodHead}
	post = []string{http.MethodPost}
)

// handle adds a route with all that each has: methods, errors as problems, panics caught, time and log.
func (s *server) handle(route string, methods []string, serve func(http.ResponseWriter, *http.Request) error) {
	s.mux.HandleFunc(route, func(out http.ResponseWriter, r *http.Request) {
		started := time.Now()
		w := &recorder{ResponseWriter: out}
		// A stream or a long wait moves this deadline as it writes.
		_ = http.NewResponseController(out).SetWriteDeadline(started.Add(s.timeouts.write))
		header := w.Header()
		header.Set("X-Content-Type-Options", "nosniff")

		aborted := false
		err := func() (err error) {
			defer func() {
				if value := recover(); value == http.ErrAbortHandler {
					aborted = true
				} else if value != nil {
					s.studio.metrics.panics.Inc()
					s.log.Error("panic", "route", route, "value", fmt.Sprint(value), "stack", string(debug.Stack()))
					err = newProblem(http.StatusInternalServerError, "a bug in the server; its log says where")
				}
			}()
			if !slices.Contains(methods, r.Method) {
				p := newProblem(http.StatusMethodNotAllowed, "the method is %q: must be %s", r.Method, strings.Join(methods, " or "))
				p.allow = strings.Join(methods, ", ")
				return p
			}
			return serve(w, r)
		}()
		status := s.conclude(w, err)
		aborted = aborted || err != nil && !w.problem
		s.studio.metrics.requests.WithLabelValues(label(route), strconv.Itoa(status)).Observe(time.Since(started).Seconds())
		s.log.Log(r.Context(), level(route, status), "request", "method", r.Method, "url", r.URL.RequestURI(),
			"status", status, "bytes", w.bytes, "took", time.Since(started), "client", r.RemoteAddr)
		if aborted {
			// An answer that ends early must not look whole.
			panic(http.ErrAbortHandler)
		}
	})
}

// label is what the metrics call a route.
func label(route string) string {
	switch route {
	case "/{$}":
		return "/"
	case "/":
		return "other"
	}
	return route
}

// conclude answers with what went wrong, if that is still possible, and returns the status for the log.
func (s *server) conclude(w *recorder, err error) int {
	if err != nil {
		p := asProblem(err)
		if p.Status == http.StatusInternalServerError {
			s.log.Error("failed", "error", err)
		}
		switch {
		case errors.Is(err, errClientGone):
			return statusClientGone
		case w.status == 0:
			_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(s.timeouts.write))
			w.problem = true
			p.write(w)
		}
	}
	if w.status == 0 {
		return http.StatusOK
	}
	return w.status
}

// statusClientGone is nginx's number for it; nobody receives it.
const statusClientGone = 499

// level keeps the probes, which come all the time, out of the log.
func level(route string, status int) slog.Level {
	switch route {
	case "/healthz", "/readyz", "/metrics":
		if status < 400 {
			return slog.LevelDebug
		}
	}
	return slog.LevelInfo
}

// recorder remembers what was answered.
type recorder struct {
	http.ResponseWriter
	status  int
	bytes   int64
	problem bool
}

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(data []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(data)
	w.bytes += int64(n)
	return n, err
}

// Unwrap is for http.ResponseController.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// send writes a body, each part within the time for it. A client that does not take it is gone.
func (s *server) send(w http.ResponseWriter, body []byte) error {
	control := http.NewResponseController(w)
	for len(body) > 0 {
		part := body[:min(len(body), 64<<10)]
		_ = control.SetWriteDeadline(time.Now().Add(s.timeouts.write))
		if _, err := w.Write(part); err != nil {
			return errClientGone
		}
		body = body[len(part):]
	}
	return nil
}

// flush is send for a stream: what was written goes out now.
func (s *server) flush(w http.ResponseWriter, body []byte) error {
	if err := s.send(w, body); err != nil {
		return err
	}
	if err := http.NewResponseController(w).Flush(); err != nil {
		return errClientGone
	}
	return nil
}

// healthy answers as long as the program can; it does not touch the model, so that load is no illness.
func (s *server) healthy(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, err := w.Write([]byte("ok\n"))
	return err
}

// ready says whether requests are welcome. The model is loaded before the server listens.
func (s *server) ready(w http.ResponseWriter, r *http.Request) error {
	if s.studio.isDraining() {
		return errShutdown
	}
	return s.healthy(w, r)
}

//go:embed web
var web embed.FS

// page is one embedded file.
type page struct {
	route, name string
}

func pages() []page {
	list := []page{{"/{$}", "web/index.html"}}
	files, err := fs.Glob(web, "web/*")
	if err != nil {
		panic(err) // the pattern is wrong
	}
	for _, name := range files {
		if name != "web/index.html" {
			list = append(list, page{"/" + path.Base(name), name})
		}
	}
	return list
}

// policy: the page loads nothing from anywhere else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
	"base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

func (p page) serve(w http.ResponseWriter, r *http.Request) error {
	header := w.Header()
	header.Set("Content-Security-Policy", policy)
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("Cache-Control", "no-cache")
	http.ServeFileFS(w, r, web, p.name)
	return nil
}

// serve answers requests until ctx ends. Then no more are accepted; those under way may go on for the time of grace,
// and what is left is cancelled.
func (s *server) serve(ctx context.Context, listener net.Listener, grace time.Duration) error {
	h := &http.Server{
		Handler:           s.mux,
		ReadHeaderTimeout: s.timeouts.header,
		// No ReadTimeout: it would end the context of a request that waits for its texture.
		IdleTimeout:    s.timeouts.idle,
		MaxHeaderBytes: maxHeader,
		BaseContext:    func(net.Listener) context.Context { return s.base },
		ErrorLog:       slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	defer s.cancel(errShutdown)
	ended := make(chan error, 1)
	go func() { ended <- h.Serve(listener) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	queued, running := s.studio.counts()
	s.log.Info("shutting down", "queued", queued, "running", running, "grace", grace)
	s.studio.drain()
	if err := shutdown(h, grace); err != nil {
		queued, running = s.studio.counts()
		s.log.Warn("grace is over, cancelling", "queued", queued, "running", running)
		s.cancel(errShutdown)
		if err := shutdown(h, s.timeouts.cancelled); err != nil {
			_ = h.Close()
			return fmt.Errorf("requests did not end: %w", err)
		}
	}
	s.log.Info("shut down")
	return nil
}

func shutdown(h *http.Server, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return h.Shutdown(ctx)
}
