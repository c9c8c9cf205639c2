package cluster

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// anyServer is a name in the certificate of every API server of a cluster.
const anyServer = "kubernetes"

// wayTime bounds the attempt at one of several API servers.
const wayTime = 3 * time.Second

// ways dials the API server that was asked for, or another one of the same cluster.
type ways struct {
	dial   DialFunc // nil: directly
	others []string // ADDRESS:PORT

	mu   sync.Mutex
	good string // the one that answered last, "" for the one that is asked for
}

// Dial begins with the server that answered last. If none does, the error is of all.
func (w *ways) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	w.mu.Lock()
	good := w.good
	w.mu.Unlock()
	var all []string
	if good != "" {
		all = append(all, good)
	}
	all = append(append(all, address), w.others...)
	var faults []error
	tried := map[string]bool{}
	for _, at := range all {
		if tried[at] {
			continue
		}
		tried[at] = true
		conn, err := w.try(ctx, network, at)
		if err == nil {
			w.mu.Lock()
			w.good = at
			w.mu.Unlock()
			return conn, nil
		}
		faults = append(faults, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(faults...)
}

func (w *ways) try(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, wayTime)
	defer cancel()
	if w.dial == nil {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	return w.dial(ctx, network, address)
}
