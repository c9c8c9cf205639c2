package foresee_test

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/file"
	"github.com/kubewright/kubewright/bootstrap/foresee"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/systemd"
)

func lane(h host.Host, steps ...plan.Step[host.Reader, host.Host]) plan.Lane {
	return plan.NewLane[host.Reader, host.Host](h.Name(), h, h, steps...)
}

func step(name string, do plan.Action[host.Reader, host.Host]) plan.Step[host.Reader, host.Host] {
	return plan.Step[host.Reader, host.Host]{Name: name, Do: do}
}

var service = systemd.Service{Name: "a.service", Type: "simple", Exec: []string{"/bin/a"}, Inputs: []string{"/etc/a.conf"}}

func steps(content string) []plan.Step[host.Reader, host.Host] {
	return []plan.Step[host.Reader, host.Host]{
		step("a/configure", file.Put{Files: []file.Wish{{Path: "/etc/a.conf", Mode: 0o644, Content: []byte(content)}}}),
		step("a/start", systemd.Run{Services: []systemd.Service{service}}),
	}
}

// TestARestartIsForeseen plans a changed configuration file of a service that runs: it
// would be restarted, although nothing has changed yet. The run does just that.
func TestARestartIsForeseen(t *testing.T) {
	s := hosttest.NewSim(t, "h")
	if _, err := plan.Run(t.Context(), plan.Options{}, lane(s, steps("one")...)); err != nil {
		t.Fatal(err)
	}
	before, operations := s.Snapshot(), len(s.Operations())
	foreseen, err := plan.Preview(t.Context(), lane(foresee.New(s), steps("two")...))
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, f := range foreseen {
		said = append(said, f.Diff.String())
	}
	if got := strings.Join(said, "; "); got != "update /etc/a.conf (content); start a.service (restart: /etc/a.conf is newer)" {
		t.Errorf("foreseen: %s", got)
	}
	if diff := before.Diff(s.Snapshot()); len(diff) > 0 || len(s.Operations()) != operations {
		t.Errorf("planning changed %q", diff)
	}
	var done []string
	if _, err := plan.Run(t.Context(), plan.Options{Emit: func(e plan.Event) {
		if e.Kind == plan.Applied {
			done = append(done, e.Diff.String())
		}
	}}, lane(s, steps("two")...)); err != nil {
		t.Fatal(err)
	}
	if strings.Join(done, "; ") != strings.Join(said, "; ") {
		t.Errorf("foreseen %q, done %q", said, done)
	}
}

func TestWhatIsLearned(t *testing.T) {
	s := hosttest.NewSim(t, "h")
	s.Put("/etc/old/a", "a", 0o644)
	s.Put("/proc/sys/net/ipv4/ip_forward", "0\n", 0o644)
	h := foresee.New(s)
	h.Learn(plan.Diff{
		{Verb: plan.Delete, Kind: plan.ObjectFile, Object: "/etc/old"},
		{Verb: plan.Create, Kind: plan.ObjectFile, Object: "/etc/new", After: plan.FileState(0o600, []byte("new"))},
		{Verb: plan.Create, Kind: plan.ObjectFile, Object: "/opt/tree", After: &plan.State{Mode: "drwxr-xr-x", Later: true}},
		{Verb: plan.Create, Kind: plan.ObjectFile, Object: "/opt/link", After: &plan.State{Mode: "Lrwxrwxrwx", Target: "tree"}},
		{Verb: plan.Update, Kind: plan.ObjectSetting, Object: "net.ipv4.ip_forward", After: &plan.State{Text: "1"}},
	})
	found, err := h.Stat(t.Context(), "/etc/old", "/etc/old/a", "/etc/new", "/opt/tree", "/opt/link")
	if err != nil {
		t.Fatal(err)
	}
	if found[0].Exists || found[1].Exists {
		t.Error("what would be removed is there")
	}
	if f := found[2]; !f.Exists || f.Mode != 0o600 || f.Size != 3 {
		t.Errorf("a new file: %+v", f)
	}
	if !found[3].Mode.IsDir() || found[4].Mode.Type() != fs.ModeSymlink || found[4].Target != "tree" {
		t.Errorf("a folder and a link: %+v, %+v", found[3], found[4])
	}
	if content, err := h.ReadFile(t.Context(), "/proc/sys/net/ipv4/ip_forward"); err != nil || string(content) != "1\n" {
		t.Errorf("a setting: %q, %v", content, err)
	}
	if _, err := h.ReadFile(t.Context(), "/etc/old/a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file in a folder that would be gone: %v", err)
	}
	if _, err := h.ReadFile(t.Context(), "/opt/tree/bin/x"); !errors.Is(err, foresee.ErrLater) {
		t.Errorf("a file that would be made: %v", err)
	}
	if names, err := h.ReadDir(t.Context(), "/etc"); err != nil || strings.Join(names, " ") != "new systemd" {
		t.Errorf("names: %q, %v", names, err)
	}
}

// TestNothingCanBeChanged tries every operation.
func TestNothingCanBeChanged(t *testing.T) {
	s := hosttest.NewSim(t, "h")
	ctx, h := t.Context(), foresee.New(s)
	sd := h.Systemd()
	_, run := h.Run(ctx, host.Command{Argv: []string{"true"}})
	for i, err := range []error{
		run, h.WriteFile(ctx, "/x", nil, host.Meta{}), h.Mkdir(ctx, "/x", host.Meta{}), h.Symlink(ctx, "/y", "/x"), h.Remove(ctx, "/etc"),
		sd.Reload(ctx), sd.Start(ctx, "a"), sd.Restart(ctx, "a"), sd.Stop(ctx, "a"), sd.Enable(ctx, "a"), sd.Disable(ctx, "a"), sd.ResetFailed(ctx, "a"),
	} {
		if err == nil {
			t.Errorf("operation %d was let through", i)
		}
	}
	if len(s.Operations()) != 0 {
		t.Errorf("the host was changed: %q", s.Operations())
	}
}
