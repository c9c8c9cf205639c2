package bootstrap

import (
	"context"
	"net/netip"

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
	Ignore  []finding.Code
}

// Run looks at the targets and at what is between them, and notes in each at which
// of its addresses the others reach it. What it found is in the report; the error
// is of the findings that block, or of a host that was lost meanwhile.
func (p Preflight) Run(ctx context.Context) (finding.Report, error) {
	in := preflight.Input{
		Cluster: p.Cluster, Servers: p.Servers, Arch: p.Bundle.Arch(), Program: p.Bundle.Probe, Ignore: p.Ignore,
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
