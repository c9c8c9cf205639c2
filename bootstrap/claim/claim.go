// Package claim marks a host as a cluster's own, before anything else is changed
// on it.
package claim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

const (
	// Dir holds what kubewright knows about the host.
	Dir = "/var/lib/kubewright"
	// File is the claim.
	File = Dir + "/host.json"
)

// Claim says which cluster a host belongs to.
type Claim struct {
	ClusterID string `json:"clusterID"` // random, made at init
	Cluster   string `json:"cluster"`   // name
	Role      string `json:"role"`
	Node      string `json:"node"`
	// Address is the node's. It is kept, as preflight chooses among several only
	// while the host is no member yet.
	Address netip.Addr `json:"address,omitzero"`
}

// Trace is what another installer leaves on a host, and the way to remove it.
type Trace struct{ Path, Who, Remedy string }

// Foreign are the traces of other installers.
func Foreign() []Trace { return slices.Clone(foreign[:]) }

var foreign = [...]Trace{
	{"/etc/rancher", "k3s or RKE2", "run its uninstall script (k3s-uninstall.sh, rke2-uninstall.sh)"},
	{"/etc/k0s", "k0s", "run `k0s stop && k0s reset`"},
	{"/var/snap/microk8s", "MicroK8s", "run `snap remove --purge microk8s`"},
	{"/etc/kubernetes/kubelet.conf", "kubeadm or another installer", "run `kubeadm reset`, or remove /etc/kubernetes"},
	{"/etc/kubernetes/manifests/kube-apiserver.yaml", "kubeadm or another installer", "run `kubeadm reset`, or remove /etc/kubernetes"},
	{"/etc/kubernetes/pki/ca.crt", "kubeadm or another installer", "run `kubeadm reset`, or remove /etc/kubernetes"},
}

// Read returns the host's claim, nil if it has none.
func Read(ctx context.Context, r host.Reader) (*Claim, error) {
	content, err := r.ReadFile(ctx, File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var c struct {
		Claim
		Before json.RawMessage `json:"before"` // how releases without a journal remembered the host
	}
	if err := json.Unmarshal(content, &c); err != nil {
		return nil, fmt.Errorf("%s: %w", File, err)
	}
	if c.Before != nil {
		return nil, fault.New(fault.HostTaken, "reset the host with the kubewright that made it a node, then use this one",
			"the host is a node of cluster %s made by an older kubewright, which kept no journal", c.Cluster)
	}
	return &c.Claim, nil
}

// Taken is the fault of a host that belongs to the claim's cluster already, and
// cannot be what else is wished of it.
func (c *Claim) Taken(host string) error {
	f := fault.New(fault.HostTaken, "run `kubewright reset "+host+"` first, if that cluster no longer needs this host",
		"the host is already %s %s of cluster %s (id %s)", c.Role, c.Node, c.Cluster, c.ClusterID)
	f.Host, f.Step = host, Step
	return f
}

// Step is the step that claims a host.
const Step = "host/claim"

// Take claims a host for a cluster, or refuses with fault.HostTaken.
type Take Claim

var _ plan.Action[host.Reader, host.Host] = Take{}

func (t Take) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	have, err := Read(ctx, r)
	if err != nil {
		return nil, err
	}
	if have != nil {
		if have.ClusterID != t.ClusterID || have.Cluster != t.Cluster || have.Role != t.Role || have.Node != t.Node {
			return nil, have.Taken(r.Name())
		}
		if have.Address != t.Address {
			return plan.Diff{{Verb: plan.Update, Kind: plan.ObjectFile, Object: File, Detail: fmt.Sprintf("address %v -> %v", have.Address, t.Address)}}, nil
		}
		return nil, nil
	}
	if err := refuseForeign(ctx, r); err != nil {
		return nil, err
	}
	return plan.Diff{{Verb: plan.Create, Kind: plan.ObjectFile, Object: File, Detail: "claim for cluster " + t.Cluster}}, nil
}

func refuseForeign(ctx context.Context, r host.Reader) error {
	paths := make([]string, len(foreign))
	for i, f := range foreign {
		paths[i] = f.Path
	}
	found, err := r.Stat(ctx, paths...)
	if err != nil {
		return err
	}
	for i, f := range found {
		if f.Exists {
			return fault.New(fault.HostTaken, foreign[i].Remedy+", then run the same command again",
				"the host is already in a cluster made by %s: %s exists", foreign[i].Who, f.Path)
		}
	}
	return nil
}

func (t Take) Apply(ctx context.Context, h host.Host) error {
	content, err := json.MarshalIndent(Claim(t), "", "  ")
	if err != nil {
		return err
	}
	return h.WriteFile(ctx, File, bytes.NewReader(append(content, '\n')), host.Meta{Mode: 0o600})
}
