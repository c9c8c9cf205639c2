package systemd

import (
	"testing"

	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// Units that run come to their end; those that there are not are none to be stopped.
func TestStop(t *testing.T) {
	s := hosttest.NewSim(t, "cp1")
	run := func(do plan.Action[host.Reader, host.Host]) plan.Count {
		t.Helper()
		n, err := plan.Run(t.Context(), plan.Options{}, plan.NewLane[host.Reader, host.Host]("cp1", s, s,
			plan.Step[host.Reader, host.Host]{Name: "x/y", Do: do}))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	run(Run{Services: []Service{{Name: "x.service", Exec: []string{"/bin/x"}}}})
	stop := Stop{Units: []string{"absent.service", "x.service"}}
	if diff, err := stop.Check(t.Context(), s); err != nil || len(diff) != 1 || diff[0].Object != "x.service" {
		t.Errorf("%v, %v", diff, err)
	}
	if n := run(stop); n.Applied != 1 {
		t.Errorf("%+v", n)
	}
	if n := run(stop); n.Skipped != 1 {
		t.Errorf("once more: %+v", n)
	}
}
