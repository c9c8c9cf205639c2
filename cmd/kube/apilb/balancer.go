package apilb

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/inetaf/tcpproxy"
)

// origin is where the list of servers is from.
type origin string

const (
	fromFile    origin = "file"
	fromCluster origin = "cluster"
)

// balancer gives each connection a server.
type balancer struct {
	prefer netip.AddrPort
	ask    func(netip.AddrPort) func(context.Context) answer
	log    *slog.Logger
	life   context.Context // of the questions

	mu      sync.Mutex
	source  origin
	servers map[netip.AddrPort]*server
}

// server is one API server. The balancer's mutex guards it.
type server struct {
	address netip.AddrPort
	health  answer
	since   time.Time // of its grade
	stop    context.CancelFunc
	soon    chan struct{} // holds one: ask it at once
	load    int           // connections, with those being made
	open    map[*connection]struct{}
}

// connection is both ends of one: the client's and the server's.
type connection struct{ client, server net.Conn }

// close ends both copies.
func (c *connection) close() {
	_ = c.client.Close()
	_ = c.server.Close()
}

var _ tcpproxy.Target = (*balancer)(nil)

// newBalancer returns one without servers. ask gives the question for each server.
func newBalancer(ctx context.Context, prefer netip.AddrPort, ask func(netip.AddrPort) func(context.Context) answer, log *slog.Logger) *balancer {
	return &balancer{prefer: prefer, ask: ask, log: log, life: ctx, servers: map[netip.AddrPort]*server{}}
}

// set replaces the list of servers, and reports whether it was another. What is
// connected to a server that is no longer in it is closed.
func (b *balancer) set(list []netip.AddrPort, source origin) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.source = source
	changed := false
	for address, s := range b.servers {
		if !slices.Contains(list, address) {
			changed = true
			s.stop()
			delete(b.servers, address)
			b.log.Info("server taken out", "server", address, "closed", s.shed())
		}
	}
	for _, address := range list {
		if _, ok := b.servers[address]; ok {
			continue
		}
		changed = true
		ctx, stop := context.WithCancel(b.life)
		s := &server{
			address: address, health: answer{grade: unknown, reason: "not asked yet"}, since: time.Now(), stop: stop,
			soon: make(chan struct{}, 1), open: map[*connection]struct{}{},
		}
		b.servers[address] = s
		go watch(ctx, b.ask(address), s.soon, func(a answer) { b.learned(ctx, s, a) })
	}
	return changed
}

// close ends all questions and connections.
func (b *balancer) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for address, s := range b.servers {
		s.stop()
		s.shed()
		delete(b.servers, address)
	}
}

// learned is told of a server whose grade changed.
func (b *balancer) learned(ctx context.Context, s *server, a answer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if ctx.Err() != nil {
		return // it was taken out meanwhile
	}
	before := s.health
	s.health, s.since = a, time.Now()
	closed := 0
	if a.grade == down || a.grade == unready && b.anyReady() {
		closed = s.shed()
	}
	switch a.grade {
	case ready:
		b.log.Info("server ready", "server", s.address, "was", before.grade)
	default:
		b.log.Warn("server "+a.grade.String(), "server", s.address, "reason", a.reason, "closed", closed)
	}
	b.forsake()
}

// forsake closes what is connected to servers that do not work, if one works: an
// unready server is left only for a better one. While all have lost their etcd, to
// dial again helps nobody.
func (b *balancer) forsake() {
	if !b.anyReady() {
		return
	}
	for _, s := range b.servers {
		if s.health.grade >= unknown || len(s.open) == 0 {
			continue
		}
		b.log.Info("connections closed for a server that is ready", "server", s.address, "closed", s.shed())
	}
}

// works tells whether any server is ready.
func (b *balancer) works() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.anyReady()
}

// anyReady is works for those who have the mutex.
func (b *balancer) anyReady() bool {
	for _, s := range b.servers {
		if s.health.grade == ready {
			return true
		}
	}
	return false
}

// shed closes all connections of a server and says how many they were.
func (s *server) shed() int {
	n := len(s.open)
	for c := range s.open {
		c.close()
	}
	clear(s.open)
	return n
}

// HandleConn passes a client's connection on to the best server that can be
// dialed, and returns when it has ended.
func (b *balancer) HandleConn(client net.Conn) {
	tried := map[netip.AddrPort]bool{}
	for {
		s := b.take(tried)
		if s == nil {
			_ = client.Close()
			return
		}
		tried[s.address] = true
		dialer := net.Dialer{Timeout: unanswered}
		upstream, err := dialer.DialContext(b.life, "tcp", s.address.String())
		if err != nil {
			b.vain(s)
			continue
		}
		c := &connection{client, upstream}
		if !b.opened(s, c) {
			_ = upstream.Close()
			continue
		}
		pass(c)
		b.ended(s, c)
		return
	}
}

// pass copies both ways until both have ended, without the bytes leaving the kernel.
func pass(c *connection) {
	proxy := tcpproxy.DialProxy{
		DialContext:     func(context.Context, string, string) (net.Conn, error) { return c.server, nil },
		KeepAlivePeriod: keepAlive,
	}
	proxy.HandleConn(c.client)
}

// keepAlive finds connections whose server was replaced by one that does not know them.
const keepAlive = 15 * time.Second

// take chooses a server that was not tried yet, nil if there is none: the best
// grade, then the preferred, then the fewest connections, then any.
func (b *balancer) take(tried map[netip.AddrPort]bool) *server {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := slices.DeleteFunc(slices.Collect(maps.Values(b.servers)), func(s *server) bool { return tried[s.address] })
	if len(all) == 0 {
		return nil
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	best := slices.MaxFunc(all, func(x, y *server) int {
		return cmp.Or(
			cmp.Compare(x.health.grade, y.health.grade),
			compare(x.address == b.prefer, y.address == b.prefer),
			cmp.Compare(y.load, x.load),
		)
	})
	best.load++
	return best
}

func compare(x, y bool) int {
	switch {
	case x == y:
		return 0
	case x:
		return 1
	}
	return -1
}

// vain is told of a server that could not be dialed: if it is thought to be ready,
// it is asked at once.
func (b *balancer) vain(s *server) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s.load--
	if s.health.grade != ready {
		return
	}
	select {
	case s.soon <- struct{}{}:
	default:
	}
}

// opened counts a connection, if its server is still one to use.
func (b *balancer) opened(s *server, c *connection) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	gone := b.servers[s.address] != s
	if gone || s.health.grade < unknown && b.anyReady() {
		s.load--
		return false
	}
	s.open[c] = struct{}{}
	return true
}

func (b *balancer) ended(s *server, c *connection) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s.load--
	delete(s.open, c)
}
