// Package systemd is the action on units: their files, whether they start at
// boot, and that they run with what is on the disk now.
package systemd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/unit"
	"golang.org/x/sync/errgroup"

	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// Dir is where unit files are written.
const Dir = "/etc/systemd/system"

// Service is a unit as it should be: written, enabled and running.
type Service struct {
	Name        string   // with .service
	Description string   // one line
	Doc         string   // URL or man page
	After       []string // units to be started before it
	Requires    []string // units without which it makes no sense
	Type        string   // simple, notify, oneshot
	Exec        []string // command line
	ExecPre     [][]string
	ExecStop    []string // of a oneshot: how it is undone
	Environment map[string]string
	Options     map[string]string // further settings of [Service]
	// Inputs are the files that it reads at start: a service that runs since
	// before one of them changed is restarted.
	Inputs []string
	// Brings are the objects that it makes by itself while it runs.
	Brings []plan.Object
	// OnDemand services are started by other units only, and end by themselves.
	OnDemand bool
}

// Changes are those of a service that is not there yet.
func (s Service) Changes() plan.Diff {
	return plan.Diff{
		{Verb: plan.Create, Kind: plan.ObjectFile, Object: path.Join(Dir, s.Name), After: plan.FileState(unitMode, s.File())},
		{Verb: plan.Update, Kind: plan.ObjectUnit, Object: s.Name, Detail: "enable at boot"},
		s.start("not-found"),
	}
}

func (s Service) start(why string) plan.Change {
	return plan.Change{Verb: plan.Start, Kind: plan.ObjectUnit, Object: s.Name, Detail: why, Brings: s.Brings}
}

const unitMode = fs.FileMode(0o644)

// File is the unit's content.
func (s Service) File() []byte {
	opts := []*unit.UnitOption{unit.NewUnitOption("Unit", "Description", s.Description)}
	add := func(section, name, value string) {
		if value != "" {
			opts = append(opts, unit.NewUnitOption(section, name, value))
		}
	}
	add("Unit", "Documentation", s.Doc)
	add("Unit", "After", strings.Join(s.After, " "))
	add("Unit", "Requires", strings.Join(s.Requires, " "))
	add("Unit", "StartLimitIntervalSec", "0")
	add("Service", "Type", s.Type)
	for _, k := range slices.Sorted(maps.Keys(s.Environment)) {
		add("Service", "Environment", quote(k+"="+s.Environment[k]))
	}
	for _, pre := range s.ExecPre {
		add("Service", "ExecStartPre", commandLine(pre))
	}
	add("Service", "ExecStart", commandLine(s.Exec))
	add("Service", "ExecStop", commandLine(s.ExecStop))
	switch {
	case s.OnDemand:
	case s.Type == "oneshot":
		add("Service", "RemainAfterExit", "yes")
	default:
		add("Service", "Restart", "always")
		add("Service", "RestartSec", "1s")
	}
	for _, k := range slices.Sorted(maps.Keys(s.Options)) {
		add("Service", k, s.Options[k])
	}
	if !s.OnDemand {
		add("Install", "WantedBy", "multi-user.target")
	}
	return serialize(opts)
}

func serialize(opts []*unit.UnitOption) []byte {
	content, err := io.ReadAll(unit.Serialize(opts))
	if err != nil {
		panic(err) // reads from memory
	}
	return content
}

// commandLine writes an argument a line, as people read and diff it best.
func commandLine(argv []string) string {
	words := make([]string, len(argv))
	for i, a := range argv {
		words[i] = quote(a)
	}
	return strings.Join(words, nextArgument)
}

// nextArgument stands between two words of a command line.
const nextArgument = " \\\n  "

// words undoes commandLine.
func words(line string) []string {
	all := strings.Split(line, nextArgument)
	plain := strings.NewReplacer(`\\`, `\`, `\"`, `"`, `%%`, `%`, `$$`, `$`, `\n`, "\n")
	for i, w := range all {
		if len(w) > 1 && w[0] == '"' {
			w = w[1 : len(w)-1]
		}
		all[i] = plain.Replace(w)
	}
	return all
}

// quote protects a word from systemd's own unquoting, specifiers and variables.
func quote(word string) string {
	word = strings.NewReplacer(`\`, `\\`, `"`, `\"`, `%`, `%%`, `$`, `$$`, "\n", `\n`).Replace(word)
	if word == "" || strings.ContainsAny(word, " \t;'\"") {
		return `"` + word + `"`
	}
	return word
}

// Flags renders a component's flags in order, extra ones replacing those of the same name.
func Flags(own, extra map[string]string) []string {
	all := maps.Clone(own)
	maps.Copy(all, extra)
	args := make([]string, 0, len(all))
	for _, k := range slices.Sorted(maps.Keys(all)) {
		args = append(args, "--"+k+"="+all[k])
	}
	return args
}

// Run has services written, enabled and running with the current state of their inputs.
type Run struct {
	Services []Service
}

var _ plan.Action[host.Reader, host.Host] = Run{}

// state of one service against its wish.
type state struct {
	write, enable, restart, start bool
}

func (a Run) compare(ctx context.Context, r host.Reader) ([]state, plan.Diff, error) {
	names := make([]string, len(a.Services))
	var paths []string
	for i, s := range a.Services {
		names[i] = s.Name
		paths = append(append(paths, path.Join(Dir, s.Name)), s.Inputs...)
	}
	units, err := r.Units(ctx, names...)
	if err != nil {
		return nil, nil, err
	}
	files, err := r.Stat(ctx, paths...)
	if err != nil {
		return nil, nil, err
	}
	states := make([]state, len(a.Services))
	var diff plan.Diff
	for i, s := range a.Services {
		st, u := &states[i], units[i]
		file, inputs := files[0], files[1:1+len(s.Inputs)]
		files = files[1+len(s.Inputs):]

		want := s.File()
		if file.Exists && file.Mode.IsRegular() && file.Size == int64(len(want)) {
			have, err := r.ReadFile(ctx, file.Path)
			if err != nil {
				return nil, nil, err
			}
			st.write = !bytes.Equal(have, want)
		} else {
			st.write = true
		}
		if st.write {
			c, err := written(ctx, r, file, want)
			if err != nil {
				return nil, nil, err
			}
			diff = append(diff, c)
		}
		if u.File != "enabled" {
			st.enable = true
			diff = append(diff, plan.Change{Verb: plan.Update, Kind: plan.ObjectUnit, Object: s.Name, Detail: "enable at boot"})
		}
		switch {
		case u.Active != "active":
			st.start = true
			detail := u.Active
			if u.Load != "loaded" {
				detail = u.Load
			}
			diff = append(diff, s.start(detail))
		case st.write || u.Stale:
			st.restart = true
			diff = append(diff, s.start("restart: its unit file is another"))
		default:
			for _, in := range slices.Concat(inputs, []host.File{file}) {
				if in.Exists && in.ModTime.After(u.Started) {
					st.restart = true
					diff = append(diff, s.start("restart: "+in.Path+" is newer"))
					break
				}
			}
		}
	}
	return states, diff, nil
}

// written is the change of a unit file.
func written(ctx context.Context, r host.Reader, have host.File, want []byte) (plan.Change, error) {
	c := plan.Change{Verb: plan.Create, Kind: plan.ObjectFile, Object: have.Path, After: plan.FileState(unitMode, want)}
	if !have.Exists {
		return c, nil
	}
	c.Verb, c.Detail = plan.Update, "content"
	if !have.Mode.IsRegular() {
		c.Before = &plan.State{Mode: have.Mode.String(), Target: have.Target}
		return c, nil
	}
	content, err := r.ReadFile(ctx, have.Path)
	c.Before = plan.FileState(have.Mode, content)
	return c, err
}

func (a Run) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	_, diff, err := a.compare(ctx, r)
	return diff, err
}

// Apply writes what differs, reloads once, and starts all services at the same
// time: systemd orders those that name each other in After.
func (a Run) Apply(ctx context.Context, h host.Host) error {
	states, _, err := a.compare(ctx, h)
	if err != nil {
		return err
	}
	var enable []string
	for i, s := range a.Services {
		if states[i].write {
			if err := h.WriteFile(ctx, path.Join(Dir, s.Name), bytes.NewReader(s.File()), host.Meta{Mode: unitMode}); err != nil {
				return err
			}
		}
		if states[i].enable {
			enable = append(enable, s.Name)
		}
	}
	sd := h.Systemd()
	if err := sd.Reload(ctx); err != nil {
		return err
	}
	if len(enable) > 0 {
		if err := sd.Enable(ctx, enable...); err != nil {
			return fmt.Errorf("enable %s: %w", strings.Join(enable, " "), err)
		}
	}
	jobs, starting := errgroup.WithContext(ctx)
	watched, done := context.WithCancel(ctx)
	defer done()
	var watching sync.WaitGroup
	watching.Go(func() { a.watch(watched, h) })
	for i, s := range a.Services {
		switch {
		case states[i].restart:
			jobs.Go(func() error { return sd.Restart(starting, s.Name) })
		case states[i].start:
			jobs.Go(func() error { return sd.Start(starting, s.Name) })
		}
	}
	err = jobs.Wait()
	done()
	watching.Wait()
	if err != nil {
		return err
	}
	return a.settle(ctx, h)
}

const (
	// settlePoll is how often units are looked at that are starting again.
	settlePoll = 100 * time.Millisecond
	// watchPoll is how often units are looked at while systemd starts them.
	watchPoll = time.Second
)

// watch reports what is not active yet, while systemd's jobs are under way.
func (a Run) watch(ctx context.Context, r host.Reader) {
	tick := time.NewTicker(watchPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if missing, err := a.missing(ctx, r); err == nil && missing != "" && ctx.Err() == nil {
			plan.Report(ctx, missing)
		}
	}
}

// missing says which units are not active yet, "" if all are.
func (a Run) missing(ctx context.Context, r host.Reader) (string, error) {
	names := make([]string, len(a.Services))
	for i, s := range a.Services {
		names[i] = s.Name
	}
	units, err := r.Units(ctx, names...)
	var missing []string
	for _, u := range units {
		if u.Active != "active" {
			missing = append(missing, fmt.Sprintf("%s: it is %s (%s)", u.Name, u.Active, u.Sub))
		}
	}
	if len(missing) == 0 {
		return "", err
	}
	return "waits for units to run: " + strings.Join(missing, "; "), err
}

// settle waits until all services are active: one that depends on another may
// have ended while that one was restarted, and is being started again.
func (a Run) settle(ctx context.Context, r host.Reader) error {
	tick := time.NewTicker(settlePoll)
	defer tick.Stop()
	for {
		missing, err := a.missing(ctx, r)
		if err != nil || missing == "" {
			return err
		}
		plan.Report(ctx, missing)
		select {
		case <-ctx.Done():
			return context.Cause(ctx) // the runner adds what was reported last
		case <-tick.C:
		}
	}
}
