package doctor

import (
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/kubewright/kubewright/bootstrap/backup"
	"github.com/kubewright/kubewright/bootstrap/backup/kept"
	"github.com/kubewright/kubewright/bootstrap/backup/scheduled"
	"github.com/kubewright/kubewright/bootstrap/claim"
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
		report, err := checkBackups(t.Context(), &examination{}, patient{Reader: s, claim: &claim.Claim{}})
		if err != nil {
			t.Fatal(err)
		}
		var got string
		for _, f := range report {
			if f.Code != finding.BackupFailed {
				t.Errorf("%v", f)
			}
			got += f.Message + ": " + strings.Join(f.Log, "; ") + ": " + f.Cause
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
	look("the last scheduled backup failed: two; three; backup: write the backup: no space left on device: at that time: a file system is nearly full [disk-filling]")
	if err := s.Systemd().Stop(t.Context(), scheduled.Timer); err != nil {
		t.Fatal(err)
	}
	look("no backups are made: kubewright-backup.timer is inactive: : the timer was stopped, and nothing else starts a backup")
	if err := (systemd.Schedule{Timer: systemd.Timer{Service: wish.Timer.Service}}).Apply(t.Context(), s); err != nil {
		t.Fatal(err)
	}
}

// The cause is the last backup's, whatever ailed those before.
func TestWhyNoBackup(t *testing.T) {
	for name, c := range map[string]struct {
		log  []string
		want string
	}{
		"no leader": {[]string{"backup: write the backup: no space left on device", "Started", "backup: etcd has no leader at the moment",
			"kubewright-backup.service: Failed with result 'exit-code'."}, "at that time: etcd has no leader [etcd-no-leader]"},
		"nobody knows it": {[]string{"backup: cluster-info is not there"}, "cluster-info is not there"},
		"killed":          {[]string{"kubewright-backup.service: Main process exited, code=killed"}, "not known: its log does not say why it ended"},
		"no log":          {nil, "not known: its log does not say why it ended"},
	} {
		if got := whyNoBackup(c.log); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestOldBackups(t *testing.T) {
	made := time.Date(2026, time.March, 2, 0, 0, 5, 0, time.UTC)
	s := hosttest.NewSim(t, "cp1")
	s.Put(claim.File, `{"cluster":"prod","role":"control-plane","node":"cp1"}`, 0o600)
	if err := scheduled.Schedule(scheduled.Inputs{Calendar: "daily", Keep: 1, Recipients: []string{"age1x"}, Dir: "/b"}).Apply(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	s.Put("/b/"+backup.FileName("prod", made), "sealed", 0o600)
	s.Script(hosttest.Answer{Argv: []string{"systemd-analyze", "calendar", "--iterations=2", "--base-time=@" + strconv.FormatInt(made.Unix(), 10), "--", "daily"},
		Stdout: "    Next elapse: Tue 2026-03-03 00:00:00 UTC\n       Iter. #2: Wed 2026-03-04 00:00:00 UTC\n"})
	shelf, err := kept.Look(t.Context(), s, "")
	if err != nil {
		t.Fatal(err)
	}
	node := func(name string) corev1.Node {
		return corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{controlPlaneLabel: ""}}}
	}
	e := &examination{shelves: []*kept.Shelf{shelf}, nodes: []corev1.Node{node("cp1")}}
	look := func(severity finding.Severity, want string) {
		t.Helper()
		report, err := e.oldBackups(t.Context())
		if err != nil || len(report) != 1 || report[0].Code != finding.BackupOld || report[0].Severity != severity || report[0].Message != want {
			t.Errorf("%+v, %v", report, err)
		}
	}
	if report, err := e.oldBackups(t.Context()); len(report) > 0 || err != nil {
		t.Errorf("nobody says which hosts there are: %v, %v", report, err)
	}
	e.kube = fake.NewClientset()
	const old = "the newest scheduled backup is of 2026-03-02 00:00:05, on cp1, and at least 2 should have been made since"
	look(finding.Error, old)
	e.nodes = append(e.nodes, node("cp2"))
	look(finding.Warning, old+"; a younger one may be on cp2, which could not be looked at")
}
