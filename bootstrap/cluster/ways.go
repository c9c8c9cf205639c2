package cluster

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"k8s.io/client-go/rest"
)

// anyServer is a name in the certificate of every API server of a cluster.
const anyServer = "kubernetes"

const (
	// wayTime bounds the attempt at one of several API servers.
	wayTime = 3 * time.Second
	// headStart is what the server that was asked for has before the others are asked, too.
	headStart = time.Second
)

// several has a client configuration lead to others, ADDRESS:PORT, API servers of the same cluster,
// when the one that it names does not serve. Without others it stays as it is.
func several(cfg *rest.Config, others []string) {
	if len(others) == 0 {
		return
	}
	cfg.ServerName = anyServer
	w := &ways{dial: cfg.Dial, others: others}
	w.ready = w.readiness(rest.CopyConfig(cfg))
	cfg.Dial = w.Dial
}

// ServingURL is the URL of the server in a client configuration, or that of one of the others,
// ADDRESS:PORT, of the same cluster if the first does not say that it is ready and that one does.
func ServingURL(ctx context.Context, cfg *rest.Config, others []string) string {
	u, err := url.Parse(cfg.Host)
	if err != nil || len(others) == 0 {
		return cfg.Host
	}
	w := &ways{dial: cfg.Dial, others: others}
	asked := rest.CopyConfig(cfg)
	asked.ServerName = anyServer
	w.ready = w.readiness(asked)
	if at := w.choose(ctx, u.Host); at != "" && at != u.Host {
		return "https://" + at
	}
	return cfg.Host
}

// ways dials the API server that was asked for, or another one of the same cluster.
type ways struct {
	dial   DialFunc // nil: directly
	others []string // ADDRESS:PORT
	// ready tells whether the API server at an address is ready to serve: one whose etcd has
	// no quorum takes connections all the same. nil: one that takes connections will do.
	ready func(ctx context.Context, address string) bool

	first sync.Once
	mu    sync.Mutex
	good  string // the one that answered last, "" for the one that is asked for
}

// Dial begins with a server that was ready at first, or the one that answered last. If none
// does, the error is of all.
func (w *ways) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	w.first.Do(func() {
		if w.ready != nil {
			w.answers(w.choose(ctx, address))
		}
	})
	w.mu.Lock()
	good := w.good
	w.mu.Unlock()
	var faults []error
	tried := map[string]bool{"": true}
	for _, at := range append([]string{good, address}, w.others...) {
		if tried[at] {
			continue
		}
		tried[at] = true
		conn, err := w.try(ctx, network, at)
		if err == nil {
			w.answers(at)
			return conn, nil
		}
		faults = append(faults, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(faults...)
}

func (w *ways) answers(address string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.good = address
}

func (w *ways) try(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, wayTime)
	defer cancel()
	if w.dial == nil {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	return w.dial(ctx, network, address)
}

// choose returns the first server that says it is ready, "" if none does in time. The one at
// address has a head start.
func (w *ways) choose(ctx context.Context, address string) string {
	ctx, cancel := context.WithTimeout(ctx, headStart+wayTime)
	defer cancel()
	answers := make(chan string, len(w.others)+1)
	asked := 0
	ask := func(at string) {
		asked++
		go func() {
			if !w.ready(ctx, at) {
				at = ""
			}
			answers <- at
		}()
	}
	ask(address)
	late := time.After(headStart)
	for open := true; asked > 0; {
		select {
		case at := <-answers:
			if at != "" {
				return at
			}
			asked--
		case <-late:
		}
		if open {
			open = false
			for _, at := range w.others {
				if at != address {
					ask(at)
				}
			}
		}
	}
	return ""
}

// readiness asks an API server as cfg says who to be, whatever server that names.
func (w *ways) readiness(cfg *rest.Config) func(context.Context, string) bool {
	return func(ctx context.Context, address string) bool {
		cfg := rest.CopyConfig(cfg)
		cfg.Host, cfg.Dial, cfg.Timeout = "https://"+address, w.try, wayTime
		client, err := rest.HTTPClientFor(cfg)
		if err != nil {
			return false
		}
		defer client.CloseIdleConnections()
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, cfg.Host+"/readyz", nil)
		if err != nil {
			return false
		}
		answer, err := client.Do(request)
		if err != nil {
			return false
		}
		answer.Body.Close() //nolint:errcheck // its status says it all
		// One that has only just started refuses whom it does not know yet.
		return answer.StatusCode == http.StatusOK
	}
}
