// Package doctor looks at a live cluster, through its API and on its hosts, and
// says what is wrong. It changes nothing. Each check is on its own and bounded: what
// is broken does not hide what else is, and a check that cannot look says so.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"path"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kubewright/kubewright/bootstrap/apilb"
	"github.com/kubewright/kubewright/bootstrap/backup/kept"
	"github.com/kubewright/kubewright/bootstrap/certs"
	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/containerd"
	"github.com/kubewright/kubewright/bootstrap/controlplane"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/kubelet"
	"github.com/kubewright/kubewright/bootstrap/kubeproxy"
	"github.com/kubewright/kubewright/bootstrap/redact"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// checkTimeout bounds each check.
const checkTimeout = 10 * time.Second

// Host is a host of the cluster, reached or not.
type Host struct {
	Name   string
	Reader host.Reader // nil if it was not reached
	Err    error       // why not
}

// Inputs are what is looked at.
type Inputs struct {
	Server string         // the API's URL, "" if there is no access to it
	Client cluster.Reader // nil likewise
	Hosts  []Host
	// Etcd asks a host's own member; nil: etcd.Own.
	Etcd etcd.Self
}

func (in Inputs) self() etcd.Self {
	if in.Etcd == nil {
		return etcd.Own{PKI: path.Join(certs.Dir, "etcd")}
	}
	return in.Etcd
}

// Examine looks at everything at once.
func Examine(ctx context.Context, in Inputs) finding.Report {
	e := &examination{Inputs: in, clocks: map[string]clock{}}
	e.meetCluster(ctx)
	var all sync.WaitGroup
	if e.kube != nil {
		for _, c := range clusterChecks() {
			all.Go(func() {
				e.check(ctx, "", c.what, func(ctx context.Context) (finding.Report, error) { return c.look(ctx, e) })
			})
		}
	}
	for _, h := range in.Hosts {
		all.Go(func() { e.host(ctx, h) })
	}
	all.Wait()
	e.check(ctx, "", "whose member of etcd each host has", e.membership)
	e.explainAPI()
	e.add(e.skew()...)
	e.check(ctx, "", "the age of the scheduled backups", e.oldBackups)
	e.report.Sort()
	return e.report
}

// examination is what is known so far.
type examination struct {
	Inputs
	// Of the cluster; zero if the API does not answer.
	kube    kubernetes.Interface
	version string // of the API server
	record  cluster.Record
	spec    *spec.Cluster
	nodes   []corev1.Node

	mu     sync.Mutex
	report finding.Report
	clocks map[string]clock // by host

	seats   []*seat       // of the control-plane hosts, in no order
	shelves []*kept.Shelf // of the control-plane hosts, in no order
}

func (e *examination) add(found ...finding.Finding) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, f := range found {
		e.report = append(e.report, f.Advised())
	}
}

// check runs one check within its time. One that could not look is a finding, too.
func (e *examination) check(ctx context.Context, host, what string, look func(context.Context) (finding.Report, error)) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	found, err := look(ctx)
	for i := range found {
		if found[i].Host == "" {
			found[i].Host = host
		}
	}
	e.add(found...)
	if err != nil {
		e.add(finding.Finding{Code: finding.CheckFailed, Severity: finding.Warning, Host: host, Object: what,
			Message: fmt.Sprintf("%s could not be checked: %s", what, redact.Text(err.Error()))})
	}
}

// patient is a host that was reached and belongs to a cluster.
type patient struct {
	host.Reader
	claim *claim.Claim
	clock clock
}

func (p patient) controlPlane() bool { return p.claim.Role == string(spec.ControlPlaneRole) }

// host looks at one host.
func (e *examination) host(ctx context.Context, h Host) {
	if h.Err != nil || h.Reader == nil {
		e.add(finding.Finding{Code: finding.HostUnreachable, Severity: finding.Error, Host: h.Name,
			Message: fmt.Sprintf("the host cannot be looked at: %v", h.Err)})
		return
	}
	p := patient{Reader: h.Reader}
	met := false
	e.check(ctx, h.Name, "the host's claim and clock", func(ctx context.Context) (report finding.Report, err error) {
		if p.claim, err = claim.Read(ctx, p); err != nil {
			return nil, err
		}
		if p.claim == nil {
			return finding.Report{{Code: finding.HostUnclaimed, Severity: finding.Error, Message: "the host belongs to no cluster"}}, nil
		}
		p.clock, err = readClock(ctx, p)
		met = err == nil
		return nil, err
	})
	if !met {
		return
	}
	e.mu.Lock()
	e.clocks[h.Name] = p.clock
	e.mu.Unlock()
	var all sync.WaitGroup
	for _, c := range hostChecks() {
		all.Go(func() {
			e.check(ctx, h.Name, c.what, func(ctx context.Context) (finding.Report, error) { return c.look(ctx, e, p) })
		})
	}
	all.Wait()
}

// Units are those of a node of the role, those first on which the others depend.
func Units(role spec.Role) []string {
	agents := []string{apilb.Unit, kubelet.Unit, kubeproxy.Unit}
	if role != spec.ControlPlaneRole {
		return append([]string{containerd.Unit}, agents...)
	}
	return append([]string{etcd.Unit, controlplane.APIServerUnit, containerd.Unit,
		controlplane.ControllerManagerUnit, controlplane.SchedulerUnit}, agents...)
}

// errNoAnswer is of what was asked and said nothing.
var errNoAnswer = errors.New("no answer")
