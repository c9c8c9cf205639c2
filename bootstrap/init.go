// Package bootstrap has the verbs. Each is one literal list of steps per host,
// and one for the cluster; the lists are pure functions of the wish and of what
// was found, and package plan runs them all at once.
package bootstrap

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/kubewright/kubewright/bootstrap/apilb"
	"github.com/kubewright/kubewright/bootstrap/bundle"
	"github.com/kubewright/kubewright/bootstrap/certs"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/controlplane"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/journal"
	"github.com/kubewright/kubewright/bootstrap/kubeconfig"
	"github.com/kubewright/kubewright/bootstrap/kubelet"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
	"github.com/kubewright/kubewright/bootstrap/systemd"
)

// Init is everything that decides the plan of `kubewright init`.
type Init struct {
	Cluster    *spec.Cluster
	ID         string   // of the cluster: that of the hosts' claims, or a new one
	Targets    []Target // in the order of FounderFirst
	Bundle     *bundle.Bundle
	Run        journal.Run // as the hosts' journals name it
	Kubeconfig string      // the user's, to be merged into
	// Leaving are hosts that are nodes of the cluster and not of the wish, if it has a
	// Departure: their nodes are drained and removed, and they are put back as they were.
	Leaving Reset
	// Live is the cluster as it is, nil while it is only being made: what it has and the
	// wish does not name stays, but for labels and taints of hosts that the wish names.
	Live *Live
	// From is the backup that the cluster is made from, nil: it is a new one, or there.
	From *Restore
	// Connect reaches the API; nil: cluster.New.
	Connect Connector
	// Etcd reaches etcd; nil: etcd.NewClient.
	Etcd EtcdConnector
}

// FounderFirst orders hosts as plans want them: first the control-plane host that others
// are added to, then the other control-plane hosts, then the workers. The founder is the
// first one that has etcd's data and a vote, or simply the first one if the cluster is still to be made.
func FounderFirst(targets []Target) []Target {
	rank := func(t Target) int {
		switch {
		case t.Wish.Role != spec.ControlPlaneRole:
			return 4
		case t.EtcdData && t.HasAPI:
			return 0
		case t.EtcdData:
			return 1
		case t.HasAPI: // it was about to found the cluster, and does so when it boots
			return 2
		default:
			return 3
		}
	}
	ordered := slices.Clone(targets)
	slices.SortStableFunc(ordered, func(a, b Target) int { return rank(a) - rank(b) })
	return ordered
}

// RefuseSecond refuses to found a cluster a second time: none of the hosts has etcd's data, and one had them, was to
// get them, or knows API servers that are on no target. Nodes would be led to an empty cluster that has the certificates
// of theirs, and end their pods.
func RefuseSecond(ctx context.Context, targets []Target) error {
	if slices.ContainsFunc(targets, func(t Target) bool { return t.EtcdData }) {
		return nil
	}
	for _, t := range targets {
		if t.Claim == nil {
			continue
		}
		if err := refuseSecond(ctx, t, targets); err != nil {
			return fault.At(t.Wish.Name, "etcd/configure", err)
		}
	}
	return nil
}

func refuseSecond(ctx context.Context, t Target, targets []Target) error {
	elsewhere := func(s netip.AddrPort) bool {
		return !slices.ContainsFunc(targets, func(t Target) bool { return t.interfaceOf(s.Addr()) != "" })
	}
	servers, err := apilb.Remembered(ctx, t.Host)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(servers, elsewhere); i >= 0 {
		remedy := "put it back first: kubewright reset %[1]s"
		if controls(t) {
			remedy = "take it out, and let it in anew: kubewright remove %[1]s, then kubewright join %[1]s --control-plane; if that cluster is lost for good: kubewright reset %[1]s"
		}
		return fault.New(fault.HostTaken, fmt.Sprintf(remedy, t.Wish.Name),
			"cluster %s, which it is a node of, has an API server at %s, and none of the hosts named has its data: it would be founded a second time",
			t.Claim.Cluster, servers[i])
	}
	joined, err := etcd.Joined(ctx, t.Host)
	if err != nil || !joined {
		return err
	}
	return fault.New(fault.HostTaken, fmt.Sprintf("look whether the file system of %s is mounted; if the data are lost: kubewright reset %s, and make the cluster again from a backup (kubewright restore), or anew",
		etcd.DataDir, t.Wish.Name),
		"it is of the control plane of cluster %s, and neither it nor another host named has etcd's data: the cluster would be founded a second time, and empty", t.Claim.Cluster)
}

// PlanInit lists the steps that make the first control-plane node, and that join
// the other hosts of the spec meanwhile: workers need the API for their last steps only,
// further control-plane hosts become members of etcd one after the other.
func PlanInit(in Init) ([]plan.Lane, []Proof, error) {
	nodes, err := resolve(in.Targets, netip.Addr{})
	if err != nil {
		return nil, nil, err
	}
	first, others := nodes[0], nodes[1:]
	c := &shared{
		Cluster: in.Cluster, id: in.ID, run: in.Run, live: in.Live, bundle: in.Bundle, from: in.From,
		token: cluster.NewToken(),

		upstreamDNS: resolvers(nodes),

		ca:     plan.NewValue[[]byte]("the cluster's authority"),
		common: plan.NewValue[certs.Common]("the cluster's authorities"),
		files:  plan.NewValue[adminContents]("the admin's files"),
		access: plan.NewValue[cluster.Access]("the certificates"),

		started:    plan.NewValue[bool]("the control plane"),
		apiUp:      plan.NewValue[bool]("the API server"),
		tokenValid: plan.NewValue[bool]("the join token"),
	}
	leaving := in.Leaving.begin()
	if in.Live != nil {
		c.hosts, c.servers = in.Live.staying(in.Cluster, leaving)
	}
	if in.From != nil {
		c.ca.Set(in.From.common()["ca.crt"])
		c.recorded = plan.NewValue[bool]("the control-plane hosts of now, in the cluster")
	}
	for _, n := range nodes {
		if n.Wish.Role == spec.ControlPlaneRole {
			c.servers = append(c.servers, c.ownServer(n))
		}
	}
	admin := plan.NewValue[cluster.Access]("the admin's certificate")
	members, workers := newMembers(others), joiners(others)
	if in.Live != nil {
		inTurn(members, c.apiUp)
	}

	lanes := []plan.Lane{controlPlaneLane(c, first, admin)}
	for _, m := range members {
		lanes = append(lanes, memberLane(c, m))
	}
	for _, w := range workers {
		lanes = append(lanes, workerLane(c, w))
	}
	objects, err := clusterObjects(c)
	if err != nil {
		return nil, nil, err
	}
	steps := []clusterStep{
		{Name: "apiserver/wait-ready", Doc: "wait until the API server serves", Wait: true,
			Needs: []plan.Cell{c.access, c.started}, Sets: []plan.Cell{c.apiUp}, Do: clusterTold{cluster.APIReady{}, c.apiUp}},
	}
	apply := clusterStep{Name: "cluster/apply-objects", Doc: "rights of nodes and admins, pod network, DNS, the cluster's record",
		Needs: restarted(members), Do: cluster.Objects{Objects: objects}}
	if in.From != nil {
		steps = append(steps, in.From.clusterSteps(c, nodes)...)
		apply.Sets, apply.Do = []plan.Cell{c.recorded}, clusterTold{perhaps[cluster.Reader, cluster.Writer]{apply.Do}, c.recorded}
	}
	steps = append(steps, leaving.unlists(apply), readmitStep(nodes))
	steps = append(steps, joinSteps(c, workers)...)
	steps = append(steps, servingSteps(members)...)
	steps = append(steps, nodeSteps(c, nodes)...)
	if c.Network.Backend != spec.NoNet { // without a pod network there are no pods yet
		steps = append(steps, clusterStep{Name: "coredns/wait-available", Doc: "wait until names of services can be resolved",
			Wait: true, Do: cluster.Available{Namespace: "kube-system", Deployment: "coredns"}})
	}
	merge := localStep{Name: "kubeconfig/merge", Doc: "add the cluster to the user's kubeconfig", Needs: []plan.Cell{admin, c.apiUp},
		Do: kubeconfig.Merge{Path: in.Kubeconfig, Name: c.Name, Access: admin, Servers: c.severalServers()}}
	if in.From != nil { // who had a kubeconfig of the cluster has it still
		merge.Do = perhaps[kubeconfig.Local, kubeconfig.Local]{merge.Do}
	}
	put, proofs := in.Leaving.lanes(leaving)
	lanes = append(lanes, put...)
	if leaving != nil {
		steps = append(steps, leaving.drainStep(), leaving.removeStep())
	}
	lanes = append(lanes, etcdLanes(in.Etcd, first.Host, members, c.started, leaving.etcdSteps()...)...)
	client := in.Connect.connect(c.access, first.Host.Dial)
	lanes = append(lanes,
		plan.NewLane[cluster.Reader, cluster.Writer](clusterLane, client, client, steps...),
		plan.NewLane(localLane, kubeconfig.Local{}, kubeconfig.Local{}, merge))
	return lanes, proofs, nil
}

// resolvers are those of the first node that has any: names outside the cluster
// are asked there. On air-gapped hosts there are none.
func resolvers(nodes []Node) []string {
	for _, n := range nodes {
		if len(n.Facts.Resolvers) > 0 {
			return n.Facts.Resolvers
		}
	}
	return nil
}

// controlPlaneLane makes a host the first control-plane node. The control plane starts
// before the runtime: it is what takes longest.
func controlPlaneLane(c *shared, n Node, admin *plan.Value[cluster.Access]) plan.Lane {
	agent, proxy := c.kubelet(n, spec.ControlPlaneRole), c.kubeproxy(n)
	certificates := c.certificates(n)
	if c.from != nil {
		certificates.Common = plan.Of("the backup's authorities", c.from.common())
	}
	founding := plan.Of("etcd's first member", etcd.Founding(c.etcd(n)))
	steps := append(hostSteps(c, n, spec.ControlPlaneRole),
		hostStep{Name: "pki/write", Doc: "certificates, keys and kubeconfigs, all made in memory here",
			Sets: []plan.Cell{c.ca, c.common, c.access, admin},
			Do:   issue{Ensure: certificates, ca: c.ca, common: c.common, super: c.access, admin: admin}},
	)
	steps = append(steps, c.readFilesSteps()...)
	if c.from != nil {
		steps = append(steps, append(c.from.fileSteps(c.Cluster), c.from.dataStep(c, n))...)
	}
	steps = append(steps,
		step("etcd/configure", "how it comes to its data", etcd.Start{Cluster: founding, New: true}),
		hostStep{Name: "controlplane/start", Doc: "etcd and the API server", Sets: []plan.Cell{c.started}, Do: hostTold{
			systemd.Run{Services: []systemd.Service{etcd.Service(c.etcd(n)), controlplane.APIServer(c.controlPlane(n))}}, c.started}},
	)
	steps = append(steps, step("etcd/settle", "it founds no other cluster if it loses its data", etcd.Start{Cluster: founding}))
	steps = append(steps, runtimeSteps(c, n)...)
	if c.from != nil {
		steps = append(steps, c.from.countStep())
	}
	steps = append(steps, c.apilbSteps(c.ownServer(n))...)
	steps = append(steps,
		step("kubelet/configure", "the node agent's and kube-proxy's configuration", c.agentFiles(n, agent, proxy)),
		step("kubelet/start", "the node agent and kube-proxy", c.agents(n, agent, proxy)),
	)
	return c.lane(n, append(steps, c.controllerSteps(n)...))
}

// certificates are those of a control-plane node.
func (c *shared) certificates(n Node) certs.Ensure {
	return certs.Ensure{Inputs: c.pki(n), Servers: c.serversOf(n), Cluster: c.Name,
		KubeletCert: kubelet.ClientCert, KubeletDir: kubelet.Dir,
		Result: plan.NewValue[certs.Material]("the certificates of " + n.Name)}
}
