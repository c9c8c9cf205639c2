// Package version tells which version of what kubewright is made of. The
// versions stand in go.mod, which also decides what is built, and go.sum covers
// them; kubewright's own stands here.
package version

import (
	"fmt"
	"runtime"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"

	"github.com/kubewright/kubewright"
)

// Kubewright is the version of kubewright itself.
const Kubewright = "v0.1.0"

// The names of components that have a meaning of their own to a caller.
const (
	KubernetesName = "kubernetes"
	KubewrightName = "kubewright"
	GoName         = "go"
)

// Component is one part of a cluster and where its source comes from.
type Component struct {
	Name    string `json:"name"`
	Version string `json:"version"`          // with a leading v, except Go's
	Module  string `json:"module,omitempty"` // module path; "" for Go
}

// upstream is the module that stands for each upstream component, in the order
// in which they are shown.
var upstream = [...]struct{ name, module string }{
	{KubernetesName, "k8s.io/kubernetes"},
	{"etcd", "go.etcd.io/etcd/server/v3"},
	{"containerd", "github.com/containerd/containerd/v2"},
	{"runc", "github.com/opencontainers/runc"},
	{"cni-plugins", "github.com/containernetworking/plugins"},
	{"coredns", "github.com/coredns/coredns"},
	{"flannel", "github.com/flannel-io/flannel"},
}

// List is the components of one tree, in the order in which they are shown.
type List []Component

// Components returns what this program was built from and what it builds:
// the versions of its own go.mod, and as Go the toolchain that compiled it.
func Components() (List, error) {
	return Parse(kubewright.GoMod(), runtime.Version())
}

// Parse returns the components that a go.mod names, as the toolchain goVersion
// (go1.26.8) builds them. A replaced module has the version of its replacement;
// one replaced by a folder has no version and is an error, as is one not required.
func Parse(goMod, goVersion string) (List, error) {
	file, err := modfile.Parse("go.mod", []byte(goMod), nil)
	if err != nil {
		return nil, fmt.Errorf("read versions: %w", err)
	}
	if file.Module == nil {
		return nil, fmt.Errorf("read versions: go.mod names no module")
	}
	required := make(map[string]string, len(file.Require))
	for _, r := range file.Require {
		required[r.Mod.Path] = r.Mod.Version
	}
	replaced := make(map[module.Version]module.Version, len(file.Replace))
	for _, r := range file.Replace {
		replaced[r.Old] = r.New
	}

	list := make(List, 0, len(upstream)+2)
	for _, u := range upstream {
		version, ok := required[u.module]
		if !ok {
			return nil, fmt.Errorf("version of %s: go.mod does not require %s", u.name, u.module)
		}
		for _, old := range []module.Version{{Path: u.module, Version: version}, {Path: u.module}} {
			by, ok := replaced[old]
			if !ok {
				continue
			}
			if by.Version == "" {
				return nil, fmt.Errorf("version of %s: go.mod replaces %s by the folder %s, which has no version", u.name, u.module, by.Path)
			}
			version = by.Version
			break
		}
		list = append(list, Component{Name: u.name, Version: version, Module: u.module})
	}
	return append(list,
		Component{Name: KubewrightName, Version: Kubewright, Module: file.Module.Mod.Path},
		Component{Name: GoName, Version: goVersion},
	), nil
}

// Of returns the version of the component of that name, "" if there is none.
func (l List) Of(name string) string {
	for _, c := range l {
		if c.Name == name {
			return c.Version
		}
	}
	return ""
}
