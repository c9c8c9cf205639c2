package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	pods, members, failures := e.pairState(t), e.etcdState(t), e.askerFailures(t)

	power := func(verb string) string {
		return strings.Join([]string{program(t), "lab", verb, e.lab.Name(), "{host}"}, " ")
	}
	t.Run("the power of each control-plane host", func(t *testing.T) {
		for n := 1; n <= 3; n++ {
			e.drilled(t, "power-cut", e.host(n), "--duration=10s", "--power-off", power("kill"), "--power-on", power("start"))
		}
	})
	t.Run("a host that resets itself", func(t *testing.T) {
		e.drilled(t, "power-cut", e.host(2))
	})
	t.Run("all faults one after the other, but what cannot be", func(t *testing.T) {
		faults := e.drilled(t, "all", "--duration=10s", "--power-off", power("kill"), "--power-on", power("start"))
		if want := []drill.Kind{drill.Killed, drill.Partitioned, drill.PoweredOff}; !slices.Equal(faults, want) { // no disk is etcd's own
			t.Errorf("dealt were %v, not %v", faults, want)
		}
	})

	t.Run("Ctrl-C ends the fault", func(t *testing.T) {
		victim := e.breakOffDrill(t, os.Interrupt, "--duration=5m")
		e.untouched(t, victim)
	})
	t.Run("without the admin's machine it ends by itself", func(t *testing.T) {
		victim := e.breakOffDrill(t, os.Kill, "--duration=10s")
		eventually(t, time.Minute, "the fault's end", func() string {
			if traces := e.traces(t, victim); strings.Contains(traces, "kubewright-drill") {
				return traces
			}
			return ""
		})
		eventually(t, time.Minute, "all members are healthy", func() string { return e.kubewright(t, "etcd", "health").stderr })
		e.drilled(t, "kill-leader") // finds the namespace of the other, and takes it away
	})

	if now := e.etcdState(t); now != members {
		t.Errorf("etcd's members were\n%s\nand are\n%s", members, now)
	}
	if now := e.pairState(t); now != pods {
		t.Errorf("the pods were\n%s\nand are\n%s", pods, now)
	}
	if now := e.askerFailures(t); now != failures {
		t.Errorf("one pod was not answered by the other %d times, %d times before the faults\n%s", now, failures, e.kubectl(t, "logs", "asker"))
	}
}

// TestDiskFills leaves no room on one of three members' disks.
func TestDiskFills(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "drillfill", Hosts: 3, Trouble: lab.Trouble{EtcdDisk: 600}})
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

// drilled practises faults, wants of each every acknowledged write, a short outage, and no
// trace, and returns which they were.
func (e *env) drilled(t *testing.T, args ...string) (faults []drill.Kind) {
	t.Helper()
	r := e.must(t, append([]string{"drill", "-o", "json"}, args...)...)
	var results []drill.Result
	if err := json.Unmarshal([]byte(r.stdout), &results); err != nil || len(results) == 0 {
		t.Fatalf("results: %v\n%s", err, r.output())
	}
	for _, got := range results {
		faults = append(faults, got.Fault)
		e.bearable(t, got, r)
	}
	return faults
}

// bearable is what a fault has to be.
func (e *env) bearable(t *testing.T, got drill.Result, r result) {
	t.Helper()
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
	e.untouched(t, got.Host)
}

// traces are where a drill would leave something on a host.
func (e *env) traces(t *testing.T, host string) string {
	t.Helper()
	return e.on(t, host, "sh", "-c", "nft list tables; systemctl list-units --all --plain --no-legend 'kubewright-drill*'; ls /var/lib/etcd /run/systemd/transient /run")
}

// untouched wants nothing of a drill in the API and on its victim.
func (e *env) untouched(t *testing.T, victim string) {
	t.Helper()
	if left := e.try(t, "get", "namespace", drill.Namespace); left.exit == 0 {
		t.Errorf("it left its namespace: %s", left.stdout)
	}
	traces := e.traces(t, victim)
	if strings.Contains(traces, "kubewright-drill") || strings.Contains(traces, "kubewright.lock") {
		t.Errorf("it left on %s:\n%s", victim, traces)
	}
}

// breakOffDrill sends a signal to a drill while its victim is parted from the others, waits for
// its end, and returns the victim.
func (e *env) breakOffDrill(t *testing.T, signal os.Signal, args ...string) (victim string) {
	t.Helper()
	args = append([]string{"drill", "partition", "-o", "jsonl", "-F", e.lab.SSHConfig(), "--kubeconfig", e.kubeconfig}, args...)
	cmd := exec.CommandContext(t.Context(), program(t), args...)
	var stderr lockedBuffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		var line struct{ Lane, Step string }
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatalf("%v: %s", err, lines.Text())
		}
		if line.Step != "drill/partition" || victim != "" {
			continue
		}
		victim = line.Lane
		eventually(t, 10*time.Second, "the fault", func() string {
			if traces := e.traces(t, victim); !strings.Contains(traces, "table inet kubewright-drill") {
				return traces
			}
			return ""
		})
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
	}
	const interrupted = 130
	if err := cmd.Wait(); victim == "" || err == nil || signal == os.Interrupt && cmd.ProcessState.ExitCode() != interrupted {
		t.Fatalf("a drill that was broken off: %v, victim %q\n%s", err, victim, stderr.String())
	}
	return victim
}

// pairState is who the two pods are, and how often they were started.
func (e *env) pairState(t *testing.T) string {
	t.Helper()
	return e.kubectl(t, "get", "pods", "server", "asker", "-o",
		`jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} on {.spec.nodeName}, restarts: {.status.containerStatuses[*].restartCount}{"\n"}{end}`)
}

// askerFailures is how often the asker was not answered: at first its peer may not be there yet.
func (e *env) askerFailures(t *testing.T) int {
	t.Helper()
	const told = "answered: "
	eventually(t, time.Minute, "the asker is answered", func() string {
		if log := e.kubectl(t, "logs", "asker"); !strings.Contains(log, told) {
			return log
		}
		return ""
	})
	return strings.Count(e.kubectl(t, "logs", "asker"), "failed: ")
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
