package vip

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// place is where the address is to be: on an interface, as a single one.
type place struct {
	link    netlink.Link
	address netip.Addr
	wire    wire
	rival   *rival // nil: no other machine is known to have it; kept from one election to the next
}

func findPlace(device string, address netip.Addr, wire wire) (*place, error) {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", device, err)
	}
	return &place{link: link, address: address, wire: wire}, nil
}

// give has the interface have the address for a time, in whole seconds.
func (p *place) give(lifetime time.Duration) error {
	seconds := int(lifetime / time.Second)
	err := netlink.AddrReplace(p.link, &netlink.Addr{
		IPNet:    &net.IPNet{IP: p.address.AsSlice(), Mask: net.CIDRMask(32, 32)},
		ValidLft: seconds, PreferedLft: seconds,
	})
	if err != nil {
		return fmt.Errorf("give %s to %s: %w", p.address, p.link.Attrs().Name, err)
	}
	return nil
}

// remove takes the address away, wherever an earlier run left it.
func (p *place) remove() error {
	all, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range all {
		ones, _ := a.Mask.Size()
		if had, ok := netip.AddrFromSlice(a.IP); !ok || had.Unmap() != p.address || ones != 32 {
			continue
		}
		link, err := netlink.LinkByIndex(a.LinkIndex)
		if err == nil {
			err = netlink.AddrDel(link, &a)
		}
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) { // its time was over meanwhile
			return fmt.Errorf("take %s away: %w", p.address, err)
		}
	}
	return nil
}
