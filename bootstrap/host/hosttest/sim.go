// Package hosttest has a host to test steps with that lives in memory, and the
// conformance suite that it and the real hosts pass.
package hosttest

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
)

// Sim is a simulated machine. Files, links, modes, owners, times and units
// behave as on a real one; commands answer as scripted, and one that was not
// scripted fails the test. Its methods may be called concurrently.
//
// Time stands still but for one tick before each operation that changes
// something, so nothing depends on the clock of the machine that tests it.
type Sim struct {
	t    testing.TB
	name string

	mu         sync.Mutex
	now        time.Time
	tick       time.Duration
	root       *node
	mounts     []string
	room       int64 // bytes that can be written still, negative: no end
	units      map[string]*unit
	troubles   map[string]trouble
	lastPID    int
	answers    map[string]Answer
	otherwise  func(argv []string) (Answer, bool) // of the commands that answers lacks; nil: none
	servers    map[string]func(net.Conn)
	operations []string
	holder     int   // process that has the lock of package lock, 0: none
	end        *end  // what is to happen, nil: nothing
	gone       error // why the host does not answer, nil: it does
	dead       bool  // it has no power
}

var _ host.Host = (*Sim)(nil)

// Moment is when in an operation the host goes away.
type Moment int

// The moments.
const (
	Before Moment = iota // nothing of it has happened
	In                   // a part of it has: see each operation
	After                // all of it has, and the caller is not told
)

func (m Moment) String() string { return [...]string{"before", "in", "after"}[m] }

// end is a host going away.
type end struct {
	operation int
	moment    Moment
	power     bool
}

// NewSim returns a machine that has the usual empty directories, and systemd
// without units.
func NewSim(t testing.TB, name string) *Sim {
	s := &Sim{
		t: t, name: name, room: -1, tick: time.Second,
		now:   time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC),
		units: make(map[string]*unit), troubles: make(map[string]trouble), lastPID: 100,
		answers: make(map[string]Answer), servers: make(map[string]func(net.Conn)),
	}
	s.root = s.newDir(parentMode, 0, 0)
	for _, dir := range []string{
		"/etc/systemd/system", "/opt", "/proc", "/root", "/run/systemd/system", "/tmp",
		"/usr/bin", "/usr/lib/systemd/system", "/usr/sbin", "/var/lib", "/var/log",
	} {
		if _, err := s.mkdirAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// Name is the host as the admin wrote it.
func (s *Sim) Name() string { return s.name }

// SetTick sets how much time passes before each operation: 1 s at first. With
// less than that, several of them share the one second that Stat can tell.
func (s *Sim) SetTick(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tick = d
}

// Advance lets time pass.
func (s *Sim) Advance(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(d)
}

// Operations lists what was asked to be changed, in order, whether it succeeded
// or not: "write /etc/hosts", "start etcd.service", "run ip link add x".
func (s *Sim) Operations() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.operations...)
}

// CutAt has the connection end at the nth operation from the first, which is 1.
// The host itself goes on: a systemd job that was queued comes to its end.
// Every call fails from then on as sshhost's do, until Restore.
func (s *Sim) CutAt(n int, m Moment) { s.endAt(end{operation: n, moment: m}) }

// KillAt has the host lose its power at the nth operation. Restore then boots it.
func (s *Sim) KillAt(n int, m Moment) { s.endAt(end{operation: n, moment: m, power: true}) }

func (s *Sim) endAt(e end) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end = &e
}

// Gone tells whether the host went away and was not restored.
func (s *Sim) Gone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gone != nil
}

// Restore makes the host answer again, after it was booted if its power was
// lost, and forgets a CutAt or KillAt that has not happened.
func (s *Sim) Restore() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end, s.gone = nil, nil
	if s.dead {
		s.dead = false
		s.boot()
	}
}

// FillAfter leaves room for n more bytes of files; negative: there is no end to it.
func (s *Sim) FillAfter(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.room = n
}

// answering is the error of a host that does not, or of a ctx that has ended.
// The lock is held.
func (s *Sim) answering(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return s.gone
}

// begin counts an operation and tells how much of it is to be done: all of it,
// but for the host that goes away. The lock is held.
func (s *Sim) begin(ctx context.Context, operation string) (Moment, error) {
	if err := s.answering(ctx); err != nil {
		return Before, err
	}
	s.operations = append(s.operations, operation)
	s.now = s.now.Add(s.tick)
	if s.end == nil || s.end.operation != len(s.operations) {
		return After, nil
	}
	what := "connection to %s lost"
	if s.end.power {
		what, s.dead = "%s lost its power", true
	}
	s.gone = unreachable(what+" %v %s", s.name, s.end.moment, operation)
	return s.end.moment, nil
}

func unreachable(format string, args ...any) error {
	return fault.New(fault.HostUnreachable, "restore the simulated host", format, args...)
}

// change does an operation whose parts, in order, leave no gap between them for
// another caller to see. In the middle of it, part alone has happened.
func (s *Sim) change(ctx context.Context, operation string, part, whole func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	moment, err := s.begin(ctx, operation)
	if err != nil {
		return err
	}
	switch moment {
	case Before:
	case In:
		if part != nil {
			err = part()
		}
	case After:
		err = whole()
	}
	if s.gone != nil { // nobody is told how it went
		return s.gone
	}
	if err != nil {
		return fmt.Errorf("%s: %w", operation, err)
	}
	return nil
}

// look observes while nothing changes.
func look[T any](ctx context.Context, s *Sim, f func() (T, error)) (T, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.answering(ctx); err != nil {
		var zero T
		return zero, err
	}
	return f()
}
