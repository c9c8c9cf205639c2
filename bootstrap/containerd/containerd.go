// Package containerd has the container runtime of a node: its configuration,
// its unit and the images that come with the bundle.
package containerd

import (
	"slices"

	"github.com/kubewright/kubewright/bootstrap/file"
	"github.com/kubewright/kubewright/bootstrap/install"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/systemd"
	"github.com/kubewright/kubewright/templates"
)

const (
	// Unit is the name of its service.
	Unit = "containerd.service"
	// Socket is where it serves the CRI.
	Socket = "/run/containerd/containerd.sock"
	// ConfigFile is its configuration.
	ConfigFile = "/etc/containerd/config.toml"
	// CNIConfigDir is where the pod network leaves its configuration.
	CNIConfigDir = "/etc/cni/net.d"
	// customCNIDir is where pod networks other than ours put their plugins.
	customCNIDir = "/opt/cni/bin"
)

// Inputs are what its configuration depends on.
type Inputs struct {
	PauseImage    string
	SystemdCgroup bool
	MayLowerOOM   bool // the host has CAP_SYS_RESOURCE
}

// Config is its configuration file.
func Config(in Inputs) file.Put {
	return file.Put{Files: []file.Wish{
		{Path: CNIConfigDir, Dir: true, Mode: 0o755},
		{Path: ConfigFile, Mode: 0o644, Content: templates.Containerd{
			PauseImage:          in.PauseImage,
			RuncPath:            install.Bin("runc"),
			PluginDirs:          []string{install.CNIDir, customCNIDir},
			ConfigDir:           CNIConfigDir,
			SystemdCgroup:       in.SystemdCgroup,
			RestrictOOMScoreAdj: !in.MayLowerOOM,
		}.Render()},
	}}
}

// Service is its unit. Pods outlive a restart of it: their shims are not killed with it.
func Service() systemd.Service {
	return systemd.Service{
		Name:        Unit,
		Description: "containerd: container runtime",
		Doc:         "https://containerd.io",
		After:       []string{"network.target", "dbus.service"},
		Type:        "notify",
		Exec:        []string{install.Bin("containerd"), "--config", ConfigFile},
		Environment: map[string]string{"PATH": install.Path},
		Inputs:      []string{ConfigFile, install.Current},
		Options: map[string]string{
			"Delegate":    "yes",
			"KillMode":    "process",
			"LimitNOFILE": "1048576",
			"LimitNPROC":  "infinity",
			"LimitCORE":   "infinity",
			"TasksMax":    "infinity",
		},
		Brings: slices.Concat(
			plan.Objects(plan.ObjectMounts, "/run/containerd", "/var/lib/containerd"),
			plan.Objects(plan.ObjectFile, "/opt/containerd", "/run/containerd", "/run/nri", "/var/lib/containerd")),
	}
}
