package hosttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
)

func TestConformance(t *testing.T) {
	const dir = "/var/lib/suite"
	Conformance(t, func(t *testing.T) Fixture {
		s := NewSim(t, "sim")
		if err := s.Mkdir(t.Context(), dir, host.Meta{Mode: 0o755}); err != nil {
			t.Fatal(err)
		}
		cat := func(stdin []byte) ([]byte, error) { return stdin, nil }
		count := func(stdin []byte) ([]byte, error) { return fmt.Appendln(nil, len(stdin)), nil }
		s.Script(
			Answer{Argv: cmdPrint, Stdout: "it's|$HOME||a\nb|-n|\\|*|"},
			Answer{Argv: cmdCat, Do: cat},
			Answer{Argv: cmdCount, Do: count},
			Answer{Argv: cmdFail, Stdout: "out\n", Stderr: strings.Repeat("long\n", 1800) + "last\n", Status: 7},
			Answer{Argv: cmdAbsent, Status: host.NoProgram},
			Answer{Argv: cmdWhoami, Stdout: "0\n"},
			Answer{Argv: cmdHang, Hang: true},
			Answer{Argv: cmdTrue},
		)
		servers := map[string]string{"tcp": "127.0.0.1:22", "unix": "/run/socket"}
		for network, address := range servers {
			s.Serve(network, address, greet)
		}
		return Fixture{Host: s, Dir: dir, Servers: servers, Mount: func(t *testing.T, dir string) {
			s.Mount(dir)
			s.FillAfter(1 << 20)
		}}
	})
}

func TestConformanceSystemd(t *testing.T) {
	s := NewSim(t, "sim")
	s.FailUnit(unitFails, "failed", failLog)
	before := s.Snapshot()
	ConformanceSystemd(t, s)
	if diff := before.Diff(s.Snapshot()); len(diff) > 0 {
		t.Errorf("left behind: %q", diff)
	}
}

// failures is a test that is told of failures and keeps them.
type failures struct {
	testing.TB
	told []string
}

func (f *failures) Errorf(format string, args ...any) {
	f.told = append(f.told, fmt.Sprintf(format, args...))
}
func (f *failures) Helper() {}

func TestNotScripted(t *testing.T) {
	told := &failures{TB: t}
	s := NewSim(told, "sim")
	s.Script(Answer{Argv: []string{"touch", "/x"}, Do: func([]byte) ([]byte, error) { s.Put("/x", "", 0o600); return nil, nil }})
	if _, err := s.Query(t.Context(), "id"); !errors.Is(err, errNotScripted) {
		t.Error(err)
	}
	if _, err := s.Run(t.Context(), host.Command{Argv: []string{"touch", "/y"}}); !errors.Is(err, errNotScripted) {
		t.Error(err)
	}
	if _, err := s.Query(t.Context(), "touch", "/x"); err != nil {
		t.Error(err)
	}
	if len(told.told) != 3 || len(s.Operations()) != 0 {
		t.Errorf("%q, %q", told.told, s.Operations())
	}
}

// prepare and deploy are work as steps do it.
func prepare(t testing.TB) *Sim {
	s := NewSim(t, "sim")
	s.Put("/etc/app/old/a", "", 0o600)
	s.Put("/etc/app/old/b", "", 0o600)
	module := []string{"modprobe", "overlay"}
	s.Script(Answer{
		Argv: module, Half: func() { s.Put("/proc/modules", "", 0o444) },
		Do: func([]byte) ([]byte, error) { s.Put("/proc/modules", "overlay\n", 0o444); return nil, nil },
	})
	return s
}

const appUnit = "[Service]\nExecStart=/usr/bin/app\n[Install]\nWantedBy=multi-user.target\n"

func deploy(ctx context.Context, h host.Host) error {
	for _, do := range []func() error{
		func() error { return h.Mkdir(ctx, "/etc/app/conf", host.Meta{Mode: 0o700}) },
		func() error {
			return h.WriteFile(ctx, "/etc/systemd/system/app.service", strings.NewReader(appUnit), host.Meta{Mode: 0o644})
		},
		func() error { return h.Symlink(ctx, "/opt/app-2", "/opt/current") },
		func() error { return h.Remove(ctx, "/etc/app/old") },
		func() error { _, err := h.Run(ctx, host.Command{Argv: []string{"modprobe", "overlay"}}); return err },
		func() error { return h.Systemd().Reload(ctx) },
		func() error { return h.Systemd().Enable(ctx, "app.service") },
		func() error { return h.Systemd().Start(ctx, "app.service") },
	} {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

func TestInterrupt(t *testing.T) { Interrupt(t, prepare, deploy) }

// What Interrupt is there to find: work that takes for done what was only begun.
func TestInterruptFindsHalfDone(t *testing.T) {
	s := prepare(t)
	s.CutAt(4, In) // Remove
	if err := deploy(t.Context(), s); fault.CodeOf(err) != fault.HostUnreachable {
		t.Fatal(err)
	}
	if _, err := s.Stat(t.Context(), "/etc"); fault.CodeOf(err) != fault.HostUnreachable {
		t.Errorf("it answers still: %v", err)
	}
	s.Restore()
	if names, err := s.ReadDir(t.Context(), "/etc/app/old"); err != nil || !slices.Equal(names, []string{"b"}) {
		t.Errorf("half removed: %q, %v", names, err)
	}

	s = prepare(t)
	s.CutAt(2, In) // WriteFile
	if err := deploy(t.Context(), s); err == nil {
		t.Fatal("no error")
	}
	if state := s.Snapshot(); len(state.Leftovers) != 1 || state.Files["/etc/systemd/system/app.service"].Content != "" {
		t.Errorf("%q", state.Leftovers)
	}

	s = prepare(t)
	s.CutAt(8, In) // Start: systemd goes on with it
	if err := deploy(t.Context(), s); err == nil {
		t.Fatal("no error")
	}
	s.Restore()
	wantUnit(t, s, host.Unit{Active: "active", Sub: "running"})

	s = prepare(t)
	s.KillAt(8, Before) // enabled already: it starts at boot
	if err := deploy(t.Context(), s); err == nil {
		t.Fatal("no error")
	}
	s.Restore()
	wantUnit(t, s, host.Unit{Active: "active", Sub: "running"})
}

func wantUnit(t *testing.T, s *Sim, want host.Unit) {
	t.Helper()
	got, err := s.Units(t.Context(), "app.service")
	if err != nil || got[0].Active != want.Active || got[0].Sub != want.Sub {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestUnitsAreRemembered(t *testing.T) {
	s := prepare(t)
	ctx := t.Context()
	s.Put("/etc/systemd/system/app.service", appUnit, 0o644)
	if err := s.Systemd().Start(ctx, "app.service"); err == nil {
		t.Error("started before it was reloaded")
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.Systemd().Reload(ctx))
	must(s.Systemd().Start(ctx, "app.service"))
	s.CrashUnit("app.service")
	wantUnit(t, s, host.Unit{Active: "failed", Sub: "failed"})
	must(s.Systemd().Start(ctx, "app.service"))
	must(s.Remove(ctx, "/etc/systemd/system/app.service"))
	must(s.Systemd().Reload(ctx))
	got, err := s.Units(ctx, "app.service")
	if err != nil || got[0].Load != "not-found" || got[0].Active != "active" {
		t.Errorf("its file is gone, it runs on: %+v, %v", got, err)
	}
	must(s.Systemd().Stop(ctx, "app.service"))
	wantUnit(t, s, host.Unit{Active: "inactive", Sub: "dead"})

	s.Put("/etc/systemd/system/once.service", "[Service]\nType=oneshot\n", 0o644)
	s.Put("/etc/systemd/system/stays.service", "[Service]\nType=oneshot\nRemainAfterExit=yes\n", 0o644)
	must(s.Systemd().Reload(ctx))
	for name, want := range map[string]string{"once.service": "inactive dead", "stays.service": "active exited"} {
		must(s.Systemd().Start(ctx, name))
		if got, err := s.Units(ctx, name); err != nil || got[0].Active+" "+got[0].Sub != want {
			t.Errorf("%+v, %v; want %s", got, err, want)
		}
	}
}

func TestDiff(t *testing.T) {
	s := prepare(t)
	before := s.Snapshot()
	if err := deploy(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	s.Put("/etc/app/conf/a", "1", 0o600)
	middle := s.Snapshot()
	want := []string{
		"+ /etc/app/conf", "+ /etc/app/conf/a", "- /etc/app/old", "- /etc/app/old/a", "- /etc/app/old/b",
		"+ /etc/systemd/system/app.service", "+ /etc/systemd/system/multi-user.target.wants",
		"+ /etc/systemd/system/multi-user.target.wants/app.service", "+ /opt/current", "+ /proc/modules", "+ app.service",
	}
	if diff := cmp.Diff(want, before.Diff(middle)); diff != "" {
		t.Error(diff)
	}
	s.Put("/etc/app/conf/a", "2", 0o640)
	s.PutLink("/opt/app-3", "/opt/current")
	if err := s.Systemd().Stop(t.Context(), "app.service"); err != nil {
		t.Fatal(err)
	}
	want = []string{
		"~ /etc/app/conf/a: mode -rw------- -> -rw-r-----, content", "~ /opt/current: target /opt/app-2 -> /opt/app-3",
		"~ app.service: active active -> inactive, sub running -> dead",
	}
	if diff := cmp.Diff(want, middle.Diff(s.Snapshot())); diff != "" {
		t.Error(diff)
	}
}

// Over SFTP, what happens within one second cannot be told apart.
func TestTick(t *testing.T) {
	s := NewSim(t, "sim")
	s.SetTick(100 * time.Millisecond)
	times := make(map[time.Time]bool)
	for range 5 {
		if err := s.WriteFile(t.Context(), "/file", bytes.NewReader(nil), host.Meta{Mode: 0o600}); err != nil {
			t.Fatal(err)
		}
		files, err := s.Stat(t.Context(), "/file")
		if err != nil {
			t.Fatal(err)
		}
		times[files[0].ModTime] = true
	}
	s.Advance(time.Second)
	if len(times) != 1 {
		t.Errorf("%v", times)
	}
}
