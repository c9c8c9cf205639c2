package bootstrap

import (
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/bootstrap/backup/kept"
	"github.com/kubewright/kubewright/bootstrap/backup/scheduled"
	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/spec"
	"github.com/kubewright/kubewright/bootstrap/systemd"
)

// TestUnseenBackups: what no host that was reached has may be on one that was not.
func TestUnseenBackups(t *testing.T) {
	s := hosttest.NewSim(t, "cp2")
	s.Put(claim.File, `{"cluster":"prod","role":"control-plane","node":"cp2"}`, 0o600)
	wish := scheduled.Inputs{Calendar: "daily", Keep: 1, Recipients: []string{"age1x"}, Dir: "/b"}
	if err := scheduled.Schedule(wish).Apply(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	shelf, err := kept.Look(t.Context(), s, "")
	if err != nil {
		t.Fatal(err)
	}
	s.Script(hosttest.Answer{Argv: []string{"systemd-analyze", "calendar", "--iterations=1", "--base-time=@" + strconv.FormatInt(shelf.Since.Unix(), 10), "--", "daily"}})
	nodes := []NodeStatus{{Node: "cp1", Role: controlPlaneRole}, {Node: "cp2", Role: controlPlaneRole}, {Node: "w1", Role: "worker"}}
	got, err := backupStatus(t.Context(), []*kept.Shelf{shelf}, nodes)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&BackupStatus{Schedule: "daily", Unseen: []string{"cp1"}}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestMissedBackup: the timer makes up for a backup as soon as a host boots, when etcd and the API server need not be there yet.
func TestMissedBackup(t *testing.T) {
	c := &shared{Cluster: &spec.Cluster{Backup: spec.Backup{Schedule: "daily", Keep: 1, Recipients: []string{"age1x"}, Dir: "/b"}}}
	timer := c.backupStep().Do.(systemd.Schedule).Timer
	if unit := string(timer.Service.File()); !strings.Contains(unit, "After=etcd.service kube-apiserver.service\n") {
		t.Errorf("it does not wait for them:\n%s", unit)
	}
	if unit := string(timer.File()); !strings.Contains(unit, "Persistent=true\n") {
		t.Errorf("a missed one is not made up for:\n%s", unit)
	}
}
