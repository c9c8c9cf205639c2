package bootstrap

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/kubewright/kubewright/bootstrap/apilb"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/controlplane"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/kubeconfig"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
	"github.com/kubewright/kubewright/bootstrap/systemd"
)

// DrainTimeout is how long a drain waits unless it is told otherwise.
const DrainTimeout = 5 * time.Minute

// Departure is how nodes leave a cluster that lives on.
type Departure struct {
	Live  *Live // the cluster, as it was found
	Nodes []Leaver
	// Keeper is a control-plane host that stays, with its claim: API and etcd are reached through it.
	Keeper  Target
	By      string        // who removes the nodes
	Timeout time.Duration // of the drain
	// Force lets pods go that cannot be moved, after Timeout.
	Force bool
	// Kubeconfig is the user's, in which the cluster has Name.
	Kubeconfig, Name string
	// Connect reaches the API; nil: cluster.New.
	Connect Connector
	// Etcd reaches etcd; nil: etcd.NewClient.
	Etcd EtcdConnector
}

// Leaver is a node that leaves its cluster.
type Leaver struct {
	Member
	// Lost tells that SSH does not reach its host: nothing is put back on it.
	Lost bool
}

// Add has a node leave, too. One that does already is not added again.
func (d *Departure) Add(n Leaver) {
	if !d.leaves(n.Member) {
		d.Nodes = append(d.Nodes, n)
	}
}

// leaving is a departure with the cells in which its lanes meet.
type leaving struct {
	*Departure
	drained  *plan.Value[bool]            // no pods are left on the nodes
	unlisted *plan.Value[bool]            // the cluster leads nobody to their API servers any more
	stopped  map[string]*plan.Value[bool] // by node: its control plane, of hosts that are put back
	left     *plan.Value[bool]            // etcd goes on without them; nil: no member is among them
	removed  *plan.Value[bool]            // the nodes are gone: their hosts can be put back
}

// begin makes the cells of the departure; nil if there is none.
func (in Reset) begin() *leaving {
	if in.Departure == nil {
		return nil
	}
	l := &leaving{
		Departure: in.Departure, stopped: map[string]*plan.Value[bool]{},
		drained:  plan.NewValue[bool]("the nodes to be drained"),
		unlisted: plan.NewValue[bool]("the cluster's record without the hosts"),
		removed:  plan.NewValue[bool]("the nodes to be removed"),
	}
	if len(l.controlPlanes()) > 0 {
		l.left = plan.NewValue[bool]("etcd without the hosts")
	}
	for _, n := range in.Leavers() {
		if n.ControlPlane {
			l.stopped[n.Node] = plan.NewValue[bool]("the end of the control plane on " + n.Node)
		}
	}
	return l
}

// controlPlanes are the control-plane nodes that leave.
func (d *Departure) controlPlanes() []Leaver {
	return slices.DeleteFunc(slices.Clone(d.Nodes), func(n Leaver) bool { return !n.ControlPlane })
}

// members takes those of the control-plane nodes that leave out of etcd, and tells done.
func (d *Departure) members(done *plan.Value[bool]) etcd.Remove {
	a := etcd.Remove{Done: done}
	for _, n := range d.controlPlanes() {
		a.Names = append(a.Names, n.Node)
		if n.Address.IsValid() {
			a.PeerURLs = append(a.PeerURLs, etcd.PeerURL(n.Address))
		}
	}
	return a
}

// NodeNames are the nodes that leave.
func (d *Departure) NodeNames() []string { return names(d.Nodes) }

func names(nodes []Leaver) []string {
	all := make([]string, len(nodes))
	for i, n := range nodes {
		all[i] = n.Node
	}
	return all
}

// access is the admin's, to the API server of the host that stays.
func (d *Departure) access() cluster.Access {
	access := d.Live.Access
	access.Server = ownURL(access.Server, d.Keeper.Claim.Address)
	access.Others = nil
	return access
}

// drainStep comes before all that cannot be taken back.
func (l *leaving) drainStep() clusterStep {
	drain := cluster.Drain{Timeout: l.Timeout, Force: l.Force}
	for _, n := range l.Nodes {
		drain.Nodes = append(drain.Nodes, cluster.Leaving{Node: n.Node, Lost: n.Lost})
	}
	return clusterStep{Name: "node/drain", Doc: "move the pods to other nodes, as disruption budgets allow", Timeout: cluster.DrainTime(l.Timeout),
		Sets: []plan.Cell{l.drained}, Do: clusterTold{drain, l.drained}}
}

// unlists marks the step by which the cluster's record, and the list of its API servers, are
// without the nodes. Without a departure it stays as it is.
func (l *leaving) unlists(s clusterStep) clusterStep {
	if l != nil {
		s.Sets, s.Do = append(s.Sets, l.unlisted), clusterTold{s.Do, l.unlisted}
	}
	return s
}

// forgetStep is for those who have no record of their own to write.
func (l *leaving) forgetStep() (clusterStep, error) {
	record, err := l.record()
	return l.unlists(clusterStep{Name: "cluster/forget-hosts", Doc: "the cluster's record, and the way to its API servers, without the hosts",
		Do: cluster.Objects{Objects: record}}), err
}

func (l *leaving) removeStep() clusterStep {
	needs := []plan.Cell{l.drained}
	if l.left != nil {
		needs = append(needs, l.left)
	}
	return clusterStep{Name: "node/remove", Doc: "remove the nodes, and keep them from coming back", Needs: needs, Sets: []plan.Cell{l.removed},
		Do: clusterTold{cluster.Remove{Nodes: names(l.Nodes), By: l.By}, l.removed}}
}

// record is what the cluster knows about itself once the nodes have left.
func (l *leaving) record() ([]*unstructured.Unstructured, error) {
	known := *l.Live.Spec
	known.Hosts = slices.DeleteFunc(slices.Clone(known.Hosts), func(h spec.Host) bool {
		return slices.ContainsFunc(l.Nodes, func(n Leaver) bool { return n.named(h.Name) || n.named(h.Node) })
	})
	text, err := spec.Marshal(&known)
	if err != nil {
		return nil, fmt.Errorf("the cluster's record: %w", err)
	}
	record := l.Live.Record
	record.Spec = string(text)
	object, err := record.Object()
	return []*unstructured.Unstructured{object, apilb.Object(l.servers())}, err
}

// servers are the API servers that stay.
func (l *leaving) servers() []netip.AddrPort {
	return slices.DeleteFunc(slices.Clone(l.Live.Servers), func(s netip.AddrPort) bool {
		return slices.ContainsFunc(l.Nodes, func(n Leaver) bool { return n.Address == s.Addr() })
	})
}

// stopSteps end the control plane of a host that leaves. Its API server ends before the member of
// etcd that it relies on is taken out.
func (l *leaving) stopSteps(node string) []hostStep {
	stopped := l.stopped[node]
	if stopped == nil {
		return nil
	}
	return []hostStep{{Name: "controlplane/stop", Doc: "let the API server and the controllers come to their end",
		Needs: []plan.Cell{l.drained, l.unlisted}, Sets: []plan.Cell{stopped},
		Do: hostTold{systemd.Stop{Units: []string{
			controlplane.SchedulerUnit, controlplane.ControllerManagerUnit, controlplane.APIServerUnit}}, stopped}}}
}

// etcdSteps take the members out, once nothing relies on them.
func (l *leaving) etcdSteps() []etcdStep {
	if l == nil || l.left == nil {
		return nil
	}
	needs := []plan.Cell{l.drained, l.unlisted}
	for _, n := range l.controlPlanes() {
		if stopped := l.stopped[n.Node]; stopped != nil {
			needs = append(needs, stopped)
		}
	}
	return []etcdStep{{Name: "etcd/remove-members", Doc: "move the lead away, and take the members out for ever", Needs: needs,
		Sets: []plan.Cell{l.left}, Do: l.members(l.left)}}
}

// localSteps have the user's kubeconfig lead to an API server that stays.
func (l *leaving) localSteps() []localStep {
	if l.left == nil || l.Kubeconfig == "" {
		return nil
	}
	servers := l.servers()
	others := apilb.Lines(servers)
	if len(servers) < 2 {
		others = nil
	}
	gone := map[netip.Addr]bool{}
	for _, n := range l.controlPlanes() {
		gone[n.Address] = true
	}
	var steps []localStep
	if gone[addressOf(l.Live.Access.Server)] {
		steps = append(steps, localStep{Name: "kubeconfig/repoint", Doc: "lead the user's kubeconfig to a control-plane host that stays",
			Needs: []plan.Cell{l.unlisted},
			Do: kubeconfig.Repoint{Path: l.Kubeconfig, Name: l.Name, From: l.Live.Access.Server,
				To: PeopleURL(l.Live.Spec, l.Keeper.Claim.Address)}})
	}
	return append(steps, localStep{Name: "kubeconfig/forget-servers", Doc: "the API servers that are left, in the user's kubeconfig",
		Needs: []plan.Cell{l.unlisted},
		Do:    kubeconfig.Servers{Path: l.Kubeconfig, Name: l.Name, CA: l.Live.Access.CA, Servers: others}})
}

// lanes are those of the cluster, of etcd and of the workstation.
func (l *leaving) lanes() ([]plan.Lane, error) {
	forget, err := l.forgetStep()
	if err != nil {
		return nil, err
	}
	steps := []clusterStep{l.drainStep(), forget, l.removeStep()}
	client := l.Connect.connect(plan.Of("the admin's access", l.access()), l.Keeper.Host.Dial)
	lanes := []plan.Lane{plan.NewLane[cluster.Reader, cluster.Writer](clusterLane, client, client, steps...)}
	lanes = append(lanes, etcdLanes(l.Etcd, l.Keeper.Host, nil, nil, l.etcdSteps()...)...)
	if steps := l.localSteps(); len(steps) > 0 {
		lanes = append(lanes, plan.NewLane(localLane, kubeconfig.Local{}, kubeconfig.Local{}, steps...))
	}
	return lanes, nil
}

// Stays tells whether a control-plane node of the cluster stays.
func (d *Departure) Stays() bool {
	return slices.ContainsFunc(d.Live.Nodes, func(m Member) bool { return m.ControlPlane && !d.leaves(m) })
}

func (d *Departure) leaves(m Member) bool {
	return slices.ContainsFunc(d.Nodes, func(n Leaver) bool { return n.Node == m.Node })
}

// Keepers are the control-plane nodes that stay.
func (d *Departure) Keepers() []Member {
	return slices.DeleteFunc(slices.Clone(d.Live.Nodes), func(m Member) bool { return !m.ControlPlane || m.Host == "" || d.leaves(m) })
}

// Nodeless are the members of etcd by these names, as a control-plane host sees them, for those that are no node
// any more: somebody deleted it, or the host was lost before it had registered. Names that etcd has not are left out.
func (d *Departure) Nodeless(ctx context.Context, via host.Reader, names []string) ([]Member, error) {
	client := d.Etcd.connect(via)
	if c, ok := client.(io.Closer); ok {
		defer c.Close() //nolint:errcheck // only read through
	}
	members, err := client.Members(ctx)
	if err != nil {
		return nil, err
	}
	var found []Member
	for _, name := range names {
		if m, ok := etcd.Membership(members).Named(name); ok {
			found = append(found, Member{Node: m.Name, Host: name, ControlPlane: true, Address: addressOf(m.Peers[0])})
		}
	}
	return found, nil
}

// Refuse tells by etcd's arithmetic why the nodes cannot leave, before anything is changed.
func (d *Departure) Refuse(ctx context.Context) error {
	if len(d.controlPlanes()) == 0 {
		return nil
	}
	client := d.Etcd.connect(d.Keeper.Host)
	if c, ok := client.(io.Closer); ok {
		defer c.Close() //nolint:errcheck // only read through
	}
	return d.members(nil).Refuse(ctx, client)
}

// Last is the fault of a departure after which no control plane would be left.
func (d *Departure) Last() error {
	return fault.New(fault.Usage, "take the whole cluster down with `kubewright reset`, naming all its hosts",
		"the cluster would be left without a control plane: %s", strings.Join(names(d.Nodes), ", "))
}

// Lose says what is given up with nodes whose hosts do not answer, as a fault that
// names --force.
func (d *Departure) Lose(ctx context.Context, cause error) error {
	client := d.Connect.connect(plan.Of("the admin's access", d.access()), d.Keeper.Host.Dial)
	var hosts, losses []string
	for _, n := range d.Nodes {
		if !n.Lost {
			continue
		}
		hosts = append(hosts, n.HostOrNode())
		loss, err := cluster.Loss(ctx, client, n.Node)
		if err != nil {
			return err
		}
		if n.ControlPlane {
			loss += "; its copy of etcd's data"
		}
		losses = append(losses, "with node "+n.Node+": "+loss)
	}
	return &fault.Fault{Code: fault.HostUnreachable, Step: "connect",
		Err: fmt.Errorf("%w; lost would be %s", cause, strings.Join(losses, "; ")),
		Remedy: fmt.Sprintf("bring it back; or, if it is gone for good and certain to be switched off: kubewright remove %s --force",
			strings.Join(hosts, " "))}
}
