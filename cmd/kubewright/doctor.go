package main

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"

	"github.com/kubewright/kubewright/bootstrap"
	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/diagnose"
	"github.com/kubewright/kubewright/bootstrap/doctor"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/kubeconfig"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
	"github.com/kubewright/kubewright/cmd/kubewright/ui"
)

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor [HOST...]",
		Short: "Look for all that is wrong with a live cluster",
		Long: "doctor looks at the cluster in the kubeconfig through its API and, over SSH, at the hosts of its nodes, and\n" +
			"says what is wrong, why, and what to do. It changes nothing. Name hosts if the API does not answer: it is then\n" +
			"looked for through the first of them. The exit status is 19 if there are errors.",
		Example: "  kubewright doctor\n  kubewright doctor cp1 w1 w2\n  kubewright doctor -o json",
		RunE: func(c *cobra.Command, args []string) error {
			in, done, err := a.patients(c.Context(), args)
			if err != nil {
				return err
			}
			defer done()
			report := doctor.Examine(c.Context(), in)
			if a.output == "json" {
				err = writeJSON(a.stdout, append(finding.Report{}, report...)) // [] if there is none
			} else {
				err = ui.RenderReport(a.stdout, report)
			}
			if n := len(report.Blocking()); err == nil && n > 0 {
				return fault.New(fault.Unhealthy, "do what the findings say, then run `kubewright doctor` again", "errors among the findings above: %d", n)
			}
			return err
		},
	}
}

// apiTimeout bounds the question which hosts there are.
const apiTimeout = 5 * time.Second

// patients reaches the API and the hosts: those named, and those of the nodes. One
// that is not reached is looked at no further.
func (a *app) patients(ctx context.Context, names []string) (doctor.Inputs, func(), error) {
	var in doctor.Inputs
	in.Hosts = a.reach(ctx, names)
	_, access, err := kubeconfig.Access(a.kubeconfig, "")
	if err != nil && len(names) == 0 {
		return in, nil, err
	}
	if err == nil {
		in.Server = access.Server
		in.Client = cluster.New(plan.Of("the admin's access", access), dialThrough(in.Hosts))
		asking, cancel := context.WithTimeout(ctx, apiTimeout)
		known, _ := bootstrap.HostNames(asking, in.Client) // an API that does not answer is doctor's to tell
		cancel()
		known = slices.DeleteFunc(known, func(n string) bool { return slices.Contains(names, n) })
		in.Hosts = append(in.Hosts, a.reach(ctx, known)...)
	}
	return in, func() {
		for _, h := range in.Hosts {
			if c, ok := h.Reader.(io.Closer); ok {
				c.Close() //nolint:errcheck // nothing is left to be written
			}
		}
	}, nil
}

// dialThrough leads to the API through the first host that was reached; nil, directly, if none was.
func dialThrough(hosts []doctor.Host) cluster.DialFunc {
	for _, h := range hosts {
		if h.Reader != nil {
			return h.Reader.Dial
		}
	}
	return nil
}

// reach connects to hosts, all at once.
func (a *app) reach(ctx context.Context, names []string) []doctor.Host {
	hosts := make([]doctor.Host, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() {
			hosts[i].Name = name
			if h, err := a.dial(ctx, name); err != nil {
				hosts[i].Err = err
			} else {
				hosts[i].Reader = h
			}
		})
	}
	all.Wait()
	return hosts
}

// errOtherCluster is of a kubeconfig that leads elsewhere than to the hosts' cluster.
var errOtherCluster = errors.New("the kubeconfig is of another cluster")

// diagnosis is where to look when a step of a run on targets fails.
func (a *app) diagnosis(targets []bootstrap.Target) diagnose.Run {
	r := diagnose.Run{Units: doctor.Units(spec.ControlPlaneRole)}
	for _, t := range targets {
		r.Hosts = append(r.Hosts, t.Host)
	}
	if len(targets) > 0 {
		r.Kubernetes = func(ctx context.Context) (kubernetes.Interface, error) { return a.clusterOf(ctx, targets[0].Host) }
	}
	return r
}

// clusterOf is the API of the cluster that a host belongs to by now, if the
// kubeconfig has it.
func (a *app) clusterOf(ctx context.Context, h host.Reader) (kubernetes.Interface, error) {
	_, access, err := kubeconfig.Access(a.kubeconfig, "")
	if err != nil {
		return nil, err
	}
	client := cluster.New(plan.Of("the admin's access", access), h.Dial)
	record, err := cluster.ReadRecord(ctx, client)
	if err != nil {
		return nil, err
	}
	mine, err := claim.Read(ctx, h)
	if err != nil {
		return nil, err
	}
	if mine == nil || mine.ClusterID != record.ID {
		return nil, errOtherCluster
	}
	return client.Kubernetes(ctx)
}
