package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kubewright/kubewright/bootstrap/drill"
	"github.com/kubewright/kubewright/lab"
)

// longestOutage is how long clients may be without the API for one dead host.
const longestOutage = 5 * time.Second

// TestHostDies cuts the power of each control-plane host in turn, kills etcd's leader and parts
// one host from the others, while clients write and read through a worker's way to the API and
// one pod asks another.
func TestHostDies(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "drill", Hosts: 5})
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(e.dump())
		}
	})
	e.must(t, "init", "-f", e.drillSpec(t, 3, map[int]string{4: "server", 5: "asker"}))
	e.importImage(t)
	e.kubectl(t, "apply", "-f", "e2e/testdata/pair.yaml")
	e.kubectl(t, "wait", "--for=condition=Ready", "pod/server", "pod/asker", "--timeout=60s")
	pods, members := e.pairState(t), e.etcdState(t)

	t.Run("the power of each control-plane host", func(t *testing.T) {
		for n := 1; n <= 3; n++ {
			e.drilled(t, "power-cut", e.host(n), "--duration=10s",
				"--power-off", strings.Join([]string{program(t), "lab", "kill", e.lab.Name(), "{host}"}, " "),
				"--power-on", strings.Join([]string{program(t), "lab", "start", e.lab.Name(), "{host}"}, " "))
		}
	})
	t.Run("etcd's leader killed", func(t *testing.T) { e.drilled(t, "kill-leader") })
	t.Run("a host parted from the others", func(t *testing.T) { e.drilled(t, "partition", "--duration=15s") })

	if now := e.etcdState(t); now != members {
		t.Errorf("etcd's members were\n%s\nand are\n%s", members, now)
	}
	if now := e.pairState(t); now != pods {
		t.Errorf("the pods were\n%s\nand are\n%s", pods, now)
	}
	log := e.kubectl(t, "logs", "asker")
	if strings.Contains(log, "failed") || !strings.Contains(log, "answered") {
		t.Errorf("one pod asking the other:\n%s", log)
	}
}

// TestDiskFills leaves no room on one of three members' disks.
func TestDiskFills(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "drillfill", Hosts: 3, Trouble: lab.Trouble{EtcdDisk: 300}})
	spec := e.drillSpec(t, 3, nil)
	e.must(t, "init", "-f", spec)
	if r := e.kubewright(t, "drill", "fill-disk", e.host(1)); r.exit == 0 || !strings.Contains(r.stderr, "mounted elsewhere too") {
		t.Errorf("filling a disk that others share: exit %d\n%s", r.exit, r.output())
	}
	e.drilled(t, "fill-disk", e.host(3), "--duration=20s")
}

// drillSpec writes the file of a test cluster with so many control-plane hosts first. A worker
// has a label for its part.
func (e *env) drillSpec(t *testing.T, controlPlane int, parts map[int]string) string {
	t.Helper()
	spec := "apiVersion: kubewright.dev/v1alpha1\nkind: Cluster\nname: drill\ntestCluster: true\nhosts:\n"
	for i := range e.lab.Hosts() {
		role := "control-plane"
		if i >= controlPlane {
			role = "worker"
		}
		spec += fmt.Sprintf("- {name: %s, role: %s, labels: {example.com/pair: %q}}\n", e.host(i+1), role, parts[i+1])
	}
	file := filepath.Join(e.dir, "cluster.yaml")
	if err := os.WriteFile(file, []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// drilled practises a fault, and wants every acknowledged write, a short outage, and no trace.
func (e *env) drilled(t *testing.T, args ...string) {
	t.Helper()
	r := e.must(t, append([]string{"drill", "-o", "json"}, args...)...)
	var results []drill.Result
	if err := json.Unmarshal([]byte(r.stdout), &results); err != nil || len(results) != 1 {
		t.Fatalf("results: %v\n%s", err, r.output())
	}
	got := results[0]
	t.Logf("%s of %s: writes out %d ms, reads out %d ms, recovery %d ms; %d writes and %d reads, %d failed, %d lost, %d not seen %s",
		got.Fault, got.Host, got.WriteOutageMS, got.ReadOutageMS, got.RecoveryMS, got.Writes, got.Reads, got.Failed, len(got.Lost), len(got.Stale), got.Notes)
	for what, ms := range map[string]int64{"writes": got.WriteOutageMS, "reads": got.ReadOutageMS} {
		if outage := time.Duration(ms) * time.Millisecond; outage > longestOutage {
			t.Errorf("%s were not served for %s, more than %s\n%s", what, outage, longestOutage, r.output())
		}
	}
	if len(got.Lost)+len(got.Stale) > 0 || got.Writes == 0 || got.Reads == 0 {
		t.Errorf("acknowledged writes lost: %v, not seen: %v", got.Lost, got.Stale)
	}
	if left := e.try(t, "get", "namespace", drill.Namespace); left.exit == 0 {
		t.Errorf("it left its namespace: %s", left.stdout)
	}
	traces := e.on(t, got.Host, "sh", "-c", "nft list tables; systemctl list-units --all --plain --no-legend 'kubewright-drill*'; ls /var/lib/etcd /run/systemd/transient /run")
	if strings.Contains(traces, "drill") || strings.Contains(traces, "kubewright.lock") {
		t.Errorf("it left on %s:\n%s", got.Host, traces)
	}
}

// pairState is who the two pods are, and how often they were started.
func (e *env) pairState(t *testing.T) string {
	t.Helper()
	return e.kubectl(t, "get", "pods", "server", "asker", "-o",
		`jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} on {.spec.nodeName}, restarts: {.status.containerStatuses[*].restartCount}{"\n"}{end}`)
}

// etcdState is who etcd's members are, all of which have to be healthy.
func (e *env) etcdState(t *testing.T) string {
	t.Helper()
	var members []struct {
		Name, ID string
		Healthy  bool
		Learner  bool
	}
	r := e.must(t, "etcd", "members", "-o", "json")
	if err := json.Unmarshal([]byte(r.stdout), &members); err != nil {
		t.Fatalf("%v\n%s", err, r.output())
	}
	var all strings.Builder
	for _, m := range members {
		if !m.Healthy || m.Learner {
			t.Errorf("etcd member %s: healthy %t, learner %t", m.Name, m.Healthy, m.Learner)
		}
		fmt.Fprintln(&all, m.Name, m.ID)
	}
	return all.String()
}
