package bootstrap

import (
	"strings"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/spec"
	"github.com/kubewright/kubewright/bootstrap/systemd"
)

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
