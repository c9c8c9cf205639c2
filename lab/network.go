package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// A lab's network:
//
//	outer namespace      switch namespace                 host namespace
//	kw1f3a.. (.1) ------ uplink --+
//	                              bridge -- host1 ------- eth0 (.11)   or eth1, if
//	                              bridge -- host2 ------- eth0 (.12)   eth0 is the NAT NIC
//
// The bridge has a namespace of its own, kept by a process that only sleeps, so
// that neither the outer machine's firewall (Docker's drops what bridges
// forward) nor a flush of it touches the lab, and partitions need no rule
// outside. The uplink passes only the gateway's own packets: whatever the outer
// machine's ip_forward says, it never gets a packet that it could forward.
const (
	bridgeName   = "switch"
	uplinkPort   = "uplink"
	switchMember = "switch" // in the lab's cgroups
	routerMember = "router-"
)

// The NAT NIC of a virtual machine as Vagrant makes it: the same on every host,
// hardware address included, and of no use to reach another.
const (
	natNIC     = "eth0"
	natAddress = "10.0.2.15/24"
	natGateway = "10.0.2.2/24"
	natMAC     = "08:00:27:8d:c0:4d"
	routerNIC  = "lan"
)

func portName(h *hostState) string { return "host" + strconv.Itoa(h.Number) }

// labNIC is the host's interface in the lab's network.
func (s *state) labNIC() string {
	if s.Options.NATNIC {
		return "eth1"
	}
	return "eth0"
}

// holdOrders are what a holdStage gets.
type holdOrders struct {
	Title string // what ps shows
}

// holdNamespace readies the network namespace that the process is in, and keeps
// it by sleeping: as sleep(1), which is smaller and does not keep this program's file busy.
func holdNamespace() (int, error) {
	o, err := orders[holdOrders]()
	if err != nil {
		return 0, err
	}
	for path, value := range map[string]string{
		"/proc/sys/net/ipv4/ip_forward":                 "0", // a new namespace inherits the outer one's
		"/proc/sys/net/ipv6/conf/all/disable_ipv6":      "1",
		"/proc/sys/net/ipv6/conf/default/disable_ipv6":  "1",
		"/proc/sys/net/bridge/bridge-nf-call-iptables":  "0",
		"/proc/sys/net/bridge/bridge-nf-call-ip6tables": "0",
		"/proc/sys/net/bridge/bridge-nf-call-arptables": "0",
	} {
		if err := os.WriteFile(path, []byte(value), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, err
		}
	}
	sleep, err := exec.LookPath("/usr/bin/sleep")
	if err != nil {
		return 0, err
	}
	report(stageDone)
	return 0, fmt.Errorf("exec %s: %w", sleep, syscall.Exec(sleep, []string{o.Title, "infinity"}, nil))
}

// startHolder starts a process that keeps a new network namespace, in the named
// cgroup of the lab. record gets its identity before it is released.
func (l *Lab) startHolder(member, title string, record func(process) error) error {
	if err := makeCgroups(l.trees, l.state.Name, member); err != nil {
		return err
	}
	// Not bound to a context: it outlives the caller.
	s, err := startStage(context.Background(), holdStage, unix.CLONE_NEWNET, nil, func(cmd *exec.Cmd) {
		cmd.SysProcAttr.Setsid = true
	})
	if err != nil {
		return err
	}
	p, err := identify(s.cmd.Process.Pid)
	if err == nil {
		err = enterCgroups(l.trees, l.state.Name, member, p.PID)
	}
	if err == nil {
		err = record(p)
	}
	if err != nil {
		s.abandon()
		return err
	}
	s.reap()
	return release(s, holdOrders{Title: title})
}

// ensureSwitch makes the lab's bridge and its uplink, if they are not there,
// and plugs in the hosts that run. The lab is locked.
func (l *Lab) ensureSwitch(ctx context.Context) error {
	ok, err := l.switchUp()
	if err == nil && !ok {
		err = l.makeSwitch(ctx)
	}
	if err != nil {
		return fmt.Errorf("make switch: %w", err)
	}
	return nil
}

// switchUp tells whether the switch is there as a whole: its uplink is made last.
func (l *Lab) switchUp() (bool, error) {
	if !l.state.Switch.alive() {
		return false, nil
	}
	_, err := netlink.LinkByName(uplinkName(l.state.Name))
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return false, nil
	}
	return err == nil, err
}

func (l *Lab) makeSwitch(ctx context.Context) error {
	if err := clearCgroups(ctx, l.trees, l.state.Name, switchMember); err != nil { // of one that was half made
		return err
	}
	err := l.startHolder(switchMember, "kubewright-lab: switch of "+l.state.Name, func(p process) error {
		return l.update(func(s *state) { s.Switch = p })
	})
	if err != nil {
		return err
	}
	inside, err := openNetwork(l.state.Switch)
	if err != nil {
		return err
	}
	defer inside.close()
	bridge := &netlink.Bridge{LinkAttrs: l.link(bridgeName), MulticastSnooping: new(bool)}
	if err := inside.LinkAdd(bridge); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	if err := inside.up(bridgeName); err != nil {
		return err
	}
	if err := l.applyPartitions(); err != nil {
		return err
	}
	for i := range l.state.Hosts {
		if h := &l.state.Hosts[i]; h.Init.alive() {
			if err := l.plugIn(h); err != nil {
				return err
			}
		}
	}
	return l.makeUplink(inside)
}

func (l *Lab) makeUplink(inside *network) error {
	outside, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer outside.Close()
	name := uplinkName(l.state.Name)
	if err := deleteLink(outside, name); err != nil { // of a switch that was killed
		return err
	}
	uplink := &netlink.Veth{LinkAttrs: l.link(name), PeerName: uplinkPort, PeerMTU: uint32(l.state.Options.MTU),
		PeerNamespace: netlink.NsPid(l.state.Switch.PID)}
	if err := outside.LinkAdd(uplink); err != nil {
		return fmt.Errorf("add %s: %w", name, err)
	}
	if err := inside.plug(uplinkPort); err != nil {
		return err
	}
	// Nor would the outer machine forward what the uplink's rules let by.
	for path, value := range map[string]string{
		"/proc/sys/net/ipv4/conf/" + name + "/forwarding":   "0",
		"/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6": "1",
	} {
		if err := os.WriteFile(path, []byte(value), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return setAddress(outside, name, netip.PrefixFrom(l.state.gateway(), subnetBits))
}

// attach gives a host, whose first process is not released yet, its interfaces.
func (l *Lab) attach(h *hostState) error {
	host, err := openNetwork(h.Init)
	if err != nil {
		return err
	}
	defer host.close()
	if err := host.up("lo"); err != nil {
		return err
	}
	if l.state.Options.NATNIC {
		if err := l.attachNAT(h, host); err != nil {
			return fmt.Errorf("attach NAT NIC: %w", err)
		}
	}
	return l.plugIn(h)
}

// plugIn connects a host to the switch.
func (l *Lab) plugIn(h *hostState) error {
	inside, err := openNetwork(l.state.Switch)
	if err != nil {
		return err
	}
	defer inside.close()
	host, err := openNetwork(h.Init)
	if err != nil {
		return err
	}
	defer host.close()
	port, nic := portName(h), l.state.labNIC()
	// Of a switch that was killed: the kernel takes its ports away in its own time.
	if err := deleteLink(host.Handle, nic); err != nil {
		return err
	}
	link := &netlink.Veth{LinkAttrs: l.link(port), PeerName: nic, PeerMTU: uint32(l.state.Options.MTU),
		PeerHardwareAddr: hardware(h.Address), PeerNamespace: netlink.NsPid(h.Init.PID)}
	if err := inside.LinkAdd(link); err != nil {
		return fmt.Errorf("add %s: %w", port, err)
	}
	if err := inside.plug(port); err != nil {
		return err
	}
	if err := setAddress(host.Handle, nic, netip.PrefixFrom(h.Address, subnetBits)); err != nil {
		return err
	}
	if l.state.Options.Rate == "" {
		return nil
	}
	rate, err := parseRate(l.state.Options.Rate)
	if err != nil {
		return err
	}
	return errors.Join(limit(inside.Handle, port, rate), limit(host.Handle, nic, rate))
}

func (l *Lab) attachNAT(h *hostState, host *network) error {
	router, err := openNetwork(h.Router)
	if err != nil {
		return err
	}
	defer router.close()
	mac, err := net.ParseMAC(natMAC)
	if err != nil {
		return err
	}
	link := &netlink.Veth{LinkAttrs: l.link(routerNIC), PeerName: natNIC, PeerMTU: uint32(l.state.Options.MTU),
		PeerHardwareAddr: mac, PeerNamespace: netlink.NsPid(h.Init.PID)}
	if err := router.LinkAdd(link); err != nil {
		return fmt.Errorf("add %s: %w", routerNIC, err)
	}
	gateway, address := netip.MustParsePrefix(natGateway), netip.MustParsePrefix(natAddress)
	if err := setAddress(router.Handle, routerNIC, gateway); err != nil {
		return err
	}
	if err := setAddress(host.Handle, natNIC, address); err != nil {
		return err
	}
	nic, err := host.LinkByName(natNIC)
	if err != nil {
		return err
	}
	return host.RouteAdd(&netlink.Route{LinkIndex: nic.Attrs().Index, Gw: gateway.Addr().AsSlice()})
}

// detach removes a host's port. The kernel does so too when the host's
// namespace ends, but in its own time.
func (l *Lab) detach(h *hostState) error {
	if !l.state.Switch.alive() {
		return nil
	}
	inside, err := openNetwork(l.state.Switch)
	if err != nil {
		return err
	}
	defer inside.close()
	return deleteLink(inside.Handle, portName(h))
}

func (l *Lab) link(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU = name, l.state.Options.MTU
	return a
}

// network is a handle on a process's network namespace.
type network struct {
	*netlink.Handle
	ns netns.NsHandle
}

func openNetwork(p process) (*network, error) {
	ns, err := netns.GetFromPid(p.PID)
	if err != nil {
		return nil, fmt.Errorf("open network namespace of process %d: %w", p.PID, err)
	}
	if !p.alive() { // then the pid may have been another's
		ns.Close()
		return nil, fmt.Errorf("open network namespace of process %d: %w", p.PID, unix.ESRCH)
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		ns.Close()
		return nil, fmt.Errorf("open network namespace of process %d: %w", p.PID, err)
	}
	return &network{Handle: h, ns: ns}, nil
}

func (n *network) close() {
	n.Close()
	n.ns.Close()
}

func (n *network) up(name string) error {
	link, err := n.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := n.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// plug makes an interface a port of the bridge.
func (n *network) plug(name string) error {
	link, err := n.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	bridge, err := n.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("find %s: %w", bridgeName, err)
	}
	if err := n.LinkSetMasterByIndex(link, bridge.Attrs().Index); err != nil {
		return fmt.Errorf("plug %s into %s: %w", name, bridgeName, err)
	}
	return n.up(name)
}

// setAddress gives an interface its only address and sets it up.
func setAddress(h *netlink.Handle, name string, p netip.Prefix) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if err := h.AddrAdd(link, address); err != nil {
		return fmt.Errorf("add %s to %s: %w", p, name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

func deleteLink(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	} else if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	// ENODEV: the kernel was removing it already, with its namespace.
	if err := h.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}

// limit lets an interface send at most rate bytes a second.
func limit(h *netlink.Handle, name string, rate uint64) error {
	const (
		burst = 128 << 10 // bytes; two of the largest packets that the kernel segments late
		queue = 20        // waiting packets last at most 1/queue s; what comes then is dropped
	)
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	err = h.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate,
		Buffer:     netlink.Xmittime(rate, burst),
		Limit:      uint32(min(rate/queue, 1<<30)) + burst,
	})
	if err != nil {
		return fmt.Errorf("limit the rate of %s: %w", name, err)
	}
	return nil
}

// parseRate reads a rate as tc writes it ("100mbit", "1gbit") and returns bytes a second.
func parseRate(text string) (uint64, error) {
	wrong := fault.New(fault.Usage, "write it as tc does: 800kbit, 100mbit, 1gbit", "rate %q cannot be used", text)
	for _, unit := range []struct {
		suffix string
		bits   uint64
	}{{"kbit", 1e3}, {"mbit", 1e6}, {"gbit", 1e9}} {
		digits, ok := strings.CutSuffix(text, unit.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 32)
		if err != nil || n == 0 || n*unit.bits < 8e3 {
			return 0, wrong
		}
		return n * unit.bits / 8, nil
	}
	return 0, wrong
}

// nft runs a script of nftables in the switch's namespace.
func (l *Lab) nft(script string) error {
	cmd := exec.Command("nsenter", "--net="+filepath.Join("/proc", strconv.Itoa(l.state.Switch.PID), "ns/net"), "--", "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, lastLines(stderr.String(), 3))
	}
	return nil
}
