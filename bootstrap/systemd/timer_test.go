package systemd

import (
	"slices"
	"strings"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
)

func sweeping(calendar string) Schedule {
	return Schedule{Timer{Calendar: calendar, Service: Service{
		Name: "sweep.service", Description: "sweep: the floor", Type: "oneshot", Exec: []string{"/bin/sweep", "--all"}, OnDemand: true}}}
}

// settle applies a schedule until nothing differs, which has to be at once.
func settle(t *testing.T, s *hosttest.Sim, a Schedule) int {
	t.Helper()
	diff, err := a.Check(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if len(diff) == 0 {
		return 0
	}
	if err := a.Apply(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if again, err := a.Check(t.Context(), s); err != nil || len(again) > 0 {
		t.Fatalf("after it was applied: %v, %v", again, err)
	}
	return len(diff)
}

func timerOf(t *testing.T, s *hosttest.Sim) host.Unit {
	t.Helper()
	units, err := s.Units(t.Context(), "sweep.timer")
	if err != nil {
		t.Fatal(err)
	}
	return units[0]
}

func TestSchedule(t *testing.T) {
	s := hosttest.NewSim(t, "cp1")
	if n := settle(t, s, sweeping("")); n != 0 {
		t.Errorf("nothing is wished, and %d things change", n)
	}
	if n := settle(t, s, sweeping("daily")); n != 4 {
		t.Errorf("%d changes, not two files, enabled, started", n)
	}
	if u := timerOf(t, s); u.Active != "active" || u.File != "enabled" {
		t.Errorf("%+v", u)
	}
	service, err := s.ReadFile(t.Context(), "/etc/systemd/system/sweep.service")
	if err != nil || strings.Contains(string(service), "WantedBy") || strings.Contains(string(service), "RemainAfterExit") {
		t.Errorf("%s, %v", service, err)
	}
	before := timerOf(t, s).Started
	if n := settle(t, s, sweeping("weekly")); n != 2 || !timerOf(t, s).Started.After(before) {
		t.Errorf("another time: %d changes, started %s and %s", n, before, timerOf(t, s).Started)
	}
	s.Boot()
	if n := settle(t, s, sweeping("weekly")); n != 0 {
		t.Errorf("after a boot: %d changes", n)
	}
	if n := settle(t, s, sweeping("")); n != 3 {
		t.Errorf("%d changes, not two files and stopped", n)
	}
	if u := timerOf(t, s); u.Active != "inactive" || u.Load != "not-found" {
		t.Errorf("it is left: %+v", u)
	}
}

// A schedule that is broken off anywhere, on its way in or out, is finished by the next run.
func TestScheduleBrokenOff(t *testing.T) {
	for _, to := range []string{"daily", ""} {
		for _, m := range []hosttest.Moment{hosttest.Before, hosttest.In, hosttest.After} {
			for n := 1; ; n++ {
				s := hosttest.NewSim(t, "cp1")
				if to == "" {
					settle(t, s, sweeping("weekly"))
				}
				s.KillAt(len(s.Operations())+n, m)
				err := sweeping(to).Apply(t.Context(), s)
				if !s.Gone() {
					if err != nil {
						t.Fatal(err)
					}
					break
				}
				s.Restore()
				settle(t, s, sweeping(to))
				if want := to != ""; (timerOf(t, s).Active == "active") != want {
					t.Errorf("to %q, killed %s operation %d: %+v", to, m, n, timerOf(t, s))
				}
			}
		}
	}
}

func TestReadTimer(t *testing.T) {
	s := hosttest.NewSim(t, "cp1")
	if got, err := ReadTimer(t.Context(), s, "sweep.service"); got != nil || err != nil {
		t.Errorf("of none: %+v, %v", got, err)
	}
	wish := sweeping("Mon..Fri 02:30")
	wish.Timer.Service.Exec = []string{"/bin/sweep", "--at=/a b", `--say="100 %" of $HOME; a\nb`, "", "--last=x\ny"}
	settle(t, s, wish)
	got, err := ReadTimer(t.Context(), s, "sweep.service")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Exec, wish.Timer.Service.Exec) || got.Calendar != wish.Timer.Calendar || got.Since.IsZero() {
		t.Errorf("%+v\nwant %q", got, wish.Timer.Service.Exec)
	}
}
