package lock

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/localhost"
)

// here is the mechanism on this machine, in a folder of the test.
func here(t *testing.T) mechanism {
	m := standard()
	m.dir = t.TempDir()
	m.file = filepath.Join(t.TempDir(), "holder")
	return m
}

func alice() Holder {
	return Holder{User: "alice", From: "laptop7", Verb: "init w1 w2", Cluster: "prod"}
}
func bob() Holder { return Holder{User: "bob", From: "desk3", Verb: "reset w1"} }

func take(t *testing.T, m mechanism, who Holder) *Held {
	t.Helper()
	held, err := m.take(t.Context(), localhost.New("w1"), who)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { held.drop(context.Background()) })
	return held
}

// free wants a lock that nobody has, and nothing left of it.
func free(t *testing.T, m mechanism) {
	t.Helper()
	if holder, alive, err := m.read(t.Context(), localhost.New("w1")); err != nil || holder != nil || alive {
		t.Errorf("after the release: %v, alive %v, %v", holder, alive, err)
	}
	for _, dir := range []string{m.dir, filepath.Dir(m.file)} {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
}

func TestSecondIsTold(t *testing.T) {
	m := here(t)
	h := localhost.New("w1")
	first := take(t, m, alice())
	_, err := m.take(t.Context(), h, bob())
	if fault.CodeOf(err) != fault.HostLocked || fault.RemedyOf(err) == "" {
		t.Fatalf("the second: %v", err)
	}
	now := time.Now().UTC().Format("2006-01-02 15:")
	for _, word := range []string{"w1: another run works on the host: alice on laptop7, since " + now, "kubewright init w1 w2 (cluster prod)", "last sign of life"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not say %q", err, word)
		}
	}
	holder, alive, err := m.read(t.Context(), h)
	if err != nil || !alive || holder == nil || holder.User != "alice" || holder.Verb != "init w1 w2" {
		t.Errorf("read: %v, alive %v, %v", holder, alive, err)
	}
	if first.Err() != nil || first.TookOver != nil {
		t.Errorf("the first: %v, %v", first.Err(), first.TookOver)
	}
	if err := first.Release(t.Context()); err != nil {
		t.Error(err)
	}
	free(t, m)
	if err := take(t, m, bob()).Release(t.Context()); err != nil {
		t.Error(err)
	}
	free(t, m)
}

func TestOneOfManyHasIt(t *testing.T) {
	m := here(t)
	type taken struct {
		held *Held
		err  error
	}
	results := make(chan taken)
	const contenders = 8
	for range contenders {
		go func() {
			held, err := m.take(t.Context(), localhost.New("w1"), alice())
			results <- taken{held, err}
		}()
	}
	var held []*Held
	for range contenders {
		r := <-results
		if r.err == nil {
			held = append(held, r.held)
		} else if fault.CodeOf(r.err) != fault.HostLocked {
			t.Error(r.err)
		}
	}
	if len(held) != 1 {
		t.Fatalf("%d have the lock", len(held))
	}
	if err := held[0].Release(t.Context()); err != nil {
		t.Error(err)
	}
	free(t, m)
}

// A run that was killed leaves its file, and a lock that is free at once.
func TestKilledHolder(t *testing.T) {
	m := here(t)
	first := take(t, m, alice())
	first.end() // what the end of its connection does to the command
	<-first.Lost()
	if err := first.Err(); fault.CodeOf(err) != fault.HostLocked || !errors.Is(err, context.Canceled) {
		t.Errorf("it is told %v", err)
	}
	if holder, alive, err := m.read(t.Context(), localhost.New("w1")); err != nil || alive || holder == nil || holder.User != "alice" {
		t.Errorf("read: %v, alive %v, %v", holder, alive, err)
	}
	second := take(t, m, bob())
	if err := first.Release(t.Context()); err == nil {
		t.Error("a lost lock was released")
	}
	if holder, alive, err := m.read(t.Context(), localhost.New("w1")); err != nil || !alive || holder.User != "bob" {
		t.Errorf("read: %v, alive %v, %v", holder, alive, err)
	}
	if err := second.Release(t.Context()); err != nil {
		t.Error(err)
	}
	free(t, m)
}

// A holder that beats is left alone however short the silence is that would
// make it dead; one that stays silent is ended.
func TestSilentHolder(t *testing.T) {
	m := here(t)
	m.silence, m.watch = 2*time.Second, 300*time.Millisecond

	beating := m
	beating.beat = 50 * time.Millisecond
	first := take(t, beating, alice())
	old := time.Now().Add(-time.Hour) // as if the host's clock had been set
	if err := os.Chtimes(m.file, old, old); err != nil {
		t.Fatal(err)
	}
	if _, err := m.take(t.Context(), localhost.New("w1"), bob()); fault.CodeOf(err) != fault.HostLocked {
		t.Fatalf("beside a holder that lives: %v", err)
	}
	if err := first.Release(t.Context()); err != nil {
		t.Fatal(err)
	}

	silent := m
	silent.beat = time.Hour
	first = take(t, silent, alice())
	if err := os.Chtimes(m.file, old, old); err != nil {
		t.Fatal(err)
	}
	second := take(t, m, bob())
	if second.TookOver == nil || second.TookOver.User != "alice" {
		t.Errorf("took over from %v", second.TookOver)
	}
	<-first.Lost()
	if first.Err() == nil {
		t.Error("the dead holder is told nothing")
	}
	if err := second.Release(t.Context()); err != nil {
		t.Error(err)
	}
	free(t, m)
}

func TestTakeEndsWithItsContext(t *testing.T) {
	m := here(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.take(ctx, localhost.New("w1"), alice()); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	free(t, m)

	// A lock that was taken outlives the context that it was taken in.
	ctx, cancel = context.WithCancel(t.Context())
	held, err := m.take(ctx, localhost.New("w1"), alice())
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := m.take(t.Context(), localhost.New("w1"), bob()); fault.CodeOf(err) != fault.HostLocked {
		t.Error(err)
	}
	if err := held.Release(t.Context()); err != nil {
		t.Error(err)
	}
	free(t, m)
}

func TestNoTools(t *testing.T) {
	m := here(t)
	_, err := m.take(t.Context(), bare{localhost.New("w1")}, alice())
	if fault.CodeOf(err) != fault.HostUnsuitable || !strings.Contains(fault.RemedyOf(err), "util-linux") {
		t.Error(err)
	}
}

// bare is a host without flock.
type bare struct{ localhost.Host }

func (b bare) Run(_ context.Context, cmd host.Command) ([]byte, error) {
	return nil, &host.ExitError{Argv: cmd.Argv, Status: host.NoProgram}
}

func TestFlockOn(t *testing.T) {
	const locks = `1: POSIX  ADVISORY  WRITE 11 00:1a:77 0 EOF
2: FLOCK  ADVISORY  WRITE 12 fe:00:77 0 EOF
2: -> FLOCK  ADVISORY  WRITE 13 00:1a:77 0 EOF
3: FLOCK  ADVISORY  WRITE 14 00:1a:77 0 EOF
`
	for id, want := range map[string]int{"26:77": 14, "65024:77": 12, "26:78": 0} {
		if got, err := flockOn(locks, id); err != nil || got != want {
			t.Errorf("%s: %d, %v; want %d", id, got, err, want)
		}
	}
	if _, err := flockOn(locks, "x"); err == nil {
		t.Error("no error for what is no number")
	}
}

func TestSession(t *testing.T) {
	stat := func(pid, parent string, name string) string {
		return pid + " (" + name + ") S " + parent + strings.Repeat(" 0", 17) + " 5" + pid + " 0 0\n"
	}
	all := table{byPID: map[int]process{}, ours: map[int]bool{1: true, 2: true, 40: true, 41: true}}
	for _, line := range []string{
		stat("1", "0", "systemd"), stat("2", "1", "sshd"),
		stat("10", "2", "sshd-session"), stat("11", "10", "sudo"), stat("12", "11", "tee) R 9 ("), stat("13", "10", "sftp-server"), stat("14", "13", "child"),
		stat("40", "2", "sshd-session"), stat("41", "40", "flock"), stat("42", "40", "tee"),
		stat("50", "1", "tee"), stat("51", "50", "x"), stat("60", "1", "etcd"),
	} {
		p, ok := parseProcess(line)
		if !ok || p.start != "5"+line[:strings.IndexByte(line, ' ')] {
			t.Fatalf("%q: %+v, %v", line, p, ok)
		}
		all.byPID[p.pid] = p
	}
	for holder, want := range map[int][]int{
		12: {10, 11, 13, 12, 14}, // its connection with all that came by it
		42: {42},                 // of our own connection
		50: {50, 51},             // of none
	} {
		if got := all.session(all.byPID[holder]); !slices.Equal(got, want) {
			t.Errorf("%d: %v, want %v", holder, got, want)
		}
	}
	for _, line := range []string{"", "12", "12 (x) S", "x (x) S 1" + strings.Repeat(" 0", 20)} {
		if p, ok := parseProcess(line); ok {
			t.Errorf("%q: %+v", line, p)
		}
	}
}

// The first words of the table are of the command that reads it.
func TestProcesses(t *testing.T) {
	all, err := processes(t.Context(), localhost.New("w1"))
	if err != nil {
		t.Fatal(err)
	}
	me := all.byPID[os.Getpid()]
	name, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	if !all.ours[os.Getpid()] || me.parent != os.Getppid() || me.name != string(bytes.TrimSpace(name)) {
		t.Errorf("%+v, ours %v", me, all.ours)
	}
}
