// Package apilb is a TCP load balancer in front of the cluster's API servers, on
// the loopback address of every node. Kubelet, kube-proxy and overlay call it, so
// that none of them has to know which control-plane hosts there are, and which of
// them live.
//
// It passes bytes on (inetaf/tcpproxy): TLS goes through it, and it holds no
// credentials but the node's own, for questions of its own. Each server is asked
// for its readiness once a second. A server that is dead loses its connections at
// once, as a host without power closes none, and a kubelet would wait for minutes.
//
// Which servers there are is written by kubewright in a ConfigMap, which apilb
// watches through itself, and remembers in a file, so that a node that starts
// finds the cluster.
package apilb

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/inetaf/tcpproxy"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/kubewright/kubewright/bootstrap/version"
)

// options are the command line.
type options struct {
	listen     netip.AddrPort
	status     netip.AddrPort
	servers    string
	ca         string
	kubeconfig string
	prefer     netip.AddrPort // not valid: none
	version    bool
}

func parse(args []string, usage io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("apilb", flag.ContinueOnError)
	flags.SetOutput(usage)
	flags.TextVar(&o.listen, "listen", netip.MustParseAddrPort("127.0.0.1:6444"), "address that stands for the API servers; they must have it in their certificates")
	flags.TextVar(&o.status, "status", netip.MustParseAddrPort("127.0.0.1:6445"), "address that serves /, /healthz and /metrics")
	flags.StringVar(&o.servers, "servers", "/var/lib/apilb/servers.json", "file with the addresses of the API servers, kept up to date")
	flags.StringVar(&o.ca, "ca", "/etc/kubernetes/pki/ca.crt", "certificate of the authority that signed theirs")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "/etc/kubernetes/kubelet.conf", "the node's credentials, used as soon as they are there")
	flags.TextVar(&o.prefer, "prefer", netip.AddrPort{}, "the API server on this host, used before all others while it is ready")
	flags.BoolVar(&o.version, "version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil || o.version {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	return o, nil
}

// Main runs apilb until it is told to stop, and exits: 0 after a signal, 1 on
// failure, 2 on a wrong command line.
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
		fmt.Fprintf(stderr, "apilb: %v\n", err)
		return 2
	case o.version:
		fmt.Fprintf(stdout, "apilb %s\n", version.Kubewright)
		return 0
	}
	if err := run(ctx, o, logTo(stderr)); err != nil {
		fmt.Fprintf(stderr, "apilb: %v\n", err)
		return 1
	}
	return 0
}

// logTo returns the log. The libraries' goes nowhere: what they retry in an outage
// is told once, as a change of state.
func logTo(w io.Writer) *slog.Logger {
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	return slog.New(slog.NewTextHandler(w, nil))
}

// run balances until ctx ends (nil) or it can no longer.
func run(ctx context.Context, o options, log *slog.Logger) error {
	known, err := load(o.servers)
	if err != nil {
		return err
	}
	questions, err := newQuestions(o.ca, o.kubeconfig)
	if err != nil {
		return err
	}
	work, ctx := errgroup.WithContext(ctx)
	b := newBalancer(ctx, o.prefer, questions.ask, log)
	defer b.close()
	b.set(known, fromFile)

	var proxy tcpproxy.Proxy
	proxy.AddRoute(o.listen.String(), b)
	if err := proxy.Start(); err != nil {
		return fmt.Errorf("serve the API: %w", err)
	}
	work.Go(func() error { return fmt.Errorf("serve the API on %s: %w", o.listen, proxy.Wait()) })
	status, err := net.Listen("tcp", o.status.String())
	if err != nil {
		return errors.Join(fmt.Errorf("serve the status: %w", err), proxy.Close())
	}
	server := b.statusServer()
	work.Go(func() error { return fmt.Errorf("serve the status on %s: %w", o.status, server.Serve(status)) })
	work.Go(func() error {
		learn(ctx, o, &lesson{file: o.servers, saved: known, balancer: b, log: log})
		return nil
	})

	log.Info("listening", "address", o.listen, "status", o.status, "servers", known)
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		log.Warn("systemd does not hear that this is ready", "reason", err)
	}
	<-ctx.Done()
	err = context.Cause(ctx)
	_ = proxy.Close()
	_ = server.Close()
	b.close()
	_ = work.Wait() // its first error is the cause, or closing is
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
