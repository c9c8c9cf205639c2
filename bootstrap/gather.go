package bootstrap

import (
	"context"
	"errors"
	"net/netip"
	"sync"

	"github.com/kubewright/kubewright/bootstrap/certs"
	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/journal"
	"github.com/kubewright/kubewright/bootstrap/kubelet"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// Connection is a host that was reached, with the address it was reached at.
type Connection struct {
	host.Host
	Reached netip.Addr // the host's own end, invalid if it is unknown or translated on the way
}

// Connect reaches all hosts and looks at them, at once. Every host that cannot be used is told.
func Connect(ctx context.Context, hosts []spec.Host, dial func(context.Context, spec.Host) (Connection, error)) ([]Target, error) {
	targets := make([]Target, len(hosts))
	faults := make([]error, len(hosts))
	var all sync.WaitGroup
	for i, h := range hosts {
		all.Go(func() {
			conn, err := dial(ctx, h)
			if err != nil {
				faults[i] = fault.At(h.Name, "connect", err)
				return
			}
			targets[i], err = look(ctx, h, conn)
			if err != nil {
				faults[i] = fault.At(h.Name, "gather-facts", err)
			}
		})
	}
	all.Wait()
	return targets, errors.Join(faults...)
}

// look gathers what planning must know of a host.
func look(ctx context.Context, h spec.Host, conn Connection) (Target, error) {
	t := Target{Wish: h, Host: conn.Host, Reached: conn.Reached}
	var err error
	if t.Facts, err = host.Gather(ctx, conn.Host); err != nil {
		return t, err
	}
	if t.Claim, err = claim.Read(ctx, conn.Host); err != nil || t.Claim == nil {
		return t, err
	}
	found, err := conn.Stat(ctx, kubelet.ClientCert, certs.Dir+"/ca.crt", kubelet.BootstrapKubeconfig)
	if err != nil {
		return t, err
	}
	// One that has its token still was left half-way in kubelet/bootstrap.
	if found[0].Exists && found[1].Exists && !found[2].Exists {
		ca, err := conn.ReadFile(ctx, found[1].Path)
		if err != nil {
			return t, err
		}
		trouble, err := kubelet.CertificateTrouble(ctx, conn.Host, ca)
		t.Member = err == nil && trouble == ""
	}
	return t, nil
}

// ReadJournals reads the journals of hosts, at once.
func ReadJournals(ctx context.Context, targets []Target) error {
	faults := make([]error, len(targets))
	var all sync.WaitGroup
	for i := range targets {
		t := &targets[i]
		all.Go(func() {
			entries, err := journal.Read(ctx, t.Host)
			t.Journal, faults[i] = entries, fault.At(t.Wish.Name, "read-journal", err)
		})
	}
	all.Wait()
	return errors.Join(faults...)
}
