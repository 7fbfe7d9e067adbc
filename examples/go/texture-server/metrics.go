package main

// What Prometheus learns.

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

type metrics struct {
	registry *prometheus.Registry

	requests         *prometheus.HistogramVec
	images, steps    prometheus.Counter
	rejected, failed prometheus.Counter
	cancelled        *prometheus.CounterVec
	waited, stepTime prometheus.Histogram
	batch            prometheus.Histogram
	panics           prometheus.Counter
}

func newMetrics(s *studio) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
	}
	seconds := prometheus.ExponentialBuckets(0.001, 2, 17) // 1 ms to 65 s
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "texture_http_request_duration_seconds", Buckets: seconds,
			Help: "Time of a request, from its headers to the last byte of the answer. Status 499: the client went away.",
		}, []string{"route", "status"}),
		images:   counter("texture_images_total", "Textures made."),
		steps:    counter("texture_denoising_steps_total", "Denoising steps done, counted for each texture."),
		rejected: counter("texture_rejected_total", "Textures refused with 429 because the queue was full."),
		failed:   counter("texture_failed_total", "Textures that could not be made."),
		panics:   counter("texture_panics_total", "Handlers that panicked."),
		cancelled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "texture_cancelled_total", Help: "Textures given up, because the client went away or the server shut down.",
		}, []string{"reason"}),
		waited:   histogram("texture_first_step_seconds", "Time from a texture's submission to the end of its first denoising step.", seconds),
		stepTime: histogram("texture_step_seconds", "Time of a denoising step, as each texture in it sees it.", seconds),
		batch: histogram("texture_batch_size", "Textures being made at a denoising step, as each texture in it sees it.",
			[]float64{1, 2, 4, 8, 16, 32, 64, 128, 256}),
	}
	gauge := func(name, help string, labels prometheus.Labels, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, value)
	}
	m.registry.MustRegister(
		m.requests, m.images, m.steps, m.rejected, m.failed, m.panics, m.cancelled, m.waited, m.stepTime, m.batch,
		gauge("texture_queue_depth", "Textures that wait for their first denoising step to end.", nil, func() float64 {
			queued, _ := s.counts()
			return float64(queued)
		}),
		gauge("texture_jobs_in_flight", "Textures that are being made.", nil, func() float64 {
			_, running := s.counts()
			return float64(running)
		}),
		gauge("texture_queue_capacity", "The most textures that may wait or be made.", nil, func() float64 {
			return float64(s.capacity)
		}),
		gauge("texture_info", "What is running; the value is 1.", prometheus.Labels{
			"model_digest": s.digest, "library": s.version, "device": s.device,
		}, func() float64 { return 1 }),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	for _, reason := range []string{"client", "shutdown"} {
		m.cancelled.WithLabelValues(reason)
	}
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry})
}
