// Package foresee is a host as the steps of a plan so far would leave it. It
// reads a real one and changes nothing, by construction: what would be changed is
// only remembered, so that the checks of later steps see it.
package foresee

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// ErrLater is of a file that a step would make, whose content cannot be known before.
var ErrLater = errors.New("it is made when the plan is carried out")

// Host is a host that learns what plans would do to it. As a host.Host every
// operation is refused.
type Host struct {
	host.Reader

	mu    sync.Mutex
	now   time.Time // goes on by a second with each change, from the future: what would be changed is newer than all there is
	files map[string]foreseen
	units map[string]host.Unit // the fields that a change sets
}

// foreseen is a file that would be changed.
type foreseen struct {
	state *plan.State // nil: gone
	when  time.Time
}

var (
	_ host.Host    = (*Host)(nil)
	_ plan.Learner = (*Host)(nil)
)

// New returns a host as r is now.
func New(r host.Reader) *Host {
	return &Host{Reader: r, now: time.Now().Add(24 * time.Hour), files: map[string]foreseen{}, units: map[string]host.Unit{}}
}

// Learn remembers what a step would change.
func (h *Host) Learn(diff plan.Diff) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range diff {
		h.now = h.now.Add(time.Second)
		switch c.Kind {
		case plan.ObjectFile:
			h.files[c.Object] = foreseen{c.After, h.now}
		case plan.ObjectSetting:
			if c.After != nil {
				h.files[path.Join("/proc/sys", strings.ReplaceAll(c.Object, ".", "/"))] =
					foreseen{&plan.State{Mode: fs.FileMode(0o644).String(), Content: []byte(c.After.Text + "\n")}, h.now}
			}
		case plan.ObjectUnit:
			u := h.units[c.Object]
			switch c.Verb {
			case plan.Start:
				u.Active, u.Sub, u.Started = "active", "running", h.now
			case plan.Stop:
				u.Active, u.Sub = "inactive", "dead"
			case plan.Update:
				u.File = "enabled"
			}
			h.units[c.Object] = u
		}
	}
	for _, c := range diff { // a unit whose file goes is not started at boot any more
		if name := path.Base(c.Object); c.Kind == plan.ObjectFile && c.Verb == plan.Delete {
			if u, ok := h.units[name]; ok {
				u.File = "disabled"
				h.units[name] = u
			}
		}
	}
}

// at returns what would stand at a path, also by what would happen to its folders.
func (h *Host) at(name string) (foreseen, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if f, ok := h.files[name]; ok {
		return f, true
	}
	for dir := path.Dir(name); dir != "/"; dir = path.Dir(dir) {
		if f, ok := h.files[dir]; ok && (f.state == nil || f.state.Later) {
			return f, true
		}
	}
	return foreseen{}, false
}

func (h *Host) ReadFile(ctx context.Context, name string) ([]byte, error) {
	f, ok := h.at(name)
	switch {
	case !ok:
		return h.Reader.ReadFile(ctx, name)
	case f.state == nil:
		return nil, &fs.PathError{Op: "read", Path: name, Err: fs.ErrNotExist}
	case f.state.Later || f.state.Content == nil:
		return nil, &fs.PathError{Op: "read", Path: name, Err: ErrLater}
	}
	return f.state.Content, nil
}

func (h *Host) Stat(ctx context.Context, paths ...string) ([]host.File, error) {
	found, err := h.Reader.Stat(ctx, paths...)
	if err != nil {
		return nil, err
	}
	for i, p := range paths {
		f, ok := h.at(p)
		switch {
		case !ok:
		case f.state == nil:
			found[i] = host.File{Path: p}
		default:
			mode := found[i].Mode
			if m, ok := parseMode(f.state.Mode); ok {
				mode = m
			}
			found[i] = host.File{Path: p, Exists: true, Mode: mode, Size: int64(len(f.state.Content)), ModTime: f.when, Target: f.state.Target}
		}
	}
	return found, nil
}

// parseMode reads what fs.FileMode prints, of the kinds that plans know.
func parseMode(text string) (fs.FileMode, bool) {
	if len(text) != 10 {
		return 0, false
	}
	var mode fs.FileMode
	switch text[0] {
	case 'd':
		mode = fs.ModeDir
	case 'L':
		mode = fs.ModeSymlink
	}
	for i, c := range text[1:] {
		if c != '-' {
			mode |= 1 << (8 - i)
		}
	}
	return mode, true
}

func (h *Host) ReadDir(ctx context.Context, name string) ([]string, error) {
	names, err := h.Reader.ReadDir(ctx, name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var added bool
	for p, f := range h.files {
		if path.Dir(p) != name {
			continue
		}
		i := slices.Index(names, path.Base(p))
		switch {
		case f.state == nil && i >= 0:
			names = slices.Delete(names, i, i+1)
		case f.state != nil && i < 0:
			names, added = append(names, path.Base(p)), true
		}
	}
	slices.Sort(names)
	if added {
		return names, nil
	}
	return names, err
}

func (h *Host) Units(ctx context.Context, names ...string) ([]host.Unit, error) {
	units, err := h.Reader.Units(ctx, names...)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, name := range names {
		u, ok := h.units[name]
		if !ok {
			continue
		}
		units[i].Load, units[i].Stale = "loaded", false
		if u.Active != "" {
			units[i].Active, units[i].Sub, units[i].Started = u.Active, u.Sub, u.Started
		}
		if u.File != "" {
			units[i].File = u.File
		}
	}
	return units, nil
}

func refuse(what string) error {
	return &fault.Fault{Code: fault.Internal, Err: fmt.Errorf("a plan was about to %s", what), Remedy: "this is a defect of kubewright: please report it"}
}

func (h *Host) Run(_ context.Context, cmd host.Command) ([]byte, error) {
	return nil, refuse("run " + strings.Join(cmd.Argv, " "))
}

func (h *Host) WriteFile(_ context.Context, name string, _ io.Reader, _ host.Meta) error {
	return refuse("write " + name)
}

func (h *Host) Mkdir(_ context.Context, name string, _ host.Meta) error {
	return refuse("make " + name)
}

func (h *Host) Symlink(_ context.Context, _, name string) error { return refuse("make " + name) }

func (h *Host) Remove(_ context.Context, paths ...string) error {
	return refuse("remove " + strings.Join(paths, " "))
}

// Systemd refuses like the others.
func (h *Host) Systemd() host.Systemd { return units{} }

type units struct{}

func (units) Reload(context.Context) error                 { return refuse("reload systemd") }
func (units) Start(_ context.Context, unit string) error   { return refuse("start " + unit) }
func (units) Restart(_ context.Context, unit string) error { return refuse("restart " + unit) }
func (units) Stop(_ context.Context, unit string) error    { return refuse("stop " + unit) }
func (units) Enable(_ context.Context, u ...string) error {
	return refuse("enable " + strings.Join(u, " "))
}
func (units) Disable(_ context.Context, u ...string) error {
	return refuse("disable " + strings.Join(u, " "))
}
func (units) ResetFailed(_ context.Context, u string) error { return refuse("reset " + u) }
