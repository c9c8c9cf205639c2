package diagnose

import (
	"context"
	"errors"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/host"
)

// timeout bounds the search for the cause of one failure.
const timeout = 15 * time.Second

// Run knows where to look when a step of a run has failed.
type Run struct {
	Hosts []host.Reader
	Units []string // of any host, those first on which the others depend
	// Kubernetes is the cluster's API, nil or an error if there is none yet.
	Kubernetes func(context.Context) (kubernetes.Interface, error)
}

// Step adds the probable cause to the error of a step that waited in vain or whose
// unit did not start. Other errors say it all themselves. A step of a host's
// lane is looked for on that host, another one on all hosts and in the cluster.
func (r Run) Step(ctx context.Context, lane, _ string, err error) error {
	unit := (*host.UnitError)(nil)
	if !errors.As(err, &unit) && fault.CodeOf(err) != fault.Timeout || ctx.Err() != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	at := r.Hosts
	for i, h := range r.Hosts {
		if h.Name() == lane {
			at = r.Hosts[i : i+1]
		}
	}
	look := []func(context.Context, []host.Reader) finding.Report{r.units, r.cluster, r.symptoms}
	if unit != nil {
		look = []func(context.Context, []host.Reader) finding.Report{r.units}
	}
	for _, l := range look {
		if found := l(ctx, at); len(found) > 0 {
			return &finding.Diagnosed{Err: err, Finding: found[0]}
		}
	}
	if unit == nil {
		return err
	}
	// It was seen to fail, and runs by now: its error has the log of that time.
	f := finding.Finding{Code: finding.UnitFailed, Severity: finding.Error, Host: lane, Object: unit.Unit,
		Message: unit.Unit + " did not start: " + unit.Result}
	explain(&f, component(unit.Unit), strings.Split(unit.Log, "\n"), true)
	return &finding.Diagnosed{Err: err, Finding: f.Advised()}
}

// units are those that do not run, of units that are installed.
func (r Run) units(ctx context.Context, hosts []host.Reader) finding.Report {
	var report finding.Report
	for _, h := range hosts {
		found, _ := Units(ctx, h, time.Now(), r.Units...) // a host that does not answer explains nothing
		for _, f := range found {
			if f.Severity == finding.Error && f.Code != finding.UnitMissing {
				report = append(report, f)
			}
		}
	}
	return report
}

func (r Run) symptoms(ctx context.Context, hosts []host.Reader) finding.Report {
	var report finding.Report
	for _, h := range hosts {
		found, _ := Symptoms(ctx, h, r.Units...)
		report = append(report, found...)
	}
	return report
}

func (r Run) cluster(ctx context.Context, _ []host.Reader) finding.Report {
	if r.Kubernetes == nil {
		return nil
	}
	kube, err := r.Kubernetes(ctx)
	if err != nil {
		return nil
	}
	var report finding.Report
	if pods, err := kube.CoreV1().Pods(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{}); err == nil {
		report = append(report, Pods(ctx, kube, pods.Items, time.Now())...)
	}
	if nodes, err := kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{}); err == nil {
		report = append(report, Nodes(nodes.Items)...)
	}
	return report.Blocking()
}
