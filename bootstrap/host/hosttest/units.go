package hosttest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/kubewright/kubewright/bootstrap/host"
)

// unitDirs is where unit files stand, the first that has one counts.
func unitDirs() []string {
	return []string{"/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system"}
}

const (
	linkDir      = "/etc/systemd/system" // where Enable makes links
	failed       = "failed"
	notFound     = "not-found"
	loaded       = "loaded"
	active       = "active"
	inactive     = "inactive"
	stateEnabled = "enabled"
)

var (
	errNoSuchUnit = errors.New("systemd has loaded no such unit: is a Reload missing?")
	errNoUnitFile = fmt.Errorf("%w: no unit file", fs.ErrNotExist)
)

// unit is what systemd remembers of one.
type unit struct {
	load     string
	fragment string
	read     time.Time // modification time of the file when it was read
	settings settings
	active   string
	sub      string
	pid      int
	started  time.Time
	file     string // UnitFileState, "" until it is asked for
	status   string // StatusText
}

// settings is what the simulation heeds of a unit file.
type settings struct {
	kind   string   // Type=
	remain bool     // RemainAfterExit=
	links  []string // what WantedBy= and RequiredBy= ask for, below linkDir
	alias  []string
}

// trouble is how the jobs of a unit end.
type trouble struct{ result, log string }

// parseUnit reads a unit file.
func parseUnit(name string, content []byte) settings {
	var u settings
	for line := range strings.Lines(string(content)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		for _, word := range strings.Fields(value) {
			switch strings.TrimSpace(key) {
			case "Type":
				u.kind = word
			case "RemainAfterExit":
				u.remain = word == "yes" || word == "true" || word == "1" || word == "on"
			case "WantedBy":
				u.links = append(u.links, path.Join(word+".wants", name))
			case "RequiredBy":
				u.links = append(u.links, path.Join(word+".requires", name))
			case "Alias":
				u.alias = append(u.alias, word)
			}
		}
	}
	return u
}

// unitFile finds the file of a unit; "" if there is none. The lock is held.
func (s *Sim) unitFile(name string) (string, *node) {
	for _, dir := range unitDirs() {
		file := path.Join(dir, name)
		if n, err := s.find(file, true); err == nil && n.mode.IsRegular() {
			return file, n
		}
	}
	return "", nil
}

// isUnitName tells unit files from others beside them.
func isUnitName(name string) bool {
	kinds := []string{".service", ".slice", ".socket", ".target", ".timer", ".mount", ".path", ".swap", ".automount"}
	return !strings.HasPrefix(name, ".") && slices.Contains(kinds, path.Ext(name))
}

// reload reads the unit files again. The lock is held.
func (s *Sim) reload() {
	for name, u := range s.units {
		u.load, u.fragment, u.file, u.settings = notFound, "", "", settings{}
		if file, _ := s.unitFile(name); file == "" && u.active == inactive {
			delete(s.units, name)
		}
	}
	for _, dir := range unitDirs() {
		n, err := s.find(dir, true)
		if err != nil {
			continue
		}
		for name, child := range n.children {
			if child.isDir() || !isUnitName(name) {
				continue
			}
			file, n := s.unitFile(name)
			if file == "" {
				continue
			}
			u, ok := s.units[name]
			if !ok {
				u = &unit{active: inactive, sub: "dead"}
				s.units[name] = u
			}
			u.load, u.fragment, u.read, u.settings = loaded, file, n.modified, parseUnit(name, n.content)
		}
	}
}

// boot starts the machine: what was in memory is gone, and what is enabled is
// started. The lock is held.
func (s *Sim) boot() {
	for _, dir := range []string{"/run", "/tmp"} {
		if n, err := s.find(dir, true); err == nil {
			clear(n.children)
		}
	}
	if _, err := s.mkdirAll("/run/systemd/system"); err != nil { // systemd makes it
		s.t.Errorf("boot %s: %v", s.name, err)
	}
	s.mounts = nil
	clear(s.units)
	s.reload()
	for name, u := range s.units {
		if s.fileState(name, u) == stateEnabled {
			s.run(name, u)
		}
	}
}

// Boot restarts the machine, without counting as an operation: /run, /tmp and
// mounts are gone, unit files are read, what is enabled is started. /proc stays
// as the test set it up.
func (s *Sim) Boot() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(s.tick)
	s.boot()
}

// FailUnit has a unit's next starts end with a job result of systemd's (failed,
// timeout, dependency) and the log that its error tells, until HealUnit.
func (s *Sim) FailUnit(name, result, log string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.troubles[name] = trouble{result: result, log: log}
}

// HealUnit undoes FailUnit.
func (s *Sim) HealUnit(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.troubles, name)
}

// CrashUnit makes a unit that runs fail by itself, without counting as an operation.
func (s *Sim) CrashUnit(name string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	u, ok := s.units[name]
	if !ok || u.active != active {
		s.t.Fatalf("%s: %s does not run, it cannot crash", s.name, name)
	}
	u.active, u.sub, u.pid = failed, failed, 0
}

// SetStatus has the program of a unit that runs say how it is.
func (s *Sim) SetStatus(name, status string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	u, ok := s.units[name]
	if !ok || u.active != active {
		s.t.Fatalf("%s: %s does not run, it says nothing", s.name, name)
	}
	u.status = status
}

// Units returns the state of units. Systemd is stricter here than where it
// looks for files anew by itself: what is not reloaded is not known.
func (s *Sim) Units(ctx context.Context, names ...string) ([]host.Unit, error) {
	return look(ctx, s, func() ([]host.Unit, error) {
		units := make([]host.Unit, len(names))
		for i, name := range names {
			u, ok := s.units[name]
			if !ok {
				units[i] = host.Unit{Name: name, Load: notFound, Active: inactive, Sub: "dead"}
				continue
			}
			if u.file == "" { // and it is remembered until Reload, as systemd does
				u.file = s.fileState(name, u)
			}
			units[i] = host.Unit{
				Name: name, Load: u.load, Active: u.active, Sub: u.sub, File: u.file, Fragment: u.fragment,
				Stale: s.stale(name, u), MainPID: u.pid, Started: u.started, Status: u.status,
			}
		}
		return units, nil
	})
}

// stale tells whether a unit's file is another than was read.
func (s *Sim) stale(name string, u *unit) bool {
	file, n := s.unitFile(name)
	return file != u.fragment || n != nil && !n.modified.Equal(u.read)
}

// fileState is systemd's UnitFileState, by what is on the disk.
func (s *Sim) fileState(name string, u *unit) string {
	file, n := s.unitFile(name)
	if file == "" {
		return ""
	}
	if len(s.linksTo(name)) > 0 {
		return stateEnabled
	}
	set := parseUnit(name, n.content)
	if len(set.links) == 0 && len(set.alias) == 0 {
		return "static"
	}
	return "disabled"
}

// linksTo lists the links by which a unit is enabled, relative to linkDir.
func (s *Sim) linksTo(name string) []string {
	dir, err := s.find(linkDir, true)
	if err != nil {
		return nil
	}
	var links []string
	for _, sub := range slices.Sorted(maps.Keys(dir.children)) {
		child := dir.children[sub]
		if child.mode&fs.ModeSymlink != 0 && path.Base(child.target) == name && sub != name {
			links = append(links, sub)
		}
		if ext := path.Ext(sub); child.isDir() && (ext == ".wants" || ext == ".requires") {
			if _, ok := child.children[name]; ok {
				links = append(links, path.Join(sub, name))
			}
		}
	}
	return links
}

// run makes a unit active, as its type says. The lock is held.
func (s *Sim) run(name string, u *unit) {
	if u.settings.kind == "oneshot" && !u.settings.remain {
		u.active, u.sub, u.pid = inactive, "dead", 0
		return
	}
	u.active, u.sub, u.started = active, "running", s.now
	switch {
	case u.settings.kind == "oneshot":
		u.sub, u.pid = "exited", 0
	case path.Ext(name) == ".service":
		s.lastPID++
		u.pid = s.lastPID
	default:
		u.sub = active
	}
}

// Systemd changes the host's units. Of dependencies between units, drop-ins,
// templates and what ExecStart does, nothing is simulated.
func (s *Sim) Systemd() host.Systemd { return systemd{s} }

type systemd struct{ s *Sim }

// queued does what systemd does even if its caller goes away in the middle.
func (d systemd) queued(ctx context.Context, operation string, f func() error) error {
	return d.s.change(ctx, operation, f, f)
}

// Reload makes systemd read unit files again.
func (d systemd) Reload(ctx context.Context) error {
	return d.queued(ctx, "reload", func() error { d.s.reload(); return nil })
}

// Start starts a unit; one that is active stays as it is.
func (d systemd) Start(ctx context.Context, name string) error {
	return d.queued(ctx, "start "+name, func() error {
		if u, ok := d.s.units[name]; ok && u.active == active {
			return nil
		}
		return d.s.launch("start", name)
	})
}

// Restart starts a unit anew.
func (d systemd) Restart(ctx context.Context, name string) error {
	return d.queued(ctx, "restart "+name, func() error { return d.s.launch("restart", name) })
}

// launch is the job of verb. The lock is held.
func (s *Sim) launch(verb, name string) error {
	u, ok := s.units[name]
	if !ok || u.load != loaded {
		return errNoSuchUnit
	}
	if bad, ok := s.troubles[name]; ok {
		u.active, u.sub, u.pid = failed, failed, 0
		if bad.result == "dependency" { // it was not even tried
			u.active, u.sub = inactive, "dead"
		}
		return &host.UnitError{Unit: name, Verb: verb, Result: bad.result, Log: bad.log}
	}
	s.run(name, u)
	return nil
}

// Stop stops a unit; one that is not known is stopped.
func (d systemd) Stop(ctx context.Context, name string) error {
	return d.queued(ctx, "stop "+name, func() error {
		u, ok := d.s.units[name]
		if !ok || u.active != active {
			return nil
		}
		u.active, u.sub, u.pid = inactive, "dead", 0
		if u.load == notFound {
			delete(d.s.units, name)
		}
		return nil
	})
}

// Enable makes the links that the unit files ask for. In the middle of it, half of the
// units have theirs.
func (d systemd) Enable(ctx context.Context, names ...string) error {
	return d.each(ctx, "enable", names, func(name string) error {
		file, n := d.s.unitFile(name)
		if file == "" {
			return fmt.Errorf("%s: %w", name, errNoUnitFile)
		}
		set := parseUnit(name, n.content)
		for _, link := range slices.Concat(set.links, set.alias) {
			at := path.Join(linkDir, link)
			if _, err := d.s.mkdirAll(path.Dir(at)); err != nil {
				return err
			}
			if err := d.s.place(at, &node{mode: fs.ModeSymlink | 0o777, modified: d.s.now, target: file}); err != nil {
				return err
			}
		}
		return nil
	})
}

// Disable takes all links to units away, and directories that are empty then.
func (d systemd) Disable(ctx context.Context, names ...string) error {
	return d.each(ctx, "disable", names, func(name string) error {
		for _, link := range d.s.linksTo(name) {
			dir, base, err := d.s.locate(path.Join(linkDir, link), false)
			if err != nil {
				return err
			}
			delete(dir.children, base)
			dir.modified = d.s.now
			if sub := path.Dir(link); sub != "." && len(dir.children) == 0 {
				if parent, base, err := d.s.locate(path.Join(linkDir, sub), false); err == nil {
					delete(parent.children, base)
				}
			}
		}
		return nil
	})
}

func (d systemd) each(ctx context.Context, verb string, names []string, f func(name string) error) error {
	all := func(names []string) error {
		for _, name := range names {
			if err := f(name); err != nil {
				return err
			}
		}
		return nil
	}
	return d.s.change(ctx, verb+" "+strings.Join(names, " "),
		func() error { return all(names[:len(names)/2]) },
		func() error { return all(names) })
}

// ResetFailed forgets that a unit failed.
func (d systemd) ResetFailed(ctx context.Context, name string) error {
	return d.queued(ctx, "reset-failed "+name, func() error {
		u, ok := d.s.units[name]
		if !ok || u.active != failed {
			return nil
		}
		u.active, u.sub = inactive, "dead"
		if u.load == notFound {
			delete(d.s.units, name)
		}
		return nil
	})
}
