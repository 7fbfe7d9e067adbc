package main

// The routes that make textures.

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// texture answers GET /texture?seed=&steps=&size=&format= with one texture.
func (s *server) texture(w http.ResponseWriter, r *http.Request) error {
	t, _, err := s.studio.limits.query(r, "seed", "steps", "size", "format")
	if err != nil {
		return err
	}
	header := w.Header()
	etag := t.etag(s.studio.fingerprint)
	header.Set("ETag", etag)
	// Not "immutable": another model may be deployed under the same address. Asking whether one was costs nothing.
	header.Set("Cache-Control", "public, max-age=3600")
	if matches(r.Header.Values("If-None-Match"), etag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	header.Set("Content-Type", t.contentType())
	if r.Method == http.MethodHead {
		return nil
	}
	body, err := s.one(r.Context(), t)
	if err != nil {
		return err
	}
	header.Set("Content-Length", strconv.Itoa(len(body)))
	return s.send(w, body)
}

// one makes one texture and encodes it. Its place is free again before a slow client takes it.
func (s *server) one(ctx context.Context, t texture) ([]byte, error) {
	if err := s.studio.reserve(1); err != nil {
		return nil, err
	}
	defer s.studio.release(1)
	picture, err := s.studio.paint(ctx, t, nil)
	if err != nil {
		return nil, err
	}
	return t.encode(picture)
}

// matches is If-None-Match (RFC 9110, 13.1.2): weak comparison with a list, or *.
func matches(lines []string, etag string) bool {
	for _, candidate := range strings.Split(strings.Join(lines, ","), ",") {
		candidate = strings.TrimSpace(candidate)
		if candidate == "*" || strings.TrimPrefix(candidate, "W/") == etag {
			return true
		}
	}
	return false
}

// news is what happened to one texture of several.
type news struct {
	index       int
	done, total uint64
	estimate    *image.NRGBA // nil before there is one
	picture     *image.NRGBA // the texture is ready
	err         error        // it will not be
}

// all makes textures, for which there are places, together. Of each comes its picture or its error; with watched
// also its estimates, as far as the receiver keeps up. The channel is closed when nothing more will come;
// somebody must receive until then.
func (s *server) all(ctx context.Context, textures []texture, watched bool) <-chan news {
	feed := make(chan news, len(textures))
	var under sync.WaitGroup
	for i, t := range textures {
		under.Add(1)
		go func() {
			defer under.Done()
			var look watch
			if watched {
				look = func(done, total uint64, estimate *image.NRGBA) {
					select {
					case feed <- news{index: i, done: done, total: total, estimate: estimate}:
					default:
					}
				}
			}
			picture, err := s.studio.paint(ctx, t, look)
			s.studio.release(1)
			// Not lost when ctx ends: the receiver takes all there is.
			feed <- news{index: i, picture: picture, err: err}
		}()
	}
	go func() {
		under.Wait()
		close(feed)
	}()
	return feed
}

// stream hands the news of textures on until all is told. If tell fails, all that is under way is cancelled, and in
// any case it has ended when stream returns.
func (s *server) stream(r *http.Request, textures []texture, watched bool, tell func(news) error, beat func() error) error {
	ctx, cancel := context.WithCancel(r.Context())
	feed := s.all(ctx, textures, watched)
	defer func() {
		cancel()
		for range feed {
		}
	}()
	heartbeat := time.NewTicker(s.timeouts.heartbeat)
	defer heartbeat.Stop()
	for {
		select {
		case n, more := <-feed:
			if !more {
				return nil
			}
			if errors.Is(n.err, errClientGone) {
				return n.err
			}
			if err := tell(n); err != nil {
				return err
			}
		case <-heartbeat.C:
			if err := beat(); err != nil {
				return err
			}
		}
	}
}

// line is one texture in the answer of POST /batch.
type line struct {
	Index  int      `json:"index"`
	Seed   uint64   `json:"seed"`
	Steps  int      `json:"steps"`
	Size   int      `json:"size"`
	Format string   `json:"format"`
	ETag   string   `json:"etag,omitempty"`
	Data   []byte   `json:"data,omitempty"` // base64
	Error  *problem `json:"error,omitempty"`
}

// batch answers POST /batch with a line of JSON for each texture, in the order in which they are ready.
func (s *server) batch(w http.ResponseWriter, r *http.Request) error {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(s.timeouts.body))
	textures, err := s.studio.limits.batch(w, r)
	if err != nil {
		// What is left of the body is not worth waiting for.
		w.Header().Set("Connection", "close")
		return err
	}
	_ = control.SetReadDeadline(time.Time{})
	if err := s.studio.reserve(len(textures)); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would collect the lines
	tell := func(n news) error {
		t := textures[n.index]
		l := line{Index: n.index, Seed: t.Seed, Steps: t.Steps, Size: t.Size, Format: t.Format}
		if n.err == nil {
			l.ETag = t.etag(s.studio.fingerprint)
			l.Data, n.err = t.encode(n.picture)
		}
		if n.err != nil {
			l.ETag, l.Error = "", s.report(n.err)
		}
		body, err := json.Marshal(l)
		if err != nil {
			return err
		}
		return s.flush(w, append(body, '\n'))
	}
	// A blank line is nothing to a reader of NDJSON, and finds out whether the client is there.
	return s.stream(r, textures, false, tell, func() error { return s.flush(w, []byte("\n")) })
}

// report is asProblem for an error that is told in a stream.
func (s *server) report(err error) *problem {
	p := asProblem(err)
	if p.Status == http.StatusInternalServerError {
		s.log.Error("failed", "error", err)
	}
	return p
}

// event is the data of a server-sent event.
type event struct {
	Index int      `json:"index"`
	Seed  uint64   `json:"seed"`
	Done  uint64   `json:"done"`
	Total uint64   `json:"total"`
	URL   string   `json:"url,omitempty"`   // where the texture can be had
	Image string   `json:"image,omitempty"` // a data: URL
	Error *problem `json:"error,omitempty"`
}

// events answers GET /events?seed=&count=&steps=&size= with server-sent events: "progress" for each step, with the
// image as it is estimated to become; "texture" with the finished one, or "failed"; "end" when all is told. The
// textures' seeds are seed, seed + 1, ...
func (s *server) events(w http.ResponseWriter, r *http.Request) error {
	t, count, err := s.studio.limits.query(r, "seed", "steps", "size", "count")
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no")
	if r.Method == http.MethodHead {
		return nil
	}
	if err := s.studio.reserve(count); err != nil {
		return err
	}
	textures := make([]texture, count)
	for i := range textures {
		textures[i] = t
		textures[i].Seed += uint64(i)
	}
	small := texture{Size: s.studio.limits.modelSize, Format: formatPNG}
	tell := func(n news) error {
		t := textures[n.index]
		e := event{Index: n.index, Seed: t.Seed, Done: n.done, Total: n.total}
		name, shape, picture := "progress", small, n.estimate
		if n.picture != nil {
			name, shape, picture = "texture", t, n.picture
			e.Done, e.Total, e.URL = uint64(t.Steps), uint64(t.Steps), t.path()
		}
		if picture != nil {
			body, err := shape.encode(picture)
			if err != nil {
				n.err = err
			}
			e.Image = "data:image/png;base64," + base64.StdEncoding.EncodeToString(body)
		}
		if n.err != nil {
			name, e = "failed", event{Index: n.index, Seed: t.Seed, Total: uint64(t.Steps), Error: s.report(n.err)}
		}
		return s.event(w, name, e)
	}
	if err := s.flush(w, []byte(": textures\n\n")); err != nil {
		s.studio.release(count)
		return err
	}
	err = s.stream(r, textures, true, tell, func() error { return s.flush(w, []byte(": still here\n\n")) })
	if err != nil {
		return err
	}
	return s.event(w, "end", struct{}{})
}

func (s *server) event(w http.ResponseWriter, name string, data any) error {
	body, err := json.Marshal(data)
	if err != nil {
		return err
	}
	return s.flush(w, fmt.Appendf(nil, "event: %s\ndata: %s\n\n", name, body))
}

// limits answers GET /limits: what the page, or another client, may ask for.
func (s *server) limits(w http.ResponseWriter, _ *http.Request) error {
	l := s.studio.limits
	d := l.defaults()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-cache")
	return json.NewEncoder(w).Encode(map[string]any{
		"model_size": l.modelSize, "max_size": l.maxSize / l.modelSize * l.modelSize, "max_steps": l.maxSteps,
		"max_textures": l.maxTextures, "max_seed": uint64(maxSeed), "formats": []string{formatPNG, formatRGBA},
		"steps": d.Steps, "size": d.Size, "model_digest": s.studio.digest, "library": s.studio.version,
	})
}
