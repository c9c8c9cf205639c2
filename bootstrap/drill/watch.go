package drill

import (
	"context"
	"fmt"
	"net"
	"path"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kubewright/kubewright/bootstrap/certs"
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

// watch looks at a cluster: each member of etcd and each API server on its own host, the
// nodes through the API as the clients reach it.
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
	etcd *clientv3.Client
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
	for _, n := range w.cluster.controlPlane() {
		all.Go(func() {
			if err := w.lookAt(ctx, n); err != nil {
				mu.Lock()
				defer mu.Unlock()
				troubles = append(troubles, n.Host+": "+err.Error())
			}
		})
	}
	all.Go(func() {
		seen := w.lookAtNodes(ctx)
		mu.Lock()
		defer mu.Unlock()
		troubles = append(troubles, seen...)
	})
	all.Wait()
	slices.Sort(troubles)
	return troubles
}

// lookAt asks the member of etcd and the API server of a host.
func (w *watch) lookAt(ctx context.Context, n Node) error {
	bounded, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	m, err := w.member(ctx, bounded, n)
	if err != nil {
		return err
	}
	if err = m.look(bounded); err == nil {
		return nil
	}
	// What goes through a connection fails with it, in many words.
	alive, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	if _, lost := m.host.Stat(alive, "/"); lost != nil {
		w.forget(n)
		return fmt.Errorf("not reached: %w", lost)
	}
	return err
}

func (m *member) look(ctx context.Context) error {
	// It is answered by a member that is in touch with a majority, and by no other.
	if _, err := m.etcd.Get(ctx, "health"); err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	if failing, err := cluster.Readyz(ctx, m.kube); err != nil {
		return fmt.Errorf("API server: %w %v", err, failing)
	}
	return nil
}

// member is how a control-plane host is asked; ctx is for as long as it may be.
func (w *watch) member(ctx, bounded context.Context, n Node) (*member, error) {
	h, err := w.cluster.Hosts.get(bounded, n.Host)
	if err != nil {
		return nil, fmt.Errorf("not reached: %w", err)
	}
	w.mu.Lock()
	m, ok := w.members[n.Host]
	w.mu.Unlock()
	if ok && m.host == h.Host {
		return m, nil
	}
	w.forgetMember(n)
	made := &member{host: h.Host}
	if made.etcd, err = etcd.Connect(ctx, h, path.Join(certs.Dir, "etcd")); err != nil {
		return nil, err
	}
	made.kube, err = w.cluster.client(func(ctx context.Context, _, _ string) (net.Conn, error) {
		return h.Dial(ctx, "tcp", net.JoinHostPort(n.Address.String(), w.cluster.port()))
	})
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.members[n.Host] = made
	w.mu.Unlock()
	return made, nil
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
