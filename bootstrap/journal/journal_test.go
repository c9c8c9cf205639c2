package journal

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// kernelSim is what a Sim has no notion of: mounts, interfaces, tables, routes, settings.
type kernelSim struct {
	*hosttest.Sim
	links, tables, routes, addresses map[string]bool
}

const noMounts = "22 1 0:20 / / rw - ext4 /dev/root rw\n"

func newHost(t testing.TB) *kernelSim {
	k := &kernelSim{hosttest.NewSim(t, "w1"), map[string]bool{"lo": true}, map[string]bool{"mine": true}, map[string]bool{"10.9.0.0/24": true}, map[string]bool{"192.0.2.1": true}}
	k.Put(host.MountTable, noMounts, 0o444)
	k.Put("/proc/sys/net/ipv4/ip_forward", "0\n", 0o644)
	k.Put("/etc/motd", "of yesterday\n", 0o644)
	k.Put("/etc/secret", "s3cr3t\n", 0o600)
	k.Put("/etc/systemd/system/old.service", "[Service]\nExecStart=/bin/old\n[Install]\nWantedBy=multi-user.target\n", 0o644)
	k.PutLink("/etc/motd", "/etc/link")
	k.PutDir("/sys/fs/cgroup/cpuset/mine.slice", 0o755)
	k.PutLink("cpuset", "/sys/fs/cgroup/alias")
	k.Boot()
	k.script()
	return k
}

// script has the commands answer, and change the machine, by the state of now.
func (k *kernelSim) script() {
	list := func(m map[string]bool, format string) string {
		var items []string
		for _, n := range slices.Sorted(maps.Keys(m)) {
			items = append(items, fmt.Sprintf(format, n))
		}
		return strings.Join(items, ",")
	}
	refresh := func() {
		k.Script(
			hosttest.Answer{Argv: []string{"ip", "-json", "link", "show"}, Stdout: "[" + list(k.links, `{"ifname":%q}`) + "]"},
			hosttest.Answer{Argv: []string{"nft", "--json", "list", "tables"}, Stdout: `{"nftables":[` + list(k.tables, `{"table":{"family":"ip","name":%q}}`) + "]}"},
			hosttest.Answer{Argv: []string{"ip", "-json", "-4", "route", "show"}, Stdout: "[" + list(k.routes, `{"dst":%q,"protocol":"boot"}`) + "]"},
			hosttest.Answer{Argv: []string{"ip", "-json", "address", "show"}, Stdout: `[{"ifname":"eth0","addr_info":[{"local":"2001:db8::1","prefixlen":32},{"local":"192.0.2.9","prefixlen":24},` +
				list(k.addresses, `{"local":%q,"prefixlen":32}`) + "]}]"},
		)
	}
	refresh()
	does := func(change func(), argv ...string) {
		k.Script(hosttest.Answer{Argv: argv, Do: func([]byte) ([]byte, error) { change(); refresh(); return nil, nil }})
	}
	does(func() {
		k.PutDir("/sys/fs/cgroup/cpuset/pods.slice/pods-1.slice", 0o755)
		k.links["cni0"], k.tables["kube-proxy"], k.routes["10.96.0.0/16"], k.addresses["192.0.2.9"] = true, true, true, true
	}, "bring", "network")
	does(func() { delete(k.links, "cni0") }, "ip", "link", "delete", "dev", "cni0")
	does(func() { delete(k.tables, "kube-proxy") }, "nft", "delete", "table", "ip", "kube-proxy")
	does(func() { delete(k.routes, "10.96.0.0/16") }, "ip", "-4", "route", "delete", "10.96.0.0/16")
	does(func() { delete(k.addresses, "192.0.2.9") }, "ip", "-4", "address", "delete", "192.0.2.9/32", "dev", "eth0")
	does(func() { k.Put("/proc/sys/net/ipv4/ip_forward", "1\n", 0o644) }, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
	does(func() { k.Put("/proc/sys/net/ipv4/ip_forward", "0\n", 0o644) }, "sysctl", "-q", "-w", "net.ipv4.ip_forward=0")
	does(func() { k.Drop("/sys/fs/cgroup/cpuset/pods.slice") }, "find", "/sys/fs/cgroup/cpuset/pods.slice", "-depth", "-type", "d", "-delete")
	for _, u := range []string{"new.service", "pods.slice"} {
		does(func() {}, "systemctl", "kill", "--kill-whom=all", "--signal=KILL", u)
	}
}

// change is a step by a list of operations.
type change struct {
	diff plan.Diff
	do   []func(context.Context, host.Host) error
	done string // exists once it is done
}

func (c change) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	found, err := r.Stat(ctx, c.done)
	if err != nil || found[0].Exists {
		return nil, err
	}
	return c.diff, nil
}

func (c change) Apply(ctx context.Context, h host.Host) error {
	for _, f := range append(c.do, write(c.done, "done")) {
		if err := f(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

func write(name, content string) func(context.Context, host.Host) error {
	return func(ctx context.Context, h host.Host) error {
		return h.WriteFile(ctx, name, strings.NewReader(content), host.Meta{Mode: 0o644})
	}
}

func command(argv ...string) func(context.Context, host.Host) error {
	return func(ctx context.Context, h host.Host) error {
		_, err := h.Run(ctx, host.Command{Argv: argv})
		return err
	}
}

// steps change one object of every kind.
func steps() []plan.Step[host.Reader, host.Host] {
	named := func(name string, c change) plan.Step[host.Reader, host.Host] {
		c.diff = append(c.diff, plan.Change{Verb: plan.Create, Kind: plan.ObjectFile, Object: c.done})
		return plan.Step[host.Reader, host.Host]{Name: name, Do: c}
	}
	return []plan.Step[host.Reader, host.Host]{
		named("file/change", change{done: "/opt/x/deep/one", diff: plan.Diff{
			{Verb: plan.Update, Kind: plan.ObjectFile, Object: "/etc/motd"},
			{Verb: plan.Delete, Kind: plan.ObjectFile, Object: "/etc/secret"},
		}, do: []func(context.Context, host.Host) error{
			write("/etc/motd", "of today"),
			func(ctx context.Context, h host.Host) error { return h.Remove(ctx, "/etc/secret") },
			func(ctx context.Context, h host.Host) error { return h.Symlink(ctx, "/etc/other", "/etc/link") }, // not in the diff
			func(ctx context.Context, h host.Host) error {
				return h.Mkdir(ctx, "/var/log", host.Meta{Mode: 0o700})
			},
		}}),
		named("kernel/change", change{done: "/opt/x/deep/two", diff: plan.Diff{
			{Verb: plan.Update, Kind: plan.ObjectSetting, Object: "net.ipv4.ip_forward"},
		}, do: []func(context.Context, host.Host) error{command("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")}}),
		named("unit/change", change{done: "/opt/x/deep/three", diff: plan.Diff{
			{Verb: plan.Create, Kind: plan.ObjectFile, Object: "/etc/systemd/system/new.service"},
			{Verb: plan.Start, Kind: plan.ObjectUnit, Object: "new.service", Brings: slices.Concat(
				plan.Objects(plan.ObjectFile, "/var/lib/new"), plan.Objects(plan.ObjectInterface, "cni0"),
				plan.Objects(plan.ObjectTable, "kube-proxy"), plan.Objects(plan.ObjectRoutes, "10.96.0.0/16"), plan.Objects(plan.ObjectAddress, "192.0.2.9"),
				plan.Objects(plan.ObjectMounts, "/var/lib/new"), plan.Objects(plan.ObjectSlice, "pods.slice"))},
		}, do: []func(context.Context, host.Host) error{
			write("/etc/systemd/system/new.service", "[Service]\nExecStart=/bin/new\n[Install]\nWantedBy=multi-user.target\n"),
			func(ctx context.Context, h host.Host) error { return h.Systemd().Reload(ctx) },
			func(ctx context.Context, h host.Host) error { return h.Systemd().Enable(ctx, "new.service") },
			func(ctx context.Context, h host.Host) error { return h.Systemd().Start(ctx, "new.service") },
			command("bring", "network"),
			write("/var/lib/new/data", "of the service"),
		}}),
	}
}

func do(ctx context.Context, h host.Host) error {
	_, err := plan.Run(ctx, plan.Options{}, plan.NewLane[host.Reader, host.Host](h.Name(), h, Wrap(h, Run{ID: "r", Verb: "test"}), steps()...))
	return err
}

func undo(ctx context.Context, h host.Host, from int) error {
	entries, err := Read(ctx, h)
	if err != nil {
		return err
	}
	var back []plan.Step[host.Reader, host.Host]
	for _, u := range Backwards(entries[min(from, len(entries)):]) {
		back = append(back, plan.Step[host.Reader, host.Host]{Name: fmt.Sprintf("%s-%d", u.Entry.Step, u.Entry.Seq), Do: u})
	}
	_, err = plan.Run(ctx, plan.Options{}, plan.NewLane[host.Reader, host.Host](h.Name(), h, h, back...))
	return err
}

// state is all that stands on a host but our own folder, temporary files included.
func state(k *kernelSim) hosttest.State {
	s := k.Snapshot()
	maps.DeleteFunc(s.Files, func(name string, _ hosttest.Entry) bool { return strings.HasPrefix(name, Root) })
	for _, m := range []map[string]bool{k.links, k.tables, k.routes, k.addresses} {
		s.Files[fmt.Sprint("/kernel/", len(s.Files))] = hosttest.Entry{Content: strings.Join(slices.Sorted(maps.Keys(m)), " ")}
	}
	for _, l := range s.Leftovers {
		if strings.HasPrefix(l, Root) {
			continue // it goes with the folder
		}
		s.Files[l] = hosttest.Entry{Content: "left by a write"}
	}
	return s
}

func TestUndoPutsBackEveryKind(t *testing.T) {
	k := newHost(t)
	before := state(k)
	if err := do(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	if len(before.Diff(state(k))) < 8 {
		t.Fatalf("little was changed: %q", before.Diff(state(k)))
	}
	if err := undo(t.Context(), k, 0); err != nil {
		t.Fatal(err)
	}
	if diff := before.Diff(state(k)); len(diff) > 0 {
		t.Errorf("not as before:\n%s", strings.Join(diff, "\n"))
	}
	if left, err := Read(t.Context(), k); err != nil || len(left) != 0 {
		t.Errorf("entries left: %v, %v", left, err)
	}
}

// TestInterruptedDoingAndUndoing breaks off doing and undoing before, in and after
// every operation, the journal's own included, by a cut connection and by lost power: done
// again and undone, nothing is left.
func TestInterruptedDoingAndUndoing(t *testing.T) {
	build := func(t testing.TB) *kernelSim { return newHost(t) }
	whole := build(t)
	before := state(whole)
	if err := do(t.Context(), whole); err != nil {
		t.Fatal(err)
	}
	doing := len(whole.Operations())
	if err := undo(t.Context(), whole, 0); err != nil {
		t.Fatal(err)
	}
	all := whole.Operations()
	tried := 0
	for n := 1; n <= len(all); n++ {
		for _, m := range []hosttest.Moment{hosttest.Before, hosttest.In, hosttest.After} {
			for _, power := range []bool{false, true} {
				k := build(t)
				at := func(n int) {
					if power {
						k.KillAt(n, m)
					} else {
						k.CutAt(n, m)
					}
				}
				at(n)
				err := do(t.Context(), k)
				if n <= doing {
					if err == nil {
						t.Fatalf("operation %d: doing was not broken off", n)
					}
					k.Restore()
					if n%2 == 0 { // half of them go on before they go back
						if err := do(t.Context(), k); err != nil {
							t.Fatalf("%v operation %d (%s): again: %v", m, n, all[n-1], err)
						}
					}
				} else if err != nil {
					t.Fatal(err)
				}
				if err := undo(t.Context(), k, 0); n > doing {
					if err == nil {
						t.Fatalf("operation %d: undoing was not broken off", n)
					}
					k.Restore()
					if err := undo(t.Context(), k, 0); err != nil {
						t.Fatalf("%v operation %d (%s): undo again: %v", m, n, all[n-1], err)
					}
				} else if err != nil {
					t.Fatalf("%v operation %d (%s): undo: %v", m, n, all[n-1], err)
				}
				tried++
				if diff := before.Diff(state(k)); len(diff) > 0 {
					t.Errorf("%v operation %d (%s), power lost %v: not as before:\n%s", m, n, all[n-1], power, strings.Join(diff, "\n"))
				}
			}
		}
	}
	t.Logf("%d interruption points", tried)
}

// TestWrittenAhead holds that an entry is on the disk before the first operation that
// it is about.
func TestWrittenAhead(t *testing.T) {
	k := newHost(t)
	if err := do(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	if first := k.Operations()[:2]; !slices.Equal(first, []string{"mkdir " + Dir, "write " + Dir + "/000001.json"}) {
		t.Errorf("the first operations: %q", first)
	}
	entries, err := Read(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, fmt.Sprintf("%d %s %d", e.Seq, e.Step, len(e.Before)))
	}
	want := []string{
		"1 file/change 4",                    // what the diff names, with the missing /opt/x
		"2 file/change 1", "3 file/change 1", // what it does not
		"4 kernel/change 2", "5 unit/change 11", "6 unit/change 2",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	found, err := k.Stat(t.Context(), Dir, Dir+"/000001.json")
	if err != nil || found[0].Mode.Perm() != 0o700 || found[1].Mode.Perm() != 0o600 {
		t.Errorf("modes: %v, %v", found, err)
	}
}

func TestNothingIsChangedOutsideOfAStep(t *testing.T) {
	k := newHost(t)
	h := Wrap(k, Run{})
	if err := h.WriteFile(t.Context(), "/etc/x", bytes.NewReader(nil), host.Meta{Mode: 0o644}); err == nil {
		t.Error("a write outside of a step was let through")
	}
	if err := h.WriteFile(t.Context(), Root+"/host.json", bytes.NewReader(nil), host.Meta{Mode: 0o600}); err != nil {
		t.Errorf("our own folder: %v", err)
	}
}

// TestAUnitThatRanIsStartedLast undoes a changed configuration: the unit runs again
// with the old one.
func TestAUnitThatRanIsStartedLast(t *testing.T) {
	entries := []Entry{
		{Seq: 1, Step: "a/configure", Before: []Before{{Object: file("/etc/a"), Exists: true, Mode: 0o644, Content: []byte("old")}}},
		{Seq: 2, Step: "a/start", Before: []Before{{Object: unitObject("a.service"), Exists: true, Enabled: true}}},
	}
	back := Backwards(entries)
	if len(back) != 2 || len(back[0].Entry.Before) != 0 || len(back[1].Entry.Before) != 2 || back[1].Entry.Before[1].Name != "a.service" {
		t.Errorf("%v", back)
	}
}

// A timer goes as it came: it has no processes, and systemd refuses to kill those.
func TestUndoOfATimer(t *testing.T) {
	k := newHost(t)
	const name = "sweep.timer"
	run := plan.NewLane[host.Reader, host.Host]("w1", k, Wrap(k, Run{ID: "run"}), plan.Step[host.Reader, host.Host]{Name: "sweep/schedule", Do: change{
		diff: plan.Diff{{Verb: plan.Create, Kind: plan.ObjectFile, Object: "/etc/systemd/system/" + name}, {Verb: plan.Start, Kind: plan.ObjectUnit, Object: name}},
		do: []func(context.Context, host.Host) error{
			write("/etc/systemd/system/"+name, "[Timer]\nOnCalendar=daily\n[Install]\nWantedBy=timers.target\n"),
			func(ctx context.Context, h host.Host) error { return h.Systemd().Reload(ctx) },
			func(ctx context.Context, h host.Host) error { return h.Systemd().Enable(ctx, name) },
			func(ctx context.Context, h host.Host) error { return h.Systemd().Start(ctx, name) },
		}, done: "/etc/done"}})
	if _, err := plan.Run(t.Context(), plan.Options{}, run); err != nil {
		t.Fatal(err)
	}
	if err := undo(t.Context(), k, 0); err != nil {
		t.Fatal(err)
	}
	units, err := k.Units(t.Context(), name)
	if err != nil || units[0].Active != "inactive" || units[0].Load != "not-found" {
		t.Errorf("%+v, %v", units, err)
	}
}
