package doctor

import (
	"strings"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/backup/scheduled"
	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/systemd"
)

func TestScheduledBackups(t *testing.T) {
	s := hosttest.NewSim(t, "cp1")
	s.Script(hosttest.Answer{Argv: []string{"journalctl", "-u", scheduled.Unit, "-n", "50", "-o", "cat", "--no-pager"},
		Stdout: "one\ntwo\nthree\nbackup: write the backup: no space left on device\n"})
	look := func(want string) {
		t.Helper()
		report, err := checkBackups(t.Context(), nil, patient{Reader: s})
		if err != nil {
			t.Fatal(err)
		}
		var got string
		for _, f := range report {
			if f.Code != finding.BackupFailed {
				t.Errorf("%v", f)
			}
			got += f.Message + ": " + strings.Join(f.Log, "; ")
		}
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	look("") // none are wished for
	wish := scheduled.Schedule(scheduled.Inputs{Calendar: "daily", Keep: 1, Recipients: []string{"age1x"}, Dir: "/b"})
	if err := wish.Apply(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	look("")
	s.FailUnit(scheduled.Unit, "failed", "")
	if err := s.Systemd().Start(t.Context(), scheduled.Unit); err == nil {
		t.Fatal("it did not fail")
	}
	look("the last scheduled backup failed: two; three; backup: write the backup: no space left on device")
	if err := s.Systemd().Stop(t.Context(), scheduled.Timer); err != nil {
		t.Fatal(err)
	}
	look("no backups are made: kubewright-backup.timer is inactive: ")
	if err := (systemd.Schedule{Timer: systemd.Timer{Service: wish.Timer.Service}}).Apply(t.Context(), s); err != nil {
		t.Fatal(err)
	}
}
