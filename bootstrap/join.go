package bootstrap

import (
	"context"
	"net/netip"
	"net/url"
	"slices"

	"github.com/kubewright/kubewright/bootstrap/apilb"
	"github.com/kubewright/kubewright/bootstrap/bundle"
	"github.com/kubewright/kubewright/bootstrap/certs"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/journal"
	"github.com/kubewright/kubewright/bootstrap/kubeconfig"
	"github.com/kubewright/kubewright/bootstrap/kubelet"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// Join is everything that decides the plan of `kubewright join`. All that it
// must know about the cluster was read from the cluster.
type Join struct {
	Cluster *spec.Cluster    // the cluster's record, with the hosts that join
	ID      string           // the cluster's
	Access  cluster.Access   // the admin's
	Servers []netip.AddrPort // the cluster's API servers
	Targets []Target         // the hosts that join
	Bundle  *bundle.Bundle
	Run     journal.Run // as the hosts' journals name it
	// Kubeconfig is the user's, and Name the cluster's in it: further API servers are
	// added there.
	Kubeconfig, Name string
	// Via is a control-plane host of the cluster: what a further one needs comes from it.
	// Only if one of the targets is to be one.
	Via *Target
	// Connect reaches the API; nil: cluster.New.
	Connect Connector
	// Etcd reaches etcd; nil: etcd.NewClient.
	Etcd EtcdConnector
}

// PlanJoin lists the steps that make hosts workers, all of them at once, and further
// control-plane nodes, one after the other.
func PlanJoin(in Join) ([]plan.Lane, error) {
	var peer netip.Addr
	if len(in.Servers) > 0 {
		peer = in.Servers[0].Addr()
	}
	nodes, err := resolve(in.Targets, peer)
	if err != nil {
		return nil, err
	}
	c := &shared{
		Cluster: in.Cluster, id: in.ID, run: in.Run, bundle: in.Bundle,
		servers: in.Servers,
		token:   cluster.NewToken(),
		ca:      plan.Of("the cluster's authority", in.Access.CA),
		common:  plan.NewValue[certs.Common]("the cluster's authorities"),
		files:   plan.NewValue[adminContents]("the admin's files"),
		access:  plan.Of("the admin's access", in.Access),

		apiUp:      plan.NewValue[bool]("the API server"),
		tokenValid: plan.NewValue[bool]("the join token"),
	}
	members, workers := newMembers(nodes), joiners(nodes)
	for _, m := range members {
		c.servers = append(c.servers, c.ownServer(m.Node))
	}
	var lanes []plan.Lane
	if len(members) > 0 {
		lanes = append(lanes, in.commonLanes(c, members)...)
	}
	for _, w := range workers {
		lanes = append(lanes, workerLane(c, w))
	}
	if len(members) > 0 {
		lanes = append(lanes, etcdLanes(in.Etcd, in.Via.Host, members, c.common)...)
		lanes = append(lanes, plan.NewLane(localLane, kubeconfig.Local{}, kubeconfig.Local{}, localStep{
			Name: "kubeconfig/add-servers", Doc: "the further API servers, in the user's kubeconfig",
			Do: kubeconfig.Servers{Path: in.Kubeconfig, Name: in.Name, CA: in.Access.CA, Servers: c.severalServers()}}))
	}
	record, err := recordObjects(c)
	if err != nil {
		return nil, err
	}
	steps := []clusterStep{
		{Name: "apiserver/wait-ready", Doc: "wait until the API server answers from the first host", Wait: true,
			Sets: []plan.Cell{c.apiUp}, Do: clusterTold{cluster.APIReady{}, c.apiUp}},
		{Name: "cluster/apply-record", Doc: "the hosts of the cluster, as it knows them", Do: cluster.Objects{Objects: record}},
		readmitStep(nodes),
	}
	steps = append(steps, joinSteps(c, workers)...)
	steps = append(steps, servingSteps(members)...)
	steps = append(steps, nodeSteps(c, nodes)...)
	steps = append(steps, clusterStep{Name: "coredns/scale", Doc: "names of services from a second host, as there is one now",
		Do: cluster.Scale{Namespace: "kube-system", Deployment: "coredns", AtLeast: dnsReplicas(len(c.Hosts))}})
	client := in.Connect.connect(c.access, nodes[0].Host.Dial)
	return append(lanes, plan.NewLane[cluster.Reader, cluster.Writer](clusterLane, client, client, steps...)), nil
}

// commonLanes make hosts members with what another one has; that may be one of them which is a member already.
func (in Join) commonLanes(c *shared, members []member) []plan.Lane {
	read := append([]hostStep{{Name: "pki/read", Doc: "the cluster's authorities, for the further control-plane hosts", Sets: []plan.Cell{c.common},
		Do: shareCommon{c.common}}}, c.readFilesSteps()...)
	var lanes []plan.Lane
	if !slices.ContainsFunc(members, func(m member) bool { return m.Wish.Name == in.Via.Wish.Name }) {
		lanes = append(lanes, plan.NewLane[hostReader, hostWriter](in.Via.Wish.Name, in.Via.Host, in.Via.Host, read...))
	}
	for _, m := range members {
		if m.Wish.Name == in.Via.Wish.Name {
			lanes = append(lanes, memberLane(c, m, read...))
		} else {
			lanes = append(lanes, memberLane(c, m))
		}
	}
	return lanes
}

// shareCommon reads what control-plane hosts have in common, and changes nothing.
type shareCommon struct{ common *plan.Value[certs.Common] }

func (a shareCommon) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	common, err := certs.ReadCommon(ctx, r)
	if err == nil {
		a.common.Set(common)
	}
	return nil, err
}

func (a shareCommon) Apply(context.Context, host.Host) error { return nil }

// addressOf returns the address in a server's URL, invalid if it has a name instead.
func addressOf(server string) netip.Addr {
	u, err := url.Parse(server)
	if err != nil {
		return netip.Addr{}
	}
	a, _ := netip.ParseAddr(u.Hostname())
	return a
}

// joiner is a worker on its way into the cluster.
type joiner struct {
	Node
	member *plan.Value[bool] // it has a certificate of its own: the token is of no more use to it
}

// joiners are the workers among nodes.
func joiners(nodes []Node) []joiner {
	var all []joiner
	for _, n := range nodes {
		if n.Wish.Role == spec.WorkerRole {
			all = append(all, joiner{n, plan.NewValue[bool]("the certificate of node " + n.Name)})
		}
	}
	return all
}

// workerLane makes a host a worker.
func workerLane(c *shared, w joiner) plan.Lane {
	n := w.Node
	agent, proxy := c.kubelet(n, spec.WorkerRole), c.kubeproxy(n)
	steps := append(hostSteps(c, n, spec.WorkerRole), runtimeSteps(c, n)...)
	steps = append(steps,
		step("kubelet/configure", "the node agent's and kube-proxy's configuration", c.agentFiles(n, agent, proxy)),
		hostStep{Name: "pki/write-ca", Doc: "the authority that the node agent trusts", Needs: []plan.Cell{c.ca},
			Do: memberFiles{ca: c.ca}},
	)
	steps = append(steps, c.apilbSteps(netip.AddrPort{})...)
	if !w.Member {
		steps = append(steps, hostStep{Name: "kubelet/bootstrap", Doc: "start the node agent with the join token, until it has a certificate of its own",
			Needs: []plan.Cell{c.ca, c.tokenValid}, Sets: []plan.Cell{w.member},
			Do: hostTold{kubelet.Bootstrap{CA: c.ca, Server: apilb.Server(), Cluster: c.Name,
				Token: []byte(c.token.Bearer()), Service: c.agents(n, agent).Services[0]}, w.member}})
	}
	steps = append(steps,
		hostStep{Name: "kubelet/configure-access", Doc: "the kubeconfig that names its certificate", Needs: []plan.Cell{c.ca},
			Do: memberFiles{ca: c.ca, kubeconfig: true, server: apilb.Server(), cluster: c.Name, node: n.Name}},
		step("kubelet/start", "the node agent and kube-proxy", c.agents(n, agent, proxy)),
	)
	return c.lane(n, steps)
}

// readmitStep lets nodes register whose names are those of some that were removed.
func readmitStep(nodes []Node) clusterStep {
	var names []string
	for _, n := range nodes {
		names = append(names, n.Name)
	}
	return clusterStep{Name: "node/readmit", Doc: "let nodes back in that were removed once", Do: cluster.Readmit{Nodes: names}}
}

// joinSteps let workers in that are not members yet: a token that lives no
// longer than they need it.
func joinSteps(c *shared, workers []joiner) []clusterStep {
	var pending []plan.Cell
	for _, w := range workers {
		if !w.Member {
			pending = append(pending, w.member)
		}
	}
	if len(pending) == 0 {
		return nil
	}
	return []clusterStep{
		{Name: "token/create", Doc: "a join token that lives for minutes", Sets: []plan.Cell{c.tokenValid},
			Do: clusterTold{cluster.CreateToken{Token: c.token}, c.tokenValid}},
		{Name: "token/remove", Doc: "remove it once every node has its own certificate", Needs: pending,
			Do: cluster.RemoveToken{Token: c.token}},
	}
}
