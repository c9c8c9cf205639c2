package bootstrap

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/journal"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// Target is a connected host, as it was found before anything is planned.
type Target struct {
	Wish  spec.Host
	Host  host.Host
	Facts host.Facts
	Claim *claim.Claim // nil: the host belongs to no cluster
	// Begun tells that it has none, and the folder of one: an init or a reset was broken off as it wrote or removed it.
	Begun bool
	// Journal is what was changed on it, the oldest first; only of hosts to be put back.
	Journal []journal.Entry
	// Member tells that its kubelet has a valid certificate of its cluster already.
	Member bool
	// Serving tells that it is a member whose kubelet runs: one that is half made, or
	// broken, is looked at by preflight as if it were new.
	Serving bool
	// Fenced says why the member of etcd on it must not start again, "" if it may.
	Fenced string
	// EtcdData tells that it has the data of a member of etcd.
	EtcdData bool
	// EtcdRuns tells that its etcd is active.
	EtcdRuns bool
	// HasAPI tells that an API server was set up on it, which comes after its member has got its vote.
	HasAPI bool
	// Reached is the host's own end of the SSH connection, invalid if unknown.
	Reached netip.Addr
	// Proven is the address at which preflight saw all other hosts reach it, invalid if that was not tried.
	Proven netip.Addr
}

// Node is a target with everything decided that a plan needs.
type Node struct {
	Target
	Name      string     // in the cluster
	Address   netip.Addr // by which the other nodes reach it
	Interface string     // that has Address
}

// resolve decides names and addresses for hosts that are to be nodes together.
// peer is an address of the cluster that each must be able to reach, invalid if
// the cluster is only being made. All faults are told at once.
func resolve(targets []Target, peer netip.Addr) ([]Node, error) {
	nodes := make([]Node, len(targets))
	var faults []error
	names := map[string]string{}
	for i, t := range targets {
		n := Node{Target: t, Name: t.Wish.Node}
		if n.Name == "" {
			n.Name = strings.ToLower(t.Facts.Hostname)
		}
		if other, taken := names[n.Name]; taken {
			faults = append(faults, &fault.Fault{Code: fault.HostUnsuitable, Host: t.Wish.Name,
				Err:    fmt.Errorf("its node name %s is also that of %s", n.Name, other),
				Remedy: "give one of them another hostname, or a name of its own with `node:` in the cluster file"})
		}
		names[n.Name] = t.Wish.Name
		nodes[i] = n
		if t.Fenced != "" {
			faults = append(faults, fencedOff(t))
		}
	}
	for i := range nodes {
		addr, iface, err := chooseAddress(nodes[i].Target, others(targets, i), peer)
		if err != nil {
			faults = append(faults, &fault.Fault{Code: fault.HostUnsuitable, Host: nodes[i].Wish.Name, Err: err,
				Remedy: "name it with `address:` in the cluster file"})
			continue
		}
		nodes[i].Address, nodes[i].Interface = addr, iface
	}
	return nodes, errors.Join(faults...)
}

// fencedOff is the fault of a host that has the data of a member that is none any more.
func fencedOff(t Target) error {
	return &fault.Fault{Code: fault.HostTaken, Host: t.Wish.Name,
		Err:    fmt.Errorf("etcd on it is fenced: %s", t.Fenced),
		Remedy: "put the host back first: `kubewright reset " + t.Wish.Name + "`; then join it again"}
}

func others(targets []Target, i int) []Target {
	return slices.Concat(targets[:i:i], targets[i+1:])
}

// chooseAddress picks the address by which other nodes reach a host: the one
// that was wished; else the one it has in the cluster already; else the one that
// was proven; else the one that SSH reached,
// if no other host has the same; else the one in a network that every other host, or the peer, is in too. It is
// never simply the first interface's: under Vagrant that is 10.0.2.15 on all hosts.
func chooseAddress(t Target, others []Target, peer netip.Addr) (netip.Addr, string, error) {
	if t.Wish.Address.IsValid() {
		iface := t.interfaceOf(t.Wish.Address)
		if iface == "" {
			return netip.Addr{}, "", fmt.Errorf("no interface has its address %s (there are %s)", t.Wish.Address, t.addresses())
		}
		return t.Wish.Address, iface, nil
	}
	if t.Claim != nil && t.interfaceOf(t.Claim.Address) != "" {
		return t.Claim.Address, t.interfaceOf(t.Claim.Address), nil
	}
	if iface := t.interfaceOf(t.Proven); iface != "" {
		return t.Proven, iface, nil
	}
	unique := func(a netip.Addr) bool {
		return !slices.ContainsFunc(others, func(o Target) bool { return o.interfaceOf(a) != "" })
	}
	reaches := func(p netip.Prefix) bool {
		if peer.IsValid() && !p.Contains(peer) {
			return false
		}
		return !slices.ContainsFunc(others, func(o Target) bool { return !o.within(p) })
	}
	if a := t.Reached; a.Is4() && unique(a) {
		if iface := t.interfaceOf(a); iface != "" {
			return a, iface, nil
		}
	}
	var shared []netip.Addr
	var on string
	for _, i := range t.Facts.Interfaces {
		for _, p := range i.Addrs {
			if a := p.Addr(); a.Is4() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && unique(a) && reaches(p.Masked()) {
				shared, on = append(shared, a), i.Name
			}
		}
	}
	switch len(shared) {
	case 1:
		return shared[0], on, nil
	case 0:
		return netip.Addr{}, "", fmt.Errorf("none of its addresses (%s) is in a network with all other hosts", t.addresses())
	default:
		return netip.Addr{}, "", fmt.Errorf("several of its addresses (%s) could be the node's", join(shared))
	}
}

func (t Target) interfaceOf(a netip.Addr) string {
	for _, i := range t.Facts.Interfaces {
		for _, p := range i.Addrs {
			if p.Addr() == a && !a.IsLoopback() {
				return i.Name
			}
		}
	}
	return ""
}

func (t Target) within(network netip.Prefix) bool {
	for _, i := range t.Facts.Interfaces {
		for _, p := range i.Addrs {
			if network.Contains(p.Addr()) {
				return true
			}
		}
	}
	return false
}

func (t Target) addresses() string {
	var all []netip.Addr
	for _, i := range t.Facts.Interfaces {
		for _, p := range i.Addrs {
			if a := p.Addr(); a.Is4() && !a.IsLoopback() {
				all = append(all, a)
			}
		}
	}
	return join(all)
}

func join(addrs []netip.Addr) string {
	words := make([]string, len(addrs))
	for i, a := range addrs {
		words[i] = a.String()
	}
	return strings.Join(words, ", ")
}
