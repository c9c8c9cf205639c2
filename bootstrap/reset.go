package bootstrap

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/kubewright/kubewright/bootstrap/apilb"
	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/containerd"
	"github.com/kubewright/kubewright/bootstrap/controlplane"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/file"
	"github.com/kubewright/kubewright/bootstrap/inventory"
	"github.com/kubewright/kubewright/bootstrap/journal"
	"github.com/kubewright/kubewright/bootstrap/kernel"
	"github.com/kubewright/kubewright/bootstrap/kubeconfig"
	"github.com/kubewright/kubewright/bootstrap/kubelet"
	"github.com/kubewright/kubewright/bootstrap/kubeproxy"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// Reset is everything that decides the plan of `kubewright reset`, `remove` and `undo`.
type Reset struct {
	Targets []Target // with their journals read
	// Undo says which entries of a host's journal are put back, those of its last
	// steps; nil: all of them, and the host is released.
	Undo func([]journal.Entry) []journal.Entry
	// Departure is how those that are released leave a cluster that lives on. nil: the cluster
	// goes with them, cannot be reached, or none is released; then nothing is drained.
	Departure *Departure
	// Kubeconfig is the user's, which the cluster is taken out of when it goes with its
	// control plane; "" to leave it as it is.
	Kubeconfig string
	Name       string // of the cluster in the kubeconfig
	Server     string // its URL there
	// Force releases a host although something of ours is left on it.
	Force bool
}

// Units are the services of a node.
func Units() []string {
	return []string{
		kubelet.Unit, kubeproxy.Unit, apilb.Unit, containerd.Unit,
		controlplane.SchedulerUnit, controlplane.ControllerManagerUnit, controlplane.APIServerUnit, etcd.Unit,
	}
}

// agentUnits are those that a worker has, too.
func agentUnits() []string {
	return []string{kubelet.Unit, kubeproxy.Unit, apilb.Unit, containerd.Unit}
}

// Proof is what a host was compared with after it was put back.
type Proof struct {
	Host   string
	Result *plan.Value[inventory.Proof]
}

// PlanReset lists the steps that take hosts out of their cluster and leave them
// as they were before: the journal backwards, then a comparison with the inventory
// taken before the first change. A host that belongs to no cluster has no steps, but for what a claim that was only begun has left.
func PlanReset(in Reset) ([]plan.Lane, []Proof, error) {
	leaving := in.begin()
	lanes, proofs := in.lanes(leaving)
	if leaving != nil {
		more, err := leaving.lanes()
		return append(lanes, more...), proofs, err
	}
	last := slices.ContainsFunc(in.Targets, func(t Target) bool { return t.Claim != nil && in.releases(t) && controls(t) })
	if last && in.Kubeconfig != "" {
		lanes = append(lanes, plan.NewLane(localLane, kubeconfig.Local{}, kubeconfig.Local{}, localStep{
			Name: "kubeconfig/remove", Doc: "take the cluster out of the user's kubeconfig",
			Do: kubeconfig.Remove{Path: in.Kubeconfig, Name: in.Name, Server: in.Server}}))
	}
	return lanes, proofs, nil
}

// lanes put the hosts back; those that leave a cluster which lives on, once they have left it.
func (in Reset) lanes(leaving *leaving) (lanes []plan.Lane, proofs []Proof) {
	for _, t := range in.Targets {
		if t.Claim == nil {
			if t.Begun && in.Undo == nil {
				lanes = append(lanes, plan.NewLane[hostReader, hostWriter](t.Wish.Name, t.Host, t.Host, releaseStep()))
			}
			continue
		}
		steps := undoSteps(in.entries(t))
		if in.releases(t) {
			proof := Proof{Host: t.Wish.Name, Result: plan.NewValue[inventory.Proof]("the comparison of " + t.Wish.Name)}
			proofs = append(proofs, proof)
			steps = append(steps, releaseSteps(t, proof, in.Force)...)
			if leaving != nil {
				steps[0].Needs = []plan.Cell{leaving.removed}
				steps = append(leaving.stopSteps(t.Claim.Node), steps...)
			}
		}
		lanes = append(lanes, plan.NewLane[hostReader, hostWriter](t.Wish.Name, t.Host, t.Host, steps...))
	}
	return lanes, proofs
}

// Leavers are the nodes that the targets are which leave their cluster.
func (in Reset) Leavers() []Leaver {
	var all []Leaver
	for _, t := range in.Targets {
		if t.Claim != nil && in.releases(t) {
			all = append(all, t.Leaver())
		}
	}
	return all
}

// Departing are the Leavers, and the targets that an earlier run has put back already and that
// are nodes of the cluster still.
func (in Reset) Departing(live *Live) []Leaver {
	all := in.Leavers()
	for _, t := range in.Targets {
		if m, known := live.Member(t.Wish.Name); known && t.Claim == nil {
			all = append(all, Leaver{Member: m})
		}
	}
	return all
}

// Orphaned tells whether the nodes among the targets have no control plane any more, because an
// earlier run has put all of its hosts back: they are targets, too. There is nothing to drain then.
func (in Reset) Orphaned(ctx context.Context) (bool, error) {
	released := func(server netip.AddrPort) bool {
		return slices.ContainsFunc(in.Targets, func(t Target) bool { return t.Claim == nil && t.interfaceOf(server.Addr()) != "" })
	}
	for _, t := range in.Targets {
		if t.Claim == nil || !t.Member {
			continue
		}
		servers, err := apilb.Remembered(ctx, t.Host)
		if err != nil {
			return false, fault.At(t.Wish.Name, "gather-facts", err)
		}
		if len(servers) == 0 || slices.ContainsFunc(servers, func(s netip.AddrPort) bool { return !released(s) }) {
			return false, nil
		}
	}
	return true, nil
}

// Leaver is the target as a node that leaves, as its claim says.
func (t Target) Leaver() Leaver {
	return Leaver{Member: Member{Node: t.Claim.Node, Host: t.Wish.Name, ControlPlane: controls(t), Address: t.Claim.Address}}
}

// Destroys tells whether a kubeconfig's cluster, by its name and its server's URL there,
// is the one whose control-plane node is among the targets. No API needs to answer for
// that: it may be half made, or half gone.
func (in Reset) Destroys(name, server string) bool {
	return slices.ContainsFunc(in.Targets, func(t Target) bool {
		return t.Claim != nil && controls(t) && t.Claim.Cluster == name && t.interfaceOf(addressOf(server)) != ""
	})
}

func controls(t Target) bool { return t.Claim.Role == string(spec.ControlPlaneRole) }

// entries are those that are put back on a host.
func (in Reset) entries(t Target) []journal.Entry {
	if in.Undo == nil {
		return t.Journal
	}
	return in.Undo(t.Journal)
}

// releases tells whether a host leaves the cluster: nothing of it is to stay.
func (in Reset) releases(t Target) bool { return len(in.entries(t)) == len(t.Journal) }

// Releases tells whether some host leaves the cluster.
func (in Reset) Releases() bool {
	return slices.ContainsFunc(in.Targets, func(t Target) bool { return t.Claim != nil && in.releases(t) })
}

// undoSteps put entries back, the last one first.
func undoSteps(entries []journal.Entry) []hostStep {
	var steps []hostStep
	taken := map[string]bool{}
	for _, undo := range journal.Backwards(entries) {
		component, object, _ := strings.Cut(undo.Entry.Step, "/")
		name := component + "/undo-" + object
		if taken[name] { // the step was broken off, or changed something again later
			name = fmt.Sprintf("%s-%d", name, undo.Entry.Seq)
		}
		taken[name] = true
		steps = append(steps, step(name, "put back what "+undo.Entry.Step+" changed", undo))
	}
	return steps
}

// releaseSteps end the time of a host in a cluster.
func releaseSteps(t Target, proof Proof, force bool) []hostStep {
	return []hostStep{
		{Name: "host/compare", Doc: "compare with what stood there before the first change", Sets: []plan.Cell{proof.Result},
			Do: inventory.Compare{Settings: kernel.Settings(), Ours: journal.Objects(t.Journal), Force: force, Result: proof.Result}},
		// The claim goes last, and by itself: it is what lets a reset be resumed.
		step("host/forget", "what was written down for a reset", file.Gone{Paths: []string{journal.Dir, inventory.File}}),
		releaseStep(),
	}
}

func releaseStep() hostStep {
	return step("host/release", "the mark of the cluster", file.Gone{Paths: []string{claim.Dir}})
}

// LastRun are the entries of the last call that changed the host.
func LastRun(entries []journal.Entry) []journal.Entry {
	if len(entries) == 0 {
		return nil
	}
	run := entries[len(entries)-1].Run.ID
	i := len(entries)
	for i > 0 && entries[i-1].Run.ID == run {
		i--
	}
	return entries[i:]
}

// LastSteps are the entries of the last n steps.
func LastSteps(n int) func([]journal.Entry) []journal.Entry {
	return func(entries []journal.Entry) []journal.Entry { return entries[max(0, len(entries)-n):] }
}

// BackTo are the entries from the last one of a step on; none if there is no such step.
func BackTo(step string) func([]journal.Entry) []journal.Entry {
	return func(entries []journal.Entry) []journal.Entry {
		for i := len(entries) - 1; i >= 0; i-- {
			if entries[i].Step == step {
				return entries[i:]
			}
		}
		return nil
	}
}
