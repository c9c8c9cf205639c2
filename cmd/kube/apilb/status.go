package apilb

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Status is what GET / answers.
type Status struct {
	Source  string         `json:"source"` // of the list: file or cluster
	Servers []ServerStatus `json:"servers"`
}

// ServerStatus is one API server.
type ServerStatus struct {
	Address     netip.AddrPort `json:"address"`
	Healthy     bool           `json:"healthy"`
	State       string         `json:"state"`            // ready, unready, down, unknown
	Reason      string         `json:"reason,omitempty"` // why it is not ready
	Since       time.Time      `json:"since"`            // when it came to be so
	Connections int            `json:"connections"`      // open through this apilb
}

// snapshot is the state of now, servers in order.
func (b *balancer) snapshot() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	status := Status{Source: string(b.source), Servers: []ServerStatus{}}
	for _, address := range slices.SortedFunc(maps.Keys(b.servers), netip.AddrPort.Compare) {
		s := b.servers[address]
		status.Servers = append(status.Servers, ServerStatus{
			Address: address, Healthy: s.health.grade == ready, State: s.health.grade.String(), Reason: s.health.reason,
			Since: s.since, Connections: len(s.open),
		})
	}
	return status
}

// statusServer serves the state: / as JSON, /metrics for Prometheus, and /healthz,
// which says whether any server is ready.
func (b *balancer) statusServer() *http.Server {
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collector{b})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", b.serveStatus)
	mux.HandleFunc("GET /healthz", b.serveHealth)
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	return &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
}

func (b *balancer) serveStatus(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	out := json.NewEncoder(w)
	out.SetIndent("", "  ")
	_ = out.Encode(b.snapshot()) // the caller has gone
}

func (b *balancer) serveHealth(w http.ResponseWriter, _ *http.Request) {
	var lacks []string
	for _, s := range b.snapshot().Servers {
		if s.Healthy {
			fmt.Fprintln(w, "ok")
			return
		}
		lacks = append(lacks, fmt.Sprintf("%s: %s", s.Address, s.Reason))
	}
	http.Error(w, "no API server is ready: "+strings.Join(lacks, "; "), http.StatusServiceUnavailable)
}

// collector makes metrics of the state.
type collector struct{ balancer *balancer }

func (collector) ready() *prometheus.Desc {
	return prometheus.NewDesc("kubewright_apilb_server_ready", "Whether the API server is used for new connections.", []string{"server"}, nil)
}

func (collector) connections() *prometheus.Desc {
	return prometheus.NewDesc("kubewright_apilb_server_connections", "Connections open to the API server.", []string{"server"}, nil)
}

func (c collector) Describe(out chan<- *prometheus.Desc) {
	out <- c.ready()
	out <- c.connections()
}

func (c collector) Collect(out chan<- prometheus.Metric) {
	for _, s := range c.balancer.snapshot().Servers {
		healthy := 0.0
		if s.Healthy {
			healthy = 1
		}
		out <- prometheus.MustNewConstMetric(c.ready(), prometheus.GaugeValue, healthy, s.Address.String())
		out <- prometheus.MustNewConstMetric(c.connections(), prometheus.GaugeValue, float64(s.Connections), s.Address.String())
	}
}
