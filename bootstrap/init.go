// Package bootstrap has the verbs. Each is one literal list of steps per host,
// and one for the cluster; the lists are pure functions of the wish and of what
// was found, and package plan runs them all at once.
package bootstrap

import (
	"net/netip"

	"github.com/kubewright/kubewright/bootstrap/bundle"
	"github.com/kubewright/kubewright/bootstrap/certs"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/controlplane"
	"github.com/kubewright/kubewright/bootstrap/etcd"
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
	ID         string   // of the cluster: that of the first host's claim, or a new one
	Targets    []Target // the control-plane node first
	Bundle     *bundle.Bundle
	Run        journal.Run // as the hosts' journals name it
	Kubeconfig string      // the user's, to be merged into
	// Leaving are hosts that are nodes of the cluster and not of the wish: their nodes
	// are drained and removed, and they are put back as they were.
	Leaving []Target
	// Before is the wish of the run before, nil in a new cluster: labels and taints that
	// only it has are taken away.
	Before *spec.Cluster
	// Connect reaches the API; nil: cluster.New.
	Connect Connector
}

// PlanInit lists the steps that make the first control-plane node, and that join
// the other hosts of the spec meanwhile: they need the API for their last steps only.
func PlanInit(in Init) ([]plan.Lane, []Proof, error) {
	nodes, err := resolve(in.Targets, netip.Addr{})
	if err != nil {
		return nil, nil, err
	}
	c := &shared{
		Cluster: in.Cluster, id: in.ID, run: in.Run, before: in.Before, bundle: in.Bundle,
		server: apiURL(nodes[0].Address, in.Cluster.APIServer.Port),
		token:  cluster.NewToken(),

		upstreamDNS: resolvers(nodes),

		ca:     plan.NewValue[[]byte]("the cluster's authority"),
		access: plan.NewValue[cluster.Access]("the certificates"),

		started:    plan.NewValue[bool]("the control plane"),
		apiUp:      plan.NewValue[bool]("the API server"),
		tokenValid: plan.NewValue[bool]("the join token"),
	}
	admin := plan.NewValue[cluster.Access]("the admin's certificate")
	first, workers := nodes[0], joiners(nodes[1:])

	lanes := []plan.Lane{controlPlaneLane(c, first, admin)}
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
		{Name: "cluster/apply-objects", Doc: "rights of nodes and admins, pod network, DNS, the cluster's record",
			Do: cluster.Objects{Objects: objects}},
	}
	steps = append(steps, joinSteps(c, workers)...)
	steps = append(steps, nodeSteps(c, nodes)...)
	if c.Network.Backend != spec.NoNet { // without a pod network there are no pods yet
		steps = append(steps, clusterStep{Name: "coredns/wait-available", Doc: "wait until names of services can be resolved",
			Wait: true, Do: cluster.Available{Namespace: "kube-system", Deployment: "coredns"}})
	}
	var proofs []Proof
	if len(in.Leaving) > 0 {
		leave := Reset{Targets: in.Leaving}
		drained := plan.NewValue[bool]("the nodes to be drained")
		steps = append(steps, leave.drainStep(drained))
		var leaving []plan.Lane
		leaving, proofs = leave.lanes(drained)
		lanes = append(lanes, leaving...)
	}
	client := in.Connect.connect(c.access, first.Host.Dial)
	lanes = append(lanes,
		plan.NewLane[cluster.Reader, cluster.Writer](clusterLane, client, client, steps...),
		plan.NewLane(localLane, kubeconfig.Local{}, kubeconfig.Local{}, localStep{
			Name: "kubeconfig/merge", Doc: "add the cluster to the user's kubeconfig", Needs: []plan.Cell{admin, c.apiUp},
			Do: kubeconfig.Merge{Path: in.Kubeconfig, Name: c.Name, Access: admin},
		}))
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

// controlPlaneLane makes a host a control-plane node. The control plane starts
// before the runtime: it is what takes longest.
func controlPlaneLane(c *shared, n Node, admin *plan.Value[cluster.Access]) plan.Lane {
	agent, proxy := c.kubelet(n, spec.ControlPlaneRole), c.kubeproxy(n)
	steps := append(hostSteps(c, n, spec.ControlPlaneRole),
		hostStep{Name: "pki/write", Doc: "certificates, keys and kubeconfigs, all made in memory here",
			Sets: []plan.Cell{c.ca, c.access, admin},
			Do: issue{
				Ensure: certs.Ensure{Inputs: c.pki(n), Server: c.server, Cluster: c.Name, KubeletCert: kubelet.ClientCert, KubeletDir: kubelet.Dir,
					Result: plan.NewValue[certs.Material]("the certificates")},
				ca: c.ca, super: c.access, admin: admin,
			}},
		hostStep{Name: "controlplane/start", Doc: "etcd and the API server", Sets: []plan.Cell{c.started}, Do: hostTold{
			systemd.Run{Services: []systemd.Service{etcd.Service(c.etcd(n)), controlplane.APIServer(c.controlPlane(n))}}, c.started}},
	)
	steps = append(steps, runtimeSteps(c, n)...)
	steps = append(steps,
		step("kubelet/configure", "the node agent's and kube-proxy's configuration", c.agentFiles(n, agent, proxy)),
		step("kubelet/start", "the node agent and kube-proxy", c.agents(n, agent, proxy)),
		// Started earlier they would only take the processor from the API server,
		// be refused as leaders, and try again two seconds later.
		hostStep{Name: "controllers/start", Doc: "controller manager and scheduler", Needs: []plan.Cell{c.apiUp},
			Do: systemd.Run{Services: controlplane.Controllers(c.controlPlane(n))}},
	)
	steps = append(steps, c.backupStep())
	return c.lane(n, steps)
}
