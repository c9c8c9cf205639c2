package bootstrap

import (
	"github.com/kubewright/kubewright/bootstrap/backup/scheduled"
	"github.com/kubewright/kubewright/bootstrap/controlplane"
	"github.com/kubewright/kubewright/bootstrap/etcd"
)

// backupStep has a control-plane host back the cluster up by schedule, or not any more.
func (c *shared) backupStep() hostStep {
	return step("backup/schedule", "encrypted backups, made by the host itself", scheduled.Schedule(scheduled.Inputs{
		Calendar: c.Backup.Schedule, Keep: c.Backup.Keep, Recipients: c.Backup.Recipients, Dir: c.Backup.Dir,
		After: []string{etcd.Unit, controlplane.APIServerUnit},
	}))
}
