package main

import (
	"net"
	"net/netip"
	"time"

	"github.com/mdlayher/arp"
	"github.com/mdlayher/ethernet"

	"github.com/kubewright/kubewright/bootstrap/probe"
)

// How long it is asked for who has an address, and how often: a packet may get lost.
const (
	askTime  = 900 * time.Millisecond
	askEvery = 300 * time.Millisecond
)

// whoHas asks who has an address, on the interfaces whose networks it is in, and
// returns nil if nobody answers, or if the host may not ask.
func whoHas(addr netip.Addr) *probe.Owner {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	answers := make(chan *probe.Owner, len(interfaces))
	asked := 0
	for _, i := range interfaces {
		addrs, err := i.Addrs()
		if err != nil || i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		within := false
		for _, a := range addrs {
			own, err := netip.ParsePrefix(a.String())
			if err == nil && own.Addr() == addr {
				return &probe.Owner{Interface: i.Name, Self: true}
			}
			within = within || err == nil && own.Contains(addr)
		}
		if within {
			asked++
			go func() { answers <- askOn(i, addr) }()
		}
	}
	for range asked {
		if o := <-answers; o != nil {
			return o
		}
	}
	return nil
}

// askOn asks as one who has no address yet (RFC 5227), so that nobody's neighbour
// table changes.
func askOn(i net.Interface, addr netip.Addr) *probe.Owner {
	client, err := arp.Dial(&i)
	if err != nil {
		return nil
	}
	defer client.Close() //nolint:errcheck // it ends with the process
	question, err := arp.NewPacket(arp.OperationRequest, i.HardwareAddr, netip.IPv4Unspecified(), ethernet.Broadcast, addr)
	if err != nil {
		return nil
	}
	end := time.Now().Add(askTime)
	for ask := time.Now(); ask.Before(end); ask = ask.Add(askEvery) {
		if client.WriteTo(question, ethernet.Broadcast) != nil || client.SetReadDeadline(ask.Add(askEvery)) != nil {
			return nil
		}
		for {
			p, _, err := client.Read()
			if err != nil {
				break // the time for answers to this question is over
			}
			if p.SenderIP == addr {
				return &probe.Owner{Interface: i.Name, Hardware: p.SenderHardwareAddr.String()}
			}
		}
	}
	return nil
}
