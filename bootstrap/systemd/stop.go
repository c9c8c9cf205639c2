package systemd

import (
	"context"
	"fmt"

	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// Stop has units come to their end, in the order given, each in its own time. They start
// again at the next boot: it is for hosts on which they are undone afterwards.
type Stop struct {
	Units []string
}

var _ plan.Action[host.Reader, host.Host] = Stop{}

// running are the units that are not at their end; those that there are not do not run.
func (a Stop) running(ctx context.Context, r host.Reader) ([]string, error) {
	units, err := r.Units(ctx, a.Units...)
	if err != nil {
		return nil, err
	}
	var running []string
	for _, u := range units {
		if u.Active != "inactive" && u.Active != "failed" {
			running = append(running, u.Name)
		}
	}
	return running, nil
}

func (a Stop) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	running, err := a.running(ctx, r)
	var diff plan.Diff
	for _, name := range running {
		diff = append(diff, plan.Change{Verb: plan.Stop, Kind: plan.ObjectUnit, Object: name})
	}
	return diff, err
}

func (a Stop) Apply(ctx context.Context, h host.Host) error {
	running, err := a.running(ctx, h)
	if err != nil {
		return err
	}
	for _, name := range running {
		plan.Report(ctx, "stops "+name)
		if err := h.Systemd().Stop(ctx, name); err != nil {
			return fmt.Errorf("stop %s: %w", name, err)
		}
	}
	return nil
}
