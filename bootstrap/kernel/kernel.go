// Package kernel prepares a host's kernel: modules and settings that pods need.
package kernel

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/kubewright/kubewright/bootstrap/file"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

const (
	// SysctlFile holds the settings over a reboot.
	SysctlFile = "/etc/sysctl.d/99-kubewright.conf"
	// ModulesFile names the modules over a reboot.
	ModulesFile = "/etc/modules-load.d/kubewright.conf"
)

// settings are kernel settings as the kubelet demands them (it would set those
// in kernel. and vm. by itself, unrecorded) and as pod traffic needs them.
var settings = map[string]string{
	"kernel.keys.root_maxbytes":          "25000000",
	"kernel.keys.root_maxkeys":           "1000000",
	"kernel.panic":                       "10",
	"kernel.panic_on_oops":               "1",
	"net.bridge.bridge-nf-call-iptables": "1",
	"net.ipv4.ip_forward":                "1",
	"vm.overcommit_memory":               "1",
	"vm.panic_on_oom":                    "0",
}

// modules are kernel modules by the file that exists when one is there, loaded or built in.
var modules = map[string]string{
	"br_netfilter": "/proc/sys/net/bridge",
	"overlay":      "/sys/module/overlay",
	"vxlan":        "/sys/module/vxlan",
}

// Settings names every setting that Configure may change, as paths below /proc/sys.
func Settings() []string {
	var paths []string
	for _, k := range slices.Sorted(maps.Keys(settings)) {
		paths = append(paths, strings.ReplaceAll(k, ".", "/"))
	}
	return paths
}

func procPath(setting string) string {
	return path.Join("/proc/sys", strings.ReplaceAll(setting, ".", "/"))
}

// Configure writes the files, loads what is not there, and sets what differs.
type Configure struct{}

var _ plan.Action[host.Reader, host.Host] = Configure{}

func (Configure) files() file.Put {
	var sysctl, load strings.Builder
	var brings []plan.Object
	sysctl.WriteString("# Written by kubewright.\n")
	for _, k := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&sysctl, "%s = %s\n", k, settings[k])
	}
	load.WriteString("# Written by kubewright.\n")
	for _, m := range slices.Sorted(maps.Keys(modules)) {
		load.WriteString(m + "\n")
		brings = append(brings, plan.Object{Kind: plan.ObjectModule, Name: m})
	}
	return file.Put{Files: []file.Wish{
		{Path: ModulesFile, Mode: 0o644, Content: []byte(load.String()), Brings: brings},
		{Path: SysctlFile, Mode: 0o644, Content: []byte(sysctl.String())},
	}}
}

// missing returns the modules that are not there, unused settings aside.
func (Configure) missing(ctx context.Context, r host.Reader) ([]string, error) {
	names := slices.Sorted(maps.Keys(modules))
	paths := make([]string, len(names))
	for i, m := range names {
		paths[i] = modules[m]
	}
	found, err := r.Stat(ctx, paths...)
	if err != nil {
		return nil, err
	}
	var missing []string
	for i, f := range found {
		if !f.Exists {
			missing = append(missing, names[i])
		}
	}
	return missing, nil
}

func (c Configure) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	diff, err := c.files().Check(ctx, r)
	if err != nil {
		return nil, err
	}
	for _, k := range slices.Sorted(maps.Keys(settings)) {
		have, err := r.ReadFile(ctx, procPath(k))
		if err != nil {
			have = []byte("absent")
		}
		if got := strings.TrimSpace(string(have)); got != settings[k] {
			diff = append(diff, plan.Change{Verb: plan.Update, Kind: plan.ObjectSetting, Object: k, Detail: got + " -> " + settings[k],
				Before: &plan.State{Text: got}, After: &plan.State{Text: settings[k]}})
		}
	}
	return diff, nil
}

// Apply loads modules first: some settings exist only with their module. A
// module that cannot be loaded is no fault by itself: what needs it says so.
func (c Configure) Apply(ctx context.Context, h host.Host) error {
	missing, err := c.missing(ctx, h)
	if err != nil {
		return err
	}
	for _, m := range missing {
		if _, err := h.Run(ctx, host.Command{Argv: []string{"modprobe", m}}); err != nil {
			plan.Report(ctx, fmt.Sprintf("module %s: %v", m, err))
		}
	}
	if err := c.files().Apply(ctx, h); err != nil {
		return err
	}
	_, err = h.Run(ctx, host.Command{Argv: []string{"sysctl", "-q", "-p", SysctlFile}})
	return err
}
