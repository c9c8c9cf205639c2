package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// peer is a node as the pod network sees it.
type peer struct {
	Pods    netip.Prefix // of the node
	Address netip.Addr   // that other nodes reach it by
}

// errPending is a Node that is not complete yet: no fault, it will change.
var errPending = errors.New("has no pod range or no address yet")

// peerOf reads a Node. Its pod range must be within the cluster's: a node may
// name a range when it registers, and must not draw other traffic to itself.
func peerOf(n *corev1.Node, cluster netip.Prefix) (peer, error) {
	var p peer
	for _, text := range n.Spec.PodCIDRs {
		pods, err := netip.ParsePrefix(text)
		if err != nil {
			return peer{}, fmt.Errorf("spec.podCIDRs: %w", err)
		}
		if !pods.Addr().Is4() {
			continue
		}
		if pods.Bits() < cluster.Bits() || !cluster.Contains(pods.Addr()) {
			return peer{}, fmt.Errorf("its pod range %s is not in the cluster's, %s", pods, cluster)
		}
		p.Pods = pods.Masked()
		break
	}
	for _, a := range n.Status.Addresses {
		if addr, err := netip.ParseAddr(a.Address); a.Type == corev1.NodeInternalIP && err == nil && addr.Is4() {
			p.Address = addr
			break
		}
	}
	if !p.Pods.IsValid() || !p.Address.IsValid() {
		return peer{}, errPending
	}
	return p, nil
}

// vtepMAC is the hardware address of the VXLAN device of the node with these
// pods: locally administered, and as unique as the range is.
func vtepMAC(pods netip.Prefix) net.HardwareAddr {
	a := pods.Addr().As4()
	return net.HardwareAddr{0x0e, 0x6b, a[0], a[1], a[2], a[3]}
}

// vxlanData is the VXLAN part of a lease, as flannel reads it.
type vxlanData struct {
	VNI     int
	VtepMAC string
}

// lease is the peer in flannel's terms.
func (p peer) lease(backend string) (lease.Lease, error) {
	l := lease.Lease{
		EnableIPv4: true,
		Subnet:     ipNet(p.Pods),
		Attrs:      lease.LeaseAttrs{PublicIP: ip.FromIP(p.Address.AsSlice()), BackendType: backend},
	}
	if backend != backendVXLAN {
		return l, nil
	}
	var err error
	l.Attrs.BackendData, err = json.Marshal(vxlanData{vni, vtepMAC(p.Pods).String()})
	return l, err
}

// peers are nodes by pod range, with the address of each.
type peers map[netip.Prefix]netip.Addr

// changes are what leads from the peers that flannel was told of to those
// wanted: what goes first, as an address may change hands. With all set, those
// that stay are told again.
func changes(told, wanted peers, all bool, backend string) ([]lease.Event, error) {
	var events []lease.Event
	add := func(kind lease.EventType, p peer) error {
		l, err := p.lease(backend)
		events = append(events, lease.Event{Type: kind, Lease: l})
		return err
	}
	for _, pods := range slices.SortedFunc(maps.Keys(told), netip.Prefix.Compare) {
		if _, ok := wanted[pods]; !ok {
			if err := add(lease.EventRemoved, peer{pods, told[pods]}); err != nil {
				return nil, err
			}
		}
	}
	for _, pods := range slices.SortedFunc(maps.Keys(wanted), netip.Prefix.Compare) {
		if all || told[pods] != wanted[pods] {
			if err := add(lease.EventAdded, peer{pods, wanted[pods]}); err != nil {
				return nil, err
			}
		}
	}
	return events, nil
}

// nodes watches the cluster's Nodes and is flannel's subnet manager: a lease is a
// Node with a pod range.
type nodes struct {
	name    string // of this node
	cluster netip.Prefix
	address netip.Addr
	backend string
	log     *slog.Logger

	store   cache.Store
	changed chan struct{} // holds one: look again
	again   atomic.Bool   // tell flannel all peers again
	moved   chan error    // holds one: this node is not what it was

	own    peer           // from awaitOwn
	config *subnet.Config // from register

	mu      sync.Mutex
	refused map[string]string // why, by name of node: each is told once
}

var _ subnet.Manager = (*nodes)(nil)

// watchNodes returns when all Nodes that there are now have been seen.
func watchNodes(ctx context.Context, client kubernetes.Interface, o options, log *slog.Logger) (*nodes, error) {
	n := &nodes{
		name: o.nodeName, cluster: o.podCIDR, address: o.nodeIP, backend: o.backend, log: log,
		changed: make(chan struct{}, 1), moved: make(chan error, 1), refused: map[string]string{},
	}
	api := client.CoreV1().Nodes()
	var informer cache.Controller
	n.store, informer = cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
				return api.List(ctx, opts)
			},
			WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
				return api.Watch(ctx, opts)
			},
		}, client),
		ObjectType: &corev1.Node{},
		Transform:  essential,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { n.look() },
			UpdateFunc: func(any, any) { n.look() },
			DeleteFunc: func(any) { n.look() },
		},
	})
	go informer.RunWithContext(ctx)
	select {
	case <-informer.HasSyncedChecker().Done():
		return n, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// essential keeps of a Node what is read here: a large cluster costs little memory.
func essential(o any) (any, error) {
	n, ok := o.(*corev1.Node)
	if !ok {
		return o, nil
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion},
		Spec:       corev1.NodeSpec{PodCIDRs: n.Spec.PodCIDRs},
		Status:     corev1.NodeStatus{Addresses: n.Status.Addresses},
	}, nil
}

// look makes the watcher look again, now or when it is done with what it does.
func (n *nodes) look() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// Resend makes flannel set all peers' routes again.
func (n *nodes) Resend() {
	n.again.Store(true)
	n.look()
}

// self is this node as its Node object has it now; ok is false while there is
// none or it is incomplete.
func (n *nodes) self() (p peer, ok bool, err error) {
	o, found, err := n.store.GetByKey(n.name)
	if err != nil || !found {
		return peer{}, false, err
	}
	p, err = peerOf(o.(*corev1.Node), n.cluster)
	if errors.Is(err, errPending) {
		return peer{}, false, nil
	}
	if err != nil {
		return peer{}, false, fmt.Errorf("node %s: %w", n.name, err)
	}
	return p, true, nil
}

// awaitOwn waits until this node has a pod range.
func (n *nodes) awaitOwn(ctx context.Context) (peer, error) {
	for said := false; ; said = true {
		p, ok, err := n.self()
		if err != nil {
			return peer{}, err
		}
		if ok && p.Address != n.address {
			return peer{}, fmt.Errorf("node %s: its InternalIP is %s, --node-ip is %s", n.name, p.Address, n.address)
		}
		if ok {
			n.own = p
			return p, nil
		}
		if !said {
			n.log.Info("waiting for the controller manager to give the node a pod range", "node", n.name)
		}
		select {
		case <-n.changed:
		case <-ctx.Done():
			return peer{}, ctx.Err()
		}
	}
}

// wanted are the other nodes.
func (n *nodes) wanted() peers {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := n.store.List()
	slices.SortFunc(all, func(a, b any) int { return strings.Compare(a.(*corev1.Node).Name, b.(*corev1.Node).Name) })
	wanted, refused := peers{}, map[string]string{}
	for _, o := range all {
		node := o.(*corev1.Node)
		if node.Name == n.name {
			continue
		}
		p, err := peerOf(node, n.cluster)
		if errors.Is(err, errPending) {
			continue
		}
		if _, taken := wanted[p.Pods]; err == nil && (taken || p.Pods.Overlaps(n.own.Pods)) {
			err = fmt.Errorf("its pod range %s is another node's", p.Pods)
		}
		if err != nil {
			refused[node.Name] = err.Error()
			if n.refused[node.Name] != err.Error() {
				n.log.Warn("no route to the pods of a node", "node", node.Name, "reason", err)
			}
			continue
		}
		wanted[p.Pods] = p.Address
	}
	n.refused = refused
	return wanted
}

// WatchLeases tells flannel of the other nodes, until ctx ends or this node has
// changed, which goes to moved.
func (n *nodes) WatchLeases(ctx context.Context, out chan []lease.LeaseWatchResult) error {
	told := peers{}
	for {
		if now, ok, err := n.self(); err != nil || ok && now != n.own {
			if err == nil {
				err = fmt.Errorf("node %s was %s with pods %s and is %s with pods %s: starting again",
					n.name, n.own.Address, n.own.Pods, now.Address, now.Pods)
			}
			n.moved <- err
			return nil
		}
		wanted := n.wanted()
		events, err := changes(told, wanted, n.again.Swap(false), n.backend)
		if err != nil {
			n.moved <- err
			return nil
		}
		if len(events) > 0 {
			n.tell(told, wanted)
			select {
			case out <- []lease.LeaseWatchResult{{Events: events}}:
			case <-ctx.Done():
				return nil
			}
		}
		told = wanted
		select {
		case <-n.changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// tell logs what differs.
func (n *nodes) tell(told, wanted peers) {
	for pods, address := range told {
		if _, ok := wanted[pods]; !ok {
			n.log.Info("node left", "pods", pods, "address", address)
		}
	}
	for pods, address := range wanted {
		if told[pods] != address {
			n.log.Info("route to node", "pods", pods, "address", address)
		}
	}
}

// AcquireLease returns this node's lease. A device with another hardware address
// than its peers send to is an error.
func (n *nodes) AcquireLease(_ context.Context, attrs *lease.LeaseAttrs) (*lease.Lease, error) {
	l, err := n.own.lease(n.backend)
	if err != nil {
		return nil, err
	}
	if n.backend == backendVXLAN {
		var device vxlanData
		if err := json.Unmarshal(attrs.BackendData, &device); err != nil {
			return nil, fmt.Errorf("hardware address of %s: %w", vxlanDevice, err)
		}
		if want := vtepMAC(n.own.Pods).String(); device.VtepMAC != want {
			return nil, fmt.Errorf("hardware address of %s is %s, not %s", vxlanDevice, device.VtepMAC, want)
		}
	}
	return &l, nil
}

// GetStoredMacAddresses returns the hardware address that this node's device must have.
func (n *nodes) GetStoredMacAddresses(context.Context) (v4, v6 string) {
	return vtepMAC(n.own.Pods).String(), ""
}

func (n *nodes) GetNetworkConfig(context.Context) (*subnet.Config, error)           { return n.config, nil }
func (n *nodes) GetStoredPublicIP(context.Context) (v4, v6 string)                  { return "", "" }
func (n *nodes) RenewLease(context.Context, *lease.Lease) error                     { return nil } // a Node's range does not expire
func (n *nodes) CompleteLease(context.Context, *lease.Lease, *sync.WaitGroup) error { return nil }
func (n *nodes) Name() string                                                       { return "nodes of the cluster" }

// WatchLease and HandleSubnetFile are for flannel's own main and its CNI plugin.
func (n *nodes) WatchLease(context.Context, ip.IP4Net, ip.IP6Net, chan []lease.LeaseWatchResult) error {
	return errors.ErrUnsupported
}

func (n *nodes) HandleSubnetFile(string, *subnet.Config, bool, ip.IP4Net, ip.IP6Net, int) error {
	return errors.ErrUnsupported
}
