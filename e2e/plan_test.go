package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/lab"
)

// TestPlan plans, applies and undoes: planning changes nothing on any host, a saved
// plan is carried out exactly or refused, a file is converged to, and undo goes
// back step by step.
func TestPlan(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "plan", Hosts: 2})
	cp, w := e.host(1), e.host(2)
	before := map[string][]string{cp: e.inventory(t, cp), w: e.inventory(t, w)}
	asBefore := func(host string) {
		t.Helper()
		if diff := cmp.Diff(before[host], e.inventory(t, host)); diff != "" {
			t.Errorf("%s is not as it was (-before +after):\n%s", host, diff)
		}
	}
	file := e.spec(t, "")
	saved := filepath.Join(e.dir, "plan.json")

	t.Run("planning changes nothing", func(t *testing.T) {
		r := e.must(t, "plan", "init", "-f", file)
		for _, want := range []string{
			"+ file /etc/systemd/system/etcd.service -rw-r--r--", "+ExecStart=/opt/kubewright/current/bin/etcd",
			"> unit kubelet.service", "~ setting net.ipv4.ip_forward (0 -> 1)", "+ api DaemonSet kube-system/overlay",
			"+ file /etc/kubernetes/pki/ca.key -rw-------, made when it is applied", "with", "flannel.1", "nothing was changed yet",
		} {
			if !strings.Contains(r.stdout, want) {
				t.Errorf("the plan does not say %q", want)
			}
		}
		if strings.Contains(r.stdout, "PRIVATE KEY") {
			t.Error("the plan shows a key")
		}
		e.must(t, "plan", "init", "-f", file, "-o", saved)
		if r := e.kubewright(t, "diff", "-f", file); r.exit != 2 {
			t.Errorf("diff: exit %d\n%s", r.exit, r.output())
		}
		asBefore(cp)
		asBefore(w)
		if _, err := os.Stat(e.kubeconfig); err == nil {
			t.Error("planning wrote the kubeconfig")
		}
	})
	t.Run("facts that moved", func(t *testing.T) {
		e.on(t, w, "sh", "-c", "mv /etc/os-release /etc/os-release.kept; printf 'PRETTY_NAME=Other\\nID=other\\n' > /etc/os-release")
		r := e.kubewright(t, "apply", saved)
		e.on(t, w, "mv", "/etc/os-release.kept", "/etc/os-release")
		refused{17, []string{w, `OS was "Debian`, `and is "Other"`, "make a new plan"}}.check(t, r)
		asBefore(w)
	})
	t.Run("a file that moved", func(t *testing.T) {
		e.on(t, w, "mkdir", "-p", "/etc/containerd")
		e.on(t, w, "touch", "/etc/containerd/config.toml")
		r := e.kubewright(t, "apply", saved)
		e.on(t, w, "rm", "-r", "/etc/containerd")
		refused{17, []string{w, "containerd/configure would now update /etc/containerd/config.toml"}}.check(t, r)
		asBefore(w)
	})
	t.Run("a saved plan", func(t *testing.T) {
		if strings.Contains(e.must(t, "plan", "init", "-f", file, "-o", "json").stdout, "PRIVATE KEY") {
			t.Error("the plan has a key")
		}
		e.must(t, "apply", saved)
		if got := e.kubectl(t, "get", "nodes", "-o", "name"); got != "node/"+cp+"\nnode/"+w {
			t.Errorf("nodes:\n%s", got)
		}
		refused{17, []string{"would no longer", "make a new plan"}}.check(t, oneFault(e.kubewright(t, "apply", saved)))
	})
	t.Run("no drift", func(t *testing.T) {
		if r := e.must(t, "diff", "-f", file); !strings.Contains(r.stdout, "nothing to change") {
			t.Errorf("diff:\n%s", r.stdout)
		}
		if s := e.counted(t, "apply", "-f", file); s.Applied != 0 {
			t.Errorf("apply again applied %d steps", s.Applied)
		}
	})
	t.Run("drift and a changed setting", func(t *testing.T) {
		changed := e.spec(t, "kubelet: {extraArgs: {max-pods: \"42\"}}\n")
		e.on(t, w, "sh", "-c", "echo '# by hand' >> /var/lib/kubelet/config.yaml")
		r := e.kubewright(t, "diff", "-f", changed)
		if r.exit != 2 || !strings.Contains(r.stdout, "-# by hand") || !strings.Contains(r.stdout, "+  --max-pods=42") || !strings.Contains(r.stdout, "> unit kubelet.service (restart") {
			t.Errorf("diff: exit %d\n%s", r.exit, r.output())
		}
		e.must(t, "apply", "-f", changed)
		if r := e.must(t, "diff", "-f", changed); !strings.Contains(r.stdout, "nothing to change") {
			t.Errorf("diff after apply:\n%s", r.stdout)
		}
		if e.exitOn(t, w, "grep", "-q", "by hand", "/var/lib/kubelet/config.yaml") == 0 {
			t.Error("the line is still there")
		}
		// and back, step by step
		if r := e.must(t, "undo", w, "--list"); !strings.Contains(r.stdout, "kubelet/start") || !strings.Contains(r.stdout, "apply "+cp) {
			t.Errorf("undo --list:\n%s", r.stdout)
		}
		e.must(t, "undo", cp, w)
		if got := e.on(t, cp, "cat", "/etc/systemd/system/kubelet.service"); strings.Contains(got, "max-pods") {
			t.Error("undo left the setting")
		}
		if r := e.kubewright(t, "diff", "-f", changed, "--brief"); r.exit != 2 || !strings.Contains(r.stdout, "kubelet.service") {
			t.Errorf("diff after undo: exit %d\n%s", r.exit, r.output())
		}
		e.must(t, "apply", "-f", file)
	})
	t.Run("what cannot be changed", func(t *testing.T) {
		other := e.spec(t, "network: {podCIDR: 172.20.0.0/16}\n")
		refused{3, []string{"network.podCIDR", "10.244.0.0/16", "172.20.0.0/16"}}.check(t, e.kubewright(t, "apply", "-f", other))
	})
	t.Run("a host that leaves", func(t *testing.T) {
		less := e.spec(t, "hosts:\n- name: "+cp+"\n")
		refused{2, []string{w, "--remove " + w}}.check(t, e.kubewright(t, "apply", "-f", less))
		if r := e.must(t, "apply", "-f", less, "--remove", w); !strings.Contains(r.stdout, w+": as it was before") {
			t.Errorf("apply:\n%s", r.stdout)
		}
		asBefore(w)
		if got := e.kubectl(t, "get", "nodes", "-o", "name"); got != "node/"+cp {
			t.Errorf("nodes:\n%s", got)
		}
	})
	t.Run("saved plans of a join and of a reset", func(t *testing.T) {
		for _, verb := range []string{"join", "reset"} {
			e.must(t, "plan", verb, w, "-o", saved)
			e.must(t, "apply", saved)
			if got := e.kubectl(t, "get", "nodes", "-o", "name"); strings.Contains(got, w) != (verb == "join") {
				t.Errorf("nodes after %s:\n%s", verb, got)
			}
		}
		asBefore(w)
	})
	t.Run("undo everything", func(t *testing.T) {
		r := e.must(t, "plan", "reset", cp, "--brief")
		if !strings.Contains(r.stdout, "- file /opt/kubewright") {
			t.Errorf("plan reset:\n%s", r.stdout)
		}
		e.must(t, "undo", cp, "--all")
		asBefore(cp)
	})
}

// oneFault leaves the first message of several.
func oneFault(r result) result {
	if i := strings.Index(r.stderr, "\nerror: "); i >= 0 {
		r.stderr = r.stderr[:i]
	}
	return r
}
