// Package spec is the cluster as its admin wishes it: one file, read strictly,
// completed with defaults and judged as a whole, so that every fault in it is
// told at once and before any host is touched.
package spec

import "net/netip"

//go:generate go run ./internal/gen -o ../../docs/spec.md

// APIVersion and Kind head every cluster file.
const (
	APIVersion = "kubewright.dev/v1alpha1"
	Kind       = "Cluster"
)

// Cluster is one Kubernetes cluster. It is not changed after Load, or after
// Default where it is made in code.
type Cluster struct {
	// APIVersion of the file; always kubewright.dev/v1alpha1.
	APIVersion string `yaml:"apiVersion"`
	// Kind of the file; always Cluster.
	Kind string `yaml:"kind"`
	// Name of the cluster, as shown in the kubeconfig's context. Default: kubewright.
	Name string `yaml:"name"`
	// Hosts of the cluster. At least one is a control-plane host; three of them keep
	// the cluster alive when one dies, five when two do.
	Hosts []Host `yaml:"hosts"`
	// ControlPlaneEndpoint is where people reach the API. Nodes need none: each finds
	// the control-plane hosts by itself.
	ControlPlaneEndpoint Endpoint `yaml:"controlPlaneEndpoint"`
	// Network of pods and services.
	Network Network `yaml:"network"`
	// ControlPlane says how control-plane nodes differ from workers.
	ControlPlane ControlPlane `yaml:"controlPlane"`
	// APIServer configures kube-apiserver.
	APIServer APIServer `yaml:"apiServer"`
	// ControllerManager configures kube-controller-manager.
	ControllerManager Component `yaml:"controllerManager"`
	// Scheduler configures kube-scheduler.
	Scheduler Component `yaml:"scheduler"`
	// Etcd configures etcd.
	Etcd Component `yaml:"etcd"`
	// Kubelet configures the kubelet of every node.
	Kubelet Kubelet `yaml:"kubelet"`
	// KubeProxy configures the kube-proxy of every node.
	KubeProxy Component `yaml:"kubeProxy"`
	// TestCluster marks a cluster that nobody depends on: `kubewright drill` breaks
	// things in it without asking.
	TestCluster bool `yaml:"testCluster"`
	// Backup has the control-plane hosts back the cluster up by themselves.
	Backup Backup `yaml:"backup"`
}

// Role of a host in the cluster.
type Role string

// The roles.
const (
	ControlPlaneRole Role = "control-plane"
	WorkerRole       Role = "worker"
)

// Host is one machine.
type Host struct {
	// Name by which ssh reaches the host: a Host of ssh_config, a host name or an
	// address, with an optional user@ before and :port after it.
	Name string `yaml:"name"`
	// Role of the host. Default: control-plane for the first host, worker for the others.
	Role Role `yaml:"role"`
	// Node is the node's name in the cluster. Default: the host's own hostname.
	Node string `yaml:"node"`
	// Address of the node inside the cluster. Default: the host's address that the
	// control plane and this machine reach it by, never the first NIC's.
	Address netip.Addr `yaml:"address"`
	// Labels of the node. Those of kubernetes.io and k8s.io are Kubernetes' own,
	// except node.kubernetes.io.
	Labels map[string]string `yaml:"labels"`
	// Taints of the node, as kubectl writes them: key=value:Effect or key:Effect.
	Taints []Taint `yaml:"taints"`
}

// Backend of the pod network.
type Backend string

// The backends.
const (
	VXLAN  Backend = "vxlan"
	HostGW Backend = "host-gw"
	NoNet  Backend = "none"
)

// Network of pods and services.
type Network struct {
	// Backend that carries pod traffic between nodes: vxlan, host-gw (all nodes in
	// one layer-2 network), or none (bring your own). Default: vxlan.
	Backend Backend `yaml:"backend"`
	// PodCIDR is the pods' range, IPv4; each node gets a /24 of it. Neither hosts
	// nor services may be in it. Default: 10.244.0.0/16.
	PodCIDR netip.Prefix `yaml:"podCIDR"`
	// ServiceCIDR is the services' range, IPv4, from a /12 to a /28. Its first
	// address is the API's, its tenth the DNS service's. Default: 10.96.0.0/16.
	ServiceCIDR netip.Prefix `yaml:"serviceCIDR"`
	// DNSDomain is the domain that the names of services are in. Default: cluster.local.
	DNSDomain string `yaml:"dnsDomain"`
}

// Endpoint is where people reach the API of a cluster.
type Endpoint struct {
	// Address is a name or an address that leads to the control-plane hosts: DNS with
	// all of them, a load balancer. It stands in the kubeconfig and the API server's
	// certificate. Default: the virtual IP, else the first control-plane host's address.
	Address string `yaml:"address"`
	// VirtualIP is an unused IPv4 address in the control-plane hosts' network. One of
	// them whose API server works holds it, and another takes over. Default: none.
	VirtualIP netip.Addr `yaml:"virtualIP"`
}

// ControlPlane says how control-plane nodes differ from workers.
type ControlPlane struct {
	// Schedulable lets ordinary pods run on control-plane nodes, which are tainted otherwise.
	Schedulable bool `yaml:"schedulable"`
}

// Component is what every component can be given.
type Component struct {
	// ExtraArgs are further command line flags, without the leading dashes. They
	// replace kubewright's own flag of the same name; a flag that has a field of
	// its own in this file is refused.
	ExtraArgs map[string]string `yaml:"extraArgs"`
}

// APIServer configures kube-apiserver. A file that one of extraArgs names, such as encryption-provider-config
// (Secrets are encrypted with its keys) or audit-policy-file, has to be on the first control-plane host: further
// ones get it from there, and a backup holds it.
type APIServer struct {
	Component `yaml:",inline"`
	// Port it serves on. Not one of another component, nor among the NodePorts
	// 30000-32767. Default: 6443.
	Port int `yaml:"port"`
	// ExtraSANs are further names (*.example.com too) and addresses in its certificate.
	ExtraSANs []string `yaml:"extraSANs"`
}

// Kubelet configures the kubelet of every node.
type Kubelet struct {
	Component `yaml:",inline"`
	// ReadOnlyPort serves the kubelet's read-only API without authentication, to
	// the host itself only; 10255 by custom. Default: 0, off.
	ReadOnlyPort int `yaml:"readOnlyPort"`
}

// Backup has the control-plane hosts back the cluster up by themselves. Of several, the
// one with etcd's leader does it.
type Backup struct {
	// Schedule is when, as systemd's OnCalendar has it: daily, or *-*-* 02:30:00. The other keys here
	// want it. Default: never.
	Schedule string `yaml:"schedule"`
	// Keep is how many backups a host keeps, the newest ones; 0 is the default, too. Default: 7.
	Keep int `yaml:"keep"`
	// Recipients are the public keys, age1..., whose private halves open the backups:
	// `kubewright backup keygen` makes a pair. The hosts need no private one.
	Recipients []string `yaml:"recipients"`
	// Dir is the hosts' folder for them. A reset leaves it there. Each stays on the host that
	// made it: `kubewright backup fetch` copies one, or mount something of another machine. Default: /var/backups/kubewright.
	Dir string `yaml:"dir"`
}
