package main

// What can be asked for, and within which limits.

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// texture is what is to be made. Together with the model it determines every byte of the answer.
type texture struct {
	Seed   uint64
	Steps  int
	Size   int // pixels along a side: a multiple of the model's
	Format string
}

const (
	formatPNG  = "png"
	formatRGBA = "rgba"

	// maxSeed is the largest integer that every JSON client can hold (2^53 - 1).
	maxSeed = 1<<53 - 1
	// maxBody is far more than a batch of the most textures needs.
	maxBody = 64 << 10
)

type limits struct {
	modelSize, maxSize int
	maxSteps           int
	maxTextures        int // of one request
}

// defaults is what a request gets that does not say.
func (l limits) defaults() texture {
	size := l.modelSize
	for size*2 <= min(128, l.maxSize) {
		size *= 2
	}
	return texture{Steps: min(20, l.maxSteps), Size: size, Format: formatPNG}
}

func (l limits) check(prefix string, t texture) error {
	switch {
	case t.Seed > maxSeed:
		return refuse(prefix+"seed", fmt.Sprint(t.Seed), l.seeds())
	case t.Steps < 1 || t.Steps > l.maxSteps:
		return refuse(prefix+"steps", fmt.Sprint(t.Steps), l.steps())
	case t.Size < l.modelSize || t.Size > l.maxSize || t.Size%l.modelSize != 0:
		return refuse(prefix+"size", fmt.Sprint(t.Size), l.sizes())
	case t.Format != formatPNG && t.Format != formatRGBA:
		return refuse(prefix+"format", t.Format, formats)
	}
	return nil
}

const formats = "png or rgba"

func (l limits) seeds() string { return fmt.Sprintf("an integer in 0..=%d", uint64(maxSeed)) }
func (l limits) steps() string { return fmt.Sprintf("an integer in 1..=%d", l.maxSteps) }
func (l limits) sizes() string {
	return fmt.Sprintf("a multiple of %d in %d..=%d", l.modelSize, l.modelSize, l.maxSize/l.modelSize*l.modelSize)
}
func (l limits) counts() string { return fmt.Sprintf("an integer in 1..=%d", l.maxTextures) }

// query reads a texture, and the number of textures where "count" is allowed, from a URL.
func (l limits) query(r *http.Request, allowed ...string) (t texture, count int, err error) {
	t, count = l.defaults(), 1
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return t, 0, newProblem(http.StatusBadRequest, "the query cannot be read: %v", err)
	}
	for name, given := range values {
		if !slices.Contains(allowed, name) {
			return t, 0, refuse("query", name, "made of "+strings.Join(allowed, ", "))
		}
		if len(given) != 1 {
			return t, 0, refuse(name, strings.Join(given, ", "), "given once")
		}
		value := given[0]
		var wrong error
		switch name {
		case "seed":
			if t.Seed, wrong = strconv.ParseUint(value, 10, 64); wrong != nil {
				return t, 0, refuse(name, value, l.seeds())
			}
		case "steps":
			if t.Steps, wrong = strconv.Atoi(value); wrong != nil {
				return t, 0, refuse(name, value, l.steps())
			}
		case "size":
			if t.Size, wrong = strconv.Atoi(value); wrong != nil {
				return t, 0, refuse(name, value, l.sizes())
			}
		case "count":
			if count, wrong = strconv.Atoi(value); wrong != nil || count < 1 || count > l.maxTextures {
				return t, 0, refuse(name, value, l.counts())
			}
		case "format":
			t.Format = value
		}
	}
	if err := l.check("", t); err != nil {
		return t, 0, err
	}
	if last := t.Seed + uint64(count) - 1; last > maxSeed {
		return t, 0, refuse("seed", fmt.Sprint(t.Seed), fmt.Sprintf("at most %d with count %d", maxSeed-count+1, count))
	}
	return t, count, nil
}

// batch reads textures from a JSON body: what an entry does not say is as on the top level.
func (l limits) batch(w http.ResponseWriter, r *http.Request) ([]texture, error) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return nil, newProblem(http.StatusUnsupportedMediaType, "Content-Type is %q: must be application/json",
			r.Header.Get("Content-Type"))
	}
	type entry struct {
		Seed  *uint64 `json:"seed"`
		Steps *int    `json:"steps"`
		Size  *int    `json:"size"`
	}
	var body struct {
		Textures []entry `json:"textures"`
		Steps    *int    `json:"steps"`
		Size     *int    `json:"size"`
		Format   *string `json:"format"`
	}
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(&body)
	if err == nil {
		if _, more := decoder.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("there is something after the object")
		}
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, err
	case err != nil:
		return nil, newProblem(http.StatusBadRequest, "the body cannot be read: %v", err)
	case len(body.Textures) < 1 || len(body.Textures) > l.maxTextures:
		return nil, refuse("textures", fmt.Sprintf("%d entries", len(body.Textures)), fmt.Sprintf("1..=%d entries", l.maxTextures))
	}
	textures := make([]texture, len(body.Textures))
	for i, entry := range body.Textures {
		t := l.defaults()
		set(&t.Steps, body.Steps)
		set(&t.Size, body.Size)
		set(&t.Format, body.Format)
		set(&t.Seed, entry.Seed)
		set(&t.Steps, entry.Steps)
		set(&t.Size, entry.Size)
		if err := l.check(fmt.Sprintf("textures[%d].", i), t); err != nil {
			return nil, err
		}
		textures[i] = t
	}
	return textures, nil
}

func set[T any](field *T, value *T) {
	if value != nil {
		*field = *value
	}
}

// etag is the same wherever the same bytes would come out.
func (t texture) etag(fingerprint string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d %d %d %s", fingerprint, t.Seed, t.Steps, t.Size, t.Format))
	return `"` + hex.EncodeToString(sum[:16]) + `"`
}

func (t texture) contentType() string {
	if t.Format == formatRGBA {
		return "application/octet-stream"
	}
	return "image/png"
}

func (t texture) path() string {
	return fmt.Sprintf("/texture?seed=%d&steps=%d&size=%d&format=%s", t.Seed, t.Steps, t.Size, t.Format)
}

// encode is the answer's body.
func (t texture) encode(picture *image.NRGBA) ([]byte, error) {
	picture = enlarge(picture, t.Size/picture.Rect.Dx())
	if t.Format == formatRGBA {
		return picture.Pix, nil
	}
	var body bytes.Buffer
	err := encoder.Encode(&body, picture)
	return body.Bytes(), err
}

// enlarge makes a square of factor x factor pixels of each: nothing is invented, and what tiled still tiles.
func enlarge(picture *image.NRGBA, factor int) *image.NRGBA {
	if factor == 1 {
		return picture
	}
	size := picture.Rect.Dx() * factor
	large := image.NewNRGBA(image.Rect(0, 0, size, size))
	for y := range size {
		row := large.Pix[y*large.Stride : (y+1)*large.Stride]
		if y%factor != 0 {
			copy(row, large.Pix[(y-1)*large.Stride:])
			continue
		}
		source := picture.Pix[y/factor*picture.Stride:]
		for x := range size {
			copy(row[4*x:4*x+4], source[x/factor*4:])
		}
	}
	return large
}

// buffers are what png's encoder needs beside the picture, a good deal at each call.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() *png.EncoderBuffer {
	buffer, _ := b.pool.Get().(*png.EncoderBuffer)
	return buffer
}

func (b *buffers) Put(buffer *png.EncoderBuffer) { b.pool.Put(buffer) }

var encoder = png.Encoder{BufferPool: &buffers{}}
