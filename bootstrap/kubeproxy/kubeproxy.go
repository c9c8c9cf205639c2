// Package kubeproxy has the component that makes Services work on a node, with nftables.
package kubeproxy

import (
	"net/netip"
	"slices"

	"github.com/kubewright/kubewright/bootstrap/file"
	"github.com/kubewright/kubewright/bootstrap/install"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/systemd"
	"github.com/kubewright/kubewright/templates"
)

const (
	// Unit is the name of its service.
	Unit = "kube-proxy.service"
	// ConfigFile is its configuration.
	ConfigFile = "/var/lib/kube-proxy/config.yaml"
)

// Inputs are what it depends on.
type Inputs struct {
	NodeName      string
	Address       netip.Addr   // of the node
	Interface     string       // that has Address
	PodCIDR       netip.Prefix // of the cluster
	ServiceCIDR   netip.Prefix
	Kubeconfig    string // the kubelet's: nodes may read what a proxy needs
	Kubelet       string // the kubelet's unit
	KeepConntrack bool   // nf_conntrack_max is read-only on this host
	ExtraArgs     map[string]string
}

// conntrackSettings are what kube-proxy sets by itself.
func conntrackSettings() []string {
	return []string{
		"net.netfilter.nf_conntrack_max",
		"net.netfilter.nf_conntrack_tcp_timeout_close_wait",
		"net.netfilter.nf_conntrack_tcp_timeout_established",
	}
}

// Config is its configuration file.
func Config(in Inputs) file.Put {
	return file.Put{Files: []file.Wish{{
		Path: ConfigFile, Mode: 0o644, Content: templates.KubeProxy{
			Kubeconfig:    in.Kubeconfig,
			NodeName:      in.NodeName,
			PodCIDR:       in.PodCIDR.String(),
			KeepConntrack: in.KeepConntrack,
		}.Render(),
	}}}
}

// Service is its unit; ip is the path of the host's own ip program. The service
// range gets a route of its own: without any route to it the kernel refuses a
// ClusterIP before nftables sees it, and with the wrong one (Vagrant's NAT NIC)
// it leaves with a source address that nobody can answer.
func Service(in Inputs, ip string) systemd.Service {
	flags := map[string]string{"config": ConfigFile}
	return systemd.Service{
		Name:        Unit,
		Description: "kube-proxy: Kubernetes Services by nftables",
		Doc:         "https://kubernetes.io/docs/reference/command-line-tools-reference/kube-proxy/",
		After:       []string{"network-online.target", in.Kubelet},
		Type:        "simple",
		ExecPre: [][]string{{ip, "route", "replace", in.ServiceCIDR.String(),
			"dev", in.Interface, "src", in.Address.String()}},
		Exec:        append([]string{install.Bin("kube-proxy")}, systemd.Flags(flags, in.ExtraArgs)...),
		Environment: map[string]string{"PATH": install.Path},
		Inputs:      []string{ConfigFile, install.Current, in.Kubeconfig},
		Brings: slices.Concat(
			plan.Objects(plan.ObjectTable, "kube-proxy"),
			plan.Objects(plan.ObjectRoutes, in.ServiceCIDR.String()),
			plan.Objects(plan.ObjectSetting, conntrackSettings()...)),
	}
}
