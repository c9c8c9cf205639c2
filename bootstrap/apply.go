package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubewright/kubewright/bootstrap/apilb"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/kubeconfig"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// AdminConfig is where a control-plane host keeps the admin's kubeconfig.
const AdminConfig = "/etc/kubernetes/admin.conf"

// Live is a cluster that is there already, as its control-plane host shows it.
type Live struct {
	Access cluster.Access
	Record cluster.Record
	Spec   *spec.Cluster // of the record
	Nodes  []Member
	// Servers are its API servers, as its nodes know them.
	Servers []netip.AddrPort
	// Removed are names of nodes that were removed for good.
	Removed []string
}

// Member is a node of a live cluster.
type Member struct {
	Node         string
	Host         string // as the admin wrote it, "" of a node that kubewright did not make
	ControlPlane bool
	Address      netip.Addr // invalid if it is not known
}

// named tells whether the node is meant by a host's name as the admin wrote it, or by its own.
func (m Member) named(name string) bool { return name != "" && (name == m.Host || name == m.Node) }

// HostOrNode is what the admin calls it.
func (m Member) HostOrNode() string {
	if m.Host != "" {
		return m.Host
	}
	return m.Node
}

// Find returns the cluster that control-plane hosts belong to, through the admin's
// kubeconfig on the first of them that leads to one; nil if there is none that answers.
func Find(ctx context.Context, targets []Target) (*Live, error) {
	for _, t := range targets {
		if t.Claim == nil || !controls(t) {
			continue
		}
		if live, err := find(ctx, t); err != nil || live != nil {
			return live, err
		}
	}
	return nil, nil
}

// find asks the API server of one control-plane host.
func find(ctx context.Context, t Target) (*Live, error) {
	content, err := t.Host.ReadFile(ctx, AdminConfig)
	if err != nil {
		return nil, nil //nolint:nilerr // an init that was broken off early: there is no cluster yet
	}
	access, err := kubeconfig.Parse(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", AdminConfig, err)
	}
	access.Server = ownURL(access.Server, t.Claim.Address)
	return Look(ctx, access, t.Host)
}

// Look returns the cluster at access, reached through a host; nil if its API does
// not answer or it has no record yet.
func Look(ctx context.Context, access cluster.Access, via host.Reader) (*Live, error) {
	client := cluster.New(plan.Of("the admin's access", access), via.Dial)
	record, err := cluster.ReadRecord(ctx, client)
	if err != nil {
		return nil, nil //nolint:nilerr // it does not run, or was broken off: the plan makes it whole
	}
	return lookAt(ctx, access, client, record)
}

// LookThrough is Look for those who need the cluster: that its API does not answer, or has no
// record, is an error. dial may be nil, for a direct connection.
func LookThrough(ctx context.Context, access cluster.Access, dial cluster.DialFunc) (*Live, error) {
	client := cluster.New(plan.Of("the admin's access", access), dial)
	record, err := cluster.ReadRecord(ctx, client)
	if err != nil {
		return nil, err
	}
	return lookAt(ctx, access, client, record)
}

func lookAt(ctx context.Context, access cluster.Access, client cluster.Reader, record cluster.Record) (live *Live, err error) {
	live = &Live{Access: access, Record: record}
	if live.Spec, err = spec.Load(strings.NewReader(record.Spec), "ConfigMap kube-system/kubewright"); err != nil {
		return nil, err
	}
	kube, err := client.Kubernetes(ctx)
	if err != nil {
		return nil, err
	}
	nodes, err := kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	for _, n := range nodes.Items {
		_, controls := n.Labels[controlPlaneKey]
		live.Nodes = append(live.Nodes, Member{Node: n.Name, Host: hostOf(n), ControlPlane: controls, Address: internalAddress(n)})
	}
	if live.Removed, err = cluster.RemovedNames(ctx, client); err != nil {
		return nil, err
	}
	list, err := kube.CoreV1().ConfigMaps(apilb.Namespace).Get(ctx, apilb.ConfigMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) { // broken off before that
		return live, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the cluster's API servers: %w", err)
	}
	live.Servers, err = apilb.Parse(list.Data[apilb.Key])
	return live, err
}

// ownURL is the URL of a server with another address: a host's own API server, where its
// kubeconfig names the one for people.
func ownURL(server string, own netip.Addr) string {
	u, err := url.Parse(server)
	if err != nil || !own.IsValid() {
		return server
	}
	u.Host = net.JoinHostPort(own.String(), u.Port())
	return u.String()
}

// internalAddress is that of a node inside the cluster, invalid if it has told none yet.
func internalAddress(n corev1.Node) netip.Addr {
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			address, _ := netip.ParseAddr(a.Address)
			return address
		}
	}
	return netip.Addr{}
}

func hostOf(n corev1.Node) string { return n.Annotations[cluster.HostAnnotation] }

// Member is the node that is meant by the name of its host, or by its own.
func (l *Live) Member(name string) (Member, bool) {
	if i := slices.IndexFunc(l.Nodes, func(m Member) bool { return m.named(name) }); i >= 0 {
		return l.Nodes[i], true
	}
	return Member{}, false
}

// Guards are what of the cluster a plan depends on.
func (l *Live) Guards() Guards {
	nodes := make([]string, len(l.Nodes))
	for i, n := range l.Nodes {
		nodes[i] = n.Node
	}
	slices.Sort(nodes)
	return Guards{
		"cluster: record": plan.Digest([]byte(l.Record.Name + "\x00" + l.Record.ID + "\x00" + l.Record.Spec + "\x00" + l.Record.Bundle)),
		"cluster: nodes":  strings.Join(nodes, " "),
	}
}

// Gone are the hosts of the live cluster's nodes that a wish does not name any more.
func (l *Live) Gone(wish *spec.Cluster) []Member {
	return slices.DeleteFunc(slices.Clone(l.Nodes), func(m Member) bool {
		return m.Host == "" || slices.ContainsFunc(wish.Hosts, func(h spec.Host) bool {
			return h.Name == m.Host || h.Node == m.Node
		})
	})
}

// staying are the hosts of the record and the API servers that a wish does not name, as it
// may be about some hosts only, and that do not leave.
func (l *Live) staying(wish *spec.Cluster, leaving *leaving) (hosts []spec.Host, servers []netip.AddrPort) {
	gone := l.Gone(wish)
	if leaving != nil {
		gone = slices.DeleteFunc(gone, leaving.leaves)
	}
	for _, h := range l.Spec.Hosts {
		if slices.ContainsFunc(gone, func(m Member) bool { return m.named(h.Name) || m.named(h.Node) }) {
			hosts = append(hosts, h)
		}
	}
	for _, s := range l.Servers {
		if slices.ContainsFunc(gone, func(m Member) bool { return m.Address == s.Addr() }) {
			servers = append(servers, s)
		}
	}
	return hosts, servers
}

// Changeable refuses a wish for what cannot be changed in a cluster that lives.
func (l *Live) Changeable(wish *spec.Cluster) error {
	const remedy = "put back what the cluster has, or make a new cluster"
	var faults []error
	for _, s := range []struct{ field, has, wished string }{
		{"name", l.Record.Name, wish.Name},
		{"network.podCIDR", l.Spec.Network.PodCIDR.String(), wish.Network.PodCIDR.String()},
		{"network.serviceCIDR", l.Spec.Network.ServiceCIDR.String(), wish.Network.ServiceCIDR.String()},
		{"network.dnsDomain", l.Spec.Network.DNSDomain, wish.Network.DNSDomain},
		{"network.backend", string(l.Spec.Network.Backend), string(wish.Network.Backend)},
		{"apiServer.port", fmt.Sprint(l.Spec.APIServer.Port), fmt.Sprint(wish.APIServer.Port)},
	} {
		if s.has != s.wished {
			faults = append(faults, fault.New(fault.SpecInvalid, remedy,
				"%s: it is %s in the cluster, and cannot become %s: pods and nodes rely on it", s.field, s.has, s.wished))
		}
	}
	if has := l.Spec.ControlPlaneEndpoint.VirtualIP; has.IsValid() && !wish.ControlPlaneEndpoint.VirtualIP.IsValid() {
		faults = append(faults, fault.New(fault.SpecInvalid, "put it back, or name another one",
			"controlPlaneEndpoint.virtualIP: it is %s in the cluster, and cannot be taken away: kubeconfigs lead to it", has))
	}
	return errors.Join(faults...)
}
