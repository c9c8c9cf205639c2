package main

import (
	"flag"

	"github.com/coredns/coredns/coremain"

	// The plugins that a cluster's Corefile uses, and no others.
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/loop"
	_ "github.com/coredns/coredns/plugin/metrics"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"
)

func coredns() { coremain.Run() }

// withoutCoreDNSFlags takes CoreDNS's flags out of Go's global set, into which
// it puts them when it is linked in: kube-proxy takes that set over, and would
// show CoreDNS's --version for its own.
func withoutCoreDNSFlags(run func()) func() {
	return func() {
		foreign := map[string]bool{
			"conf": true, "dns.port": true, "log-format": true, "p": true,
			"pidfile": true, "plugins": true, "quiet": true, "version": true,
		}
		own := flag.NewFlagSet(flag.CommandLine.Name(), flag.ExitOnError)
		flag.VisitAll(func(f *flag.Flag) {
			if !foreign[f.Name] {
				own.Var(f.Value, f.Name, f.Usage)
			}
		})
		flag.CommandLine = own
		run()
	}
}
