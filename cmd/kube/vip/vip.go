// Package vip gives the virtual IP of a cluster to one of its control-plane hosts:
// to one whose API server works, by a Lease that it renews through that very server.
// A host without power, cut off from the others, or with a broken API server cannot
// renew it, and another takes over within seconds.
//
// The address is given to the interface with a lifetime, which is what is left of the
// Lease: if this program is killed or stopped, the kernel takes it away.
package vip

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/mdlayher/arp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"

	"github.com/kubewright/kubewright/bootstrap/version"
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
	version    bool
}

func parse(args []string, usage io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("vip", flag.ContinueOnError)
	flags.SetOutput(usage)
	flags.TextVar(&o.address, "address", netip.Addr{}, "the virtual IP, IPv4")
	flags.StringVar(&o.device, "interface", "", "interface that gets it; the one with the node's address")
	flags.StringVar(&o.node, "node", "", "name of this Node, which the Lease shows as its holder")
	flags.StringVar(&o.server, "server", "", "URL of the API server on this host, and no other's: who cannot reach it must not hold the address")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "credentials that may change the Lease")
	flags.BoolVar(&o.version, "version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil || o.version {
		return o, err
	}
	var wrong []error
	if flags.NArg() > 0 {
		wrong = append(wrong, fmt.Errorf("unexpected argument %q", flags.Arg(0)))
	}
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
	return o, errors.Join(wrong...)
}

// Main runs vip until it is told to stop, and exits: 0 after a signal, 1 on failure,
// 2 on a wrong command line.
func Main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(command(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "vip: %v\n", err)
		return 2
	case o.version:
		fmt.Fprintf(stdout, "vip %s\n", version.Kubewright)
		return 0
	}
	log := logTo(stderr)
	client, err := connect(o)
	if err == nil {
		err = run(ctx, o, client, arp.Dial, log)
	}
	if err != nil {
		fmt.Fprintf(stderr, "vip: %v\n", err)
		return 1
	}
	return 0
}

// logTo returns the log. The election's own goes nowhere: it tells every try.
func logTo(w io.Writer) *slog.Logger {
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	return slog.New(slog.NewTextHandler(w, nil))
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
