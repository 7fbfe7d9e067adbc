package main

// What a client is told when it does not get what it asked for: problem details (RFC 9457).

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
)

type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`

	// Of a parameter that is wrong.
	Parameter string `json:"parameter,omitempty"`
	Value     string `json:"value,omitempty"`
	Allowed   string `json:"allowed,omitempty"`

	RetryAfter int `json:"retry_after,omitempty"` // seconds, also a header

	allow string // the header of a 405
}

func newProblem(status int, format string, arguments ...any) *problem {
	return &problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: fmt.Sprintf(format, arguments...)}
}

// refuse names a parameter, its value and what it may be.
func refuse(parameter, value, allowed string) *problem {
	const shown = 80
	if len(value) > shown {
		value = value[:shown] + "..."
	}
	p := newProblem(http.StatusBadRequest, "%s is %q: must be %s", parameter, value, allowed)
	p.Parameter, p.Value, p.Allowed = parameter, value, allowed
	return p
}

func (p *problem) Error() string { return p.Detail }

func (p *problem) write(w http.ResponseWriter) {
	header := w.Header()
	// What was meant for the answer that did not come about.
	for _, name := range []string{"ETag", "Cache-Control", "Content-Length", "Content-Encoding"} {
		header.Del(name)
	}
	header.Set("Content-Type", "application/problem+json")
	header.Set("Cache-Control", "no-store")
	if p.RetryAfter > 0 {
		header.Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	if p.allow != "" {
		header.Set("Allow", p.allow)
	}
	body, _ := json.Marshal(p) // strings and numbers: it cannot fail
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(body, '\n'))
}

// asProblem is what a client learns of an error. What went wrong inside stays in the log.
func asProblem(err error) *problem {
	var p *problem
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &tooLarge):
		return newProblem(http.StatusRequestEntityTooLarge, "the body has more than %d bytes", tooLarge.Limit)
	case errors.Is(err, errShutdown):
		p = newProblem(http.StatusServiceUnavailable, "%v", errShutdown)
		p.RetryAfter = 1
		return p
	}
	return newProblem(http.StatusInternalServerError, "the texture could not be made; the server's log says why")
}
