package overlay

import (
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// health answers the kubelet's probe.
type health struct {
	listener net.Listener
	server   *http.Server
	lacks    atomic.Pointer[string]
	failed   chan error // holds one: the server ended
}

// serveHealth serves /healthz on address until close: 200 once set was called
// with "", otherwise 503 with what it was called with last.
func serveHealth(address string) (*health, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("serve health: %w", err)
	}
	h := &health{listener: listener, failed: make(chan error, 1)}
	h.set("starting")
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", h.answer)
	h.server = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { h.failed <- fmt.Errorf("serve health: %w", h.server.Serve(listener)) }()
	return h, nil
}

// close frees the address, whether or not the server has come to use it.
func (h *health) close() {
	_ = h.server.Close()
	_ = h.listener.Close()
}

// set says what is still to be done, "" for nothing.
func (h *health) set(lacks string) { h.lacks.Store(&lacks) }

func (h *health) answer(w http.ResponseWriter, _ *http.Request) {
	if lacks := *h.lacks.Load(); lacks != "" {
		http.Error(w, lacks, http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}
