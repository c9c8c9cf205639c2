package lock

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
)

// process is what /proc/PID/stat says of one.
type process struct {
	pid, parent int
	name        string
	start       string // in ticks since boot: with the pid it tells a process from all others
}

// is tells whether it is the same process, not just one with its number.
func (p process) is(q process) bool { return p.pid == q.pid && p.start == q.start }

// parseProcess reads a line of /proc/PID/stat, whose second field may hold anything, in brackets.
func parseProcess(line string) (process, bool) {
	left, right := strings.Index(line, " ("), strings.LastIndex(line, ") ")
	if left < 0 || right < left {
		return process{}, false
	}
	const parent, start = 1, 19 // among the fields after the name
	rest := strings.Fields(line[right+1:])
	if len(rest) <= start {
		return process{}, false
	}
	pid, err := strconv.Atoi(line[:left])
	if err != nil {
		return process{}, false
	}
	ppid, err := strconv.Atoi(rest[parent])
	if err != nil {
		return process{}, false
	}
	return process{pid: pid, parent: ppid, name: line[left+2 : right], start: rest[start]}, true
}

// table is all processes of a host, and those that carry our own command.
type table struct {
	byPID map[int]process
	ours  map[int]bool
}

// processes reads the table at one stroke. The first file is that of the command
// that reads them: its ancestors are our connection.
func processes(ctx context.Context, r host.Reader) (table, error) {
	t := table{byPID: make(map[int]process), ours: make(map[int]bool)}
	out, err := r.Query(ctx, "find", "/proc/self/stat", "/proc", "-maxdepth", "2", "-path", "/proc/*/stat", "-type", "f", "-exec", "cat", "{}", "+")
	if exit := (*host.ExitError)(nil); err != nil && !errors.As(err, &exit) { // processes that end meanwhile make it fail
		return t, err
	}
	self := 0
	for line := range strings.Lines(string(out)) {
		p, ok := parseProcess(line)
		if !ok {
			continue
		}
		if self == 0 {
			self = p.pid
		}
		t.byPID[p.pid] = p
	}
	for pid := self; pid != 0 && !t.ours[pid]; pid = t.byPID[pid].parent {
		t.ours[pid] = true
	}
	return t, nil
}

// session returns what a dead holder has on the host, to be ended in this order:
// the server process of its SSH connection, and all that was started through it.
// A holder that came by no connection, or by ours, is ended alone.
func (t table) session(holder process) []int {
	top := holder
	for p, ok := holder, true; ok && p.pid != 0 && !t.ours[p.pid]; p, ok = t.byPID[p.parent] {
		if strings.HasPrefix(p.name, "sshd") {
			top = p
			break
		}
	}
	victims := []int{top.pid}
	for i := 0; i < len(victims); i++ {
		var children []int
		for pid, p := range t.byPID {
			if p.parent == victims[i] && !t.ours[pid] {
				children = append(children, pid)
			}
		}
		slices.Sort(children)
		victims = append(victims, children...)
	}
	return victims
}

// fence ends a dead holder's connection and makes sure that the lock is free.
func (m mechanism) fence(ctx context.Context, h host.Host, seen sighting) error {
	all, err := processes(ctx, h)
	if err != nil {
		return err
	}
	if !all.byPID[seen.process.pid].is(seen.process) {
		return nil // it has ended by itself
	}
	kill := []string{"kill", "-KILL"}
	for _, pid := range all.session(seen.process) {
		kill = append(kill, strconv.Itoa(pid))
	}
	_, err = h.Run(ctx, host.Command{Argv: kill})
	if exit := (*host.ExitError)(nil); err != nil && !errors.As(err, &exit) { // some end with the first of them
		return err
	}
	for deadline := time.Now().Add(patience); ; {
		now, err := m.observe(ctx, h)
		if err != nil {
			return err
		}
		if !now.process.is(seen.process) {
			return nil
		}
		if time.Now().After(deadline) {
			return fault.New(fault.HostLocked, "restart the host", "process %d, which has the lock of a dead run, cannot be ended", seen.process.pid)
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
