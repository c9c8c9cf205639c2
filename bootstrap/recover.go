package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/kubewright/kubewright/bootstrap/apilb"
	"github.com/kubewright/kubewright/bootstrap/certs"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/controlplane"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/journal"
	"github.com/kubewright/kubewright/bootstrap/kubeconfig"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// Recover is everything that decides the plan of `kubewright recover`.
type Recover struct {
	Target Target // a control-plane host whose member of etcd is left
	Lost   etcd.Membership
	// GivenUp are, where its member does not tell who the others are, the API servers of those that apilb remembers and
	// that were not removed yet: the member is Silent, or an earlier run has given them up.
	GivenUp []netip.AddrPort
	Silent  bool
	Copy    string // on the host: its data as they were before; "" if there is none
	Access  cluster.Access
	Run     journal.Run
	// Connect reaches the API; nil: cluster.New.
	Connect Connector
	// Etcd reaches etcd; nil: etcd.NewClient.
	Etcd EtcdConnector
	// Self asks the host's own member; nil: etcd.Own.
	Self etcd.Self
}

func (in Recover) self() etcd.Self {
	if in.Self == nil {
		return etcd.Own{PKI: certs.Dir + "/etcd"}
	}
	return in.Self
}

// LookRecover finds out what a recovery gives up, in whose Target is known. It refuses a host from which
// etcd cannot, or need not, be rebuilt.
func LookRecover(ctx context.Context, in Recover) (Recover, error) {
	t := in.Target
	refuse := func(code fault.Code, remedy, format string, args ...any) (Recover, error) {
		return in, fault.At(t.Wish.Name, "etcd/recover", fault.New(code, remedy, format, args...))
	}
	if t.Claim == nil || t.Claim.Role != string(spec.ControlPlaneRole) || !t.EtcdData {
		return refuse(fault.ClusterMissing, "name a control-plane host that is left; without one, `kubewright restore` a backup", "it has no data of etcd")
	}
	if t.Fenced != "" {
		return refuse(fault.Quorum, "name another host", "its data are fenced: %s", t.Fenced)
	}
	if !t.HasAPI { // etcd ends, and for ever, that is to make a learner its only member
		return refuse(fault.Quorum, "name another control-plane host; without one, `kubewright restore` a backup",
			"its member of etcd never had a vote, as its join did not come to an end: it cannot become the only one")
	}
	client := in.Etcd.connect(t.Host)
	if c, ok := client.(io.Closer); ok {
		defer c.Close() //nolint:errcheck // only read through
	}
	members, err := client.Members(ctx)
	if err == nil && len(members) > 1 {
		return refuse(fault.Quorum, "nothing is to be recovered; take lost members out with `kubewright remove HOST --force`",
			"%s: the quorum still answers", etcd.Membership(members).Tally())
	}
	if err != nil { // there is no quorum: what does this host remember?
		if members, err = client.Remembered(ctx); err != nil && !errors.Is(err, etcd.ErrUnreachable) {
			return in, err
		}
	}
	if t := etcd.Membership(members).Tally(); len(members) > 1 && !t.Lost() {
		return refuse(fault.Quorum, "wait a moment, and look with `kubewright etcd members`", "%s: that is a quorum", t)
	}
	for _, m := range members {
		if m.Name != t.Claim.Node {
			in.Lost = append(in.Lost, m)
		}
	}
	in.Silent = len(members) == 0
	if len(in.Lost) == 0 {
		if in.GivenUp, err = apilb.Remembered(ctx, t.Host); err != nil {
			return in, err
		}
		in.GivenUp = slices.DeleteFunc(in.GivenUp, func(s netip.AddrPort) bool { return s.Addr() == t.Claim.Address })
	}
	if in.Copy, err = etcd.CopyFor(ctx, t.Host, in.self()); err != nil {
		return in, err
	}
	content, err := t.Host.ReadFile(ctx, controlplane.SuperAdminKubeconfig)
	if err != nil {
		return in, err
	}
	if in.Access, err = kubeconfig.Parse(content); err != nil {
		return in, fmt.Errorf("%s: %w", controlplane.SuperAdminKubeconfig, err)
	}
	return in, nil
}

// recoverTime bounds the step that copies all of etcd's data, at whatever a slow disk takes for 8 GB.
const recoverTime = 20 * time.Minute

// PlanRecover lists the steps that make etcd a cluster of the one member that is left.
func PlanRecover(in Recover) []plan.Lane {
	done := plan.NewValue[bool]("etcd with one member")
	t := in.Target
	client := in.Connect.connect(plan.Of("the admin's access", in.Access), t.Host.Dial)
	return []plan.Lane{
		plan.NewLane[hostReader, hostWriter](t.Wish.Name, t.Host, journal.Wrap(t.Host, in.Run), hostStep{
			Name: "etcd/recover", Doc: "etcd as the only member, with the data that it has", Sets: []plan.Cell{done}, Timeout: recoverTime,
			Do: hostTold{etcd.Recover{Self: in.self(), Copy: in.Copy}, done}}),
		plan.NewLane[cluster.Reader, cluster.Writer](clusterLane, client, client, clusterStep{
			Name: "apiserver/wait-ready", Doc: "wait until the API server serves", Wait: true, Needs: []plan.Cell{done}, Do: cluster.APIReady{}}),
	}
}

// Others name those that are given up, sorted.
func (in Recover) Others() []string {
	var others []string
	for _, m := range in.Lost {
		others = append(others, m.Title())
	}
	for _, s := range in.GivenUp {
		others = append(others, "the one at "+s.Addr().String())
	}
	slices.Sort(others)
	return others
}

// Advice says what to do after a recovery, a line each.
func (in Recover) Advice() []string {
	node, name := in.Target.Claim.Node, in.Target.Wish.Name
	lines := []string{fmt.Sprintf("etcd has one member, %s", node)}
	if in.Copy != "" {
		lines[0] += fmt.Sprintf("; its data as they were before are on %s in %s (a reset removes them)", name, in.Copy)
	}
	others := in.Others()
	if len(others) == 0 {
		return lines
	}
	remove := strings.Join(others, " ")
	if len(in.GivenUp) > 0 {
		remove = "HOST..."
	}
	return append(lines, keepOff("no longer members: "+strings.Join(others, ", "), "each other"),
		fmt.Sprintf("next: kubewright remove %s --force; then kubewright join --control-plane HOST, for each that is to take the place of one", remove))
}

// keepOff warns of hosts that still have the data of a control plane that was: who says which they are, reach what
// they must not meet as they are.
func keepOff(who, reach string) string {
	return fmt.Sprintf("%s. Keep their hosts off, or reset them, before they reach %s again: together they could take themselves for the cluster", who, reach)
}
