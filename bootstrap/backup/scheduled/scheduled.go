// Package scheduled has the control-plane hosts back up the cluster by themselves: a
// timer that starts the component `backup` of the bundle.
package scheduled

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/install"
	"github.com/kubewright/kubewright/bootstrap/systemd"
)

const (
	// Unit is the service that makes one backup, and Timer what starts it.
	Unit  = "kubewright-backup.service"
	Timer = "kubewright-backup.timer"
)

const dirFlag = "--dir="

// Inputs are what it depends on.
type Inputs struct {
	Calendar   string // when, as OnCalendar= has it; "": never
	Keep       int
	Recipients []string
	Dir        string
	After      []string // units of what is backed up: one that was missed while the host was off is made as it boots
}

// Schedule has the timer there, or gone. The backups themselves are the admin's: what
// comes to be in Dir is not undone.
func Schedule(in Inputs) systemd.Schedule {
	exec := []string{install.Bin("kube"), "backup", dirFlag + in.Dir, "--keep=" + strconv.Itoa(in.Keep)}
	for _, r := range in.Recipients {
		exec = append(exec, "--recipient="+r)
	}
	return systemd.Schedule{Timer: systemd.Timer{Calendar: in.Calendar, Service: systemd.Service{
		Name:        Unit,
		Description: "kubewright backup: one encrypted file of the cluster",
		After:       in.After,
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

// Habit is what a host does by itself.
type Habit struct {
	Calendar string    // as Inputs'
	Dir      string    // where its backups are
	Since    time.Time // when it was told to
}

// Read is what a host was told to do, as its unit files have it; nil: it makes no backups.
func Read(ctx context.Context, r host.Reader) (*Habit, error) {
	timer, err := systemd.ReadTimer(ctx, r, Unit)
	if timer == nil || err != nil {
		return nil, err
	}
	h := &Habit{Calendar: timer.Calendar, Since: timer.Since}
	for _, arg := range timer.Exec {
		if dir, ok := strings.CutPrefix(arg, dirFlag); ok {
			h.Dir = dir
		}
	}
	return h, nil
}

// Due is when a calendar comes round for the nth time after a moment, by the host's own
// systemd; zero: never.
func Due(ctx context.Context, r host.Reader, calendar string, after time.Time, n int) (time.Time, error) {
	out, err := r.Query(ctx, "systemd-analyze", "calendar", "--iterations="+strconv.Itoa(n), "--base-time=@"+strconv.FormatInt(after.Unix(), 10), "--", calendar)
	if err != nil {
		return time.Time{}, err
	}
	times := elapses(string(out))
	if len(times) < n {
		return time.Time{}, nil
	}
	return times[n-1], nil
}

// elapses reads the times that systemd-analyze prints one a line after a label: those in UTC,
// which it adds where the host's own zone is another.
func elapses(out string) []time.Time {
	const form = "Mon 2006-01-02 15:04:05 UTC"
	var all []time.Time
	for line := range strings.Lines(out) {
		_, value, _ := strings.Cut(line, ": ")
		if t, err := time.Parse(form, strings.TrimSpace(value)); err == nil {
			all = append(all, t)
		}
	}
	return all
}
