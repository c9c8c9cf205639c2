// Package apilb has the component by which everything on a node reaches the API: a
// load balancer of its own, on the node itself, that knows all control-plane hosts.
// It learns them from the cluster and remembers them; the installer only tells it the first.
package apilb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/kubewright/kubewright/bootstrap/file"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/install"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/systemd"
)

const (
	// Unit is the name of its service.
	Unit = "apilb.service"
	// Port is where it listens, on 127.0.0.1 only.
	Port = 6444
	// StatusPort is where it tells what it knows, on 127.0.0.1 only.
	StatusPort = 6445
	// Dir is where it remembers the control-plane hosts.
	Dir = "/var/lib/apilb"
	// ServersFile is what it remembers.
	ServersFile = Dir + "/servers.json"

	// Namespace and ConfigMap have the control-plane hosts of the cluster, for it to learn.
	Namespace = "kube-system"
	ConfigMap = "kubewright-control-planes"
	// Key is the entry of the ConfigMap: a line ADDRESS:PORT for each.
	Key = "servers"
)

// Server is the URL by which everything on a node reaches the API.
func Server() string { return "https://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(Port)) }

// Inputs are what it depends on.
type Inputs struct {
	CAFile     string         // that API servers are verified by
	Kubeconfig string         // the kubelet's, once there is one: nodes may read the list
	Own        netip.AddrPort // the API server on the same host, invalid if there is none
}

// Service is its unit.
func Service(in Inputs) systemd.Service {
	local := func(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
	flags := map[string]string{
		"listen":     local(Port),
		"status":     local(StatusPort),
		"servers":    ServersFile,
		"ca":         in.CAFile,
		"kubeconfig": in.Kubeconfig,
	}
	if in.Own.IsValid() {
		flags["prefer"] = in.Own.String()
	}
	return systemd.Service{
		Name:        Unit,
		Description: "apilb: the way to the API servers of the cluster",
		Doc:         "https://kubernetes.io/docs/setup/production-environment/tools/kubeadm/ha-topology/",
		After:       []string{"network-online.target"},
		Type:        "notify",
		Exec:        append([]string{install.Bin("apilb")}, systemd.Flags(flags, nil)...),
		Inputs:      []string{in.CAFile, install.Current},
		Options: map[string]string{
			"LimitNOFILE":     "65536",
			"ProtectHome":     "yes",
			"PrivateTmp":      "yes",
			"NoNewPrivileges": "yes",
			"ProtectSystem":   "full",
		},
		Brings: plan.Objects(plan.ObjectFile, Dir),
	}
}

// remembered is the content of ServersFile.
type remembered struct {
	Servers []string `json:"servers"` // ADDRESS:PORT
}

// Seed tells a node the control-plane hosts, where it knows none that there is still:
// what it has learned by itself is newer than what the installer could tell.
type Seed struct {
	Servers []netip.AddrPort
}

var _ plan.Action[host.Reader, host.Host] = Seed{}

func (a Seed) put() (file.Put, error) {
	content, err := json.Marshal(remembered{Servers: Lines(a.Servers)})
	if err != nil {
		return file.Put{}, err
	}
	return file.Put{Files: []file.Wish{
		{Path: Dir, Dir: true, Mode: 0o755},
		{Path: ServersFile, Mode: 0o644, Content: append(content, '\n')}}}, nil
}

// Remembered are the servers that a node knows, none if it knows none, or its file is cut off.
func Remembered(ctx context.Context, r host.Reader) ([]netip.AddrPort, error) {
	content, err := r.ReadFile(ctx, ServersFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var have remembered
	if json.Unmarshal(content, &have) != nil {
		return nil, nil
	}
	servers, err := Parse(strings.Join(have.Servers, " "))
	if err != nil {
		return nil, nil //nolint:nilerr // nothing that apilb could use either
	}
	return servers, nil
}

// knows tells whether a node knows one of the servers.
func (a Seed) knows(ctx context.Context, r host.Reader) (bool, error) {
	have, err := Remembered(ctx, r)
	return slices.ContainsFunc(a.Servers, func(s netip.AddrPort) bool { return slices.Contains(have, s) }), err
}

func (a Seed) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	if known, err := a.knows(ctx, r); err != nil || known {
		return nil, err
	}
	put, err := a.put()
	if err != nil {
		return nil, err
	}
	diff, err := put.Check(ctx, r)
	if err != nil {
		return nil, err
	}
	runs, err := running(ctx, r)
	if err != nil {
		return nil, err
	}
	if runs {
		stop := plan.Change{Verb: plan.Stop, Kind: plan.ObjectUnit, Object: Unit, Detail: "all control-plane hosts that it knows are no more"}
		diff = append(plan.Diff{stop}, diff...)
	}
	return diff, nil
}

// Apply stops it first, if it runs: it remembers what it knew, and would write that down
// again. It is started by the next step.
func (a Seed) Apply(ctx context.Context, h host.Host) error {
	put, err := a.put()
	if err != nil {
		return err
	}
	runs, err := running(ctx, h)
	if err != nil {
		return err
	}
	if runs { // a unit that there is not yet is no object of this step's
		if err := h.Systemd().Stop(ctx, Unit); err != nil {
			return err
		}
	}
	return put.Apply(ctx, h)
}

func running(ctx context.Context, r host.Reader) (bool, error) {
	units, err := r.Units(ctx, Unit)
	if err != nil {
		return false, err
	}
	return units[0].Active == "active", nil
}

// Lines are servers as text, sorted, each once.
func Lines(servers []netip.AddrPort) []string {
	servers = slices.Clone(servers)
	slices.SortFunc(servers, netip.AddrPort.Compare)
	lines := make([]string, 0, len(servers))
	for _, s := range slices.Compact(servers) {
		lines = append(lines, s.String())
	}
	return lines
}

// Object is the ConfigMap that says where the control-plane hosts are.
func Object(servers []netip.AddrPort) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": ConfigMap, "namespace": Namespace},
		"data":     map[string]any{Key: strings.Join(Lines(servers), "\n") + "\n"},
	}}
}

// Parse reads the ConfigMap's entry.
func Parse(text string) ([]netip.AddrPort, error) {
	var servers []netip.AddrPort
	for line := range strings.FieldsSeq(text) {
		s, err := netip.ParseAddrPort(line)
		if err != nil {
			return nil, fmt.Errorf("ConfigMap %s/%s: %w", Namespace, ConfigMap, err)
		}
		servers = append(servers, s)
	}
	return servers, nil
}
