package bootstrap

import (
	"github.com/kubewright/kubewright/bootstrap/containerd"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/install"
	"github.com/kubewright/kubewright/bootstrap/kernel"
)

// UsedPaths are all files and folders that a node uses on its host, ours and
// those that containerd, the kubelet and CNI plugins make by themselves, parents
// before what is in them. Their state is recorded before the first change, and
// a reset puts it back. The claim's own folder is not among them: a claim that
// was broken off has made it already.
func UsedPaths() []string {
	return []string{
		install.Root,
		"/etc/cni", containerd.CNIConfigDir,
		"/etc/containerd", containerd.ConfigFile,
		"/etc/kubernetes", "/etc/kubernetes/pki", "/etc/kubernetes/manifests",
		kernel.SysctlFile, kernel.ModulesFile, "/etc/modules-load.d",
		"/opt/cni", "/opt/containerd",
		"/usr/libexec/kubernetes",
		"/var/lib/cni", "/var/lib/containerd", etcd.DataDir,
		"/var/lib/kube-proxy", "/var/lib/kubelet",
		"/var/log/containers", "/var/log/pods",
		"/run/containerd", "/run/cni", "/run/netns", "/run/nri",
	}
}
