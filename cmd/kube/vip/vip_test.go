package vip

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vishvananda/netlink"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"

	"github.com/kubewright/kubewright/cmd/kube/component"
)

func TestCommandLine(t *testing.T) {
	good := []string{"--address=192.0.2.9", "--interface=eth0", "--node=a", "--server=https://192.0.2.1:6443", "--kubeconfig=/etc/kubernetes/scheduler.conf"}
	if err := Component().Parse(good); err != nil {
		t.Error(err)
	}
	for _, test := range []struct{ wrong, says string }{
		{"--address=2001:db8::1", "--address"},
		{"--interface=", "--interface"},
		{"--node=", "--node"},
		{"--server=", "--server"},
		{"--kubeconfig=", "--kubeconfig"},
	} {
		if err := Component().Parse(append(good, test.wrong)); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: error %v does not name %s", test.wrong, err, test.says)
		}
	}
	missing := filepath.Join(t.TempDir(), "scheduler.conf")
	var out bytes.Buffer
	if status := Component().Command(t.Context(), append(good, "--kubeconfig="+missing), &out, &out); status != 1 || !strings.Contains(out.String(), missing) {
		t.Errorf("without credentials: status %d, %s", status, &out)
	}
}

// cluster keeps the one Lease, as an etcd does: who changes it must have seen it.
type cluster struct {
	mu      sync.Mutex
	lease   *coordinationv1.Lease
	version int
	cutOff  map[string]bool // hosts whose API server has lost its etcd
}

// cut has a host's API server lose its etcd, or find it again.
func (c *cluster) cut(host string, off bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cutOff[host] = off
}

// client is of the API server of a host.
func (c *cluster) client(host string) *fake.Clientset {
	client := fake.NewClientset()
	client.PrependReactor("*", "leases", func(a k8stesting.Action) (bool, runtime.Object, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.cutOff[host] {
			return true, nil, errors.New("etcdserver: no leader")
		}
		o, err := c.do(a)
		return true, o, err
	})
	return client
}

func (c *cluster) do(a k8stesting.Action) (*coordinationv1.Lease, error) {
	leases := coordinationv1.Resource("leases")
	switch a := a.(type) {
	case k8stesting.CreateAction: // an update is one, too
		l := a.GetObject().(*coordinationv1.Lease).DeepCopy()
		switch {
		case a.GetVerb() == "create" && c.lease != nil:
			return nil, apierrors.NewAlreadyExists(leases, Lease)
		case a.GetVerb() == "update" && l.ResourceVersion != c.lease.ResourceVersion:
			return nil, apierrors.NewConflict(leases, Lease, errors.New("it was changed"))
		}
		c.version++
		l.ResourceVersion = strconv.Itoa(c.version)
		c.lease = l
	case k8stesting.GetAction:
		if c.lease == nil {
			return nil, apierrors.NewNotFound(leases, Lease)
		}
	}
	return c.lease.DeepCopy(), nil
}

// holder is who has the lease.
func (c *cluster) holder() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lease == nil || c.lease.Spec.HolderIdentity == nil {
		return ""
	}
	return *c.lease.Spec.HolderIdentity
}

// bench is two hosts in one network namespace: each is an interface of a veth pair.
type bench struct {
	*testing.T
	cluster
	segment
	address netip.Addr
	log     lockedBuffer
}

func newBench(t *testing.T) *bench {
	b := &bench{T: t, cluster: cluster{cutOff: map[string]bool{}}, address: netip.MustParseAddr("192.0.2.9")}
	component.Log(io.Discard) // the libraries' log, for the whole process
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "a"
	b.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "b"}))
	for name, address := range map[string]string{"a": "192.0.2.1/24", "b": "192.0.2.2/24"} {
		b.must(netlink.LinkSetUp(b.link(name)))
		addr, err := netlink.ParseAddr(address)
		b.must(err)
		b.must(netlink.AddrAdd(b.link(name), addr))
	}
	return b
}

func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatalf("%v\n%s", err, &b.log)
	}
}

func (b *bench) link(name string) netlink.Link {
	b.Helper()
	l, err := netlink.LinkByName(name)
	b.must(err)
	return l
}

// start runs vip on a host; stop ends it and returns how it ended.
func (b *bench) start(host string) (stop func() error) {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	o := options{address: b.address, device: host, node: host}
	go func() { done <- run(ctx, o, b.client(host), b.dial, slog.New(slog.NewTextHandler(&b.log, nil))) }()
	return func() error { cancel(); return <-done }
}

// has is the host with the address, "" if none has it. Two are a failure.
func (b *bench) has() string {
	b.Helper()
	var have []string
	for _, name := range []string{"a", "b"} {
		addrs, err := netlink.AddrList(b.link(name), netlink.FAMILY_V4)
		b.must(err)
		for _, a := range addrs {
			if a.IP.String() == b.address.String() {
				have = append(have, name)
			}
		}
	}
	if len(have) > 1 {
		b.Fatalf("both have the address\n%s", &b.log)
	}
	return strings.Join(have, "")
}

// within passes time until a host has the address, and fails if it is not that one,
// or if it takes longer.
func (b *bench) within(limit time.Duration, want string) {
	b.Helper()
	begun := time.Now()
	synctest.Wait()
	for b.has() != want {
		if time.Since(begun) > limit {
			b.Fatalf("%q has the address after %v, not %q\n%s", b.has(), limit, want, &b.log)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestTakeOver has the holder stop, lose its etcd, and find it again.
func TestTakeOver(t *testing.T) {
	if !inNetns(t) {
		return
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		stopA := b.start("a")
		b.within(time.Second, "a")
		stopB := b.start("b")
		time.Sleep(time.Minute)
		b.within(0, "a")

		// A holder that is stopped says so: nobody waits for the end of its lease.
		b.must(stopA())
		b.within(0, "")
		b.within(3*retry, "b")
		stopA = b.start("a")
		time.Sleep(time.Minute)
		b.within(0, "b")

		b.cut("b", true)
		b.within(lease, "")
		b.within(lease, "a")
		b.cut("b", false)
		time.Sleep(time.Minute)
		b.within(0, "a")
		b.must(stopA())
		b.must(stopB())
		b.within(0, "")
		if n := strings.Count(b.log.String(), "does not serve the lease"); n != 1 {
			t.Errorf("told %d times:\n%s", n, &b.log)
		}
	})
}

// TestLeftOver has an address of an earlier run, and of an admin's own.
func TestLeftOver(t *testing.T) {
	if !inNetns(t) {
		return
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.cut("a", true)
		for _, left := range []string{"192.0.2.9/32", "192.0.2.10/32"} {
			addr, err := netlink.ParseAddr(left)
			b.must(err)
			b.must(netlink.AddrAdd(b.link("b"), addr)) // by a run with another --interface
		}
		stop := b.start("a")
		synctest.Wait()
		b.within(0, "")
		b.must(stop())
		addrs, err := netlink.AddrList(b.link("b"), netlink.FAMILY_V4)
		b.must(err)
		if len(addrs) != 2 {
			t.Errorf("left: %v", addrs)
		}
	})
}

// TestFence has the kernel take the address of a program that does not go on.
func TestFence(t *testing.T) {
	if !inNetns(t) {
		return
	}
	b := newBench(t)
	place, err := findPlace("a", b.address, b.dial)
	b.must(err)
	b.must(place.give(lease))
	b.must(place.give(lease))
	addrs, err := netlink.AddrList(place.link, netlink.FAMILY_V4)
	b.must(err)
	for _, a := range addrs {
		if own := a.IP.String() != b.address.String(); own != (a.ValidLft > int(lease/time.Second)) || !own && a.ValidLft == 0 {
			t.Errorf("%v lives for %d s", a.IPNet, a.ValidLft)
		}
	}
}

// TestLapsed has a program that is elected, and learns nothing more of its lease.
func TestLapsed(t *testing.T) {
	if !inNetns(t) {
		return
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		place, err := findPlace("a", b.address, b.dial)
		b.must(err)
		var lock tracked
		renew := func() { now := time.Now(); lock.renewed.Store(&now) }
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		renew()
		go func() { done <- place.hold(ctx, &lock, slog.New(slog.NewTextHandler(&b.log, nil))) }()
		b.within(askTime, "a")
		time.Sleep(lease)
		b.within(0, "")
		renew()
		time.Sleep(retry)
		b.within(askTime, "a")
		lock.renewed.Store(nil) // another has it
		time.Sleep(retry)
		b.within(0, "")
		stop()
		b.must(<-done)
	})
}

// TestCannotHave has an interface that goes away while the host is elected: it leaves
// the lease to others.
func TestCannotHave(t *testing.T) {
	if !inNetns(t) {
		return
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		stop := b.start("a")
		b.within(time.Second, "a")
		b.must(netlink.LinkDel(b.link("a")))
		time.Sleep(2 * retry)
		if err := stop(); err == nil || !strings.Contains(err.Error(), "give 192.0.2.9 to a") {
			t.Errorf("%v", err)
		}
		if by := b.holder(); by != "" {
			t.Errorf("the lease is %s's", by)
		}
		if err := b.start("a")(); err == nil || !strings.Contains(err.Error(), "interface a") {
			t.Errorf("%v", err)
		}
	})
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
