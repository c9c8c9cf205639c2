// Package scheduled has the control-plane hosts back up the cluster by themselves: a
// timer that starts the component `backup` of the bundle.
package scheduled

import (
	"strconv"

	"github.com/kubewright/kubewright/bootstrap/install"
	"github.com/kubewright/kubewright/bootstrap/systemd"
)

const (
	// Unit is the service that makes one backup, and Timer what starts it.
	Unit  = "kubewright-backup.service"
	Timer = "kubewright-backup.timer"
)

// Inputs are what it depends on.
type Inputs struct {
	Calendar   string // when, as OnCalendar= has it; "": never
	Keep       int
	Recipients []string
	Dir        string
}

// Schedule has the timer there, or gone. The backups themselves are the admin's: what
// comes to be in Dir is not undone.
func Schedule(in Inputs) systemd.Schedule {
	exec := []string{install.Bin("kube"), "backup", "--dir=" + in.Dir, "--keep=" + strconv.Itoa(in.Keep)}
	for _, r := range in.Recipients {
		exec = append(exec, "--recipient="+r)
	}
	return systemd.Schedule{Timer: systemd.Timer{Calendar: in.Calendar, Service: systemd.Service{
		Name:        Unit,
		Description: "kubewright backup: one encrypted file of the cluster",
		Type:        "oneshot",
		Exec:        exec,
		OnDemand:    true,
		Options: map[string]string{
			// It may take what is left, and no more.
			"Nice":              "10",
			"IOSchedulingClass": "idle",
			"PrivateTmp":        "yes",
			"NoNewPrivileges":   "yes",
			"UMask":             "0077",
		},
	}}}
}
