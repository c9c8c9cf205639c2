package systemd

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// slow is a host whose units take their time, and start again by themselves.
type slow struct {
	host.Host
	ends time.Time // when units are active
}

func (s slow) Units(ctx context.Context, names ...string) ([]host.Unit, error) {
	units, err := s.Host.Units(ctx, names...)
	if time.Now().Before(s.ends) {
		for i := range units {
			units[i].Active, units[i].Sub = "activating", "auto-restart"
		}
	}
	return units, err
}

// TestWaitsSayWhatTheySee has a start whose units are not active at once.
func TestWaitsSayWhatTheySee(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		run := func(takes, timeout time.Duration) ([]string, error) {
			s := hosttest.NewSim(t, "cp1")
			h := slow{s, time.Now().Add(takes)}
			var said []string
			lane := plan.NewLane[host.Reader, host.Host]("cp1", h, h, plan.Step[host.Reader, host.Host]{
				Name: "x/start", Timeout: timeout, Do: Run{Services: []Service{{Name: "x.service", Exec: []string{"/bin/x"}}}}})
			_, err := plan.Run(t.Context(), plan.Options{Emit: func(e plan.Event) {
				if e.Kind == plan.Progress {
					said = append(said, e.Text)
				}
			}}, lane)
			return said, err
		}
		const want = "waits for units to run: x.service: it is activating (auto-restart)"
		said, err := run(time.Second, time.Minute)
		if err != nil || !slices.Contains(said, want) {
			t.Errorf("%q, %v", said, err)
		}
		_, err = run(time.Hour, time.Minute)
		if fault.CodeOf(err) != fault.Timeout || !errors.Is(err, context.DeadlineExceeded) || strings.Count(err.Error(), want) != 1 {
			t.Errorf("in vain: %v", err)
		}
	})
}
