package apilb

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// echo is a server that says its address to all who connect, and then what they say.
type echo struct {
	net.Listener
	address netip.AddrPort
}

func startEcho(t *testing.T) *echo {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &echo{l, netip.MustParseAddrPort(l.Addr().String())}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				fmt.Fprintln(c, e.address)
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return e
}

// bench is a balancer whose servers are asked by nobody: the test says how they are.
type bench struct {
	*testing.T
	*balancer
	said lockedBuffer
}

func newBench(t *testing.T, prefer netip.AddrPort, servers ...netip.AddrPort) *bench {
	t.Helper()
	b := &bench{T: t}
	silent := func(netip.AddrPort) func(context.Context) answer {
		return func(ctx context.Context) answer { <-ctx.Done(); return answer{} }
	}
	b.balancer = newBalancer(t.Context(), prefer, silent, slog.New(slog.NewTextHandler(&b.said, nil)))
	b.set(servers, fromFile)
	t.Cleanup(b.balancer.close)
	return b
}

func (b *bench) is(server netip.AddrPort, a answer) {
	b.Helper()
	b.mu.Lock()
	s := b.servers[server]
	b.mu.Unlock()
	b.learned(b.Context(), s, a)
}

// client connects, and returns which server it got.
func (b *bench) client() (net.Conn, netip.AddrPort) {
	b.Helper()
	near, far := tcpPair(b.T)
	go b.HandleConn(far)
	line := make([]byte, len("255.255.255.255:65535\n"))
	n, err := near.Read(line)
	if err != nil {
		b.Fatalf("no server: %v\n%s", err, &b.said)
	}
	return near, netip.MustParseAddrPort(strings.TrimSpace(string(line[:n])))
}

// tcpPair is one connection.
func tcpPair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if near, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = near.Close() })
	return near, far
}

// ended waits for the end of a connection.
func ended(t *testing.T, c net.Conn) {
	t.Helper()
	if rest, _ := io.ReadAll(c); len(rest) > 0 { // an end or a reset
		t.Errorf("%q before the end", rest)
	}
}

func alive(t *testing.T, c net.Conn) {
	t.Helper()
	got := make([]byte, 4)
	if _, err := c.Write([]byte("ping")); err != nil {
		t.Error(err)
	} else if _, err := io.ReadFull(c, got); err != nil || string(got) != "ping" {
		t.Errorf("%q, %v", got, err)
	}
}

// connections are those of each server, in the order of addresses.
func (b *bench) connections() []int {
	var n []int
	for _, s := range b.snapshot().Servers {
		n = append(n, s.Connections)
	}
	return n
}

func TestFewestConnections(t *testing.T) {
	x, y, z := startEcho(t), startEcho(t), startEcho(t)
	b := newBench(t, netip.AddrPort{}, x.address, y.address, z.address)
	for _, e := range []*echo{x, y, z} {
		b.is(e.address, good)
	}
	for range 6 {
		b.client()
	}
	if diff := cmp.Diff([]int{2, 2, 2}, b.connections()); diff != "" {
		t.Error(diff)
	}
}

func TestPrefer(t *testing.T) {
	own, other := startEcho(t), startEcho(t)
	b := newBench(t, own.address, own.address, other.address)
	b.is(other.address, good)
	if _, got := b.client(); got != other.address {
		t.Error("a preferred server that was not asked yet goes before one that is ready")
	}
	b.is(own.address, good)
	for range 3 {
		if _, got := b.client(); got != own.address {
			t.Error("not the preferred one")
		}
	}
	b.is(own.address, failing)
	if _, got := b.client(); got != other.address {
		t.Error("the preferred one is not ready")
	}
}

// TestDown has connections to a dead server, which closes none of them.
func TestDown(t *testing.T) {
	x, y := startEcho(t), startEcho(t)
	b := newBench(t, x.address, x.address, y.address)
	b.is(x.address, good)
	b.is(y.address, good)
	first, _ := b.client()
	second, _ := b.client()
	b.is(x.address, silent)
	ended(t, first)
	ended(t, second)
	if _, got := b.client(); got != y.address {
		t.Errorf("%v is used", got)
	}
	if !strings.Contains(b.said.String(), `msg="server down" server=`+x.address.String()+` reason="the host does not answer" closed=2`) {
		t.Error(&b.said)
	}
}

// TestUnready has servers that lost their etcd: their connections stay until a
// server is better.
func TestUnready(t *testing.T) {
	x, y := startEcho(t), startEcho(t)
	b := newBench(t, x.address, x.address, y.address)
	b.is(x.address, good)
	c, _ := b.client()
	b.is(y.address, failing)
	b.is(x.address, failing)
	alive(t, c)
	d, got := b.client()
	if got != x.address {
		t.Errorf("%v is used", got)
	}
	b.is(y.address, good)
	ended(t, c)
	ended(t, d)
	if _, got := b.client(); got != y.address {
		t.Errorf("%v is used", got)
	}
}

// TestLastResort has no server that is known to work: all are tried.
func TestLastResort(t *testing.T) {
	dead, back := startEcho(t), startEcho(t)
	_ = dead.Close()
	b := newBench(t, dead.address, dead.address, back.address)
	b.is(dead.address, refused)
	b.is(back.address, silent)
	c, got := b.client()
	if got != back.address {
		t.Errorf("%v is used", got)
	}
	alive(t, c)
	_ = back.Close()
	near, far := tcpPair(t)
	b.HandleConn(far)
	ended(t, near)
}

// TestVain has a server that is thought to be ready and refuses: the client gets
// another one, and the server is asked at once.
func TestVain(t *testing.T) {
	dead, other := startEcho(t), startEcho(t)
	_ = dead.Close()
	b := newBench(t, dead.address, dead.address, other.address)
	b.is(dead.address, good)
	b.is(other.address, good)
	if _, got := b.client(); got != other.address {
		t.Errorf("%v is used", got)
	}
	<-b.servers[dead.address].soon
}

func TestTakenOut(t *testing.T) {
	x, y := startEcho(t), startEcho(t)
	b := newBench(t, x.address, x.address, y.address)
	b.is(x.address, good)
	c, _ := b.client()
	if b.set([]netip.AddrPort{y.address, x.address}, fromCluster) {
		t.Error("the same list is another")
	}
	alive(t, c)
	if !b.set([]netip.AddrPort{y.address}, fromCluster) {
		t.Error("another list is the same")
	}
	ended(t, c)
	if _, got := b.client(); got != y.address {
		t.Errorf("%v is used", got)
	}
}

// TestHalfClose has a client that ends its half and waits for the rest.
func TestHalfClose(t *testing.T) {
	x := startEcho(t)
	b := newBench(t, netip.AddrPort{}, x.address)
	c, _ := b.client()
	if _, err := c.Write([]byte("the last words")); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(c); err != nil || string(rest) != "the last words" {
		t.Errorf("%q, %v", rest, err)
	}
}

func addresses(of ...string) []netip.AddrPort {
	var all []netip.AddrPort
	for _, a := range of {
		all = append(all, netip.MustParseAddrPort(a))
	}
	return all
}

func TestLesson(t *testing.T) {
	known := addresses("192.0.2.1:6443")
	file := t.TempDir() + "/servers.json"
	if err := save(file, known); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, netip.AddrPort{}, known...)
	l := &lesson{file: file, saved: known, balancer: b.balancer, log: b.log}
	say := func(value string) {
		l.heard(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: ConfigMap}, Data: map[string]string{ConfigMapKey: value}})
	}
	holds := func(want []netip.AddrPort) {
		t.Helper()
		got, err := load(file)
		if err != nil {
			t.Fatal(err)
		}
		var used []netip.AddrPort
		for _, s := range b.snapshot().Servers {
			used = append(used, s.Address)
		}
		if !slices.Equal(got, want) || !slices.Equal(used, want) {
			t.Errorf("file %v, in use %v, want %v", got, used, want)
		}
	}
	for _, wrong := range []string{"", "\n", "192.0.2.2", "192.0.2.2:6443\nnonsense", "192.0.2.2:0", "api:6443"} {
		say(wrong)
		holds(known)
	}
	if n := strings.Count(b.said.String(), "left aside"); n != 6 {
		t.Errorf("told %d times:\n%s", n, &b.said)
	}
	say("192.0.2.3:6443\n192.0.2.2:6443\n192.0.2.3:6443\n")
	holds(addresses("192.0.2.2:6443", "192.0.2.3:6443"))
	if got := b.snapshot().Source; got != string(fromCluster) {
		t.Errorf("source %s", got)
	}

	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "configmaps"}, ConfigMap, nil)
	l.refused(forbidden)
	if strings.Contains(b.said.String(), "does not tell") {
		t.Errorf("told of a server that is not ready:\n%s", &b.said)
	}
	b.is(addresses("192.0.2.2:6443")[0], good)
	for range 3 {
		l.refused(forbidden)
		l.refused(io.ErrUnexpectedEOF)
	}
	if n := strings.Count(b.said.String(), "does not tell"); n != 1 {
		t.Errorf("told %d times:\n%s", n, &b.said)
	}
}

// lockedBuffer may be read while it is logged to.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
