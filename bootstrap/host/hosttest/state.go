package hosttest

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kubewright/kubewright/bootstrap/host"
)

// State is what stands on a simulated host at some time.
type State struct {
	Files map[string]Entry     // by path, all but what Leftovers lists
	Units map[string]UnitState // by name, those that systemd has loaded or that run
	// Leftovers are the temporary files of writes that were broken off.
	Leftovers []string
}

// Entry is a file, directory or link.
type Entry struct {
	Mode     fs.FileMode
	UID, GID int
	Content  string
	Target   string
	Modified time.Time
}

// UnitState is what of a unit is the same on each run.
type UnitState struct {
	Load, Active, Sub, File string
	Stale                   bool
}

// Snapshot returns the host's state.
func (s *Sim) Snapshot() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := State{Files: make(map[string]Entry), Units: make(map[string]UnitState)}
	var walk func(name string, n *node)
	walk = func(name string, n *node) {
		if strings.Contains(path.Base(name), host.TemporaryMark) {
			state.Leftovers = append(state.Leftovers, name)
			return
		}
		state.Files[name] = Entry{n.mode, n.uid, n.gid, string(n.content), n.target, n.modified}
		for base, child := range n.children {
			walk(path.Join(name, base), child)
		}
	}
	walk("/", s.root)
	slices.Sort(state.Leftovers)
	for name, u := range s.units {
		state.Units[name] = UnitState{u.load, u.active, u.sub, s.fileState(name, u), s.stale(name, u)}
	}
	return state
}

// Diff tells how later differs from s, a line for each path and unit: "+ /a" is
// new, "- /a" is gone, "~ /a: ..." is another. Times and leftovers do not count.
func (s State) Diff(later State) []string {
	lines := compare(s.Files, later.Files, func(a, b Entry) []string {
		return slices.Concat(
			changed("mode", a.Mode, b.Mode), changed("uid", a.UID, b.UID), changed("gid", a.GID, b.GID),
			changed("target", a.Target, b.Target), differs("content", !bytes.Equal([]byte(a.Content), []byte(b.Content))))
	})
	return append(lines, compare(s.Units, later.Units, func(a, b UnitState) []string {
		return slices.Concat(
			changed("load", a.Load, b.Load), changed("active", a.Active, b.Active), changed("sub", a.Sub, b.Sub),
			changed("file", a.File, b.File), changed("stale", a.Stale, b.Stale))
	})...)
}

func compare[T any](before, after map[string]T, how func(a, b T) []string) []string {
	both := maps.Clone(before)
	maps.Copy(both, after)
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(both)) {
		a, was := before[name]
		b, is := after[name]
		switch {
		case !was:
			lines = append(lines, "+ "+name)
		case !is:
			lines = append(lines, "- "+name)
		default:
			if words := how(a, b); len(words) > 0 {
				lines = append(lines, "~ "+name+": "+strings.Join(words, ", "))
			}
		}
	}
	return lines
}

func changed[T comparable](what string, a, b T) []string {
	if a == b {
		return nil
	}
	return []string{fmt.Sprintf("%s %v -> %v", what, a, b)}
}

func differs(what string, does bool) []string {
	if !does {
		return nil
	}
	return []string{what}
}

// Interrupt breaks work off before, in and after each operation that it asks
// of a host, by a lost connection and by a lost power, does it again and wants what
// stands there then to be the same as after work that was not broken off.
//
// build makes the host as it is before; it is called once for each run. Work has to
// fail when its host goes away, and to succeed on a host that answers.
func Interrupt(t *testing.T, build func(t testing.TB) *Sim, work func(ctx context.Context, h host.Host) error) {
	t.Helper()
	whole := build(t)
	first := len(whole.Operations())
	if err := work(t.Context(), whole); err != nil {
		t.Fatalf("without an interruption: %v", err)
	}
	want := whole.Snapshot()
	operations := whole.Operations()
	for n := first + 1; n <= len(operations); n++ {
		for _, moment := range []Moment{Before, In, After} {
			for _, power := range []bool{false, true} {
				s := build(t)
				s.endAt(end{operation: n, moment: moment, power: power})
				at := fmt.Sprintf("%v operation %d (%s), power lost: %v", moment, n, operations[n-1], power)
				err := work(t.Context(), s)
				switch {
				case !s.Gone():
					t.Errorf("%s: this time there was no such operation: %q, %v", at, s.Operations(), err)
					continue
				case err == nil:
					t.Errorf("%s: no error", at)
				}
				s.Restore()
				if err := work(t.Context(), s); err != nil {
					t.Errorf("%s: again: %v", at, err)
				}
				if diff := want.Diff(s.Snapshot()); len(diff) > 0 {
					t.Errorf("%s: another end:\n%s", at, strings.Join(diff, "\n"))
				}
			}
		}
	}
}
