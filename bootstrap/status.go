package bootstrap

import (
	"context"
	"fmt"
	"path"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kubewright/kubewright/bootstrap/backup/kept"
	"github.com/kubewright/kubewright/bootstrap/certs"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/install"
	"github.com/kubewright/kubewright/bootstrap/vip"
)

// Status is a cluster as it is now.
type Status struct {
	Cluster string        `json:"cluster"`
	Server  string        `json:"server"`
	Version string        `json:"version"` // of the API server
	Bundle  string        `json:"bundle"`  // that the record names
	Nodes   []NodeStatus  `json:"nodes"`
	Etcd    []etcd.Member `json:"etcd"`
	Addons  []AddonStatus `json:"addons"`
	Backups *BackupStatus `json:"backups,omitempty"` // nil: no host that was seen makes any
	Trouble []string      `json:"trouble,omitempty"` // what could not be seen, and why
}

// NodeStatus is a node, and its host as far as SSH reaches it.
type NodeStatus struct {
	Node       string            `json:"node"`
	Host       string            `json:"host,omitempty"` // as the admin wrote it
	Role       string            `json:"role"`           // control-plane, worker, or joining
	Address    string            `json:"address"`
	Ready      bool              `json:"ready"`
	Why        string            `json:"why,omitempty"` // it is not ready
	Kubelet    string            `json:"kubelet"`
	Runtime    string            `json:"runtime"`
	OS         string            `json:"os"`
	Kernel     string            `json:"kernel"`
	Pods       int               `json:"pods"`
	Bundle     string            `json:"bundle,omitempty"` // in use on the host
	Components []ComponentStatus `json:"components,omitempty"`
	Trouble    string            `json:"trouble,omitempty"` // the host could not be looked at
}

// ComponentStatus is a unit of a node.
type ComponentStatus struct {
	Unit   string    `json:"unit"`
	Active string    `json:"active"`
	Since  time.Time `json:"since,omitzero"`
}

// AddonStatus is a workload that init installed.
type AddonStatus struct {
	Name  string `json:"name"`
	Ready int32  `json:"ready"`
	Want  int32  `json:"want"`
}

// BackupStatus is what the schedule for backups has brought.
type BackupStatus struct {
	Schedule string    `json:"schedule"`        // as OnCalendar= has it
	Newest   time.Time `json:"newest,omitzero"` // when it was made; zero: none was seen
	Host     string    `json:"host,omitempty"`  // that has it
	Missed   time.Time `json:"missed,omitzero"` // when a younger one should have been made
	// Unseen are the control-plane nodes whose hosts could not be asked for their backups. What
	// is said of the newest one holds for the others alone.
	Unseen []string `json:"unseen,omitempty"`
}

// Observe looks at a cluster through its API, and at each of its hosts through
// dial. What cannot be seen is told in the result; only an API that does not
// answer is an error.
func Observe(ctx context.Context, client cluster.Reader, server string,
	dial func(context.Context, string) (host.Host, error)) (*Status, error) {
	kube, err := client.Kubernetes(ctx)
	if err != nil {
		return nil, err
	}
	record, err := cluster.ReadRecord(ctx, client)
	if err != nil {
		return nil, err
	}
	s := &Status{Server: server, Bundle: record.Bundle, Cluster: record.Name}
	version, err := kube.Discovery().ServerVersion()
	if err != nil {
		return nil, fmt.Errorf("API server's version: %w", err)
	}
	s.Version = version.GitVersion
	if err := s.nodes(ctx, kube); err != nil {
		return nil, err
	}
	if err := s.addons(ctx, kube); err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var shelves []*kept.Shelf
	var hosts sync.WaitGroup
	for i := range s.Nodes {
		n := &s.Nodes[i]
		if n.Host == "" {
			continue
		}
		hosts.Go(func() {
			h, err := dial(ctx, n.Host)
			if err == nil {
				err = n.look(ctx, h)
			}
			if err != nil {
				n.Trouble = err.Error()
				return
			}
			if n.Role != controlPlaneRole {
				return
			}
			members, err := etcdMembers(ctx, h)
			shelf, unseen := kept.Look(ctx, h, "")
			mu.Lock()
			defer mu.Unlock()
			if unseen != nil {
				s.Trouble = append(s.Trouble, fmt.Sprintf("backups on %s: %v", n.Node, unseen))
			} else {
				shelves = append(shelves, shelf)
			}
			if err != nil {
				s.Trouble = append(s.Trouble, fmt.Sprintf("etcd on %s: %v", n.Node, err))
				return
			}
			s.Etcd = members
		})
	}
	hosts.Wait()
	if s.Backups, err = backupStatus(ctx, shelves, s.Nodes); err != nil {
		s.Trouble = append(s.Trouble, fmt.Sprintf("the schedule of backups: %v", err))
	}
	return s, nil
}

func backupStatus(ctx context.Context, shelves []*kept.Shelf, nodes []NodeStatus) (*BackupStatus, error) {
	i := slices.IndexFunc(shelves, func(s *kept.Shelf) bool { return s.Schedule != "" })
	if i < 0 {
		return nil, nil
	}
	b := &BackupStatus{Schedule: shelves[i].Schedule}
	if on, newest := kept.Newest(shelves); newest != nil {
		b.Newest, b.Host = newest.Made, on.Host
	}
	for _, n := range nodes {
		seen := func(s *kept.Shelf) bool { return s.Node == n.Node }
		if n.Role == controlPlaneRole && !slices.ContainsFunc(shelves, seen) {
			b.Unseen = append(b.Unseen, n.Node)
		}
	}
	var err error
	b.Missed, err = kept.Overdue(ctx, shelves, 1, time.Now())
	return b, err
}

const controlPlaneRole = "control-plane"

func etcdMembers(ctx context.Context, h host.Reader) ([]etcd.Member, error) {
	client := etcd.NewClient(h, path.Join(certs.Dir, "etcd"))
	defer client.Close() //nolint:errcheck // only read through
	return client.Members(ctx)
}

func (s *Status) nodes(ctx context.Context, kube kubernetes.Interface) error {
	list, err := kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	pods, err := kube.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	for _, n := range list.Items {
		ns := NodeStatus{
			Node: n.Name, Host: n.Annotations[cluster.HostAnnotation], Role: "worker",
			Kubelet: n.Status.NodeInfo.KubeletVersion, Runtime: n.Status.NodeInfo.ContainerRuntimeVersion,
			OS: n.Status.NodeInfo.OSImage, Kernel: n.Status.NodeInfo.KernelVersion,
		}
		switch _, ok := n.Labels[controlPlaneKey]; {
		case ok:
			ns.Role = controlPlaneRole
		case ns.Host == "":
			ns.Role = "joining"
			s.Trouble = append(s.Trouble, fmt.Sprintf("node %s: its init or join has not come to its end; if none goes on, run the same command again", n.Name))
		}
		for _, a := range n.Status.Addresses {
			if a.Type == corev1.NodeInternalIP {
				ns.Address = a.Address
			}
		}
		ns.Why = cluster.NotReady(&n)
		ns.Ready = ns.Why == ""
		for _, p := range pods.Items {
			if p.Spec.NodeName == n.Name && p.Status.Phase == corev1.PodRunning {
				ns.Pods++
			}
		}
		s.Nodes = append(s.Nodes, ns)
	}
	slices.SortFunc(s.Nodes, func(a, b NodeStatus) int { // control plane first
		if a.Role != b.Role {
			if a.Role == controlPlaneRole {
				return -1
			}
			return 1
		}
		if a.Node < b.Node {
			return -1
		}
		return 1
	})
	return nil
}

func (s *Status) addons(ctx context.Context, kube kubernetes.Interface) error {
	ours := metav1.ListOptions{LabelSelector: "app.kubernetes.io/managed-by=kubewright"}
	daemons, err := kube.AppsV1().DaemonSets(metav1.NamespaceSystem).List(ctx, ours)
	if err != nil {
		return fmt.Errorf("list addons: %w", err)
	}
	for _, d := range daemons.Items {
		s.Addons = append(s.Addons, AddonStatus{d.Name, d.Status.NumberReady, d.Status.DesiredNumberScheduled})
	}
	deployments, err := kube.AppsV1().Deployments(metav1.NamespaceSystem).List(ctx, ours)
	if err != nil {
		return fmt.Errorf("list addons: %w", err)
	}
	for _, d := range deployments.Items {
		s.Addons = append(s.Addons, AddonStatus{d.Name, d.Status.AvailableReplicas, *d.Spec.Replicas})
	}
	return nil
}

func (n *NodeStatus) look(ctx context.Context, h host.Reader) error {
	units, err := h.Units(ctx, append(Units(), vip.Unit)...) // not every cluster has a virtual IP
	if err != nil {
		return err
	}
	for _, u := range units {
		switch {
		case u.Load != "not-found":
			n.Components = append(n.Components, ComponentStatus{u.Name, u.Active, u.Started})
		case n.Role == controlPlaneRole && u.Name != vip.Unit || slices.Contains(agentUnits(), u.Name):
			n.Components = append(n.Components, ComponentStatus{Unit: u.Name, Active: "absent"})
		}
	}
	current, err := h.Stat(ctx, install.Current)
	if err != nil {
		return err
	}
	n.Bundle = path.Base(current[0].Target)
	return nil
}
