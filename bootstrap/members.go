package bootstrap

import (
	"context"
	"net/netip"
	"slices"

	"github.com/kubewright/kubewright/bootstrap/certs"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/controlplane"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
	"github.com/kubewright/kubewright/bootstrap/systemd"
)

// member is a further control-plane host on its way into the cluster.
type member struct {
	Node
	cluster  *plan.Value[string] // etcd's members with it: they have let it in
	started  *plan.Value[bool]   // its etcd runs
	promoted *plan.Value[bool]   // it has caught up, and a vote
	serving  *plan.Value[bool]   // its API server runs as it should
	// turn is what a member that runs waits for before it is restarted: where all restart
	// at once, nobody is served. None: it does not run, or has no vote.
	turn []plan.Cell
}

// newMembers are the control-plane hosts among nodes, besides the first one.
func newMembers(nodes []Node) []member {
	var all []member
	for _, n := range nodes {
		if n.Wish.Role != spec.ControlPlaneRole {
			continue
		}
		all = append(all, member{
			Node:     n,
			cluster:  plan.NewValue[string]("the members of etcd with " + n.Name),
			started:  plan.NewValue[bool]("etcd on " + n.Name),
			promoted: plan.NewValue[bool]("the vote of " + n.Name),
			serving:  plan.NewValue[bool]("the API server on " + n.Name),
		})
	}
	return all
}

// inTurn has the members of a cluster that serves restart one after the other, if they have
// to at all: first is the first control-plane host's turn to be over. A member that does not run does not
// wait: it may be what is missing to a quorum, and the others do not restart before it is back. One that has
// no vote yet does not wait, either: others may have to wait until it has got it.
func inTurn(members []member, first plan.Cell) {
	turn := []plan.Cell{first}
	for _, m := range members {
		if m.EtcdData && !m.EtcdRuns {
			turn = append(turn, m.serving)
		}
	}
	for i := range members {
		if members[i].EtcdRuns && members[i].HasAPI {
			members[i].turn, turn = turn, []plan.Cell{members[i].serving}
		}
	}
}

// restarted are the members that run, as soon as they run as they should. Of two members each takes
// the quorum along while it restarts: until then the API is not talked to.
func restarted(members []member) []plan.Cell {
	var cells []plan.Cell
	for _, m := range members {
		if m.EtcdRuns {
			cells = append(cells, m.started)
		}
	}
	return cells
}

// memberLane makes a host a further control-plane node. All that needs no other host
// comes first: members are let in one after the other, and may have to wait. before are
// steps that others wait for.
func memberLane(c *shared, m member, before ...hostStep) plan.Lane {
	n := m.Node
	agent, proxy := c.kubelet(n, spec.ControlPlaneRole), c.kubeproxy(n)
	certificates := c.certificates(n)
	certificates.Common = c.common
	steps := slices.Concat(before, hostSteps(c, n, spec.ControlPlaneRole), runtimeSteps(c, n))
	steps = append(steps,
		step("kubelet/configure", "the node agent's and kube-proxy's configuration", c.agentFiles(n, agent, proxy)),
		hostStep{Name: "pki/write", Doc: "the cluster's authorities, from another control-plane host, and certificates of its own",
			Needs: []plan.Cell{c.common}, Do: certificates},
	)
	steps = append(steps, c.writeFilesSteps()...)
	steps = append(steps,
		hostStep{Name: "etcd/configure", Doc: "how it comes to its data", Needs: append(m.turn, m.cluster),
			Do: etcd.Start{Cluster: m.cluster}},
		hostStep{Name: "etcd/start", Doc: "etcd, without a vote at first", Sets: []plan.Cell{m.started},
			Do: hostTold{systemd.Run{Services: []systemd.Service{etcd.Service(c.etcd(n))}}, m.started}},
		// A member without a vote answers no API server.
		hostStep{Name: "controlplane/start", Doc: "the API server", Needs: []plan.Cell{m.promoted}, Sets: []plan.Cell{m.serving},
			Do: hostTold{systemd.Run{Services: []systemd.Service{controlplane.APIServer(c.controlPlane(n))}}, m.serving}},
	)
	steps = append(steps, c.apilbSteps(c.ownServer(n))...)
	steps = append(steps, step("kubelet/start", "the node agent and kube-proxy", c.agents(n, agent, proxy)))
	return c.lane(n, append(steps, c.controllerSteps(n)...))
}

// RefuseMembers tells why control-plane hosts cannot join, before anything is changed: by etcd's arithmetic, and
// of hosts whose data are another etcd's. etcd is reached through one that is in the cluster.
func RefuseMembers(ctx context.Context, via host.Reader, joining []Target) error {
	client := etcd.NewClient(via, certs.Dir+"/etcd")
	defer client.Close() //nolint:errcheck // only read through
	for _, t := range joining {
		if t.Wish.Role != spec.ControlPlaneRole {
			continue
		}
		if t.Fenced != "" {
			return fencedOff(t)
		}
		member := etcd.AddLearner{Name: t.Wish.Name, Fresh: !t.EtcdData}
		if t.Claim != nil { // it has been here before
			member.Name, member.PeerURL = t.Claim.Node, etcd.PeerURL(t.Claim.Address)
		}
		if err := member.Refuse(ctx, client); err != nil {
			return fault.At(t.Wish.Name, "etcd/look", err)
		}
	}
	return nil
}

// steps let a member in, once etcd is there.
func (m member) steps(there plan.Cell) []etcdStep {
	url := etcd.PeerURL(m.Address)
	return []etcdStep{
		{Name: "etcd/add-" + m.Name, Doc: "let " + m.Name + " in, without a vote",
			Needs: []plan.Cell{there}, Sets: []plan.Cell{m.cluster},
			Do: etcd.AddLearner{Name: m.Name, PeerURL: url, Fresh: !m.EtcdData, Cluster: m.cluster}},
		{Name: "etcd/promote-" + m.Name, Doc: "give " + m.Name + " its vote once it has caught up",
			Needs: []plan.Cell{m.started}, Sets: []plan.Cell{m.promoted},
			Do: etcd.Promote{Name: m.Name, PeerURL: url, Done: m.promoted}},
	}
}

// etcdLanes change etcd's membership by way of a control-plane host, once etcd is there. Each member
// has a lane of its own: etcd takes in one at a time, and which is the next one is for etcd to say: it may
// be any of them that an earlier run has left half-way. Members leave when all others are there.
func etcdLanes(connect EtcdConnector, via host.Reader, members []member, there plan.Cell, leaving ...etcdStep) []plan.Lane {
	if len(members)+len(leaving) == 0 {
		return nil
	}
	client := connect.connect(via)
	var lanes []plan.Lane
	for _, m := range members {
		lanes = append(lanes, plan.NewLane[etcd.Reader, etcd.Writer](etcdLane+" "+m.Name, client, client, m.steps(there)...))
		for i := range leaving {
			leaving[i].Needs = append(leaving[i].Needs, m.promoted)
		}
	}
	if len(leaving) > 0 {
		lanes = append(lanes, plan.NewLane[etcd.Reader, etcd.Writer](etcdLane, client, client, leaving...))
	}
	return lanes
}

// servingSteps wait until the members' API servers are known to the cluster.
func servingSteps(members []member) []clusterStep {
	if len(members) == 0 {
		return nil
	}
	addresses := make([]netip.Addr, len(members))
	for i, m := range members {
		addresses[i] = m.Address
	}
	return []clusterStep{{Name: "apiserver/wait-serving", Doc: "wait until the further API servers serve", Wait: true,
		Do: cluster.Serving{Addresses: addresses}}}
}
