package bootstrap

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/drill"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// Ground is a cluster that is to be practised on, as its API tells of it.
type Ground struct {
	Record cluster.Record
	Test   bool // it is marked as one that nobody depends on
	Port   int  // of each API server
	Nodes  []drill.Node
}

// FindGround looks at a cluster before a drill. A node whose host is not known is a
// fault.HostUnreachable: what befell it would not be seen.
func FindGround(ctx context.Context, client cluster.Reader) (*Ground, error) {
	record, err := cluster.ReadRecord(ctx, client)
	if err != nil {
		return nil, err
	}
	known, err := spec.Load(strings.NewReader(record.Spec), "ConfigMap kube-system/kubewright")
	if err != nil {
		return nil, err
	}
	kube, err := client.Kubernetes(ctx)
	if err != nil {
		return nil, err
	}
	list, err := kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	g := &Ground{Record: record, Test: known.TestCluster, Port: known.APIServer.Port}
	for _, n := range list.Items {
		found, err := drillNode(n)
		if err != nil {
			return nil, err
		}
		g.Nodes = append(g.Nodes, found)
	}
	return g, nil
}

const (
	kubeletPort = "10250"
	// missTime bounds the question whether one host reaches another.
	missTime = 3 * time.Second
)

// Miss is the fault of a host that SSH did not reach, for this reason. If the cluster's other hosts do not reach
// its node, either, it is a fault.Unhealthy: the cluster is not well, and whoever practises need not look at SSH.
func (g *Ground) Miss(ctx context.Context, n drill.Node, others []host.Reader, reason error) error {
	if fault.CodeOf(reason) != fault.HostUnreachable || len(others) == 0 {
		return fault.At(n.Host, "connect", reason)
	}
	ctx, cancel := context.WithTimeout(ctx, missTime)
	defer cancel()
	answers := make(chan bool, len(others))
	for _, h := range others {
		go func() {
			conn, err := h.Dial(ctx, "tcp", net.JoinHostPort(n.Address.String(), kubeletPort))
			if err == nil {
				conn.Close() //nolint:errcheck // nothing was said
			}
			answers <- err == nil
		}()
	}
	for range others {
		if <-answers {
			return fault.At(n.Host, "connect", reason)
		}
	}
	return &fault.Fault{Code: fault.Unhealthy, Host: n.Host, Step: "connect",
		Err:    fmt.Errorf("the cluster is not well before the drill: neither this machine nor any of its other hosts reaches node %s: %w", n.Name, reason),
		Remedy: "bring the host back; or, if it is gone for good, take it out first: kubewright remove " + n.Host + " --force"}
}

func drillNode(n corev1.Node) (drill.Node, error) {
	found := drill.Node{Name: n.Name, Host: hostOf(n)}
	if found.Host == "" {
		return found, fault.New(fault.HostUnreachable, "join it with kubewright, or take it out of the cluster",
			"node %s does not say by which name SSH reaches its host: kubewright did not make it", n.Name)
	}
	_, found.ControlPlane = n.Labels[controlPlaneKey]
	for _, a := range n.Status.Addresses {
		address, err := netip.ParseAddr(a.Address)
		if a.Type == corev1.NodeInternalIP && err == nil && address.Is4() {
			found.Address = address
		}
	}
	if !found.Address.IsValid() {
		return found, fault.New(fault.Unhealthy, "see `kubewright doctor`", "node %s has no address yet", n.Name)
	}
	for _, text := range n.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(text); err == nil && p.Addr().Is4() {
			found.Pods = append(found.Pods, p)
		}
	}
	return found, nil
}
