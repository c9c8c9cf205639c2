// Package overlay is the pod network of a node: flannel's VXLAN and host-gw
// backends, driven by the Node objects of the cluster.
//
// Everything that a node must know of another is in that one's Node object
// already: its pod range in spec.podCIDRs, its address in status.addresses. The
// VTEP's hardware address, which flannel makes up and publishes in annotations,
// is derived from the pod range here. So overlay only reads the API, has nothing
// to publish before traffic can flow, and keeps its hardware address over a reboot.
//
// For the same reason it does not use flannel's own subnet manager: that one
// needs rights to change nodes, polls every one to three seconds while it starts,
// fails when the pod range is not assigned yet, and can lose a route when a range
// changes hands. The one here (nodes) compares the state wished with the state
// sent whenever a Node changes.
//
// A stop leaves the data path as it is: a restart cuts no traffic. What cannot be
// put right in place (another pod range, a vanished device) ends the process;
// its pod is started again and begins from the state it finds.
package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"

	"github.com/flannel-io/flannel/pkg/backend"
	"github.com/flannel-io/flannel/pkg/backend/hostgw"
	"github.com/flannel-io/flannel/pkg/backend/vxlan"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/subnet"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/kubewright/kubewright/cmd/kube/component"
)

// The backends, by flannel's names.
const (
	backendVXLAN  = "vxlan"
	backendHostGW = "host-gw"
)

// options are the command line.
type options struct {
	nodeName   string
	nodeIP     netip.Addr   // of this node, on the interface that carries pod traffic
	podCIDR    netip.Prefix // of the cluster
	backend    string
	cniConf    string
	server     string // "": from the environment of the pod
	kubeconfig string // "": the pod's service account
	health     string
}

func (o *options) Declare(flags *flag.FlagSet) {
	flags.StringVar(&o.nodeName, "node-name", "", "name of this Node")
	flags.TextVar(&o.nodeIP, "node-ip", netip.Addr{}, "IPv4 address of this node; the interface that has it carries pod traffic")
	flags.TextVar(&o.podCIDR, "pod-cidr", netip.Prefix{}, "IPv4 range of all pods of the cluster")
	flags.StringVar(&o.backend, "backend", backendVXLAN, "vxlan, or host-gw: plain routes, for nodes in one layer-2 network")
	flags.StringVar(&o.cniConf, "cni-conf", "/etc/cni/net.d/10-kubewright.conflist", "CNI configuration file to write once pods can be connected")
	flags.StringVar(&o.server, "server", "", "URL of the API server, which need not wait for its ClusterIP (default: KUBERNETES_SERVICE_HOST and _PORT)")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "credentials in place of the pod's service account, for use outside a pod")
	flags.StringVar(&o.health, "health", "127.0.0.1:10261", "address that serves /healthz")
}

func (o *options) Check() error {
	var wrong []error
	if o.nodeName == "" {
		wrong = append(wrong, errors.New("--node-name is missing"))
	}
	if !o.nodeIP.Is4() {
		wrong = append(wrong, fmt.Errorf("--node-ip %v is not an IPv4 address", o.nodeIP))
	}
	if !o.podCIDR.IsValid() || !o.podCIDR.Addr().Is4() || o.podCIDR != o.podCIDR.Masked() {
		wrong = append(wrong, fmt.Errorf("--pod-cidr %v is not an IPv4 range", o.podCIDR))
	}
	if o.backend != backendVXLAN && o.backend != backendHostGW {
		wrong = append(wrong, fmt.Errorf("--backend %q is neither %s nor %s", o.backend, backendVXLAN, backendHostGW))
	}
	return errors.Join(wrong...)
}

// Component is overlay as a program.
func Component() component.Component {
	return component.Component{Name: "overlay", BuiltOn: "flannel", Options: &options{}}
}

func (o *options) Run(ctx context.Context, log *slog.Logger) error {
	logLibraries(os.Stderr)
	client, err := connect(*o)
	if err != nil {
		return err
	}
	return run(ctx, *o, client, log)
}

// logLibraries has the libraries log trouble only, as flannel tells every step.
func logLibraries(w io.Writer) {
	klog.SetSlogLogger(slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelWarn})))
}

const (
	tokenFile = "/var/run/secrets/kubernetes.io/serviceaccount/token"
	caFile    = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
)

func connect(o options) (kubernetes.Interface, error) {
	var cfg *rest.Config
	var err error
	switch {
	case o.kubeconfig != "":
		cfg, err = clientcmd.BuildConfigFromFlags(o.server, o.kubeconfig)
	case o.server != "":
		cfg = &rest.Config{Host: o.server, BearerTokenFile: tokenFile, TLSClientConfig: rest.TLSClientConfig{CAFile: caFile}}
	default:
		cfg, err = rest.InClusterConfig()
	}
	if err != nil {
		return nil, fmt.Errorf("credentials for the API server: %w", err)
	}
	cfg.ContentType = "application/vnd.kubernetes.protobuf"
	cfg.UserAgent = "kubewright-overlay"
	return kubernetes.NewForConfig(cfg)
}

// run makes the data path, tells the container runtime, and keeps both right
// until ctx ends (nil) or something is wrong that a new start would put right.
func run(ctx context.Context, o options, client kubernetes.Interface, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	state, err := serveHealth(o.health)
	if err != nil {
		return err
	}
	defer state.close()
	external, err := interfaceWith(o.nodeIP)
	if err != nil {
		return err
	}
	if err := checkForwarding(); err != nil {
		log.Warn("pods will not reach other nodes", "reason", err)
	}

	state.set("waiting for the API server")
	nodes, err := watchNodes(ctx, client, o, log)
	if err != nil {
		return ended(ctx, err)
	}
	state.set("waiting for the pod range of node " + o.nodeName)
	own, err := nodes.awaitOwn(ctx)
	if err != nil {
		return ended(ctx, err)
	}

	state.set("making the data path")
	if err := clearWay(o.backend, own, external.MTU); err != nil {
		return err
	}
	network, err := register(ctx, o, nodes, external)
	if err != nil {
		return ended(ctx, err)
	}
	if err := pruneRoutes(o.podCIDR, nodes.wanted()); err != nil {
		return err
	}
	if o.backend == backendVXLAN {
		if err := spareChecksumOffload(external.Name); err != nil {
			log.Warn("TCP between nodes may be broken", "reason", err)
		}
	}
	if err := masquerade(o.podCIDR, own.Pods); err != nil {
		return err
	}
	broken, err := watchKernel(ctx, o, own, nodes.Resend)
	if err != nil {
		return err
	}
	go network.Run(ctx) // ends with the process: flannel may wait for ever when it is stopped

	if err := writeConf(o.cniConf, own.Pods, network.MTU()); err != nil {
		return err
	}
	state.set("")
	log.Info("pods can be connected", "pods", own.Pods, "backend", o.backend, "interface", external.Name,
		"address", o.nodeIP, "mtu", network.MTU(), "conf", o.cniConf)

	select {
	case <-ctx.Done():
		log.Info("stopping; the data path stays")
		return nil
	case err = <-state.failed:
	case err = <-nodes.moved:
	case err = <-broken:
	}
	return ended(ctx, err)
}

// ended returns err, or nil if it is only that ctx was cancelled.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// register makes the backend's device and takes this node's lease.
func register(ctx context.Context, o options, nodes *nodes, external *net.Interface) (backend.Network, error) {
	addr := o.nodeIP.AsSlice()
	at := &backend.ExternalInterface{Iface: external, IfaceName: external.Name, IfaceAddr: addr, ExtAddr: addr}
	newBackend := vxlan.New
	if o.backend == backendHostGW {
		newBackend = hostgw.New
	}
	b, err := newBackend(nodes, at)
	if err != nil {
		return nil, fmt.Errorf("backend %s: %w", o.backend, err)
	}
	config, err := networkConfig(o, external.MTU)
	if err != nil {
		return nil, err
	}
	nodes.config = config
	network, err := b.RegisterNetwork(ctx, &sync.WaitGroup{}, config)
	if err != nil {
		return nil, fmt.Errorf("backend %s: %w", o.backend, err)
	}
	return network, nil
}

const (
	vni       = 1
	vxlanPort = 8472 // the kernel's and flannel's; 4789 of the RFC may be in use by the host's own overlays
	// vxlanDevice is flannel's name for the device of our VNI.
	vxlanDevice = "flannel.1"
)

func networkConfig(o options, externalMTU int) (*subnet.Config, error) {
	config := &subnet.Config{EnableIPv4: true, Network: ipNet(o.podCIDR), BackendType: o.backend}
	if o.backend != backendVXLAN {
		return config, nil
	}
	var err error
	config.Backend, err = json.Marshal(vxlan.VXLANConfig{VNI: vni, Port: vxlanPort, MTU: externalMTU})
	return config, err
}

func ipNet(p netip.Prefix) ip.IP4Net {
	return ip.IP4Net{IP: ip.FromIP(p.Addr().AsSlice()), PrefixLen: uint(p.Bits())}
}
