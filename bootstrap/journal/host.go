package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// Host is a host whose every change is written down ahead. The first operation
// of a step writes one entry for all that the step's diff names; an operation on
// anything else writes one of its own, so that nothing escapes.
type Host struct {
	host.Host
	run Run

	turn   chan struct{}        // holds one while an entry is made: a step may change several things at once
	intent *plan.Intent         // the step that works now
	known  map[plan.Object]bool // what it has written down
	next   int                  // number of the next entry, 0: the journal was not looked at yet
}

// Wrap returns h as a run changes it. Only steps of a plan can: an operation outside
// of one is refused.
func Wrap(h host.Host, run Run) *Host { return &Host{Host: h, run: run, turn: make(chan struct{}, 1)} }

var _ host.Host = (*Host)(nil)

func (j *Host) WriteFile(ctx context.Context, name string, content io.Reader, meta host.Meta) error {
	if err := j.ahead(ctx, file(name)); err != nil {
		return err
	}
	return j.Host.WriteFile(ctx, name, content, meta)
}

func (j *Host) Mkdir(ctx context.Context, name string, meta host.Meta) error {
	if err := j.ahead(ctx, file(name)); err != nil {
		return err
	}
	return j.Host.Mkdir(ctx, name, meta)
}

func (j *Host) Symlink(ctx context.Context, target, name string) error {
	if err := j.ahead(ctx, file(name)); err != nil {
		return err
	}
	return j.Host.Symlink(ctx, target, name)
}

func (j *Host) Remove(ctx context.Context, paths ...string) error {
	objects := make([]plan.Object, len(paths))
	for i, p := range paths {
		objects[i] = file(p)
	}
	if err := j.ahead(ctx, objects...); err != nil {
		return err
	}
	return j.Host.Remove(ctx, paths...)
}

// Run cannot know what a command changes: the step's diff has to say it.
func (j *Host) Run(ctx context.Context, cmd host.Command) ([]byte, error) {
	if err := j.ahead(ctx); err != nil {
		return nil, err
	}
	return j.Host.Run(ctx, cmd)
}

// Systemd journals what is started, stopped, enabled and disabled.
func (j *Host) Systemd() host.Systemd { return systemd{j.Host.Systemd(), j} }

type systemd struct {
	host.Systemd
	j *Host
}

// Reload changes nothing that is written down. But systemd remembers from here on what
// it is asked of units: what they were is asked before.
func (s systemd) Reload(ctx context.Context) error {
	if err := s.j.ahead(ctx); err != nil {
		return err
	}
	return s.Systemd.Reload(ctx)
}

func (s systemd) Start(ctx context.Context, unit string) error {
	if err := s.j.ahead(ctx, unitObject(unit)); err != nil {
		return err
	}
	return s.Systemd.Start(ctx, unit)
}

func (s systemd) Restart(ctx context.Context, unit string) error {
	if err := s.j.ahead(ctx, unitObject(unit)); err != nil {
		return err
	}
	return s.Systemd.Restart(ctx, unit)
}

func (s systemd) Stop(ctx context.Context, unit string) error {
	if err := s.j.ahead(ctx, unitObject(unit)); err != nil {
		return err
	}
	return s.Systemd.Stop(ctx, unit)
}

func (s systemd) Enable(ctx context.Context, units ...string) error {
	if err := s.j.ahead(ctx, unitObjects(units)...); err != nil {
		return err
	}
	return s.Systemd.Enable(ctx, units...)
}

func (s systemd) Disable(ctx context.Context, units ...string) error {
	if err := s.j.ahead(ctx, unitObjects(units)...); err != nil {
		return err
	}
	return s.Systemd.Disable(ctx, units...)
}

func file(name string) plan.Object { return plan.Object{Kind: plan.ObjectFile, Name: path.Clean(name)} }

func unitObject(name string) plan.Object { return plan.Object{Kind: plan.ObjectUnit, Name: name} }

func unitObjects(names []string) []plan.Object {
	objects := make([]plan.Object, len(names))
	for i, n := range names {
		objects[i] = unitObject(n)
	}
	return objects
}

// ahead has objects written down before they are changed, and with the first call of
// a step all that its diff names.
func (j *Host) ahead(ctx context.Context, objects ...plan.Object) error {
	objects = slices.DeleteFunc(objects, func(o plan.Object) bool { return own(o) })
	intent := plan.IntentOf(ctx)
	select {
	case j.turn <- struct{}{}:
		defer func() { <-j.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if intent == nil {
		if len(objects) == 0 {
			return nil
		}
		return &fault.Fault{Code: fault.Internal, Err: fmt.Errorf("journal: %v is to be changed outside of a step", objects)}
	}
	subject := map[plan.Object]bool{} // the step acts on it itself
	for _, o := range objects {
		subject[o] = true
	}
	if intent != j.intent {
		j.intent, j.known = intent, map[plan.Object]bool{}
		var named, brought []plan.Object
		for _, c := range intent.Diff {
			o := plan.Object{Kind: c.Kind, Name: c.Object}
			named, brought = append(named, o), append(brought, c.Brings...)
			subject[o] = true
		}
		objects = slices.Concat(named, objects, brought)
	}
	objects = slices.DeleteFunc(objects, func(o plan.Object) bool {
		skip := own(o) || !restorable(o.Kind) || j.known[o]
		j.known[o] = true
		return skip
	})
	if len(objects) == 0 {
		return nil
	}
	if err := j.open(ctx); err != nil {
		return err
	}
	e := Entry{Seq: j.next, Run: j.run, Step: intent.Step, Time: time.Now().UTC()}
	var err error
	if e.Before, err = j.observe(ctx, e, objects, subject); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	content, err := json.MarshalIndent(e, "", " ")
	if err != nil {
		return err
	}
	if err := j.Host.WriteFile(ctx, e.file(), bytes.NewReader(append(content, '\n')), host.Meta{Mode: 0o600}); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	j.next++
	return nil
}

// own tells what kubewright keeps about the host, which is not journaled.
func own(o plan.Object) bool {
	return o.Kind == plan.ObjectFile && (o.Name == Root || strings.HasPrefix(o.Name, Root+"/"))
}

// restorable tells the kinds that Undo puts back. An image goes with its store.
func restorable(k plan.ObjectKind) bool {
	switch k {
	case plan.ObjectFile, plan.ObjectUnit, plan.ObjectSlice, plan.ObjectSetting, plan.ObjectModule,
		plan.ObjectMounts, plan.ObjectInterface, plan.ObjectRoutes, plan.ObjectAddress, plan.ObjectTable:
		return true
	}
	return false
}

// open finds the number of the next entry, and removes what writes that an
// earlier run broke off have left.
func (j *Host) open(ctx context.Context) error {
	if j.next != 0 {
		return nil
	}
	entries, err := Read(ctx, j.Host)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	last := 0
	for _, e := range entries {
		last = max(last, e.Seq)
	}
	left, err := leftovers(ctx, j.Host, entries)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if len(left) > 0 {
		if err := j.Host.Remove(ctx, left...); err != nil {
			return fmt.Errorf("journal: %w", err)
		}
	}
	if err := j.Host.Mkdir(ctx, Dir, host.Meta{Mode: 0o700}); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	j.next = last + 1
	return nil
}
