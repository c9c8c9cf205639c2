package bootstrap

import (
	"net/netip"
	"slices"

	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/cleanup"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/containerd"
	"github.com/kubewright/kubewright/bootstrap/controlplane"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/file"
	"github.com/kubewright/kubewright/bootstrap/kernel"
	"github.com/kubewright/kubewright/bootstrap/kubeconfig"
	"github.com/kubewright/kubewright/bootstrap/kubelet"
	"github.com/kubewright/kubewright/bootstrap/kubeproxy"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// Reset is everything that decides the plan of `kubewright reset`.
type Reset struct {
	Targets []Target
	// Cluster is the record of the cluster that the hosts belong to, nil if it
	// cannot be reached: then nothing is drained.
	Cluster *spec.Cluster
	Access  cluster.Access // to that cluster
	// Leave is the user's kubeconfig that the cluster is taken out of when its
	// control-plane node goes; "" to leave it as it is.
	Leave string
	Name  string // of the cluster in the kubeconfig
	// Connect reaches the API; nil: cluster.New.
	Connect Connector
}

// Units are the services of a node, in the order in which they are stopped:
// first what would start others again.
func Units() []string {
	return []string{
		kubelet.Unit, kubeproxy.Unit, containerd.Unit,
		controlplane.SchedulerUnit, controlplane.ControllerManagerUnit, controlplane.APIServerUnit, etcd.Unit,
	}
}

const (
	// podBridge and vxlanDevice are the interfaces of the pod network.
	podBridge   = "cni0"
	vxlanDevice = "flannel.1"
)

// packetFilterTables are the nftables tables of a node: kube-proxy's, the pod
// network's, the port mapping plugin's and the kubelet's.
func packetFilterTables() []string {
	return []string{"kube-proxy", "kubewright-overlay", "cni_hostport", kubelet.FirewallTable}
}

// PlanReset lists the steps that take hosts out of their cluster and leave them
// as they were before. A host that belongs to no cluster has no steps.
func PlanReset(in Reset) ([]plan.Lane, error) {
	var lanes []plan.Lane
	var leaving []string // worker nodes of a cluster that lives on
	last := false        // the control-plane node goes
	for _, t := range in.Targets {
		if t.Claim == nil {
			continue
		}
		if t.Claim.Role == string(spec.ControlPlaneRole) {
			last = true
		} else {
			leaving = append(leaving, t.Claim.Node)
		}
	}
	drained := plan.NewValue[bool]("the nodes to be drained")
	drain := in.Cluster != nil && !last && len(leaving) > 0
	for _, t := range in.Targets {
		if t.Claim == nil {
			continue
		}
		var needs []plan.Cell
		if drain {
			needs = []plan.Cell{drained}
		}
		lanes = append(lanes, resetLane(in, t, needs))
	}
	if drain {
		client := in.Connect.connect(plan.Of("the admin's access", in.Access), in.Targets[0].Host.Dial)
		lanes = append(lanes, plan.NewLane[cluster.Reader, cluster.Writer](clusterLane, client, client,
			clusterStep{Name: "node/drain", Doc: "move the pods to other nodes, and remove the nodes",
				Sets: []plan.Cell{drained}, Do: cluster.RemoveNodes{Nodes: leaving, Done: drained}}))
	}
	if last && in.Leave != "" {
		lanes = append(lanes, plan.NewLane(localLane, kubeconfig.Local{}, kubeconfig.Local{}, localStep{
			Name: "kubeconfig/remove", Doc: "take the cluster out of the user's kubeconfig",
			Do: kubeconfig.Remove{Path: in.Leave, Name: in.Name, Server: in.Access.Server}}))
	}
	return lanes, nil
}

// Destroys tells whether a kubeconfig's cluster, by its name and its server's URL there,
// is the one whose control-plane node is among the targets. No API needs to answer for
// that: it may be half made, or half gone.
func (in Reset) Destroys(name, server string) bool {
	return slices.ContainsFunc(in.Targets, func(t Target) bool {
		return t.Claim != nil && t.Claim.Role == string(spec.ControlPlaneRole) && t.Claim.Cluster == name &&
			t.interfaceOf(addressOf(server)) != ""
	})
}

// resetLane undoes a node's lane, back to front.
func resetLane(in Reset, t Target, needs []plan.Cell) plan.Lane {
	units := []string{kubelet.Unit, kubeproxy.Unit, cleanup.Pods}
	for _, u := range Units() {
		if u != kubelet.Unit && u != kubeproxy.Unit {
			units = append(units, u)
		}
	}
	steps := []hostStep{
		{Name: "unit/stop", Doc: "stop pods and components", Needs: needs, Do: cleanup.Processes{Units: units}},
		step("mount/remove", "what pods had mounted", cleanup.Mounts{
			Below: []string{"/var/lib/kubelet", "/run/containerd", "/var/lib/containerd", "/run/netns"}}),
		step("network/remove", "interfaces, routes and packet filter tables", cleanup.Network{
			Interfaces: []string{podBridge, vxlanDevice}, Tables: packetFilterTables(), Routes: ranges(in.Cluster),
			IP: t.Facts.Tool("ip"), NFT: t.Facts.Tool("nft")}),
		step("unit/remove", "the components' units", cleanup.Units{Units: Units()}),
		step("file/remove", "everything that was not there before", cleanup.Files{
			Paths: UsedPaths(), Before: t.Claim.Before,
			Own: []string{containerd.ConfigFile, containerd.CNIConfigDir + "/10-kubewright.conflist", kernel.SysctlFile, kernel.ModulesFile},
		}),
		step("kernel/restore", "settings as they were", cleanup.Settings{Before: t.Claim.Before.Settings}),
		step("host/release", "the mark of the cluster", file.Gone{Paths: []string{claim.Dir}}),
	}
	return plan.NewLane[hostReader, hostWriter](t.Wish.Name, t.Host, t.Host, steps...)
}

// ranges are the networks whose routes a reset removes.
func ranges(c *spec.Cluster) []netip.Prefix {
	if c == nil {
		c = &spec.Cluster{}
		c.Default()
	}
	return []netip.Prefix{c.Network.PodCIDR, c.Network.ServiceCIDR}
}

// NodeNames are the nodes that targets are, as their claims say.
func NodeNames(targets []Target) []string {
	var names []string
	for _, t := range targets {
		if t.Claim != nil {
			names = append(names, t.Claim.Node)
		}
	}
	return names
}
