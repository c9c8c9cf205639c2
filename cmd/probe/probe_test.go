package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kubewright/kubewright/bootstrap/probe"
)

// machine is a network namespace with a probe in it: all that of a host matters to these tests.
type machine struct {
	tunnel // for inside
	addr   netip.Addr
	orders *json.Encoder
	reply  *json.Decoder
}

// pairOf makes two machines with one link between them. Its tests run as root.
func pairOf(t *testing.T) [2]*machine {
	t.Helper()
	var all [2]*machine
	for i := range all {
		ns, err := namespace()
		if err != nil {
			t.Fatal(err)
		}
		m := &machine{tunnel: tunnel{ns: ns}, addr: netip.AddrFrom4([4]byte{198, 19, 250, byte(i + 1)})}
		t.Cleanup(func() { m.ns.Close() })
		all[i] = m
	}
	err := all[0].inside(func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(all[1].ns)),
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		h, err := netlink.NewHandleAt(m.ns, unix.NETLINK_ROUTE)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		for _, name := range []string{"lo", "eth0"} {
			link, err := h.LinkByName(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := h.LinkSetUp(link); err != nil {
				t.Fatal(err)
			}
			if name == "eth0" {
				own := &net.IPNet{IP: m.addr.AsSlice(), Mask: net.CIDRMask(24, 32)}
				if err := h.AddrAdd(link, &netlink.Addr{IPNet: own}); err != nil {
					t.Fatal(err)
				}
			}
		}
		m.start(t)
	}
	for _, m := range all {
		m.awaitCarrier(t)
	}
	return all
}

// awaitCarrier waits until the kernel has noticed that both ends of the link are up.
func (m *machine) awaitCarrier(t *testing.T) {
	t.Helper()
	h, err := netlink.NewHandleAt(m.ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for began := time.Now(); ; {
		link, err := h.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		if link.Attrs().OperState == netlink.OperUp {
			return
		}
		if time.Since(began) > 5*time.Second {
			t.Fatal("the link does not come up")
		}
		time.Sleep(time.Millisecond)
	}
}

// start runs a probe in the machine's namespace: this program itself, started from a thread that is there.
func (m *machine) start(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), asProbe+"=1")
	cmd.Stderr = os.Stderr
	orders, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	replies, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	m.orders, m.reply = json.NewEncoder(orders), json.NewDecoder(replies)
	if err := m.inside(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		orders.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
}

// asProbe has the test's program serve as a probe.
const asProbe = "KUBEWRIGHT_TEST_PROBE"

func TestMain(m *testing.M) {
	if os.Getenv(asProbe) == "" {
		os.Exit(m.Run())
	}
	do := serve
	if os.Getenv(asProbe) == "whole" {
		do = run
	}
	if err := do(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func (m *machine) ask(t *testing.T, o probe.Order) probe.Reply {
	t.Helper()
	var r probe.Reply
	if err := m.orders.Encode(o); err != nil {
		t.Fatal(err)
	}
	if err := m.reply.Decode(&r); err != nil {
		t.Fatal(err)
	}
	if r.Error != "" {
		t.Fatal(r.Error)
	}
	return r
}

const (
	testToken = "token"
	testUDP   = 8472
	testTCP   = 6443
)

// meet has both machines listen, call each other and go through the tunnel.
func meet(t *testing.T, all [2]*machine) (reached [2]probe.Reached, carried [2]probe.Carried) {
	t.Helper()
	for i, m := range all {
		r := m.ask(t, probe.Order{Listen: &probe.Listen{Token: testToken, Host: i, TCP: []int{testTCP}, UDP: testUDP}})
		if len(r.Listening.Taken) > 0 {
			t.Fatalf("taken: %v", r.Listening.Taken)
		}
	}
	for i, m := range all {
		r := m.ask(t, probe.Order{Reach: &probe.Reach{Token: testToken, Timeout: 500 * time.Millisecond,
			To: []probe.Peer{{Host: 1 - i, Addr: all[1-i].addr, TCP: []int{testTCP}, UDP: testUDP}}}})
		reached[i] = r.Reached[0]
	}
	for i, m := range all {
		m.ask(t, probe.Order{Tunnel: &probe.Tunnel{Host: i, Addr: m.addr, VNI: 77, Port: testUDP,
			Peers: []probe.Outer{{Host: 1 - i, Addr: all[1-i].addr}}}})
	}
	for i, m := range all {
		carried[i] = m.ask(t, probe.Order{Carry: &probe.Carry{To: []int{1 - i}, Timeout: 500 * time.Millisecond}}).Carried[0]
	}
	return reached, carried
}

func TestAllIsWell(t *testing.T) {
	all := pairOf(t)
	reached, carried := meet(t, all)
	for i := range all {
		want := probe.Reached{Host: 1 - i, Addr: all[1-i].addr, Called: 1, UDP: true, MTU: 1500, Whole: 1500}
		if diff := cmp.Diff(want, reached[i], cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("from %d (-want +got):\n%s", i, diff)
		}
		if want := (probe.Carried{Host: 1 - i, Frames: true, TCP: true}); carried[i] != want {
			t.Errorf("from %d: %+v", i, carried[i])
		}
	}
}

// drop has a machine lose packets of a protocol that come to a port.
func (m *machine) drop(t *testing.T, protocol byte, port uint16) {
	t.Helper()
	m.rule(t,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Verdict{Kind: expr.VerdictDrop})
}

// rule adds one for packets to the machine.
func (m *machine) rule(t *testing.T, what ...expr.Any) {
	t.Helper()
	conn, err := nftables.New(nftables.WithNetNSFd(int(m.ns)))
	if err != nil {
		t.Fatal(err)
	}
	table := conn.AddTable(&nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4})
	chain := conn.AddChain(&nftables.Chain{Name: "input", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: what})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
}

// dropLarge has a machine lose packets of 1000 bytes and more.
func (m *machine) dropLarge(t *testing.T) {
	t.Helper()
	m.rule(t,
		&expr.Meta{Key: expr.MetaKeyLEN, Register: 1},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: binaryutil.BigEndian.PutUint32(1000)},
		&expr.Verdict{Kind: expr.VerdictDrop})
}

// TestBesideAPodNetwork has the tunnel lead to a machine that is a node already: its device has the port.
func TestBesideAPodNetwork(t *testing.T) {
	all := pairOf(t)
	err := all[1].inside(func() error {
		below, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		pods := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "flannel.1"}, VxlanId: 1, VtepDevIndex: below.Attrs().Index,
			SrcAddr: all[1].addr.AsSlice(), Port: testUDP}
		return errors.Join(netlink.LinkAdd(pods), netlink.LinkSetUp(pods))
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range all {
		m.ask(t, probe.Order{Tunnel: &probe.Tunnel{Host: i, Addr: m.addr, VNI: 77, Port: testUDP, Peers: []probe.Outer{{Host: 1 - i, Addr: all[1-i].addr}}}})
	}
	for i, m := range all {
		got := m.ask(t, probe.Order{Carry: &probe.Carry{To: []int{1 - i}, Timeout: 500 * time.Millisecond}}).Carried[0]
		if want := (probe.Carried{Host: 1 - i, Frames: true, TCP: true}); got != want {
			t.Errorf("from %d: %+v", i, got)
		}
	}
}

func TestBlocked(t *testing.T) {
	all := pairOf(t)
	all[1].drop(t, unix.IPPROTO_UDP, testUDP)
	all[1].drop(t, unix.IPPROTO_TCP, testTCP)
	reached, carried := meet(t, all)
	if r := reached[0]; r.UDP || r.MTU != 0 || len(r.Blocked) != 1 || r.Blocked[0] != (probe.Blocked{Port: testTCP, Why: "no answer"}) {
		t.Errorf("into the firewall: %+v", r)
	}
	if r := reached[1]; !r.UDP || len(r.Blocked) != 0 {
		t.Errorf("out of it: %+v", r)
	}
	for i, c := range carried {
		if c.Frames || c.TCP {
			t.Errorf("from %d: %+v", i, c)
		}
	}
}

// TestFramesWithoutTCP blocks TCP inside the tunnel alone, as a card does that
// computes its checksums wrong.
func TestFramesWithoutTCP(t *testing.T) {
	all := pairOf(t)
	for i, m := range all {
		m.ask(t, probe.Order{Tunnel: &probe.Tunnel{Host: i, Addr: m.addr, VNI: 77, Port: testUDP,
			Peers: []probe.Outer{{Host: 1 - i, Addr: all[1-i].addr}}}})
	}
	all[1].dropLarge(t) // frames with data are lost, small ones pass
	c := all[0].ask(t, probe.Order{Carry: &probe.Carry{To: []int{1}, Timeout: 500 * time.Millisecond}}).Carried[0]
	if !c.Frames || c.TCP {
		t.Errorf("%+v", c)
	}
}

func setMTU(t *testing.T, m *machine, mtu int) {
	t.Helper()
	h, err := netlink.NewHandleAt(m.ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	link, err := h.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetMTU(link, mtu); err != nil {
		t.Fatal(err)
	}
}

func TestPathMTU(t *testing.T) {
	all := pairOf(t)
	setMTU(t, all[1], 1402)
	reached, _ := meet(t, all)
	// A receiver takes four bytes more, for a VLAN's tag.
	if got := reached[0].MTU; got <= 1402-fineStep || got > 1402+4 {
		t.Errorf("%d bytes arrive of 1402", got)
	}
	if got := reached[1].MTU; got <= 1402-fineStep || got > 1402 {
		t.Errorf("the other way: %d", got)
	}
}

// TestNothingIsLeft ends a probe with a tunnel: device and namespace go with it.
func TestNothingIsLeft(t *testing.T) {
	all := pairOf(t)
	meet(t, all)
	h, err := netlink.NewHandleAt(all[0].ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	if len(links) != 2 {
		t.Errorf("the host sees the tunnel: %d interfaces", len(links))
	}
}

func TestLook(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	used := probe.Port{Protocol: "tcp", Number: listener.Addr().(*net.TCPAddr).Port}
	dir := t.TempDir()
	before := entries(t, dir)
	seen, err := look(probe.Look{Ports: []probe.Port{used, {Protocol: "udp", Number: used.Number}},
		Paths: []string{filepath.Join(dir, "not", "there")}, Disk: dir})
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	want := []probe.Use{{Port: used, PID: os.Getpid(), Process: "probe.test", Program: self}}
	if diff := cmp.Diff(want, seen.Uses); diff != "" {
		t.Errorf("ports (-want +got):\n%s", diff)
	}
	if len(seen.Rooms) != 1 || seen.Rooms[0].Free == 0 || seen.Rooms[0].Device == 0 {
		t.Errorf("rooms: %+v", seen.Rooms)
	}
	if d := seen.Disk; d == nil || d.Writes == 0 || d.P99 <= 0 {
		t.Errorf("disk: %+v", d)
	}
	if after := entries(t, dir); !slices.Equal(before, after) {
		t.Errorf("left in the folder: %v", after)
	}
	for _, m := range seen.Missing {
		if slices.Contains([]string{"overlay", "bridge", "veth", "vxlan", "nftables", "seccomp", "namespaces"}, m.Feature) {
			t.Errorf("this machine makes lab hosts, and yet: %+v", m)
		}
	}
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	found, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range found {
		names = append(names, f.Name())
	}
	return names
}

// TestUnused asks for the addresses of the other machine, of the one that asks, and of none.
func TestUnused(t *testing.T) {
	machines := pairOf(t)
	owner := func(addr netip.Addr) *probe.Owner {
		return machines[0].ask(t, probe.Order{Look: &probe.Look{Unused: addr}}).Seen.Owner
	}
	if o := owner(machines[1].addr); o == nil || o.Self || o.Interface == "" || len(o.Hardware) != len("00:00:00:00:00:00") {
		t.Errorf("the other's: %+v", o)
	}
	if o := owner(machines[0].addr); o == nil || !o.Self {
		t.Errorf("its own: %+v", o)
	}
	if o := owner(machines[1].addr.Next()); o != nil {
		t.Errorf("nobody's: %+v", o)
	}
	if o := owner(netip.MustParseAddr("203.0.113.9")); o != nil {
		t.Errorf("elsewhere: %+v", o)
	}
}

// TestRemovesItself starts a copy of this program, and ends it by the end of its input.
func TestRemovesItself(t *testing.T) {
	file := filepath.Join(t.TempDir(), "probe")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, self, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(file)
	cmd.Env = append(os.Environ(), asProbe+"=whole")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := json.NewEncoder(stdin).Encode(probe.Order{Hello: &probe.Hello{}}); err != nil {
		t.Fatal(err)
	}
	var r probe.Reply
	if err := json.NewDecoder(stdout).Decode(&r); err != nil || r.Error != "" {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, err := os.Lstat(file); !os.IsNotExist(err) {
		t.Errorf("its file is there while it runs: %v", err)
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
