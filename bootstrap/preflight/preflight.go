// Package preflight finds trouble before the first change: on each host, and
// between every two of them. It changes nothing: what it must try on a host, a
// program tries that is sent there (cmd/probe) and is gone afterwards.
package preflight

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/probe"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// Input is all that decides what is looked at.
type Input struct {
	Hosts []Host
	// Neighbours are nodes of the cluster that is joined, which nothing is to be done on: only the way
	// of pods' packets between them and Hosts is tried.
	Neighbours []Neighbour
	Cluster    *spec.Cluster          // complete with its defaults
	Servers    []netip.AddrPort       // the API servers of the cluster that hosts join, none if it is only being made
	Arch       string                 // of the bundle, as Go names it
	Program    func() ([]byte, error) // the probe, from the bundle
	Ignore     []finding.Code         // to go on in spite of
}

// Host is a connected host with what is known of it.
type Host struct {
	Wish  spec.Host
	Host  host.Host
	Facts host.Facts
	// Member hosts run as nodes already: they are not looked at, so that a run with
	// nothing to do stays quick, and are tried as neighbours are.
	Member bool
	// Address is the one it has in the cluster already, invalid if it is in none.
	Address netip.Addr
	// Reached is the host's own end of the SSH connection, invalid if unknown.
	Reached netip.Addr
}

// Neighbour is a node that runs.
type Neighbour struct {
	Name    string     // of its host, as the admin wrote it
	Address netip.Addr // in the cluster
	Host    host.Host  // nil: it was not reached
	Err     error      // why not
}

func (h Host) controlPlane() bool { return h.Wish.Role == spec.ControlPlaneRole }

// Outcome is what was found, and what was chosen.
type Outcome struct {
	Report finding.Report // sorted
	// Addresses are, by host, those that the other hosts reach; invalid where that was not tried.
	Addresses []netip.Addr
}

// longest is how long all of it may take, however the hosts behave.
const longest = 60 * time.Second

// Run looks at all hosts at once, and then at what is between them. What is wrong
// with hosts is in the report; an error is a host that was lost meanwhile.
func Run(ctx context.Context, in Input) (Outcome, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, longest, fmt.Errorf("preflight took longer than %v", longest))
	defer cancel()
	out := Outcome{Addresses: make([]netip.Addr, len(in.Hosts))}
	for i := range in.Hosts {
		out.Report = append(out.Report, factFindings(&in.Hosts[i], in.Arch)...)
	}
	out.Report = append(out.Report, duplicates(in.Hosts)...)
	out.Report = append(out.Report, virtualIP(in)...)
	out.Report = append(out.Report, evenControlPlanes(in)...)

	looks, err := lookAtAll(ctx, in)
	defer func() {
		for _, l := range looks {
			if l.session != nil {
				l.session.close()
			}
		}
	}()
	if err != nil {
		return out, err
	}
	for _, l := range looks {
		out.Report = append(out.Report, l.findings...)
	}
	out.Report = append(out.Report, clocks(in.Hosts, looks[:len(in.Hosts)])...)

	m := newMesh(in, looks)
	between, err := m.run(ctx)
	if err != nil {
		return out, err
	}
	out.Report = append(out.Report, between...)
	copy(out.Addresses, m.proven)
	out.Report.Ignore(in.Ignore...)
	out.Report.Sort()
	return out, nil
}

// looked is a host that was looked at closely.
type looked struct {
	session  *session    // nil: it was not, or that failed
	seen     *probe.Seen // nil, though there is a session: of a node, for its tunnel alone
	clock    clock
	findings finding.Report
}

// lookAtAll sends the probe to the hosts that are no members yet, and to nodes if their tunnel is to be tried. What is
// known of the neighbours comes after that of the hosts.
func lookAtAll(ctx context.Context, in Input) ([]looked, error) {
	looks := make([]looked, len(in.Hosts)+len(in.Neighbours))
	if !slices.ContainsFunc(in.Hosts, in.probes) {
		return looks, nil
	}
	program, err := in.Program()
	if err != nil {
		return looks, err
	}
	faults := make([]error, len(in.Hosts))
	var all sync.WaitGroup
	for i := range in.Hosts {
		h, l := &in.Hosts[i], &looks[i]
		switch {
		case in.probes(*h):
		case h.Member && in.Cluster.Network.Backend == spec.VXLAN:
			all.Go(func() { l.meet(ctx, Neighbour{Name: h.Wish.Name, Host: h.Host}, program) })
			continue
		default:
			continue
		}
		all.Go(func() {
			traces, err := foreignTraces(ctx, h)
			if err == nil {
				l.findings = traces
				err = l.lookAt(ctx, in, h, program)
			}
			var known *fault.Fault
			switch {
			case errors.As(err, &known), err != nil && ctx.Err() != nil:
				faults[i] = fault.At(h.Wish.Name, step, err)
			case err != nil:
				l.findings = append(l.findings, probeFailed(h, err))
			}
		})
	}
	for i, n := range in.Neighbours {
		all.Go(func() { looks[len(in.Hosts)+i].meet(ctx, n, program) })
	}
	all.Wait()
	return looks, errors.Join(faults...)
}

// meet starts the probe on a node, for its tunnel. That it cannot be tried is no reason not to go on.
func (l *looked) meet(ctx context.Context, n Neighbour, program []byte) {
	err := n.Err
	if err == nil {
		l.session, err = open(ctx, n.Host, program)
	}
	if err != nil {
		l.findings = append(l.findings, untried(n.Name, err))
	}
}

// untried tells of a node to which the way was not tried.
func untried(name string, why error) finding.Finding {
	return finding.Finding{Code: finding.NodeUntried, Severity: finding.Warning, Host: name,
		Message: fmt.Sprintf("whether VXLAN frames pass between it and the hosts that join was not tried: %v", why),
		Remedy:  "see that this machine reaches it by SSH; once they have joined, `kubewright doctor` tells"}
}

// probes tells whether a host is looked at closely.
func (in Input) probes(h Host) bool { return !h.Member && h.Facts.Arch == in.Arch }

// asksForVirtualIP tells whether a host is to ask who has the virtual IP: the first
// control-plane host, while there is no cluster in which one has it rightly.
func (in Input) asksForVirtualIP(h *Host) bool {
	running := len(in.Servers) > 0 || slices.ContainsFunc(in.Hosts, func(h Host) bool { return h.Member || h.Address.IsValid() })
	first := slices.IndexFunc(in.Hosts, Host.controlPlane)
	return !running && first >= 0 && h == &in.Hosts[first]
}

func (l *looked) lookAt(ctx context.Context, in Input, h *Host, program []byte) error {
	s, err := open(ctx, h.Host, program)
	if err != nil {
		return err
	}
	l.session = s
	if l.clock, err = readClock(ctx, h.Host); err != nil {
		return err
	}
	order := probe.Look{Ports: ports(in.Cluster, h.Wish.Role), Paths: paths(h.Wish.Role)}
	if h.controlPlane() {
		order.Disk = etcdData
	}
	if in.asksForVirtualIP(h) {
		order.Unused = in.Cluster.ControlPlaneEndpoint.VirtualIP
	}
	reply, err := s.ask(probe.Order{Look: &order})
	if err != nil {
		return err
	}
	if reply.Seen == nil {
		return errors.New("the probe saw nothing")
	}
	l.seen = reply.Seen
	l.findings = append(l.findings, seenFindings(h, order, l.seen)...)
	return nil
}

// step is what faults say where they are from.
const step = "preflight"

// Faults are the findings that block, as an error: nil if there are none.
func Faults(r finding.Report) error {
	var all []error
	for _, f := range r.Blocking() {
		e := &fault.Fault{Code: fault.HostUnsuitable, Host: f.Host, Step: step, Remedy: f.Remedy,
			Err: fmt.Errorf("%s [%s]", f.Message, f.Code)}
		switch f.Code {
		case finding.ArchMismatch:
			e.Code = fault.BundleRefused
		case finding.DiskSpace:
			e.Code = fault.DiskFull
		case finding.ForeignInstaller: // as the step says that refuses it, too
			e.Code, e.Step = fault.HostTaken, claim.Step
		}
		all = append(all, e)
	}
	return errors.Join(all...)
}
