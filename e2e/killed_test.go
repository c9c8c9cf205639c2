package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/lab"
)

// way is how a run is broken off.
type way string

const (
	byKill  way = "SIGKILL of the program"
	byCut   way = "the end of the SSH sessions"
	byPower way = "the end of the host's power"
)

// killedSeed decides when in a run it is broken off: another one, other points.
const killedSeed = 3

// TestKilledEverywhere breaks off each of init, join and reset in each of three ways,
// somewhere in the middle, and gives the same command again: the end is that of a
// run that nobody disturbed. All points are tried in bootstrap's tests, on simulated
// hosts; these are a sample on real ones.
func TestKilledEverywhere(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "world", Hosts: 2})
	hosts := []string{e.host(1), e.host(2)}
	verbs := []struct {
		args   []string
		victim string // of what befalls no host's lane
	}{
		{[]string{"init", hosts[0], "--name", "world"}, hosts[0]},
		{[]string{"join", hosts[1]}, hosts[1]},
		{append([]string{"reset"}, hosts...), hosts[0]},
	}
	bare := e.inventories(t, hosts)
	var steps [3]int // that change something, of a run that nobody disturbs
	var whole map[string][]string
	for i, v := range verbs {
		steps[i] = e.counted(t, v.args...).Applied
		if i == 1 {
			e.serving(t, hosts)
			whole = e.inventories(t, hosts)
		}
	}
	e.same(t, bare, hosts)

	// The last steps take milliseconds, and a run may be over before it is broken off there: the
	// simulated cluster tries those.
	const atEnd = 3
	ways := []way{byKill, byCut, byPower}
	random := rand.New(rand.NewPCG(killedSeed, 0))
	for cycle := range ways {
		for i, v := range verbs {
			how := ways[(cycle+i)%len(ways)]
			at := 1 + random.IntN(steps[i]-atEnd)
			name := fmt.Sprintf("%s broken off in step %d of %d by %s", v.args[0], at, steps[i], how)
			if !t.Run(name, func(t *testing.T) {
				e.breakOff(t, how, at, v.victim, v.args...)
				e.must(t, v.args...)
				switch v.args[0] {
				case "join":
					e.serving(t, hosts)
					e.alike(t, whole, hosts)
				case "reset":
					e.same(t, bare, hosts)
				}
				if s := e.counted(t, v.args...); s.Applied != 0 {
					t.Errorf("once more: %d steps applied", s.Applied)
				}
			}) {
				t.Fatalf("seed %d: later points need this one", killedSeed)
			}
		}
	}
}

// breakOff runs the program until it begins the nth step that changes something, and
// breaks it off there. The host that the step is of is the victim, else the one given.
func (e *env) breakOff(t *testing.T, how way, nth int, victim string, args ...string) {
	t.Helper()
	args = append(args, "-F", e.lab.SSHConfig(), "--kubeconfig", e.kubeconfig, "-o", "jsonl")
	cmd := exec.CommandContext(t.Context(), program(t), args...)
	cmd.Dir = ".."
	var stderr lockedBuffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// A host whose power is gone is given up when SSH misses its answers; what waits
	// for the cluster waits longer. An admin would not.
	const patience = 45 * time.Second
	impatient := time.AfterFunc(patience, func() { cmd.Process.Kill() }) //nolint:errcheck // it may have ended
	defer impatient.Stop()
	seen := 0
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		var line struct{ Kind, Lane, Step string }
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatalf("%v: %s", err, lines.Text())
		}
		if line.Kind != "applying" {
			continue
		}
		if seen++; seen != nth {
			continue
		}
		if slices.ContainsFunc(e.lab.Hosts(), func(h lab.Host) bool { return h.Name == line.Lane }) {
			victim = line.Lane
		}
		t.Logf("in %s of %s: %s, victim %s", line.Step, line.Lane, how, victim)
		switch how {
		case byKill:
			err = cmd.Process.Kill()
		case byCut:
			// In the host's own pid namespace there are no other host's sessions.
			e.on(t, victim, "pkill", "-KILL", "-f", "^sshd: root")
		case byPower:
			err = e.lab.Kill(t.Context(), victim)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if seen < nth {
		t.Errorf("it ended before: %d steps\n%s", seen, stderr.String())
	}
	if err := cmd.Wait(); err == nil {
		t.Errorf("it succeeded all the same\n%s", stderr.String())
	}
	if how == byPower {
		if err := e.lab.Start(t.Context(), victim); err != nil {
			t.Fatal(err)
		}
	}
}

// serving waits until all nodes are ready, and a pod runs on the last one.
func (e *env) serving(t *testing.T, nodes []string) {
	t.Helper()
	e.allReady(t, nodes)
	e.kubectl(t, "run", "probe", "--image=kubewright.dev/pause:v1", "--restart=Never",
		`--overrides={"spec":{"nodeName":"`+nodes[len(nodes)-1]+`"}}`)
	e.kubectl(t, "wait", "--for=condition=Ready", "pod/probe", "--timeout=60s")
	e.kubectl(t, "delete", "pod", "probe", "--grace-period=1", "--wait")
}

func (e *env) inventories(t *testing.T, hosts []string) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, h := range hosts {
		all[h] = e.inventory(t, h)
	}
	return all
}

// ofBoot is what is another after a boot: systemd's folders for temporary files of
// services, and the number of an interface's other end.
var ofBoot = regexp.MustCompile(`^/(var/)?tmp/systemd-private-|^eth\d+@if\d+:$`)

// same wants hosts to be as they were.
func (e *env) same(t *testing.T, want map[string][]string, hosts []string) {
	t.Helper()
	for _, h := range hosts {
		if diff := cmp.Diff(without(want[h], ofBoot), without(e.inventory(t, h), ofBoot)); diff != "" {
			t.Errorf("%s is not as it was before (-before +after):\n%s", h, diff)
		}
	}
}

func without(lines []string, what *regexp.Regexp) []string {
	return slices.DeleteFunc(slices.Clone(lines), what.MatchString)
}

var (
	// ofPods is what pods, their network and etcd name anew each time. A kubelet's sockets and
	// records get their names when they are whole: one that is stopped just then leaves a
	// number.
	ofPods = regexp.MustCompile(`^(/run|/var/lib/containerd|/var/lib/kubelet/pods(-api)?|/var/log/(pods|containers)|/var/lib/cni|/var/lib/etcd/member)/` +
		`|^/var/lib/kubelet/(pod-resources/|\.)\d+ |^(kubepods|run-|var-lib)|veth`)
	// history is how many steps it took to get there: one that was broken off has an
	// entry for each time.
	history = regexp.MustCompile(`^/var/lib/kubewright/journal/`)
	// dated is the name under which a kubelet keeps a certificate.
	dated = regexp.MustCompile(`\d{4}(-\d\d){5}`)
)

// alike wants nodes to be as they were, but for what is another on each run.
func (e *env) alike(t *testing.T, want map[string][]string, hosts []string) {
	t.Helper()
	lasting := func(lines []string) []string {
		if i := slices.Index(lines, "== network"); i >= 0 { // addresses of pods, and rules with them
			lines = slices.Concat(lines[:i], lines[slices.Index(lines, "== processes"):])
		}
		lines = without(without(without(lines, ofPods), ofBoot), history)
		for i, l := range lines {
			lines[i] = dated.ReplaceAllString(l, "DATE")
		}
		return slices.Compact(lines)
	}
	for _, h := range hosts {
		if diff := cmp.Diff(lasting(want[h]), lasting(e.inventory(t, h))); diff != "" {
			t.Errorf("%s is another node than of a run that nobody disturbed (-undisturbed +this):\n%s", h, diff)
		}
	}
}
