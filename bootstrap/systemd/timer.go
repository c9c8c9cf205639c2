package systemd

import (
	"bytes"
	"context"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/unit"

	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// Timer starts a service of the same name again and again.
type Timer struct {
	Service  Service // OnDemand
	Calendar string  // when, as OnCalendar= has it; "": never, and neither unit is there
}

// Schedule has a timer written, enabled and running; or it has it gone.
type Schedule struct{ Timer Timer }

var _ plan.Action[host.Reader, host.Host] = Schedule{}

// Name is the timer's unit.
func (t Timer) Name() string { return strings.TrimSuffix(t.Service.Name, ".service") + ".timer" }

// File is the timer's content. A time that was missed, while the host had no power, is
// made up for.
func (t Timer) File() []byte {
	return serialize([]*unit.UnitOption{
		unit.NewUnitOption("Unit", "Description", t.Service.Description+", by schedule"),
		unit.NewUnitOption("Timer", "OnCalendar", t.Calendar),
		unit.NewUnitOption("Timer", "Persistent", "true"),
		unit.NewUnitOption("Install", "WantedBy", "timers.target"),
	})
}

// files are the two unit files by their paths, the service's first.
func (t Timer) files() (paths []string, contents [][]byte) {
	return []string{path.Join(Dir, t.Service.Name), path.Join(Dir, t.Name())}, [][]byte{t.Service.File(), t.File()}
}

// Check compares both files, and the timer's state.
func (a Schedule) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	t := a.Timer
	paths, contents := t.files()
	found, err := r.Stat(ctx, paths...)
	if err != nil {
		return nil, err
	}
	if t.Calendar == "" {
		return a.gone(found), nil
	}
	var diff plan.Diff
	for i, f := range found {
		if f.Exists && f.Mode.IsRegular() && f.Size == int64(len(contents[i])) {
			have, err := r.ReadFile(ctx, f.Path)
			if err != nil {
				return nil, err
			}
			if bytes.Equal(have, contents[i]) {
				continue
			}
		}
		c, err := written(ctx, r, f, contents[i])
		if err != nil {
			return nil, err
		}
		diff = append(diff, c)
	}
	units, err := r.Units(ctx, t.Name(), t.Service.Name)
	if err != nil {
		return nil, err
	}
	timer, service := units[0], units[1]
	if timer.File != "enabled" {
		diff = append(diff, plan.Change{Verb: plan.Update, Kind: plan.ObjectUnit, Object: t.Name(), Detail: "enable at boot"})
	}
	switch {
	case timer.Active != "active":
		diff = append(diff, t.start(timer.Active))
	case len(diff) > 0 || timer.Stale || service.Stale:
		diff = append(diff, t.start("restart: a unit file is another"))
	}
	return diff, nil
}

func (t Timer) start(why string) plan.Change {
	return plan.Change{Verb: plan.Start, Kind: plan.ObjectUnit, Object: t.Name(), Detail: why,
		Brings: append(plan.Objects(plan.ObjectUnit, t.Service.Name), t.Service.Brings...)}
}

// gone are the changes that take the units away.
func (a Schedule) gone(found []host.File) plan.Diff {
	var diff plan.Diff
	for _, f := range found {
		if f.Exists {
			diff = append(diff, plan.Change{Verb: plan.Delete, Kind: plan.ObjectFile, Object: f.Path, Before: &plan.State{Mode: f.Mode.String()}})
		}
	}
	if len(diff) > 0 {
		stop := plan.Change{Verb: plan.Stop, Kind: plan.ObjectUnit, Object: a.Timer.Name(), Detail: "and not at boot any more"}
		diff = append(plan.Diff{stop}, diff...)
	}
	return diff
}

// Apply writes the files and starts the timer anew, or stops it and removes them: the
// timer's last, because it is what tells that something is still to be done.
func (a Schedule) Apply(ctx context.Context, h host.Host) error {
	t, sd := a.Timer, h.Systemd()
	paths, contents := t.files()
	if t.Calendar == "" {
		if err := sd.Stop(ctx, t.Name()); err != nil {
			return err
		}
		if err := sd.Disable(ctx, t.Name()); err != nil {
			return err
		}
		for _, p := range paths {
			if err := h.Remove(ctx, p); err != nil {
				return err
			}
		}
		return sd.Reload(ctx)
	}
	for i, p := range paths {
		if err := h.WriteFile(ctx, p, bytes.NewReader(contents[i]), host.Meta{Mode: unitMode}); err != nil {
			return err
		}
	}
	if err := sd.Reload(ctx); err != nil {
		return err
	}
	if err := sd.Enable(ctx, t.Name()); err != nil {
		return err
	}
	return sd.Restart(ctx, t.Name())
}

// Installed is a timer as its files on a host have it.
type Installed struct {
	Calendar string    // as Timer's
	Exec     []string  // command line of its service
	Since    time.Time // when the timer's file was written
}

// ReadTimer reads the files that Schedule writes for a service, nil if they are not there.
func ReadTimer(ctx context.Context, r host.Reader, service string) (*Installed, error) {
	t := Timer{Service: Service{Name: service}}
	paths, _ := t.files()
	found, err := r.Stat(ctx, paths...)
	if err != nil || !found[0].Exists || !found[1].Exists {
		return nil, err
	}
	options := make([][]*unit.UnitOption, len(paths))
	for i, p := range paths {
		content, err := r.ReadFile(ctx, p)
		if err != nil {
			return nil, err
		}
		if options[i], err = unit.DeserializeOptions(bytes.NewReader(content)); err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
	}
	return &Installed{Calendar: valueOf(options[1], "Timer", "OnCalendar"),
		Exec: words(valueOf(options[0], "Service", "ExecStart")), Since: found[1].ModTime}, nil
}

func valueOf(options []*unit.UnitOption, section, name string) string {
	for _, o := range options {
		if o.Section == section && o.Name == name {
			return o.Value
		}
	}
	return ""
}
