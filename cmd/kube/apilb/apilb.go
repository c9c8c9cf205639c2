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
	"log/slog"
	"net"
	"net/netip"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/inetaf/tcpproxy"
	"golang.org/x/sync/errgroup"

	"github.com/kubewright/kubewright/cmd/kube/component"
)

// options are the command line.
type options struct {
	listen     netip.AddrPort
	status     netip.AddrPort
	servers    string
	ca         string
	kubeconfig string
	prefer     netip.AddrPort // not valid: none
}

func (o *options) Declare(flags *flag.FlagSet) {
	flags.TextVar(&o.listen, "listen", netip.MustParseAddrPort("127.0.0.1:6444"), "address that stands for the API servers; they must have it in their certificates")
	flags.TextVar(&o.status, "status", netip.MustParseAddrPort("127.0.0.1:6445"), "address that serves /, /healthz and /metrics")
	flags.StringVar(&o.servers, "servers", "/var/lib/apilb/servers.json", "file with the addresses of the API servers, kept up to date")
	flags.StringVar(&o.ca, "ca", "/etc/kubernetes/pki/ca.crt", "certificate of the authority that signed theirs")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "/etc/kubernetes/kubelet.conf", "the node's credentials, used as soon as they are there")
	flags.TextVar(&o.prefer, "prefer", netip.AddrPort{}, "the API server on this host, used before all others while it is ready")
}

// Check has nothing to say: every default is good, and every value is parsed.
func (o *options) Check() error { return nil }

// Component is apilb as a program.
func Component() component.Component {
	return component.Component{Name: "apilb", Options: &options{}}
}

func (o *options) Run(ctx context.Context, log *slog.Logger) error {
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
		learn(ctx, *o, &lesson{file: o.servers, saved: known, balancer: b, log: log})
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
