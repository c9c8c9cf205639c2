package overlay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// interfaceWith returns the interface that has an address.
func interfaceWith(addr netip.Addr) (*net.Interface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var have []string
	for _, i := range all {
		addrs, err := i.Addrs()
		if err != nil {
			return nil, fmt.Errorf("addresses of %s: %w", i.Name, err)
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				if p.Addr() == addr {
					return &i, nil
				}
				have = append(have, i.Name+" "+p.String())
			}
		}
	}
	return nil, fmt.Errorf("no interface has the node's address %s: there are %s", addr, strings.Join(have, ", "))
}

// checkForwarding says whether the kernel passes packets on between interfaces.
func checkForwarding() error {
	const path = "/proc/sys/net/ipv4/ip_forward"
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(text)) == "0" {
		return fmt.Errorf("net.ipv4.ip_forward is 0: set it to 1 in /etc/sysctl.d")
	}
	return nil
}

// vxlanOverhead is what VXLAN takes of every packet, in bytes.
const vxlanOverhead = 50

// clearWay removes what an earlier start with other settings left: flannel would
// use the device as it is.
func clearWay(backend string, own peer, externalMTU int) error {
	link, err := netlink.LinkByName(vxlanDevice)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for %s: %w", vxlanDevice, err)
	}
	fits := link.Attrs().HardwareAddr.String() == vtepMAC(own.Pods).String() && link.Attrs().MTU == externalMTU-vxlanOverhead
	if backend == backendVXLAN && fits {
		return nil
	}
	if err := netlink.LinkDel(link); err != nil {
		return fmt.Errorf("delete %s of an earlier start: %w", vxlanDevice, err)
	}
	return nil
}

// pruneRoutes deletes routes to nodes that left while nobody watched. A route to
// a node is narrower than the cluster's range and has a gateway, which the route
// to the node's own pods has not.
func pruneRoutes(cluster netip.Prefix, wanted peers) error {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		pods, ok := prefixOf(r.Dst)
		if !ok || r.Gw == nil || pods.Bits() <= cluster.Bits() || !cluster.Contains(pods.Addr()) {
			continue
		}
		if _, ok := wanted[pods]; ok {
			continue
		}
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("delete route to %s: %w", pods, err)
		}
	}
	return nil
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), ones), ok
}

// faultyOffload are drivers that send VXLAN packets with wrong inner checksums
// when they are left to compute them (VMware's, for any UDP port but one).
var faultyOffload = map[string]bool{"vmxnet3": true}

// spareChecksumOffload has the kernel compute the checksums of pod traffic where
// the card below cannot be trusted with it: pings pass there, TCP does not.
// Elsewhere offload stays on, as it doubles the throughput.
func spareChecksumOffload(external string) error {
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("driver of %s: %w", external, err)
	}
	defer tool.Close()
	driver, err := tool.DriverName(external)
	if errors.Is(err, unix.EOPNOTSUPP) || err == nil && !faultyOffload[driver] {
		return nil
	}
	if err != nil {
		return fmt.Errorf("driver of %s: %w", external, err)
	}
	if err := withoutChecksumOffload(tool, vxlanDevice); err != nil {
		return fmt.Errorf("checksum offload of %s on %s: %w", vxlanDevice, driver, err)
	}
	return nil
}

func withoutChecksumOffload(tool *ethtool.Ethtool, device string) error {
	return tool.Change(device, map[string]bool{"tx-checksum-ip-generic": false})
}

// settle is how long routes that vanish are let vanish before they are set again:
// systemd-networkd, when it restarts, takes all that it did not make.
const settle = time.Second

// watchKernel calls lost when routes to other nodes vanish, and reports a VXLAN
// device that was deleted or taken down, which flannel alone does not get over.
func watchKernel(ctx context.Context, o options, own peer, lost func()) (<-chan error, error) {
	broken := make(chan error, 1)
	report := func(err error) {
		select {
		case broken <- err:
		default:
		}
	}
	closed := func(err error) { report(fmt.Errorf("watch the kernel's routes and devices: %w", err)) }
	routes := make(chan netlink.RouteUpdate)
	err := netlink.RouteSubscribeWithOptions(routes, ctx.Done(), netlink.RouteSubscribeOptions{ErrorCallback: closed})
	if err != nil {
		return nil, fmt.Errorf("watch routes: %w", err)
	}
	links := make(chan netlink.LinkUpdate)
	if err := netlink.LinkSubscribeWithOptions(links, ctx.Done(), netlink.LinkSubscribeOptions{ErrorCallback: closed}); err != nil {
		return nil, fmt.Errorf("watch devices: %w", err)
	}
	go func() {
		var settled <-chan time.Time
		for {
			select {
			case r, ok := <-routes:
				if !ok {
					return
				}
				pods, isRange := prefixOf(r.Dst)
				if r.Type == unix.RTM_DELROUTE && isRange && o.podCIDR.Contains(pods.Addr()) && pods != own.Pods && settled == nil {
					settled = time.After(settle)
				}
			case <-settled:
				settled = nil
				lost()
			case l, ok := <-links:
				if !ok {
					return
				}
				if o.backend != backendVXLAN || l.Attrs().Name != vxlanDevice {
					continue
				}
				if l.Header.Type == unix.RTM_DELLINK || l.IfInfomsg.Flags&unix.IFF_UP == 0 {
					report(fmt.Errorf("%s was deleted or taken down: starting again", vxlanDevice))
				}
			}
		}
	}()
	return broken, nil
}
