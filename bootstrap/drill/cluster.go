package drill

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/kubewright/kubewright/bootstrap/apilb"
	"github.com/kubewright/kubewright/bootstrap/certs"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/controlplane"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/fault"
)

// Node is one of a cluster, with its host.
type Node struct {
	Name         string
	Host         string // by which SSH reaches it
	Address      netip.Addr
	Pods         []netip.Prefix // the ranges of its pods
	ControlPlane bool
}

// Cluster is what is practised on.
type Cluster struct {
	Nodes  []Node
	Hosts  *Hosts
	Access cluster.Access
	Port   int // of each API server
}

func (c *Cluster) controlPlane() []Node {
	return slices.DeleteFunc(slices.Clone(c.Nodes), func(n Node) bool { return !n.ControlPlane })
}

// find returns the node of a host.
func (c *Cluster) find(name string) (Node, error) {
	i := slices.IndexFunc(c.Nodes, func(n Node) bool { return n.Host == name })
	if i < 0 {
		return Node{}, fault.New(fault.Usage, "see `kubewright status` for their names", "the cluster has no host %s", name)
	}
	return c.Nodes[i], nil
}

// client is one of the API over connections that dial makes, wherever the address leads.
// It shares none of them with other clients.
func (c *Cluster) client(dial cluster.DialFunc) (*kubernetes.Clientset, error) {
	return kubernetes.NewForConfig(cluster.Config(c.Access, dial))
}

// etcdPKI is where a control-plane host has the certificates of etcd's clients.
const etcdPKI = certs.Dir + "/etcd"

// members are all of etcd, as the first control-plane host that can tells.
func (c *Cluster) members(ctx context.Context) (etcd.Membership, error) {
	var faults []error
	for _, n := range c.controlPlane() {
		h, err := c.Hosts.get(ctx, n.Host)
		if err == nil {
			client := etcd.NewClient(h, etcdPKI)
			var members etcd.Membership
			members, err = client.Members(ctx)
			client.Close() //nolint:errcheck // only read through
			if err == nil {
				return members, nil
			}
		}
		faults = append(faults, fault.At(n.Host, "etcd", err))
	}
	return nil, errors.Join(faults...)
}

// fewest is how many voting members etcd must have for one to be spared.
const fewest = 3

// spare refuses with a fault.Quorum to harm a member of etcd without which the others could not go on.
func spare(members etcd.Membership) error {
	now := members.Tally()
	if now.Voters >= fewest && now.Spare() > 0 {
		return nil
	}
	return fault.New(fault.Quorum, "join more control-plane hosts, or bring back those whose member is not healthy: `kubewright etcd health`",
		"%s: none can be spared for a drill, which needs %d", now, fewest)
}

// leader is the control-plane host whose member of etcd leads.
func (c *Cluster) leader(members etcd.Membership) (Node, error) {
	for _, m := range members {
		for _, n := range c.controlPlane() {
			if m.Leader && m.Name == n.Name {
				return n, nil
			}
		}
	}
	return Node{}, fault.New(fault.Unhealthy, "look at `kubewright doctor`", "etcd has no leader on a host of the cluster's")
}

// victim is the control-plane host that is named, or the one whose etcd leads.
func (c *Cluster) victim(members etcd.Membership, name string) (Node, error) {
	if name == "" {
		return c.leader(members)
	}
	n, err := c.find(name)
	if err == nil && !n.ControlPlane {
		return n, fault.New(fault.Usage, "name a control-plane host, or none: then it is the one whose etcd leads", "%s is a worker", name)
	}
	return n, err
}

// clientsHost is the host that clients go through: one that is not the victim, a worker's if
// there is one, or the one that is named.
func (c *Cluster) clientsHost(victim Node, name string) (Node, error) {
	if name == victim.Host {
		return Node{}, fault.New(fault.Usage, "name another host with --via", "clients cannot go through %s, which is dealt the fault", name)
	}
	if name != "" {
		return c.find(name)
	}
	others := slices.DeleteFunc(slices.Clone(c.Nodes), func(n Node) bool { return n.Host == victim.Host })
	if i := slices.IndexFunc(others, func(n Node) bool { return !n.ControlPlane }); i >= 0 {
		return others[i], nil
	}
	return others[0], nil // etcd has members beside the victim's
}

const dialTime = 5 * time.Second

// through returns how clients on a node reach the API: by the node's own load balancer.
func (c *Cluster) through(ctx context.Context, n Node) (cluster.DialFunc, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	h, err := c.Hosts.get(ctx, n.Host)
	if err != nil {
		return nil, fault.At(n.Host, "connect", err)
	}
	balancer := net.JoinHostPort("127.0.0.1", strconv.Itoa(apilb.Port))
	conn, err := h.Dial(ctx, "tcp", balancer)
	if err != nil {
		return nil, fault.At(n.Host, "apilb", err)
	}
	return func(ctx context.Context, _, _ string) (net.Conn, error) { return h.Dial(ctx, "tcp", balancer) }, conn.Close()
}

// fault is what the options ask for, if the host can be dealt it.
func (c *Cluster) fault(ctx context.Context, v Node, o Options) (Fault, error) {
	h, err := c.Hosts.get(ctx, v.Host)
	if err != nil {
		return nil, fault.At(v.Host, "connect", err)
	}
	var f Fault
	switch o.Kind {
	case Killed:
		f = Kill{[]string{etcd.Unit, controlplane.APIServerUnit}}
	case Partitioned:
		f = Partition{Others: c.others(v), Admin: h.Admin, Port: h.Port, For: o.For}
	case Filled:
		full := Fill{Most: o.MaxFill, For: o.For}
		f, err = full, full.fit(ctx, h)
	case PoweredOff:
		cut := PowerCut{Off: naming(v, o.Off), On: naming(v, o.On)}
		f, err = cut, cut.fit(ctx, h)
	default:
		err = fault.New(fault.Usage, "", "there is no fault %s", o.Kind)
	}
	return f, fault.At(v.Host, stepName(string(o.Kind)), err)
}

// hostWord is what stands for the victim's name in the words of a command.
const hostWord = "{host}"

func naming(v Node, words []string) []string {
	named := make([]string, len(words))
	for i, w := range words {
		named[i] = strings.ReplaceAll(w, hostWord, v.Host)
	}
	return named
}

// others are the addresses of all nodes but one, and of their pods.
func (c *Cluster) others(v Node) []netip.Prefix {
	var all []netip.Prefix
	for _, n := range c.Nodes {
		if n.Host != v.Host {
			all = append(append(all, netip.PrefixFrom(n.Address, n.Address.BitLen())), n.Pods...)
		}
	}
	return all
}
