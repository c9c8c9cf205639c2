package overlay

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// A router between three networks: a pod of its own, another node (behind which
// are that one's pods), and the world. Each side sends to each, and sees whom from.
func TestMasquerade(t *testing.T) {
	if !inNetns(t) {
		return
	}
	// Threads that are in other namespaces end with their goroutines.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	pod := newSite(t, "pod", "10.244.1.1/24", "10.244.1.2/24")
	node := newSite(t, "node", "192.0.2.1/24", "192.0.2.2/24", "10.244.2.2/32", "203.0.113.9/32")
	route(t, "10.244.2.0/24", "192.0.2.2")
	route(t, "203.0.113.0/24", "192.0.2.2")

	pods, own := netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("10.244.1.0/24")
	for range 2 { // the second time replaces the first
		if err := masquerade(pods, own); err != nil {
			t.Fatal(err)
		}
	}
	conn := new(nftables.Conn)
	table := &nftables.Table{Name: nftTable, Family: nftables.TableFamilyIPv4}
	got, err := conn.GetRules(table, &nftables.Chain{Name: "postrouting", Table: table})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(rules(pods, own)) {
		t.Errorf("%d rules in the kernel", len(got))
	}

	for _, test := range []struct {
		name                string
		from                *site
		source              string
		to                  *site
		destination, seenAs string
	}{
		{"pod to a node", pod, "10.244.1.2", node, "192.0.2.2", "192.0.2.1"},
		{"pod to the world", pod, "10.244.1.2", node, "203.0.113.9", "192.0.2.1"},
		{"pod to a pod of another node", pod, "10.244.1.2", node, "10.244.2.2", "10.244.1.2"},
		{"pod of another node to our pod", node, "10.244.2.2", pod, "10.244.1.2", "10.244.2.2"},
		{"world to our pod", node, "203.0.113.9", pod, "10.244.1.2", "203.0.113.9"},
		{"world to a pod of another node", node, "203.0.113.9", node, "10.244.2.2", "203.0.113.9"},
	} {
		if test.from == test.to {
			continue // does not pass the router
		}
		if got := test.from.sends(t, test.source, test.to, test.destination); got != test.seenAs {
			t.Errorf("%s: comes from %s, want %s", test.name, got, test.seenAs)
		}
	}
	// The router itself, with an address that is no pod's, to a pod of another node.
	here := &site{ns: netns.None()}
	if got := here.sends(t, "10.244.1.1", node, "10.244.2.2"); got != "10.244.1.1" {
		t.Errorf("gateway of the pods to a pod of another node: comes from %s", got)
	}
	other, err := netlink.ParseAddr("198.51.100.1/32")
	if err != nil {
		t.Fatal(err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(lo, other); err != nil {
		t.Fatal(err)
	}
	if got := here.sends(t, "198.51.100.1", node, "10.244.2.2"); got != "192.0.2.1" {
		t.Errorf("the node to a pod of another one: comes from %s, want 192.0.2.1", got)
	}
	if got := here.sends(t, "198.51.100.1", pod, "10.244.1.2"); got != "198.51.100.1" {
		t.Errorf("the node to its own pod: comes from %s, want 198.51.100.1", got)
	}
}

// site is a network namespace at the other end of a cable.
type site struct {
	ns netns.NsHandle
}

// newSite makes one: gateway is our end's address, the others are its own.
func newSite(t *testing.T, name, gateway string, own ...string) *site {
	t.Helper()
	s := &site{}
	in(t, netns.None(), func() error {
		home, err := netns.Get()
		if err != nil {
			return err
		}
		defer home.Close()
		if s.ns, err = netns.New(); err != nil { // and the thread is in it
			return err
		}
		return netns.Set(home)
	})
	t.Cleanup(func() { s.ns.Close() })
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "up", PeerNamespace: netlink.NsFd(s.ns)}); err != nil {
		t.Fatal(err)
	}
	set := func(device string, addrs ...string) error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(link, addr); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(link)
	}
	if err := set(name, gateway); err != nil {
		t.Fatal(err)
	}
	in(t, s.ns, func() error {
		if err := set("up", own...); err != nil {
			return err
		}
		gw, _, err := net.ParseCIDR(gateway)
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Gw: gw})
	})
	return s
}

func route(t *testing.T, to, via string) {
	t.Helper()
	_, dst, err := net.ParseCIDR(to)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(via)}); err != nil {
		t.Fatal(err)
	}
}

// in runs do on a thread in a namespace, none for our own. The thread ends with it.
func in(t *testing.T, ns netns.NsHandle, do func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is not used again
		if ns.IsOpen() {
			if err := netns.Set(ns); err != nil {
				done <- err
				return
			}
		}
		done <- do()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// sends sends a datagram and returns the address that it came from, as seen there.
func (s *site) sends(t *testing.T, source string, to *site, destination string) string {
	t.Helper()
	var listener *net.UDPConn
	in(t, to.ns, func() (err error) {
		listener, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(destination)})
		return err
	})
	defer listener.Close()
	in(t, s.ns, func() error {
		conn, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(source)}, listener.LocalAddr().(*net.UDPAddr))
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write([]byte("hello"))
		return err
	})
	if err := listener.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, from, err := listener.ReadFromUDPAddrPort(make([]byte, 16))
	if err != nil {
		t.Fatalf("%s to %s: %v", source, destination, err)
	}
	return from.Addr().String()
}
