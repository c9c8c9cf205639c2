package drill

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/host"
)

// Watch looks whether a cluster is well.
type Watch interface {
	// Mark remembers when the host's node was heard of last: what Look sees of it after
	// that has to be news.
	Mark(ctx context.Context)
	// Look says what is not well, each with the host it is about; nothing if all is.
	Look(ctx context.Context) []string
}

// lookTime bounds the question to one of etcd, an API server, or the nodes.
const lookTime = 2 * time.Second

// watch looks at a cluster: etcd's members through one of them, each API server on its own
// host, the nodes through the API as the clients reach it.
type watch struct {
	cluster *Cluster
	victim  Node
	kube    kubernetes.Interface

	mu      sync.Mutex
	members map[string]*member // by host
	heard   heartbeat          // of the victim's node at the mark
	marked  bool
}

// member is a control-plane host as it is asked through one connection.
type member struct {
	host host.Host
	etcd *etcd.Client
	kube kubernetes.Interface
}

// heartbeat is what a node's agent renews.
type heartbeat struct {
	status metav1.Time
	lease  metav1.MicroTime
}

var _ Watch = (*watch)(nil)

func newWatch(c *Cluster, victim Node, kube kubernetes.Interface) *watch {
	return &watch{cluster: c, victim: victim, kube: kube, members: map[string]*member{}}
}

func (w *watch) Mark(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	nodes, lease, err := w.ask(ctx)
	w.marked = true
	if err != nil {
		w.heard = heartbeat{} // anything is news then
		return
	}
	w.heard = w.heartbeat(nodes, lease)
}

func (w *watch) Look(ctx context.Context) []string {
	var all sync.WaitGroup
	var mu sync.Mutex
	var troubles []string
	look := func(see func(context.Context) []string) {
		all.Go(func() {
			seen := see(ctx)
			mu.Lock()
			defer mu.Unlock()
			troubles = append(troubles, seen...)
		})
	}
	for _, n := range w.cluster.controlPlane() {
		look(func(ctx context.Context) []string { return w.lookAtServer(ctx, n) })
	}
	look(w.lookAtEtcd)
	look(w.lookAtNodes)
	all.Wait()
	slices.Sort(troubles)
	return troubles
}

// lookAtEtcd asks all members through the first of their hosts that answers, the victim last.
func (w *watch) lookAtEtcd(ctx context.Context) []string {
	hosts := w.cluster.controlPlane()
	slices.SortStableFunc(hosts, func(x, y Node) int {
		return cmp.Compare(w.order(x), w.order(y))
	})
	var troubles []string
	for _, n := range hosts {
		members, err := w.askEtcd(ctx, n)
		if err != nil {
			troubles = append(troubles, n.Host+": etcd: "+err.Error())
			continue
		}
		troubles = nil
		for _, m := range members {
			if !m.Healthy {
				troubles = append(troubles, "etcd member "+m.Title()+": "+m.Trouble)
			}
		}
		return troubles
	}
	return troubles
}

func (w *watch) order(n Node) int {
	if n.Host == w.victim.Host {
		return 1
	}
	return 0
}

func (w *watch) askEtcd(ctx context.Context, n Node) ([]etcd.Member, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	m, err := w.member(ctx, n)
	if err != nil {
		return nil, err
	}
	return m.etcd.Members(ctx)
}

// lookAtServer asks the API server of a host whether it is ready.
func (w *watch) lookAtServer(ctx context.Context, n Node) []string {
	asking, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	m, err := w.member(asking, n)
	if err != nil {
		return []string{n.Host + ": " + err.Error()}
	}
	failing, err := cluster.Readyz(asking, m.kube)
	if err == nil {
		return nil
	}
	// What goes through a connection fails with it, in many words.
	asking, cancel = context.WithTimeout(ctx, lookTime)
	defer cancel()
	if _, lost := m.host.Stat(asking, "/"); lost != nil {
		w.forget(n)
		return []string{n.Host + ": not reached: " + lost.Error()}
	}
	switch {
	case len(failing) > 1:
		return []string{fmt.Sprintf("%s: API server not ready: %s and %d more", n.Host, failing[0], len(failing)-1)}
	case len(failing) == 1:
		return []string{n.Host + ": API server not ready: " + failing[0]}
	}
	return []string{n.Host + ": API server: " + err.Error()}
}

// member is how a control-plane host is asked.
func (w *watch) member(ctx context.Context, n Node) (*member, error) {
	h, err := w.cluster.Hosts.get(ctx, n.Host)
	if err != nil {
		return nil, fmt.Errorf("not reached: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	m, ok := w.members[n.Host]
	if ok && m.host == h.Host {
		return m, nil
	}
	if ok {
		m.etcd.Close() //nolint:errcheck // only read through
	}
	kube, err := w.cluster.client(func(ctx context.Context, _, _ string) (net.Conn, error) {
		return h.Dial(ctx, "tcp", net.JoinHostPort(n.Address.String(), strconv.Itoa(w.cluster.Port)))
	})
	if err != nil {
		return nil, err
	}
	w.members[n.Host] = &member{host: h.Host, etcd: etcd.NewClient(h, etcdPKI), kube: kube}
	return w.members[n.Host], nil
}

// forget gives up the connection to a host: it leads to one that is no more.
func (w *watch) forget(n Node) {
	w.forgetMember(n)
	w.cluster.Hosts.drop(n.Host)
}

func (w *watch) forgetMember(n Node) {
	w.mu.Lock()
	m, ok := w.members[n.Host]
	delete(w.members, n.Host)
	w.mu.Unlock()
	if ok {
		m.etcd.Close() //nolint:errcheck // only read through
	}
}

func (w *watch) close() {
	for _, n := range w.cluster.controlPlane() {
		w.forgetMember(n)
	}
}

func (w *watch) lookAtNodes(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	nodes, lease, err := w.ask(ctx)
	if err != nil {
		return []string{"API: " + err.Error()}
	}
	var troubles []string
	for _, n := range w.cluster.Nodes {
		at := slices.IndexFunc(nodes, func(o corev1.Node) bool { return o.Name == n.Name })
		if at < 0 {
			troubles = append(troubles, n.Host+": there is no node "+n.Name+" any more")
			continue
		}
		if why := cluster.NotReady(&nodes[at]); why != "" {
			troubles = append(troubles, n.Host+": node not ready: "+why)
		}
	}
	if now := w.heartbeat(nodes, lease); w.marked && len(troubles) == 0 && now == w.heard {
		troubles = append(troubles, w.victim.Host+": its node was not heard of yet")
	}
	return troubles
}

func (w *watch) ask(ctx context.Context) ([]corev1.Node, *coordinationv1.Lease, error) {
	nodes, err := w.kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, nil, fmt.Errorf("list nodes: %w", err)
	}
	lease, err := w.kube.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, w.victim.Name, metav1.GetOptions{})
	if err != nil {
		return nil, nil, fmt.Errorf("lease of node %s: %w", w.victim.Name, err)
	}
	return nodes.Items, lease, nil
}

func (w *watch) heartbeat(nodes []corev1.Node, lease *coordinationv1.Lease) heartbeat {
	var h heartbeat
	if lease.Spec.RenewTime != nil {
		h.lease = *lease.Spec.RenewTime
	}
	for _, n := range nodes {
		for _, c := range n.Status.Conditions {
			if n.Name == w.victim.Name && c.Type == corev1.NodeReady {
				h.status = c.LastHeartbeatTime
			}
		}
	}
	return h
}
