package drill

import (
	"context"
	"net"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"

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

// endpoint is what the certificate of every API server is good for.
func (c *Cluster) endpoint() (host, port string) {
	u, err := url.Parse(c.Access.Server)
	if err != nil {
		return "", ""
	}
	return u.Hostname(), u.Port()
}

// port is that of each API server.
func (c *Cluster) port() string {
	_, port := c.endpoint()
	return port
}

// client is one of the API over connections that dial makes, wherever the address leads.
// It shares none of them with other clients.
func (c *Cluster) client(dial cluster.DialFunc) (*kubernetes.Clientset, error) {
	return kubernetes.NewForConfig(cluster.Config(c.Access, dial))
}

// members are all of etcd, as any control-plane host tells.
func (c *Cluster) members(ctx context.Context) ([]etcd.Member, error) {
	var last error
	for _, n := range c.controlPlane() {
		members, err := func() ([]etcd.Member, error) {
			h, err := c.Hosts.get(ctx, n.Host)
			if err != nil {
				return nil, err
			}
			client, err := etcd.Connect(ctx, h, path.Join(certs.Dir, "etcd"))
			if err != nil {
				return nil, err
			}
			defer client.Close() //nolint:errcheck // only read through
			return etcd.Members(ctx, client)
		}()
		if err == nil {
			return members, nil
		}
		last = fault.At(n.Host, "etcd", err)
	}
	return nil, last
}

// fewest is how many members etcd must have for one to be spared.
const fewest = 3

// spare refuses to harm a member of etcd if the others are no majority by themselves.
func spare(members []etcd.Member) error {
	voting := slices.DeleteFunc(slices.Clone(members), func(m etcd.Member) bool { return m.Learner })
	if n := len(voting); n < fewest {
		return fault.New(fault.Unhealthy, "join more control-plane hosts first: three can spare one",
			"etcd has %d of the %d members that a drill needs: a majority of %d is %d, so none can be spared", n, fewest, n, n/2+1)
	}
	return nil
}

// leader is the control-plane host whose member of etcd leads.
func (c *Cluster) leader(members []etcd.Member) (Node, error) {
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
func (c *Cluster) victim(members []etcd.Member, name string) (Node, error) {
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

// balancer is where a node's own load balancer for the API listens.
const balancer = "127.0.0.1:6444"

const balancerTime = 5 * time.Second

// through returns how clients on a node reach the API, and the address they use.
func (c *Cluster) through(ctx context.Context, n Node) (cluster.DialFunc, string, error) {
	ctx, cancel := context.WithTimeout(ctx, balancerTime)
	defer cancel()
	h, err := c.Hosts.get(ctx, n.Host)
	if err != nil {
		return nil, "", fault.At(n.Host, "connect", err)
	}
	address := balancer
	if conn, err := h.Dial(ctx, "tcp", balancer); err == nil {
		conn.Close() //nolint:errcheck // nothing was said
	} else {
		address = net.JoinHostPort(c.endpoint())
	}
	return func(ctx context.Context, _, _ string) (net.Conn, error) { return h.Dial(ctx, "tcp", address) }, address, nil
}

// fault is what the options ask for.
func (c *Cluster) fault(ctx context.Context, v Node, o Options) (Fault, error) {
	switch o.Kind {
	case Killed:
		return Kill{[]string{etcd.Unit, controlplane.APIServerUnit}}, nil
	case Partitioned:
		h, err := c.Hosts.get(ctx, v.Host)
		return Partition{Others: c.others(v), Admin: h.Admin, Port: h.Port, For: o.For}, err
	case Filled:
		f := Fill{Most: o.MaxFill, For: o.For}
		h, err := c.Hosts.get(ctx, v.Host)
		if err != nil {
			return nil, err
		}
		_, err = f.room(ctx, h) // to be refused at once
		return f, fault.At(v.Host, "drill/"+string(Filled), err)
	case PoweredOff:
		return PowerCut{Off: naming(v, o.Off), On: naming(v, o.On)}, nil
	default:
		return nil, fault.New(fault.Usage, "", "there is no fault %s", o.Kind)
	}
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
