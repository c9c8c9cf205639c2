package vip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"
)

// How long it is asked for who has the address before it is taken, and how often, as packets get
// lost. RFC 5227 waits for seconds, for hosts that nobody misses meanwhile; an answer takes about a
// millisecond, and a failover waits for all of this.
const (
	askTime  = 300 * time.Millisecond
	askEvery = 100 * time.Millisecond
)

// wire opens the ARP of an interface: arp.Dial, but in tests.
type wire func(*net.Interface) (*arp.Client, error)

// neighbours are the machines in the network of an interface, as far as they and this host speak of
// the address.
type neighbours struct {
	client  *arp.Client
	device  *net.Interface
	address netip.Addr

	claims        chan net.HardwareAddr // of each other machine's packet that says it has the address
	closed, ended chan struct{}
}

// meet listens to the neighbours until close.
func (p *place) meet() (*neighbours, error) {
	device, err := net.InterfaceByIndex(p.link.Attrs().Index)
	if err != nil {
		return nil, fmt.Errorf("ARP on %s: %w", p.link.Attrs().Name, err)
	}
	client, err := p.wire(device)
	if err != nil {
		return nil, fmt.Errorf("ARP on %s: %w", device.Name, err)
	}
	n := &neighbours{client, device, p.address, make(chan net.HardwareAddr), make(chan struct{}), make(chan struct{})}
	go n.listen()
	return n, nil
}

func (n *neighbours) close() error {
	close(n.closed)
	err := n.client.Close()
	<-n.ended
	return err
}

func (n *neighbours) listen() {
	defer close(n.ended)
	for {
		p, _, err := n.client.Read()
		claim := err == nil && p.SenderIP == n.address && !own(p.SenderHardwareAddr)
		if !claim { // an error is of a damaged packet, or of an interface that went down: the socket outlives both
			select {
			case <-n.closed:
				return
			default:
				continue
			}
		}
		select {
		case n.claims <- p.SenderHardwareAddr:
		case <-n.closed:
			return
		}
	}
}

// own tells whether this host has the hardware address: another interface of its own in the
// same network answers, too.
func own(hardware net.HardwareAddr) bool {
	all, err := net.Interfaces()
	return err == nil && slices.ContainsFunc(all, func(i net.Interface) bool { return slices.Equal(i.HardwareAddr, hardware) })
}

// owner asks who has the address, and returns the hardware address of another machine that says
// so, nil if there is none, or if ctx ends.
func (n *neighbours) owner(ctx context.Context) (net.HardwareAddr, error) {
	for range askTime / askEvery {
		if err := n.ask(); err != nil {
			return nil, err
		}
		select {
		case hardware := <-n.claims:
			return hardware, nil
		case <-time.After(askEvery):
		case <-ctx.Done():
			return nil, nil
		}
	}
	return nil, nil
}

// ask asks who has the address as one who has none, so that nobody's neighbour table changes. Linux
// answers this question only, and not what announce says.
func (n *neighbours) ask() error {
	return n.say(arp.OperationRequest, netip.IPv4Unspecified())
}

// announce tells all neighbours whose the address is now. Some heed a request, some
// an answer that nobody asked for.
func (n *neighbours) announce() error {
	return errors.Join(n.say(arp.OperationRequest, n.address), n.say(arp.OperationReply, n.address))
}

func (n *neighbours) say(op arp.Operation, sender netip.Addr) error {
	packet, err := arp.NewPacket(op, n.device.HardwareAddr, sender, ethernet.Broadcast, n.address)
	if err == nil {
		err = n.client.WriteTo(packet, ethernet.Broadcast)
	}
	if err != nil {
		return fmt.Errorf("ARP for %s on %s: %w", n.address, n.device.Name, err)
	}
	return nil
}
