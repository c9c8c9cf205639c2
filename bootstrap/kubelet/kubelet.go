// Package kubelet has the node agent: configuration, credentials and unit.
package kubelet

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/kubewright/kubewright/bootstrap/file"
	"github.com/kubewright/kubewright/bootstrap/install"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/systemd"
	"github.com/kubewright/kubewright/templates"
)

const (
	// Unit is the name of its service.
	Unit = "kubelet.service"
	// Dir is where it keeps its state. Whoever writes there before it runs says that
	// it is the kubelet's (Brings), so that an undo leaves nothing in it.
	Dir = "/var/lib/kubelet"
	// ConfigFile is its configuration.
	ConfigFile = Dir + "/config.yaml"
	// Kubeconfig is how it reaches the API server; it names ClientCert.
	Kubeconfig = "/etc/kubernetes/kubelet.conf"
	// BootstrapKubeconfig holds the join token until the node has its certificate.
	BootstrapKubeconfig = "/etc/kubernetes/bootstrap-kubelet.conf"
	// ClientCert is its client certificate and key, which it renews by itself.
	ClientCert = Dir + "/pki/kubelet-client-current.pem"
	// firewallFile keeps the read-only port to the host itself.
	firewallFile = "/etc/kubernetes/kubelet.nft"
	// FirewallTable is the nftables table that it makes.
	FirewallTable = "kubewright-kubelet"
	// staticPods is where an admin may leave pods of the host's own.
	staticPods = "/etc/kubernetes/manifests"
)

// Inputs are what its configuration depends on.
type Inputs struct {
	NodeName      string
	Address       netip.Addr
	ClusterDNS    netip.Addr
	ClusterDomain string
	ResolvConf    string
	ClientCAFile  string
	Socket        string // of the container runtime
	Runtime       string // its unit
	SystemdCgroup bool
	CgroupV2      bool
	MayLowerOOM   bool // the host has CAP_SYS_RESOURCE
	ReadOnlyPort  int
	Labels        map[string]string
	Taints        []templates.Taint
	ExtraArgs     map[string]string
	// PodNetwork is what the pods of the pod network make on the host.
	PodNetwork []plan.Object
}

// Config is its configuration file, and the rules for its read-only port.
func Config(in Inputs) file.Put {
	return file.Put{Files: []file.Wish{
		{Path: ConfigFile, Mode: 0o644, Brings: plan.Objects(plan.ObjectFile, Dir), Content: templates.Kubelet{
			ClientCAFile:    in.ClientCAFile,
			ClusterDNS:      in.ClusterDNS.String(),
			ClusterDomain:   in.ClusterDomain,
			ContainerSocket: in.Socket,
			ResolvConf:      in.ResolvConf,
			SystemdCgroup:   in.SystemdCgroup,
			CgroupV1:        !in.CgroupV2,
			ReadOnlyPort:    in.ReadOnlyPort,
			Taints:          in.Taints,
			StaticPodPath:   staticPods,
		}.Render()},
		{Path: staticPods, Dir: true, Mode: 0o755},
		{Path: firewallFile, Mode: 0o644, Content: firewall(in.ReadOnlyPort)},
	}}
}

// firewall replaces our table in one transaction. The kubelet has one address
// for all its ports, so the read-only one is kept to the host by the packet filter.
func firewall(port int) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "# Written by kubewright: the kubelet's read-only port is for the host itself.\n")
	fmt.Fprintf(&b, "table inet %s\ndelete table inet %s\n", FirewallTable, FirewallTable)
	if port != 0 {
		fmt.Fprintf(&b, `table inet %s {
	chain input {
		type filter hook input priority filter - 5; policy accept;
		iifname != "lo" tcp dport %d drop
	}
}
`, FirewallTable, port)
	}
	return []byte(b.String())
}

// Service is its unit; nft is the path of the host's own nft program.
func Service(in Inputs, nft string) systemd.Service {
	flags := map[string]string{
		"bootstrap-kubeconfig": BootstrapKubeconfig,
		"cert-dir":             "/var/lib/kubelet/pki",
		"config":               ConfigFile,
		"hostname-override":    in.NodeName,
		"kubeconfig":           Kubeconfig,
		"node-ip":              in.Address.String(),
	}
	if len(in.Labels) > 0 {
		var labels []string
		for _, k := range slices.Sorted(maps.Keys(in.Labels)) {
			labels = append(labels, k+"="+in.Labels[k])
		}
		flags["node-labels"] = strings.Join(labels, ",")
	}
	options := map[string]string{"KillMode": "process", "Delegate": "yes"}
	if in.MayLowerOOM {
		options["OOMScoreAdjust"] = "-999"
	}
	return systemd.Service{
		Name:        Unit,
		Description: "kubelet: Kubernetes node agent",
		Doc:         "https://kubernetes.io/docs/reference/command-line-tools-reference/kubelet/",
		After:       []string{in.Runtime, "network-online.target"},
		Type:        "notify",
		ExecPre:     [][]string{{nft, "-f", firewallFile}},
		Exec:        append([]string{install.Bin("kubelet")}, systemd.Flags(flags, in.ExtraArgs)...),
		Environment: map[string]string{"PATH": install.Path},
		Inputs:      []string{ConfigFile, firewallFile, install.Current},
		Options:     options,
		Brings: slices.Concat(
			plan.Objects(plan.ObjectSlice, podSlice),
			plan.Objects(plan.ObjectMounts, Dir, "/run/netns"),
			plan.Objects(plan.ObjectInterface, podBridge),
			plan.Objects(plan.ObjectTable, FirewallTable, portMapTable),
			plan.Objects(plan.ObjectFile, Dir, "/var/log/pods", "/var/log/containers", "/usr/libexec/kubernetes",
				"/var/lib/cni", "/run/cni", "/run/netns", "/opt/cni"),
			in.PodNetwork),
	}
}

// What pods bring about, by way of the runtime and the CNI plugins.
const (
	podSlice     = "kubepods.slice"
	podBridge    = "cni0"
	portMapTable = "cni_hostport"
)
