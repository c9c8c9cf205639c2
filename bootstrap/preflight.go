package bootstrap

import (
	"context"
	"net/netip"
	"slices"

	"github.com/kubewright/kubewright/bootstrap/bundle"
	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/preflight"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// Preflight is everything that decides what is looked at before the first change.
type Preflight struct {
	Targets []Target
	Cluster *spec.Cluster // complete with its defaults
	Bundle  *bundle.Bundle
	// Servers are the API servers of the cluster that the targets join, none if it is only
	// being made.
	Servers []netip.AddrPort
	// Neighbours are nodes of that cluster, as far as they were reached.
	Neighbours []preflight.Neighbour
	Ignore     []finding.Code
}

// Run looks at the targets and at what is between them, and notes in each at which
// of its addresses the others reach it. What it found is in the report; the error
// is of the findings that block, or of a host that was lost meanwhile.
func (p Preflight) Run(ctx context.Context) (finding.Report, error) {
	in := preflight.Input{
		Cluster: p.Cluster, Servers: p.Servers, Neighbours: p.Neighbours, Arch: p.Bundle.Arch(), Program: p.Bundle.Probe, Ignore: p.Ignore,
	}
	for _, t := range p.Targets {
		h := preflight.Host{Wish: t.Wish, Host: t.Host, Facts: t.Facts, Member: t.Serving, Reached: t.Reached}
		if t.Claim != nil {
			h.Address = t.Claim.Address
		}
		in.Hosts = append(in.Hosts, h)
	}
	out, err := preflight.Run(ctx, in)
	if err != nil {
		return nil, err
	}
	for i, a := range out.Addresses {
		p.Targets[i].Proven = a
	}
	return out.Report, preflight.Faults(out.Report)
}

// mostNeighbours is how many nodes of a cluster the way to is tried before hosts join it: something
// that keeps all of them from the hosts, such as a firewall of theirs, is found so.
const mostNeighbours = 10

// Neighbours are nodes of the cluster to which the way of pods' packets from the targets, which join it, is to be tried: none
// if no target is new, or pods' packets go as they are.
func (l *Live) Neighbours(targets []Target) []Member {
	fresh := slices.ContainsFunc(targets, func(t Target) bool { return !t.Serving })
	if !fresh || l.Spec.Network.Backend != spec.VXLAN {
		return nil
	}
	all := slices.DeleteFunc(slices.Clone(l.Nodes), func(m Member) bool {
		return m.Host == "" || !m.Address.IsValid() || slices.ContainsFunc(targets, func(t Target) bool { return m.named(t.Wish.Name) })
	})
	return all[:min(len(all), mostNeighbours)]
}
