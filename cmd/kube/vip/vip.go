// Package vip gives the virtual IP of a cluster to one of its control-plane hosts:
// to one whose API server works, by a Lease that it renews through that very server.
// A host without power, cut off from the others, or with a broken API server cannot
// renew it, and another takes over within seconds.
//
// The address is given to the interface with a lifetime, which is what is left of the
// Lease: if this program is killed or stopped, the kernel takes it away.
//
// Who is elected asks the network first: the address is not taken from a machine that has it, which may be
// a host of another cluster, and is named in the log.
package vip

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/mdlayher/arp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/kubewright/kubewright/cmd/kube/component"
)

// Lease in kube-system names the host that holds the address.
const Lease = "kubewright-virtual-ip"

// Nobody may take the address while another can still have it. A holder that cannot
// renew gives up call+retry+renew after the last renewal that the API has seen, 4.25 s
// at most; the others wait for lease. All count by their own clocks only. A cluster
// that elects another etcd leader does not answer for up to 2 s: no reason to give up.
const (
	lease = 5 * time.Second
	renew = 3 * time.Second        // for how long renewing is tried
	retry = 500 * time.Millisecond // between two renewals; the others look after one to two of them
	call  = 750 * time.Millisecond // that the API server may take for an answer
)

// options are the command line.
type options struct {
	address    netip.Addr
	device     string
	node       string
	server     string
	kubeconfig string
}

func (o *options) Declare(flags *flag.FlagSet) {
	flags.TextVar(&o.address, "address", netip.Addr{}, "the virtual IP, IPv4")
	flags.StringVar(&o.device, "interface", "", "interface that gets it; the one with the node's address")
	flags.StringVar(&o.node, "node", "", "name of this Node, which the Lease shows as its holder")
	flags.StringVar(&o.server, "server", "", "URL of the API server on this host, and no other's: who cannot reach it must not hold the address")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "credentials that may change the Lease")
}

func (o *options) Check() error {
	var wrong []error
	if !o.address.Is4() {
		wrong = append(wrong, fmt.Errorf("--address %v is not an IPv4 address", o.address))
	}
	for _, f := range []struct{ name, value string }{
		{"interface", o.device}, {"node", o.node}, {"server", o.server}, {"kubeconfig", o.kubeconfig},
	} {
		if f.value == "" {
			wrong = append(wrong, fmt.Errorf("--%s is missing", f.name))
		}
	}
	return errors.Join(wrong...)
}

// Component is vip as a program.
func Component() component.Component {
	return component.Component{Name: "vip", Options: &options{}}
}

func (o *options) Run(ctx context.Context, log *slog.Logger) error {
	client, err := connect(*o)
	if err != nil {
		return err
	}
	return run(ctx, *o, client, arp.Dial, log)
}

func connect(o options) (kubernetes.Interface, error) {
	access, err := clientcmd.BuildConfigFromFlags(o.server, o.kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("credentials for the API server: %w", err)
	}
	access.Timeout = call
	access.UserAgent = "kubewright-vip"
	return kubernetes.NewForConfig(access)
}

// run stands for election until ctx ends (nil), and has the address whenever it is
// elected, but not before nor after.
func run(ctx context.Context, o options, client kubernetes.Interface, wire wire, log *slog.Logger) error {
	place, err := findPlace(o.device, o.address, wire)
	if err != nil {
		return err
	}
	if err := place.remove(); err != nil { // what an earlier run left
		return err
	}
	lock := &tracked{log: log, Interface: &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: Lease},
		Client:     client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: o.node},
	}}
	log.Info("standing for election", "address", o.address, "interface", o.device, "node", o.node)
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady+"\nSTATUS="+stands); err != nil {
		log.Warn("systemd does not hear that this is ready", "reason", err)
	}
	defer lock.release() // in vain if another has it, or the API does not answer
	for ctx.Err() == nil {
		if err := campaign(ctx, lock, place, log); err != nil {
			return err
		}
	}
	return nil
}

// campaign waits until this host is elected, and has the address for as long as it
// is, or until ctx ends. The address is gone when it returns. An error is one of the
// address: a host that cannot have it leaves it to others.
func campaign(ctx context.Context, lock *tracked, place *place, log *slog.Logger) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var term term
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: lock, Name: Lease, LeaseDuration: lease, RenewDeadline: renew, RetryPeriod: retry,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(elected context.Context) {
				defer stop()
				term.serve(func() error { return place.hold(elected, lock, log) })
			},
			OnStoppedLeading: func() {}, // term.end waits
			OnNewLeader: func(node string) {
				if node != "" {
					log.Info("a host is elected for the address", "node", node)
				}
			},
		},
	})
	if err != nil {
		return err
	}
	elector.Run(ctx)
	return term.end()
}

// term is the time for which a host is elected. The election starts what is done in
// it on a goroutine, which may come to run only when the term is over.
type term struct {
	mu   sync.Mutex
	over bool
	err  error
}

// serve calls hold, unless the term is over already.
func (t *term) serve(hold func() error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.over {
		t.err = hold()
	}
}

// end returns when hold has ended, with its error.
func (t *term) end() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over = true
	return t.err
}
