package drill

import (
	"context"
	"io"
	"net/netip"
	"sync"

	"github.com/kubewright/kubewright/bootstrap/controlplane"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/host"
)

// Connection is a host that was reached, with how SSH comes to it.
type Connection struct {
	host.Host
	Admin netip.Addr // whence, as the host sees it; invalid if that is not known
	Port  uint16     // where its sshd listens
}

// Hosts are connections by the name of their host. One that was dropped is made again by
// whoever needs it next.
type Hosts struct {
	dial func(context.Context, string) (Connection, error)

	mu   sync.Mutex
	open map[string]Connection
}

// NewHosts begins with connections that are open.
func NewHosts(open []Connection, dial func(context.Context, string) (Connection, error)) *Hosts {
	h := &Hosts{dial: dial, open: map[string]Connection{}}
	for _, o := range open {
		h.open[o.Name()] = o
	}
	return h
}

// get returns the connection to a host.
func (h *Hosts) get(ctx context.Context, name string) (Connection, error) {
	h.mu.Lock()
	open, ok := h.open[name]
	h.mu.Unlock()
	if ok {
		return open, nil
	}
	made, err := h.dial(ctx, name)
	if err != nil {
		return Connection{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if open, ok := h.open[name]; ok { // another was faster
		hangUp(made)
		return open, nil
	}
	h.open[name] = made
	return made, nil
}

// drop gives a connection up.
func (h *Hosts) drop(name string) {
	h.mu.Lock()
	open, ok := h.open[name]
	delete(h.open, name)
	h.mu.Unlock()
	if ok {
		hangUp(open)
	}
}

// Close ends all connections.
func (h *Hosts) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, open := range h.open {
		hangUp(open)
	}
	clear(h.open)
}

func hangUp(c Connection) {
	if c, ok := c.Host.(io.Closer); ok {
		c.Close() //nolint:errcheck // nothing is left to be written
	}
}

// victim is a control-plane host of a cluster that is watched.
type victim struct {
	node  Node
	watch *watch
}

var _ Victim = victim{}

func (v victim) Host(ctx context.Context) (host.Host, error) {
	c, err := v.watch.cluster.Hosts.get(ctx, v.node.Host)
	return c.Host, err
}

func (v victim) Forget() { v.watch.forget(v.node) }

func (v victim) Mend(ctx context.Context) (done []string, err error) {
	h, err := v.Host(ctx)
	if err != nil {
		return nil, err
	}
	units, err := h.Units(ctx, etcd.Unit, controlplane.APIServerUnit)
	if err != nil {
		return nil, err
	}
	for _, u := range units {
		if u.Active == "active" || u.Active == "activating" {
			continue
		}
		if err := h.Systemd().Restart(ctx, u.Name); err != nil {
			return done, err
		}
		done = append(done, u.Name+" was "+u.Active+" and started again")
	}
	return done, nil
}
