package bootstrap

import (
	"net/netip"
	"net/url"

	"github.com/kubewright/kubewright/bootstrap/bundle"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/journal"
	"github.com/kubewright/kubewright/bootstrap/kubelet"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// Join is everything that decides the plan of `kubewright join`. All that it
// must know about the cluster was read from the cluster.
type Join struct {
	Cluster *spec.Cluster  // the cluster's record, with the hosts that join
	ID      string         // the cluster's
	Access  cluster.Access // the admin's
	Targets []Target       // the workers
	Bundle  *bundle.Bundle
	Run     journal.Run // as the hosts' journals name it
	// Connect reaches the API; nil: cluster.New.
	Connect Connector
}

// PlanJoin lists the steps that make hosts workers, all of them at once.
func PlanJoin(in Join) ([]plan.Lane, error) {
	nodes, err := resolve(in.Targets, addressOf(in.Access.Server))
	if err != nil {
		return nil, err
	}
	c := &shared{
		Cluster: in.Cluster, id: in.ID, run: in.Run, bundle: in.Bundle,
		server: in.Access.Server,
		token:  cluster.NewToken(),
		ca:     plan.Of("the cluster's authority", in.Access.CA),
		access: plan.Of("the admin's access", in.Access),

		apiUp:      plan.NewValue[bool]("the API server"),
		tokenValid: plan.NewValue[bool]("the join token"),
	}
	workers := joiners(nodes)
	var lanes []plan.Lane
	for _, w := range workers {
		lanes = append(lanes, workerLane(c, w))
	}
	steps := []clusterStep{
		{Name: "apiserver/wait-ready", Doc: "wait until the API server answers from the first host", Wait: true,
			Sets: []plan.Cell{c.apiUp}, Do: clusterTold{cluster.APIReady{}, c.apiUp}},
	}
	steps = append(steps, joinSteps(c, workers)...)
	steps = append(steps, nodeSteps(c, nodes)...)
	client := in.Connect.connect(c.access, nodes[0].Host.Dial)
	return append(lanes, plan.NewLane[cluster.Reader, cluster.Writer](clusterLane, client, client, steps...)), nil
}

// addressOf returns the address in an API server's URL, invalid if it has a name instead.
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

func joiners(nodes []Node) []joiner {
	all := make([]joiner, len(nodes))
	for i, n := range nodes {
		all[i] = joiner{n, plan.NewValue[bool]("the certificate of node " + n.Name)}
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
	if !w.Member {
		steps = append(steps, hostStep{Name: "kubelet/bootstrap", Doc: "start the node agent with the join token, until it has a certificate of its own",
			Needs: []plan.Cell{c.ca, c.tokenValid}, Sets: []plan.Cell{w.member},
			Do: hostTold{kubelet.Bootstrap{CA: c.ca, Server: c.server, Cluster: c.Name,
				Token: []byte(c.token.Bearer()), Service: c.agents(n, agent).Services[0]}, w.member}})
	}
	steps = append(steps,
		hostStep{Name: "kubelet/configure-access", Doc: "the kubeconfig that names its certificate", Needs: []plan.Cell{c.ca},
			Do: memberFiles{ca: c.ca, kubeconfig: true, server: c.server, cluster: c.Name, node: n.Name}},
		step("kubelet/start", "the node agent and kube-proxy", c.agents(n, agent, proxy)),
	)
	return c.lane(n, steps)
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
