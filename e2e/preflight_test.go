package e2e

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/lab"
)

// preflight runs it on all hosts, wants its status, and returns what is not a
// note, but for what the lab's machine brings with it.
func (e *env) preflight(t *testing.T, exit int, args ...string) []finding.Finding {
	t.Helper()
	for _, h := range e.lab.Hosts() {
		args = append(args, h.Name)
	}
	began := time.Now()
	r := e.kubewright(t, append([]string{"preflight", "-o", "json"}, args...)...)
	t.Logf("preflight took %v", time.Since(began).Round(time.Millisecond))
	if r.exit != exit {
		t.Fatalf("exit %d, want %d\n%s", r.exit, exit, r.output())
	}
	var all, kept []finding.Finding
	if err := json.Unmarshal([]byte(r.stdout), &all); err != nil {
		t.Fatalf("%v\n%s", err, r.output())
	}
	for _, f := range all {
		if f.Severity != "note" && f.Code != "cgroup-v1" && f.Code != "disk-slow" {
			kept = append(kept, f)
		}
	}
	return kept
}

// TestPreflight looks at three hosts, well and with something wrong between or on
// them. It leaves them as they were.
func TestPreflight(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "preflight", Hosts: 3})
	before := map[string][]string{}
	for _, h := range e.lab.Hosts() {
		before[h.Name] = e.inventory(t, h.Name)
	}
	asBefore := func(t *testing.T) {
		t.Helper()
		for _, h := range e.lab.Hosts() {
			if diff := cmp.Diff(before[h.Name], e.inventory(t, h.Name)); diff != "" {
				t.Errorf("%s was changed (-before +after):\n%s", h.Name, diff)
			}
			if left := e.on(t, h.Name, "find", "/dev/shm", "/run", "/tmp", "/var/tmp", "/root", "/var/lib", "-xdev", "-name", "*kubewright*"); left != "" {
				t.Errorf("%s: left: %s", h.Name, left)
			}
		}
	}

	t.Run("all is well", func(t *testing.T) {
		if found := e.preflight(t, 0); len(found) > 0 {
			t.Errorf("found: %+v", found)
		}
		asBefore(t)
	})
	t.Run("a firewall that drops UDP 8472", func(t *testing.T) {
		h := e.host(2)
		e.on(t, h, "nft", "add table inet test; add chain inet test input { type filter hook input priority 0; }; add rule inet test input udp dport 8472 drop")
		found := e.preflight(t, 10)
		e.on(t, h, "nft", "delete table inet test")
		if len(found) != 1 || found[0].Code != "udp-blocked" || found[0].Host != h ||
			!strings.Contains(found[0].Message, e.host(1)) || !strings.Contains(found[0].Message, e.host(3)) {
			t.Errorf("found: %+v", found)
		}
		asBefore(t)
	})
	t.Run("a firewall that drops frames of VXLAN alone", func(t *testing.T) {
		h := e.host(3)
		// The bit of the header that says that a network's number is there.
		e.on(t, h, "nft", "add table inet test; add chain inet test input { type filter hook input priority 0; }; "+
			"add rule inet test input udp dport 8472 @th,64,32 0x08000000 drop")
		found := e.preflight(t, 10)
		e.on(t, h, "nft", "delete table inet test")
		if len(found) != 1 || found[0].Code != "vxlan-blocked" || found[0].Host != h ||
			!strings.Contains(found[0].Message, e.host(1)) || !strings.Contains(found[0].Message, e.host(2)) {
			t.Errorf("found: %+v", found)
		}
		asBefore(t)
	})
	t.Run("a path with a smaller MTU", func(t *testing.T) {
		h := e.host(2)
		e.on(t, h, "nft", "add table inet test; add chain inet test input { type filter hook input priority 0; }; "+
			"add rule inet test input ip protocol udp ip length > 1404 drop")
		found := e.preflight(t, 10)
		e.on(t, h, "nft", "delete table inet test")
		if len(found) != 2 {
			t.Fatalf("found: %+v", found)
		}
		for i, other := range []string{e.host(1), e.host(3)} {
			if f := found[i]; f.Code != "path-mtu" || f.Host != other || f.Object != h || !strings.Contains(f.Remedy, "dev eth0 mtu 140") {
				t.Errorf("found: %+v", f)
			}
		}
		asBefore(t)
	})
	t.Run("the API server's port in use", func(t *testing.T) {
		h := e.host(1)
		e.on(t, h, "systemd-run", "--unit=squatter", "--quiet", "/usr/sbin/sshd", "-D", "-p", "6443", "-o", "PidFile=none")
		eventually(t, 5*time.Second, "it listens", func() string {
			if out := e.on(t, h, "ss", "-ltn"); !strings.Contains(out, ":6443") {
				return out
			}
			return ""
		})
		found := e.preflight(t, 10)
		if len(found) != 1 || found[0].Code != "port-in-use" || found[0].Host != h ||
			!strings.Contains(found[0].Message, "in use by sshd (pid ") {
			t.Errorf("found: %+v", found)
		}
		if found := e.preflight(t, 0, "--ignore", "port-in-use"); len(found) != 1 {
			t.Errorf("ignored: %+v", found)
		}
		refused{10, []string{h, "preflight", "6443", "port-in-use", "systemctl"}}.check(t, e.kubewright(t, "init", h))
		e.on(t, h, "systemctl", "stop", "squatter")
		asBefore(t)
	})
	t.Run("an unknown code", func(t *testing.T) {
		if r := e.kubewright(t, "preflight", e.host(1), "--ignore", "swap"); r.exit != 2 || !strings.Contains(r.stderr, "no such code") {
			t.Errorf("exit %d\n%s", r.exit, r.output())
		}
	})
	t.Run("the workstation is killed", func(t *testing.T) {
		h := e.host(2)
		e.on(t, h, "nft", "add table inet test; add chain inet test input { type filter hook input priority 0; }; add rule inet test input udp dport 8472 drop")
		cmd := exec.CommandContext(t.Context(), program(t), "preflight", e.host(1), h, e.host(3), "-F", e.lab.SSHConfig())
		cmd.Dir = ".."
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		probes := func(host string) string {
			return e.on(t, host, "bash", "-c", "grep -l [k]ubewright-probe /proc/[0-9]*/cmdline || true")
		}
		eventually(t, 10*time.Second, "all probes run", func() string { // before, one is still being sent
			for _, host := range e.lab.Hosts() {
				if probes(host.Name) == "" {
					return "none on " + host.Name
				}
			}
			return ""
		})
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Error("it had ended before it was killed")
		}
		for _, host := range e.lab.Hosts() { // each ends what it is at
			eventually(t, 10*time.Second, "the probe is gone", func() string { return probes(host.Name) })
		}
		e.on(t, h, "nft", "delete table inet test")
		asBefore(t)
	})
}
