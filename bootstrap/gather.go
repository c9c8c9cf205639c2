package bootstrap

import (
	"context"
	"errors"
	"net/netip"
	"path"
	"sync"

	"github.com/kubewright/kubewright/bootstrap/certs"
	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/controlplane"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/journal"
	"github.com/kubewright/kubewright/bootstrap/kubelet"
	"github.com/kubewright/kubewright/bootstrap/spec"
	"github.com/kubewright/kubewright/bootstrap/systemd"
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
	return t, t.lookUp(ctx)
}

// lookUp finds out which cluster the host belongs to, and how far.
func (t *Target) lookUp(ctx context.Context) (err error) {
	t.Begun = false
	t.Member, t.Serving, t.EtcdData, t.EtcdRuns, t.HasAPI, t.Fenced = false, false, false, false, false, ""
	if t.Claim, err = claim.Read(ctx, t.Host); err != nil {
		return err
	}
	if t.Claim == nil {
		found, err := t.Host.Stat(ctx, claim.Dir)
		t.Begun = err == nil && found[0].Exists
		return err
	}
	if t.EtcdData, err = etcd.HasData(ctx, t.Host); err != nil {
		return err
	}
	if t.Fenced, err = etcd.Fenced(ctx, t.Host); err != nil {
		return err
	}
	found, err := t.Host.Stat(ctx, kubelet.ClientCert, certs.Dir+"/ca.crt", kubelet.BootstrapKubeconfig,
		path.Join(systemd.Dir, controlplane.APIServerUnit))
	if err != nil {
		return err
	}
	t.HasAPI = found[3].Exists
	// One that has its token still was left half-way in kubelet/bootstrap.
	if found[0].Exists && found[1].Exists && !found[2].Exists {
		ca, err := t.Host.ReadFile(ctx, found[1].Path)
		if err != nil {
			return err
		}
		trouble, err := kubelet.CertificateTrouble(ctx, t.Host, ca)
		t.Member = err == nil && trouble == ""
	}
	units, err := t.Host.Units(ctx, kubelet.Unit, etcd.Unit)
	if err != nil {
		return err
	}
	t.Serving = t.Member && units[0].Active == "active"
	t.EtcdRuns = units[1].Active == "active"
	return nil
}

// LookAgain finds out once more which cluster hosts belong to: under their locks, when
// nobody else can change it any more.
func LookAgain(ctx context.Context, targets []Target) error {
	return each(targets, "gather-facts", func(t *Target) error { return t.lookUp(ctx) })
}

// each calls f for all targets at once.
func each(targets []Target, step string, f func(*Target) error) error {
	faults := make([]error, len(targets))
	var all sync.WaitGroup
	for i := range targets {
		all.Go(func() { faults[i] = fault.At(targets[i].Wish.Name, step, f(&targets[i])) })
	}
	all.Wait()
	return errors.Join(faults...)
}

// ReadJournals reads the journals of hosts, at once.
func ReadJournals(ctx context.Context, targets []Target) error {
	return each(targets, "read-journal", func(t *Target) (err error) {
		t.Journal, err = journal.Read(ctx, t.Host)
		return err
	})
}
