package lab

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// booted waits until a host runs with another init than was, and answers.
func booted(t *testing.T, l *Lab, n int, was Host) Host {
	t.Helper()
	ctx, cancel := bootContext(t.Context())
	defer cancel()
	for {
		if h := l.Hosts()[n]; h.Running && h.PID != was.PID {
			if err := l.Start(ctx, h.Name); err != nil { // it runs: this waits until it is up
				t.Fatal(err)
			}
			return h
		}
		if err := pause(ctx); err != nil {
			t.Fatalf("it does not boot: %v; %s", err, l.console(&hostState{Name: was.Name}))
		}
	}
}

// attended tells whether somebody would boot a host again.
func attended(t *testing.T, l *Lab, host string) bool {
	t.Helper()
	procs, err := os.ReadFile(filepath.Join(l.trees[0].Dir, cgroupFolder, l.Name(), powerMember+host, "cgroup.procs"))
	return err == nil && strings.TrimSpace(string(procs)) != ""
}

// TestReboot has hosts reset and switch themselves off from inside, as machines do.
func TestReboot(t *testing.T) {
	name := testName("reboot")
	l := newTestLab(t, Options{Name: name, Hosts: 2, NATNIC: true, Trouble: Trouble{SlowDisk: time.Millisecond}})
	one, two := l.Hosts()[0], l.Hosts()[1]
	// What a shutdown would change beyond the host itself must not be there to be changed.
	if out, status := try(t, l, one.Name, "findmnt", "-n", "/proc/sys/fs/binfmt_misc"); status == 0 {
		t.Fatalf("the machine's own binfmt_misc is in the host: %s", out)
	}
	outer, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	for n, h := range l.Hosts() {
		if inner, err := login(t, l, "root", h.Name, "readlink", "/proc/self/ns/pid"); err != nil || inner == outer {
			t.Fatalf("%s has no process ids of its own: %s, %v", h.Name, inner, err)
		}
		for _, argv := range [][]string{{"systemctl", "reboot"}, {"reboot", "--force", "--force", "-n"}} {
			run(t, l, h.Name, "sh", "-c", "echo kept > /root/file; echo kept > /var/lib/etcd/file; sync /root/file /var/lib/etcd/file; echo gone > /run/file")
			was := l.Hosts()[n]
			login(t, l, "root", h.Name, argv...) //nolint:errcheck // it ends with the host, in one way or another
			booted(t, l, n, was)
			if got := run(t, l, h.Name, "cat", "/root/file", "/var/lib/etcd/file"); got != "kept\nkept" {
				t.Errorf("%s after %q: files are %q", h.Name, argv, got)
			}
			if _, status := try(t, l, h.Name, "test", "-e", "/run/file"); status == 0 {
				t.Errorf("%s after %q: /run was kept", h.Name, argv)
			}
		}
	}
	if !hearsAgain(t, l, one.Name, two.Address.String()) || !hears(t, l, two.Name, "10.0.2.2") {
		t.Error("after their reboots, hosts do not hear each other or their router")
	}
	if got, err := login(t, l, "root", two.Name, "hostname"); err != nil || got != two.Name {
		t.Errorf("ssh: %s, %v", got, err)
	}

	t.Run("switched off, it stays off", func(t *testing.T) {
		login(t, l, "root", two.Name, "systemctl", "poweroff") //nolint:errcheck // as above
		ctx, cancel := context.WithTimeout(t.Context(), bootDeadline)
		defer cancel()
		for attended(t, l, two.Name) {
			if err := pause(ctx); err != nil {
				t.Fatalf("it does not end: %v", err)
			}
		}
		if h := l.Hosts()[1]; h.Running {
			t.Errorf("it runs: %+v", h)
		}
		if err := l.Start(t.Context(), two.Name); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("what lost its power does not come back", func(t *testing.T) {
		if !attended(t, l, one.Name) {
			t.Error("nobody would boot it again")
		}
		if err := l.Kill(t.Context(), one.Name); err != nil {
			t.Fatal(err)
		}
		if attended(t, l, one.Name) {
			t.Error("somebody would boot it again")
		}
	})
	t.Run("who is late leaves it alone", func(t *testing.T) {
		was, err := readState(name)
		if err != nil {
			t.Fatal(err)
		}
		init := was.Hosts[1].Init
		init.Start-- // of a boot before this one
		before := l.Hosts()[1]
		if err := bootAgain(powerOrders{Lab: name, Host: two.Name}, init); err != nil {
			t.Fatal(err)
		}
		if now := l.Hosts()[1]; now != before {
			t.Errorf("it was %+v, is %+v", before, now)
		}
	})
}
