// Package addons has what kubewright puts into a new cluster through its API:
// rights, the pod network and DNS. It is pure: inputs to objects. Each addon is a
// folder with one manifest template, and one line in All.
package addons

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"text/template"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// Addon is a set of objects that belong together, by the name of its folder.
type Addon string

const (
	// RBAC is what nodes, joining hosts, admins and the API server may do.
	RBAC Addon = "rbac"
	// Removed keeps nodes that were removed from registering again.
	Removed Addon = "removed"
	// Overlay is the pod network: a DaemonSet of `kube overlay`.
	Overlay Addon = "overlay"
	// CoreDNS is the cluster's DNS: a Deployment of `kube coredns`.
	CoreDNS Addon = "coredns"
)

// All returns the addons in the order in which they are applied.
func All() []Addon { return []Addon{RBAC, Removed, Overlay, CoreDNS} }

// Inputs are what manifests depend on. No field is optional, except where its
// zero value says something.
type Inputs struct {
	PauseImage   string       // reference of the image that hosts have already; /pause alone is in it
	BinDir       string       // absolute folder with the component binaries on every host
	Server       string       // https://ADDRESS:PORT by which every node reaches the API
	PodCIDR      netip.Prefix // of the cluster, IPv4
	Backend      string       // of the overlay: vxlan or host-gw
	DNSIP        netip.Addr   // address of the DNS service, in the service range
	DNSDomain    string       // of services, without a trailing dot
	DNSReplicas  int          // servers of names, each on a host of its own
	UpstreamDNS  []string     // resolvers for names outside the cluster; none on air-gapped hosts
	AdminGroup   string       // may do everything
	KubeletUser  string       // the API server's name towards kubelets
	JoiningGroup string       // group of the bootstrap tokens of joining nodes
	RemovedNodes string       // ConfigMap in kube-system with a key for each node that was removed
}

//go:embed */manifest.yaml.tmpl
var manifests embed.FS

// Manifest renders the addon as YAML documents. An unknown addon is an error, as
// is a template that names an input which does not exist.
func (a Addon) Manifest(in Inputs) ([]byte, error) {
	file := string(a) + "/manifest.yaml.tmpl"
	text, err := manifests.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("addon %q: %w", string(a), err)
	}
	t, err := template.New(file).Option("missingkey=error").Parse(string(text))
	if err != nil {
		return nil, fmt.Errorf("addon %q: %w", string(a), err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, in); err != nil {
		return nil, fmt.Errorf("addon %q: %w", string(a), err)
	}
	return out.Bytes(), nil
}

// Objects renders the addon as objects, in the order of its manifest. They are
// complete: applied on the server's side again, they change nothing.
func (a Addon) Objects(in Inputs) ([]*unstructured.Unstructured, error) {
	text, err := a.Manifest(in)
	if err != nil {
		return nil, err
	}
	var objects []*unstructured.Unstructured
	docs := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), len(text))
	for {
		var o unstructured.Unstructured
		switch err := docs.Decode(&o.Object); {
		case errors.Is(err, io.EOF):
			return objects, nil
		case err != nil:
			return nil, fmt.Errorf("addon %q: %w", string(a), err)
		case len(o.Object) > 0: // not a comment alone
			objects = append(objects, &o)
		}
	}
}
