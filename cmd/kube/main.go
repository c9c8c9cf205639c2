// Command kube is the one binary that holds the components of a kubewright
// node: upstream's etcd, Kubernetes, containerd and CoreDNS mains, and our own
// apilb, etcd-fence, overlay and vip. It is called by the name of a link to it (kubelet, etcd,
// ...), or as `kube COMPONENT ARG...`, which is what a container does that mounts
// the file.
//
// The components share one Go runtime, one client-go and one grpc, so that all
// of them together are a quarter of the size they have as separate files
// (docs/decisions/0002-one-binary.md).
package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	_ "time/tzdata" // CronJob time zones on hosts without zoneinfo

	"github.com/kubewright/kubewright/cmd/kube/apilb"
	"github.com/kubewright/kubewright/cmd/kube/overlay"
	"github.com/kubewright/kubewright/cmd/kube/vip"
)

// components maps the static name of each component to its upstream main. A
// main reads os.Args, and returns or exits by itself.
var components = map[string]func(){
	"apilb":                   apilb.Component().Main,
	"backup":                  backupMain,
	"containerd":              containerd,
	"coredns":                 coredns,
	"ctr":                     ctr,
	"etcd":                    etcd,
	"etcd-fence":              etcdFence,
	"etcdctl":                 etcdctl,
	"etcdutl":                 etcdutl,
	"kube-apiserver":          apiserver,
	"kube-controller-manager": controllerManager,
	"kube-proxy":              withoutCoreDNSFlags(proxy),
	"kube-scheduler":          scheduler,
	"kubectl":                 kubectl,
	"kubelet":                 kubelet,
	"overlay":                 overlay.Component().Main,
	"vip":                     vip.Component().Main,
}

func main() {
	run, ok := components[filepath.Base(os.Args[0])]
	if !ok && len(os.Args) > 1 {
		if run, ok = components[os.Args[1]]; ok {
			os.Args = os.Args[1:]
		}
	}
	if !ok {
		fmt.Fprintf(os.Stderr, "usage: kube COMPONENT [ARG...]\ncomponents: %s\n",
			strings.Join(slices.Sorted(maps.Keys(components)), " "))
		os.Exit(2)
	}
	run()
}
