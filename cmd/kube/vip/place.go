package vip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Neighbours keep the hardware address of the last holder for minutes. Each is told
// of the new one at once, some times more for the packets that get lost, and then
// now and then for switches that forget.
const (
	announceOften = 5  // times, one a retry
	announceEvery = 20 // retries from then on: 10 s
)

// place is where the address is to be: on an interface, as a single one.
type place struct {
	link    netlink.Link
	address netip.Addr
}

func findPlace(device string, address netip.Addr) (*place, error) {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", device, err)
	}
	return &place{link, address}, nil
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

// hold has the interface have the address while the lease lasts, and tells the
// neighbours, until ctx ends.
func (p *place) hold(ctx context.Context, lock *tracked, log *slog.Logger) (err error) {
	has := 0 // for how many ticks
	drop := func() error {
		err := p.remove()
		if err == nil && has > 0 {
			log.Info("the address was taken away from this host", "address", p.address)
		}
		has = 0
		return err
	}
	defer func() { err = errors.Join(err, drop()) }()
	tick := time.NewTicker(retry)
	defer tick.Stop()
	told := ""
	for ctx.Err() == nil {
		if left := lock.left(); left < time.Second {
			// This program did not go on for a while: another may have the lease.
			if err := drop(); err != nil {
				return err
			}
		} else {
			if err := p.give(left); err != nil {
				return err
			}
			if has == 0 {
				log.Info("this host has the address", "address", p.address, "interface", p.link.Attrs().Name)
			}
			if has < announceOften || has%announceEvery == 0 {
				if err := p.announce(); err != nil && err.Error() != told {
					told = err.Error()
					log.Warn("neighbours may send to the last holder for a while", "reason", err)
				}
			}
			has++
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
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

// announce tells all neighbours whose the address is now. Some heed a request, some
// an answer that nobody asked for.
func (p *place) announce() (err error) {
	device, err := net.InterfaceByIndex(p.link.Attrs().Index)
	if err != nil {
		return err
	}
	client, err := arp.Dial(device)
	if err != nil {
		return fmt.Errorf("announce %s: %w", p.address, err)
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	for _, op := range []arp.Operation{arp.OperationRequest, arp.OperationReply} {
		packet, err := arp.NewPacket(op, device.HardwareAddr, p.address, ethernet.Broadcast, p.address)
		if err == nil {
			err = client.WriteTo(packet, ethernet.Broadcast)
		}
		if err != nil {
			return fmt.Errorf("announce %s: %w", p.address, err)
		}
	}
	return nil
}
