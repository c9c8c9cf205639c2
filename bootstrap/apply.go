package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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
}

// Member is a node of a live cluster.
type Member struct {
	Node string
	Host string // as the admin wrote it, "" of a node that kubewright did not make
}

// Find returns the cluster that a control-plane host belongs to, through the
// admin's kubeconfig on that host; nil if there is none that answers.
func Find(ctx context.Context, t Target) (*Live, error) {
	if t.Claim == nil {
		return nil, nil
	}
	content, err := t.Host.ReadFile(ctx, AdminConfig)
	if err != nil {
		return nil, nil //nolint:nilerr // an init that was broken off early: there is no cluster yet
	}
	access, err := kubeconfig.Parse(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", AdminConfig, err)
	}
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
	live := &Live{Access: access, Record: record}
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
		live.Nodes = append(live.Nodes, Member{Node: n.Name, Host: hostOf(n)})
	}
	return live, nil
}

func hostOf(n corev1.Node) string { return n.Annotations[hostAnnotation] }

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
	return errors.Join(faults...)
}
