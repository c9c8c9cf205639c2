// Package templates renders the configuration files that go to hosts. Every
// template has one typed input, and a field it names that is not there is an error.
package templates

import (
	"bytes"
	"embed"
	"fmt"
	"text/template"
)

//go:embed *.tmpl
var files embed.FS

// Containerd is the input of containerd's configuration.
type Containerd struct {
	PauseImage          string
	RuncPath            string
	PluginDirs          []string // of CNI plugins, in search order
	ConfigDir           string   // of CNI configuration
	SystemdCgroup       bool
	RestrictOOMScoreAdj bool // the host may not lower oom_score_adj
}

// Kubelet is the input of the kubelet's configuration.
type Kubelet struct {
	ClientCAFile     string
	ClusterDNS       string
	ClusterDomain    string
	ContainerSocket  string
	ResolvConf       string
	SystemdCgroup    bool
	FailSwapOn       bool
	CgroupV1         bool
	ReadOnlyPort     int // 0: off
	Taints           []Taint
	StaticPodPath    string
	ShutdownGraceful bool
}

// Taint of a node that registers itself.
type Taint struct {
	Key, Value, Effect string
}

// KubeProxy is the input of kube-proxy's configuration.
type KubeProxy struct {
	Kubeconfig    string
	NodeName      string
	PodCIDR       string
	KeepConntrack bool // nf_conntrack_max cannot be set on this host (containers)
}

// render panics on a template that does not fit its input: both are compiled in.
func render(name string, in any) []byte {
	t, err := template.New(name).Option("missingkey=error").ParseFS(files, name)
	if err != nil {
		panic(fmt.Errorf("templates: %w", err))
	}
	var out bytes.Buffer
	if err := t.Execute(&out, in); err != nil {
		panic(fmt.Errorf("templates: %w", err))
	}
	return out.Bytes()
}

// Render returns the file for the input's type.
func (in Containerd) Render() []byte { return render("containerd.toml.tmpl", in) }
func (in Kubelet) Render() []byte    { return render("kubelet.yaml.tmpl", in) }
func (in KubeProxy) Render() []byte  { return render("kube-proxy.yaml.tmpl", in) }
