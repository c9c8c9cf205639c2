package bootstrap

import (
	"context"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubewright/kubewright/bootstrap/apilb"
	"github.com/kubewright/kubewright/bootstrap/bundle"
	"github.com/kubewright/kubewright/bootstrap/certs"
	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/containerd"
	"github.com/kubewright/kubewright/bootstrap/controlplane"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/file"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/install"
	"github.com/kubewright/kubewright/bootstrap/inventory"
	"github.com/kubewright/kubewright/bootstrap/journal"
	"github.com/kubewright/kubewright/bootstrap/kernel"
	"github.com/kubewright/kubewright/bootstrap/kubeconfig"
	"github.com/kubewright/kubewright/bootstrap/kubelet"
	"github.com/kubewright/kubewright/bootstrap/kubeproxy"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
	"github.com/kubewright/kubewright/bootstrap/systemd"
	"github.com/kubewright/kubewright/bootstrap/vip"
	"github.com/kubewright/kubewright/pki"
	"github.com/kubewright/kubewright/templates"
)

// The kinds of step, by what they observe and change.
type (
	hostReader  = host.Reader
	hostWriter  = host.Host
	hostTold    = told[host.Reader, host.Host]
	clusterTold = told[cluster.Reader, cluster.Writer]
	hostStep    = plan.Step[host.Reader, host.Host]
	clusterStep = plan.Step[cluster.Reader, cluster.Writer]
	etcdStep    = plan.Step[etcd.Reader, etcd.Writer]
	localStep   = plan.Step[kubeconfig.Local, kubeconfig.Local]
)

// Names of the lanes that are no host's.
const (
	clusterLane = "cluster"
	etcdLane    = "etcd"
	localLane   = "workstation"
)

// Connector makes the client through which a cluster's lane works, for what access
// will say once it is set; dial may be nil, for a direct connection.
type Connector func(access *plan.Value[cluster.Access], dial cluster.DialFunc) cluster.Writer

// connect is c, or the client for real API servers if c is nil.
func (c Connector) connect(access *plan.Value[cluster.Access], dial cluster.DialFunc) cluster.Writer {
	if c == nil {
		return cluster.New(access, dial)
	}
	return c(access, dial)
}

// shared is what the lanes of one cluster have in common.
type shared struct {
	*spec.Cluster
	id   string
	run  journal.Run
	live *Live // the cluster as it is, nil: there is none, or nothing of it is given up
	// hosts are those of the live cluster's record that the wish does not name, and that stay.
	hosts []spec.Host
	from  *Restore // the backup that the cluster is made from, nil: none
	// recorded tells that the cluster names its control-plane hosts of now: a restored one
	// names those of the backup first, and what learns them finds no way any more. nil: it does.
	recorded *plan.Value[bool]
	bundle   *bundle.Bundle
	// servers are the API servers of the cluster as it is to be.
	servers []netip.AddrPort
	token   cluster.Token
	// upstreamDNS are the resolvers for names outside the cluster, if there are any.
	upstreamDNS []string

	ca         *plan.Value[[]byte]         // PEM
	common     *plan.Value[certs.Common]   // what a further control-plane host gets
	files      *plan.Value[adminContents]  // and this, too
	access     *plan.Value[cluster.Access] // of the installer itself
	started    *plan.Value[bool]           // the first control plane's units run as they should
	apiUp      *plan.Value[bool]
	tokenValid *plan.Value[bool]
}

// lane is a host's: it is read as it is, and changed through its journal.
func (c *shared) lane(n Node, steps []hostStep) plan.Lane {
	return plan.NewLane[hostReader, hostWriter](n.Wish.Name, n.Host, journal.Wrap(n.Host, c.run), steps...)
}

func step(name, doc string, do plan.Action[host.Reader, host.Host]) hostStep {
	return hostStep{Name: name, Doc: doc, Do: do}
}

func apiURL(a netip.Addr, port int) string {
	return "https://" + netip.AddrPortFrom(a, uint16(port)).String()
}

// EtcdConnector makes the client through which etcd's members are seen and changed, by
// way of a control-plane host.
type EtcdConnector func(via host.Reader) etcd.Writer

// connect is c, or the client for real members if c is nil.
func (c EtcdConnector) connect(via host.Reader) etcd.Writer {
	if c == nil {
		return etcd.NewClient(via, certs.Dir+"/etcd")
	}
	return c(via)
}

// ownServer is the API server on a control-plane node.
func (c *shared) ownServer(n Node) netip.AddrPort {
	return netip.AddrPortFrom(n.Address, uint16(c.APIServer.Port))
}

// severalServers are the API servers for a kubeconfig, none if there is one only.
func (c *shared) severalServers() []string {
	if len(c.servers) < 2 {
		return nil
	}
	return apilb.Lines(c.servers)
}

// serversOf are the URLs in the kubeconfigs of a control-plane node.
func (c *shared) serversOf(n Node) certs.Servers {
	return certs.Servers{
		People: PeopleURL(c.Cluster, n.Address),
		Local:  apiURL(n.Address, c.APIServer.Port),
		Agents: apilb.Server(),
	}
}

// PeopleURL is where admins reach the API: the endpoint of the wish, or a control-plane node.
func PeopleURL(c *spec.Cluster, node netip.Addr) string {
	switch e := c.ControlPlaneEndpoint; {
	case e.Address != "":
		return "https://" + net.JoinHostPort(e.Address, strconv.Itoa(c.APIServer.Port))
	case e.VirtualIP.IsValid():
		return apiURL(e.VirtualIP, c.APIServer.Port)
	default:
		return apiURL(node, c.APIServer.Port)
	}
}

// hostSteps begin the lane of every node.
func hostSteps(c *shared, n Node, role spec.Role) []hostStep {
	return []hostStep{
		step(claim.Step, "mark the host as this cluster's", claim.Take{
			ClusterID: c.id, Cluster: c.Name, Role: string(role), Node: n.Name, Address: n.Address,
		}),
		step("host/inventory", "write down what stands on the host, for a reset to compare with", inventory.Keep{Settings: kernel.Settings()}),
		step("bundle/upload", "the component binaries", install.Upload{Bundle: c.bundle}),
		step("bundle/use", "make them the version in use", file.Put{Files: []file.Wish{
			{Path: install.Current, Target: c.bundle.Name()}}}),
		step("kernel/configure", "modules and settings that pods need", kernel.Configure{}),
	}
}

// runtimeSteps give a node its container runtime.
func runtimeSteps(c *shared, n Node) []hostStep {
	images := c.bundle.Images()
	return []hostStep{
		step("containerd/configure", "the container runtime's configuration", containerd.Config(containerd.Inputs{
			PauseImage: images[0].Ref, SystemdCgroup: true, MayLowerOOM: n.Facts.CapSysResource,
		})),
		step("containerd/start", "the container runtime", systemd.Run{Services: []systemd.Service{containerd.Service()}}),
		step("containerd/import-images", "the bundle's container images", containerd.Import{Images: images}),
	}
}

// nodeSteps end the cluster's lane: what the nodes are called and get, and that they are ready.
func nodeSteps(c *shared, nodes []Node) []clusterStep {
	metas := make([]cluster.NodeMeta, len(nodes))
	names := make([]string, len(nodes))
	for i, n := range nodes {
		names[i] = n.Name
		metas[i] = c.nodeMeta(n)
	}
	steps := []clusterStep{
		{Name: "node/set-metadata", Doc: "roles, labels and taints of the nodes", Do: cluster.NodeMetas{Nodes: metas}},
	}
	if c.from != nil { // most of them are in the backup
		steps[0].Do = perhaps[cluster.Reader, cluster.Writer]{steps[0].Do}
	}
	if c.Network.Backend != spec.NoNet { // without a pod network no node gets ready
		steps = append(steps, clusterStep{Name: "node/wait-ready", Doc: "wait until the nodes are ready", Wait: true,
			Do: cluster.NodesReady{Nodes: names}})
	}
	return steps
}

const (
	roleLabel       = "node-role.kubernetes.io/"
	controlPlaneKey = roleLabel + "control-plane"
)

func (c *shared) nodeMeta(n Node) cluster.NodeMeta {
	labels := maps.Clone(n.Wish.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[roleLabel+string(n.Wish.Role)] = ""
	m := cluster.NodeMeta{Node: n.Name, Labels: labels, Annotations: map[string]string{cluster.HostAnnotation: n.Wish.Name}}
	for _, t := range c.taints(n) {
		m.Taints = append(m.Taints, corev1.Taint{Key: t.Key, Value: t.Value, Effect: corev1.TaintEffect(t.Effect)})
	}
	if c.live != nil {
		m.WithoutLabels, m.Without = c.dropped(n, labels)
	}
	if c.from != nil && n.Wish.Role == spec.WorkerRole { // it may have been of the control plane in the backup
		m.WithoutLabels = append(m.WithoutLabels, controlPlaneKey)
		m.Without = append(m.Without, corev1.Taint{Key: controlPlaneKey, Effect: corev1.TaintEffectNoSchedule})
	}
	if n.Wish.Role == spec.ControlPlaneRole && c.ControlPlane.Schedulable {
		m.Without = append(m.Without, corev1.Taint{Key: controlPlaneKey, Effect: corev1.TaintEffectNoSchedule})
	}
	return m
}

// dropped are the labels and taints that the wish of before had for a node, and this one has not.
func (c *shared) dropped(n Node, labels map[string]string) (keys []string, taints []corev1.Taint) {
	before := c.live.Spec.Hosts
	i := slices.IndexFunc(before, func(h spec.Host) bool { return h.Name == n.Wish.Name })
	if i < 0 {
		return nil, nil
	}
	for _, k := range slices.Sorted(maps.Keys(before[i].Labels)) {
		if _, ok := labels[k]; !ok {
			keys = append(keys, k)
		}
	}
	for _, was := range before[i].Taints {
		kept := slices.ContainsFunc(c.taints(n), func(t spec.Taint) bool { return t.Key == was.Key && t.Effect == was.Effect })
		if !kept {
			taints = append(taints, corev1.Taint{Key: was.Key, Effect: corev1.TaintEffect(was.Effect)})
		}
	}
	return keys, taints
}

// taints are the wished ones, and that of a control-plane node which ordinary pods avoid.
func (c *shared) taints(n Node) []spec.Taint {
	var taints []spec.Taint
	if n.Wish.Role == spec.ControlPlaneRole && !c.ControlPlane.Schedulable {
		taints = append(taints, spec.Taint{Key: controlPlaneKey, Effect: spec.NoSchedule})
	}
	return append(taints, n.Wish.Taints...)
}

func (c *shared) pki(n Node) pki.Inputs {
	names := slices.Clone(c.APIServer.ExtraSANs)
	if e := c.ControlPlaneEndpoint; e.Address != "" {
		names = append(names, e.Address)
	}
	if ip := c.ControlPlaneEndpoint.VirtualIP; ip.IsValid() {
		names = append(names, ip.String())
	}
	return pki.Inputs{
		Node: n.Name, Address: n.Address, ServiceIP: c.Network.KubernetesIP(),
		DNSDomain: c.Network.DNSDomain, ExtraSANs: names,
	}
}

func (c *shared) etcd(n Node) etcd.Inputs {
	return etcd.Inputs{NodeName: n.Name, Address: n.Address, PKI: certs.Dir + "/etcd", ExtraArgs: c.Etcd.ExtraArgs}
}

func (c *shared) controlPlane(n Node) controlplane.Inputs {
	return controlplane.Inputs{
		Address: n.Address, Port: c.APIServer.Port,
		PodCIDR: c.Network.PodCIDR, ServiceCIDR: c.Network.ServiceCIDR, Domain: c.Network.DNSDomain,
		PKI: certs.Dir, ClusterName: c.Name,
		APIServerArgs:         c.APIServer.ExtraArgs,
		ControllerManagerArgs: c.ControllerManager.ExtraArgs,
		SchedulerArgs:         c.Scheduler.ExtraArgs,
	}
}

func (c *shared) kubelet(n Node, role spec.Role) kubelet.Inputs {
	in := kubelet.Inputs{
		NodeName: n.Name, Address: n.Address,
		ClusterDNS: c.Network.DNSIP(), ClusterDomain: c.Network.DNSDomain, ResolvConf: n.Facts.ResolvConf(),
		ClientCAFile: certs.Dir + "/ca.crt",
		Socket:       containerd.Socket, Runtime: containerd.Unit, SystemdCgroup: true,
		CgroupV2: n.Facts.CgroupV2, MayLowerOOM: n.Facts.CapSysResource,
		ReadOnlyPort: c.Kubelet.ReadOnlyPort,
		ExtraArgs:    c.Kubelet.ExtraArgs,
		Labels:       ownLabels(n.Wish.Labels),
		PodNetwork:   c.podNetwork(),
	}
	for _, t := range c.taints(n) {
		in.Taints = append(in.Taints, templates.Taint{Key: t.Key, Value: t.Value, Effect: string(t.Effect)})
	}
	return in
}

// podNetwork is what our pod network makes on a node; an admin's own brings what it wants.
func (c *shared) podNetwork() []plan.Object {
	if c.Network.Backend == spec.NoNet {
		return nil
	}
	return slices.Concat(
		plan.Objects(plan.ObjectFile, containerd.CNIConfigDir+"/10-kubewright.conflist"),
		plan.Objects(plan.ObjectInterface, vxlanDevice),
		plan.Objects(plan.ObjectTable, overlayTable),
		plan.Objects(plan.ObjectRoutes, c.Network.PodCIDR.String()))
}

const (
	vxlanDevice  = "flannel.1"
	overlayTable = "kubewright-overlay"
)

// ownLabels are those that a node may give itself when it registers; the others
// are set through the API.
func ownLabels(all map[string]string) map[string]string {
	own := maps.Clone(all)
	maps.DeleteFunc(own, func(k, _ string) bool {
		domain, _, _ := strings.Cut(k, "/")
		return slices.ContainsFunc([]string{"kubernetes.io", "k8s.io"}, func(reserved string) bool {
			return domain == reserved || strings.HasSuffix(domain, "."+reserved)
		})
	})
	return own
}

func (c *shared) kubeproxy(n Node) kubeproxy.Inputs {
	return kubeproxy.Inputs{
		NodeName: n.Name, Address: n.Address, Interface: n.Interface,
		PodCIDR: c.Network.PodCIDR, ServiceCIDR: c.Network.ServiceCIDR,
		Kubeconfig: kubelet.Kubeconfig, Kubelet: kubelet.Unit,
		KeepConntrack: n.Facts.ConntrackMaxFixed,
		ExtraArgs:     c.KubeProxy.ExtraArgs,
	}
}

// agentFiles are the configuration files of the kubelet and of kube-proxy.
func (c *shared) agentFiles(_ Node, agent kubelet.Inputs, proxy kubeproxy.Inputs) file.Put {
	return file.Put{Files: slices.Concat(kubelet.Config(agent).Files, kubeproxy.Config(proxy).Files)}
}

// agents are the units of the kubelet and, if given, of kube-proxy.
func (c *shared) agents(n Node, agent kubelet.Inputs, proxy ...kubeproxy.Inputs) systemd.Run {
	run := systemd.Run{Services: []systemd.Service{kubelet.Service(agent, n.Facts.Tool("nft"))}}
	for _, p := range proxy {
		run.Services = append(run.Services, kubeproxy.Service(p, n.Facts.Tool("ip")))
	}
	return run
}

// told is an action that tells other lanes when its work is done.
type told[R, W any] struct {
	plan.Action[R, W]
	done *plan.Value[bool]
}

func (a told[R, W]) Check(ctx context.Context, r R) (plan.Diff, error) {
	diff, err := a.Action.Check(ctx, r)
	if err == nil && len(diff) == 0 {
		a.done.Set(true)
	}
	return diff, err
}

// Foresee is the action's own.
func (a told[R, W]) Foresee() plan.Diff {
	if f, ok := a.Action.(plan.Foreseer); ok {
		return f.Foresee()
	}
	return nil
}

// perhaps is an action on what a backup brings along: whether something of it is to be changed is not known before.
type perhaps[R, W any] struct{ plan.Action[R, W] }

// Foresee is the action's own, with that said.
func (a perhaps[R, W]) Foresee() plan.Diff {
	f, ok := a.Action.(plan.Foreseer)
	if !ok {
		return nil
	}
	diff := f.Foresee()
	for i, c := range diff {
		if c.Verb == plan.Create {
			diff[i].Verb = plan.Update
		}
		diff[i].Detail = strings.TrimPrefix(c.Detail+", "+unlessSo, ", ")
	}
	return diff
}

const unlessSo = "unless it is so already"

// issue makes the first control-plane host's certificates and tells the other lanes
// what they need of them.
type issue struct {
	certs.Ensure
	ca           *plan.Value[[]byte]
	common       *plan.Value[certs.Common]
	super, admin *plan.Value[cluster.Access]
}

func (a issue) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	diff, err := a.Ensure.Check(ctx, r)
	if err != nil || !a.Result.IsSet() {
		return diff, err
	}
	m := a.Result.Get()
	a.ca.Set(m.CA)
	a.common.Set(m.Common)
	a.super.Set(cluster.Access{Server: a.Servers.Local, CA: m.CA, Cert: m.SuperAdmin.Cert, Key: m.SuperAdmin.Key})
	a.admin.Set(cluster.Access{Server: a.Servers.People, CA: m.CA, Cert: m.Admin.Cert, Key: m.Admin.Key})
	return diff, nil
}

// apilbSteps give a node its way to the API; it needs the authority on the host. own is
// the API server on the same host, invalid if there is none.
func (c *shared) apilbSteps(own netip.AddrPort) []hostStep {
	var needs []plan.Cell
	if c.recorded != nil {
		needs = []plan.Cell{c.recorded}
	}
	return []hostStep{
		{Name: "apilb/seed", Doc: "where the control-plane hosts are, for a node that knows none", Needs: needs, Do: apilb.Seed{Servers: c.servers}},
		step("apilb/start", "the node's own way to all API servers", systemd.Run{Services: []systemd.Service{
			apilb.Service(apilb.Inputs{CAFile: certs.Dir + "/ca.crt", Kubeconfig: kubelet.Kubeconfig, Own: own})}}),
	}
}

// controllerSteps end the lane of a control-plane node: what needs its API server.
func (c *shared) controllerSteps(n Node) []hostStep {
	steps := []hostStep{
		// Started earlier they would only take the processor from the API server,
		// be refused as leaders, and try again two seconds later.
		{Name: "controllers/start", Doc: "controller manager and scheduler", Needs: []plan.Cell{c.apiUp},
			Do: systemd.Run{Services: controlplane.Controllers(c.controlPlane(n))}},
	}
	if ip := c.ControlPlaneEndpoint.VirtualIP; ip.IsValid() {
		steps = append(steps, step("vip/start", "the virtual IP, for one control-plane host at a time", systemd.Run{Services: []systemd.Service{
			vip.Service(vip.Inputs{Address: ip, Interface: n.Interface, NodeName: n.Name, Own: c.ownServer(n),
				APIServer: controlplane.APIServerUnit, Kubeconfig: controlplane.SchedulerKubeconfig})}}))
	}
	return append(steps, c.backupStep())
}

// memberFiles are a worker's share of the credentials: the authority, or the
// kubeconfig that names the certificate which its kubelet renews.
type memberFiles struct {
	ca         *plan.Value[[]byte]
	kubeconfig bool
	server     string
	cluster    string
	node       string
}

func (a memberFiles) put() (file.Put, error) {
	if !a.kubeconfig {
		return file.Put{Files: []file.Wish{{Path: certs.Dir + "/ca.crt", Mode: 0o644, Content: a.ca.Get()}}}, nil
	}
	content, err := pki.Kubeconfig{
		Cluster: a.cluster, User: "system:node:" + a.node, Server: a.server, CA: a.ca.Get(), ClientFile: kubelet.ClientCert,
	}.Render()
	return file.Put{Files: []file.Wish{{Path: kubelet.Kubeconfig, Mode: 0o600, Content: content}}}, err
}

// Foresee is said as long as the authority is not made.
func (a memberFiles) Foresee() plan.Diff {
	path, mode := certs.Dir+"/ca.crt", fs.FileMode(0o644)
	if a.kubeconfig {
		path, mode = kubelet.Kubeconfig, 0o600
	}
	return plan.Diff{{Verb: plan.Create, Kind: plan.ObjectFile, Object: path, After: &plan.State{Mode: mode.String(), Later: true}}}
}

func (a memberFiles) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	put, err := a.put()
	if err != nil {
		return nil, err
	}
	return put.Check(ctx, r)
}

func (a memberFiles) Apply(ctx context.Context, h host.Host) error {
	put, err := a.put()
	if err != nil {
		return err
	}
	return put.Apply(ctx, h)
}
