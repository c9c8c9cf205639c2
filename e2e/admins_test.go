package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kubewright/kubewright/lab"
)

// TestTwoAdmins has a second admin meet the first one's run: refused while it
// works, and told whose it is; and free to finish the cluster from another workstation once the
// first one's program was killed.
func TestTwoAdmins(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "admins", Hosts: 2})
	file := e.spec(t, "")
	args := []string{"init", "-f", file, "-F", e.lab.SSHConfig(), "--kubeconfig", e.kubeconfig, "-o", "jsonl"}
	first := exec.CommandContext(t.Context(), program(t), args...)
	first.Dir = ".."
	var stdout lockedBuffer
	first.Stdout, first.Stderr = &stdout, &stdout
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	says := func(kind string) {
		t.Helper()
		eventually(t, 30*time.Second, "the control plane of the first run", func() string {
			if strings.Contains(stdout.String(), `"kind":"`+kind+`","lane":"`+e.host(1)+`","step":"controlplane/start"`) {
				return ""
			}
			return "it has said: " + stdout.String()
		})
	}
	says("applying")
	other := *e // another workstation: it has no kubeconfig of the cluster
	other.kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	refused{16, []string{e.host(1), "lock", "root on ", "since ", "kubewright init " + e.host(1) + " " + e.host(2)}}.check(t,
		oneFault(other.kubewright(t, "init", "-f", file)))
	if r := other.must(t, "plan", "init", "-f", file, "--brief"); !strings.Contains(r.stderr, "another run works on the host") || !strings.Contains(r.stderr, "kubewright init "+e.host(1)) {
		t.Errorf("a plan does not tell of the run:\n%s", r.output())
	}
	refused{16, []string{e.host(1), "in its way", "kubewright init " + e.host(1)}}.check(t, other.kubewright(t, "preflight", "-f", file))
	says("applied") // the API server runs, and no kubelet yet
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	first.Wait() //nolint:errcheck // it was killed

	s := other.counted(t, "init", "-f", file)
	if s.Applied == 0 || s.Skipped == 0 {
		t.Errorf("the second admin did not go on from the first: %+v", s)
	}
	if got := other.kubectl(t, "get", "nodes", "-o", "name"); got != "node/"+e.host(1)+"\nnode/"+e.host(2) {
		t.Errorf("nodes: %s", got)
	}
	if r := other.must(t, "undo", e.host(1), "--list"); strings.Count(r.stdout, "init "+e.host(1)) < 5 {
		t.Errorf("the journal:\n%s", r.stdout)
	}
}
