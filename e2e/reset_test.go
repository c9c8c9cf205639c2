package e2e

import (
	_ "embed"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/lab"
)

//go:embed testdata/inventory.sh
var inventoryScript string

// inventory is what stands on a host, a line each.
func (e *env) inventory(t *testing.T, host string) []string {
	t.Helper()
	return strings.Split(e.on(t, host, "bash", "-c", inventoryScript), "\n")
}

// TestReset takes a worker out of a cluster, and then everything, while pods run
// on all hosts: each host is afterwards as it was before the first change.
func TestReset(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "reset", Hosts: 3})
	hosts := []string{e.host(1), e.host(2), e.host(3)}
	before := map[string][]string{}
	for _, h := range hosts {
		before[h] = e.inventory(t, h)
	}
	asBefore := func(host string) {
		t.Helper()
		if diff := cmp.Diff(before[host], e.inventory(t, host)); diff != "" {
			t.Errorf("%s is not as it was before (-before +after):\n%s", host, diff)
		}
	}
	other := []byte("apiVersion: v1\nkind: Config\nclusters:\n- name: other\n  cluster: {server: 'https://192.0.2.1:6443'}\n")
	if err := os.WriteFile(e.kubeconfig, other, 0o600); err != nil {
		t.Fatal(err)
	}

	e.must(t, "init", hosts[0], "--name", "reset")
	e.must(t, "join", hosts[1], hosts[2])
	if got := e.kubectl(t, "get", "nodes", "-o", "name"); len(strings.Fields(got)) != 3 {
		t.Fatalf("nodes: %s", got)
	}

	// A control-plane node that others need stays.
	if r := e.kubewright(t, "reset", hosts[0]); r.exit == 0 || !strings.Contains(r.output(), hosts[1]) {
		t.Fatalf("reset of the control-plane node alone: exit %d\n%s", r.exit, r.output())
	}

	r := e.must(t, "reset", hosts[2], "--verify")
	if proof := regexp.MustCompile(`as it was before: [1-9]\d* objects compared, no difference\n  inventory before the first change ([0-9a-f]{64})\n  inventory now +([0-9a-f]{64})`).FindStringSubmatch(r.stdout); proof == nil || proof[1] != proof[2] {
		t.Errorf("the proof:\n%s", r.stdout)
	}
	asBefore(hosts[2])
	if got := e.kubectl(t, "get", "nodes", "-o", "name"); got != "node/"+hosts[0]+"\nnode/"+hosts[1] {
		t.Errorf("nodes after the reset of %s:\n%s", hosts[2], got)
	}

	// A host that was reset joins again as if it were new.
	e.must(t, "join", hosts[2])

	e.must(t, append([]string{"reset"}, hosts...)...)
	for _, h := range hosts {
		asBefore(h)
	}
	kubeconfig, err := os.ReadFile(e.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	if s := string(kubeconfig); strings.Contains(s, "reset") || !strings.Contains(s, "name: other") {
		t.Errorf("%s after the reset:\n%s", filepath.Base(e.kubeconfig), s)
	}
	if s := e.counted(t, append([]string{"reset"}, hosts...)...); s.Applied != 0 {
		t.Errorf("a second reset applied %d steps", s.Applied)
	}
}
