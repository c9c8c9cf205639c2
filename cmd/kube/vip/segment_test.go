package vip

import (
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
)

// segment carries ARP between the interfaces of a bench. A goroutine that reads a real socket
// would stop the clock of its test's bubble.
type segment struct {
	mu    sync.Mutex
	ports map[*port]bool
}

// dial plugs an interface in, as arp.Dial would.
func (s *segment) dial(device *net.Interface) (*arp.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &port{segment: s, frames: make(chan []byte, 100), closed: make(chan struct{})}
	if s.ports == nil {
		s.ports = map[*port]bool{}
	}
	s.ports[p] = true
	return arp.New(device, p)
}

// port is a net.PacketConn as far as arp.Client uses it.
type port struct {
	net.PacketConn
	segment *segment
	frames  chan []byte
	closed  chan struct{}
}

func (p *port) ReadFrom(to []byte) (int, net.Addr, error) {
	select {
	case frame := <-p.frames:
		return copy(to, frame), nil, nil
	case <-p.closed:
		return 0, nil, net.ErrClosed
	}
}

// WriteTo sends to all others: each looks for itself what is meant for it.
func (p *port) WriteTo(frame []byte, _ net.Addr) (int, error) {
	p.segment.mu.Lock()
	defer p.segment.mu.Unlock()
	for other := range p.segment.ports {
		if other != p {
			other.frames <- append([]byte(nil), frame...)
		}
	}
	return len(frame), nil
}

func (p *port) Close() error {
	p.segment.mu.Lock()
	defer p.segment.mu.Unlock()
	delete(p.segment.ports, p)
	close(p.closed)
	return nil
}

// foreigner is a machine of no cluster of ours in the segment. Like Linux it answers questions, and
// announces nothing by itself.
type foreigner struct {
	*bench
	client   *arp.Client
	hardware net.HardwareAddr
	has      atomic.Bool
	heard    atomic.Int64 // announcements of others
	asked    atomic.Int64
}

// foreign is a machine that has the address.
func (b *bench) foreign(hardware string) *foreigner {
	b.Helper()
	device, err := net.InterfaceByName("b") // any, for its address
	b.must(err)
	f := &foreigner{bench: b}
	f.hardware, err = net.ParseMAC(hardware)
	b.must(err)
	f.client, err = b.dial(device)
	b.must(err)
	f.has.Store(true)
	done := make(chan struct{})
	go func() { defer close(done); f.answer() }()
	b.Cleanup(func() { _ = f.client.Close(); <-done })
	return f
}

func (f *foreigner) answer() {
	for {
		p, _, err := f.client.Read()
		switch {
		case err != nil:
			return
		case p.SenderIP == f.address:
			f.heard.Add(1)
		case p.TargetIP == f.address:
			f.asked.Add(1)
			if f.has.Load() {
				f.say(arp.OperationReply, p.SenderHardwareAddr)
			}
		}
	}
}

// say says that the address is this machine's.
func (f *foreigner) say(op arp.Operation, to net.HardwareAddr) {
	packet, err := arp.NewPacket(op, f.hardware, f.address, to, f.address)
	if err == nil {
		err = f.client.WriteTo(packet, to)
	}
	if err != nil {
		f.Error(err)
	}
}

func (f *foreigner) announce() { f.say(arp.OperationRequest, ethernet.Broadcast) }

// nobody has the address for a while.
func (b *bench) nobody(while time.Duration) {
	b.Helper()
	for end := time.Now().Add(while); time.Now().Before(end); time.Sleep(retry / 5) {
		if has := b.has(); has != "" {
			b.Fatalf("%s has the address\n%s", has, &b.log)
		}
	}
}

// tells wants so many lines of the log that have all the words.
func (b *bench) tells(times int, words ...string) {
	b.Helper()
	n := 0
	for line := range strings.Lines(b.log.String()) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			n++
		}
	}
	if n != times {
		b.Errorf("%q is told %d times, not %d:\n%s", words, n, times, &b.log)
	}
}
