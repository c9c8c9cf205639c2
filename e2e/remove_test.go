package e2e

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/lab"
)

// web is two pods that go where there is room, and a budget that lets none of them go.
const web = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: web}}}
      containers:
      - {name: pause, image: kubewright.dev/pause:v1, imagePullPolicy: Never}
      volumes: [{name: scratch, emptyDir: {}}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 2, selector: {matchLabels: {app: web}}}
`

// nodes are the names of all nodes.
func (e *env) nodes(t testing.TB) []string {
	t.Helper()
	return strings.Fields(e.kubectl(t, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"))
}

// cordoned tells whether a node takes no pods.
func (e *env) cordoned(t testing.TB, node string) bool {
	t.Helper()
	return e.kubectl(t, "get", "node", node, "-o", "jsonpath={.spec.unschedulable}") == "true"
}

// members are the names of etcd's members, as the member on a host lists them.
func (e *env) members(t testing.TB, host string) []string {
	t.Helper()
	const pki = "/etc/kubernetes/pki/etcd/"
	list := e.on(t, host, "/opt/kubewright/current/bin/etcdctl", "--endpoints=https://127.0.0.1:2379", "--cacert="+pki+"ca.crt",
		"--cert="+pki+"healthcheck-client.crt", "--key="+pki+"healthcheck-client.key", "member", "list")
	var names []string
	for line := range strings.Lines(list) {
		names = append(names, strings.TrimSpace(strings.Split(line, ",")[2]))
	}
	slices.Sort(names)
	return names
}

// TestRemove takes hosts out of a cluster that lives on: workers and control-plane hosts,
// the first included, living ones and dead ones.
func TestRemove(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "remove", Hosts: 5})
	var hosts []string
	for n := 1; n <= 5; n++ {
		hosts = append(hosts, e.host(n))
	}
	before := e.inventories(t, hosts)
	cp1, cp2, cp3, w1, w2 := hosts[0], hosts[1], hosts[2], hosts[3], hosts[4]
	e.must(t, "init", "-f", e.spec(t, "hosts:\n- {name: "+cp1+"}\n- {name: "+cp2+", role: control-plane}\n- {name: "+cp3+", role: control-plane}\n"+
		"- {name: "+w1+"}\n- {name: "+w2+"}\n"))
	e.allReady(t, hosts)
	file := e.dir + "/web.yaml"
	if err := os.WriteFile(file, []byte(web), 0o600); err != nil {
		t.Fatal(err)
	}
	e.kubectl(t, "apply", "-f", file)
	e.kubectl(t, "rollout", "status", "deployment/web", "--timeout=60s")
	left := func(t *testing.T, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, e.nodes(t)); diff != "" {
			t.Errorf("nodes: -want +got:\n%s", diff)
		}
	}

	t.Run("a budget that blocks", func(t *testing.T) {
		refused{21, []string{ // it is not waited for: --timeout is minutes
			"node " + w2 + " cannot be drained: default/web-", "PodDisruptionBudget default/web",
			"minAvailable 2, currentHealthy 2, desiredHealthy 2, disruptionsAllowed 0", "the node takes pods again, ",
			"wants 2 healthy pods of 2: scale up what it selects to 3 pods or more, or lower its minAvailable to 1 or less", "--force",
		}}.check(t, e.kubewright(t, "remove", w2))
		if e.cordoned(t, w2) {
			t.Error("the node is still cordoned")
		}
		left(t, hosts...)
	})
	t.Run("a budget whose pods are still to start", func(t *testing.T) {
		e.kubectl(t, "set", "image", "deployment/web", "pause=kubewright.dev/absent:v1")
		refused{21, []string{"node " + w2 + " is not drained after 15s", "default/web-", "PodDisruptionBudget default/web"}}.
			check(t, e.kubewright(t, "remove", w2, "--timeout", "15s"))
		e.kubectl(t, "rollout", "undo", "deployment/web")
		e.kubectl(t, "rollout", "status", "deployment/web", "--timeout=60s")
		left(t, hosts...)
	})
	t.Run("a pod that nothing makes anew", func(t *testing.T) {
		e.kubectl(t, "run", "alone", "--image=kubewright.dev/pause:v1", `--overrides={"spec":{"nodeName":"`+w2+`","terminationGracePeriodSeconds":1}}`)
		for _, verb := range [][]string{{"remove"}, {"plan", "remove"}} {
			refused{21, []string{"default/alone on node " + w2, "--force"}}.check(t, e.kubewright(t, append(verb, w2)...))
		}
		if e.cordoned(t, w2) {
			t.Error("the node is cordoned")
		}
		e.kubectl(t, "delete", "pod", "alone", "--wait")
	})
	t.Run("a worker", func(t *testing.T) {
		e.kubectl(t, "delete", "pdb", "web")
		r := e.must(t, "plan", "remove", w2)
		for _, want := range []string{"Node " + w2 + " (cordon, and move", "default/web-", "emptyDir volumes do not move", "- api Node " + w2, "may not register again", "x unit kubelet.service"} {
			if !strings.Contains(r.stdout, want) {
				t.Errorf("the plan does not say %q:\n%s", want, r.stdout)
			}
		}
		saved := e.dir + "/plan.json"
		e.must(t, "plan", "remove", w2, "-o", saved)
		if r := e.must(t, "apply", saved); !strings.Contains(r.stdout, w2+": as it was before") {
			t.Errorf("the proof:\n%s", r.stdout)
		}
		left(t, cp1, cp2, cp3, w1)
		e.same(t, before, []string{w2})
		if s := e.counted(t, "remove", w2); s.Applied != 0 {
			t.Errorf("once more it applied %d steps", s.Applied)
		}
		at := strings.Fields(e.on(t, w2, "hostname", "-I"))[0]
		e.on(t, w1, "nft", "add table inet test; add chain inet test input { type filter hook input priority 0; }; add rule inet test input ip saddr "+at+" udp dport 8472 drop")
		refused{10, []string{"VXLAN frames (UDP port 8472) do not pass between", w1, w2, "vxlan-blocked"}}.check(t, e.kubewright(t, "join", w2))
		e.on(t, w1, "nft", "delete table inet test")
		e.same(t, before, []string{w2})
		e.must(t, "join", w2)
		e.allReady(t, hosts)
	})
	t.Run("a dead worker", func(t *testing.T) {
		e.kubectl(t, "rollout", "restart", "deployment/web")
		e.kubectl(t, "rollout", "status", "deployment/web", "--timeout=60s")
		if err := e.lab.Kill(t.Context(), w2); err != nil {
			t.Fatal(err)
		}
		refused{5, []string{w2, "lost would be", "what is on its disks", "default/web-", "emptyDir", "kubewright remove " + w2 + " --force"}}.check(t, e.kubewright(t, "remove", w2))
		if r := e.must(t, "remove", w2, "--force"); !strings.Contains(r.stdout, "kubewright reset "+w2) {
			t.Errorf("it does not say what is left to be done:\n%s", r.stdout)
		}
		left(t, cp1, cp2, cp3, w1)
		e.kubectl(t, "rollout", "status", "deployment/web", "--timeout=60s")

		if err := e.lab.Start(t.Context(), w2); err != nil {
			t.Fatal(err)
		}
		eventually(t, 2*time.Minute, "its kubelet is told that it was removed", func() string {
			if log := e.on(t, w2, "journalctl", "-b", "-u", "kubelet", "--no-pager"); !strings.Contains(log, "node "+w2+" was removed on ") {
				return "not yet"
			}
			return ""
		})
		left(t, cp1, cp2, cp3, w1)
		e.must(t, "reset", w2)
		e.same(t, before, []string{w2})
	})
	t.Run("the first control-plane host", func(t *testing.T) {
		e.must(t, "remove", cp1)
		left(t, cp2, cp3, w1)
		e.same(t, before, []string{cp1})
		if diff := cmp.Diff([]string{cp2, cp3}, e.members(t, cp2)); diff != "" {
			t.Errorf("members: -want +got:\n%s", diff)
		}
		e.must(t, "join", cp1, "--control-plane")
		e.allReady(t, []string{cp1, cp2, cp3, w1})
	})
	t.Run("what etcd cannot spare", func(t *testing.T) {
		e.on(t, cp2, "systemctl", "stop", "etcd")
		refused{20, []string{"etcd has 3 voting members, a quorum is 2", "the cluster would stop", cp2}}.check(t, e.kubewright(t, "remove", cp3))
		e.on(t, cp2, "systemctl", "start", "etcd")
		left(t, cp1, cp2, cp3, w1)
		if e.cordoned(t, cp3) {
			t.Error("the node is cordoned")
		}
	})
	t.Run("a dead control-plane host", func(t *testing.T) {
		if err := e.lab.Kill(t.Context(), cp2); err != nil {
			t.Fatal(err)
		}
		e.must(t, "remove", cp2, "--force")
		left(t, cp1, cp3, w1)
		if diff := cmp.Diff([]string{cp1, cp3}, e.members(t, cp3)); diff != "" {
			t.Errorf("members: -want +got:\n%s", diff)
		}
	})
	t.Run("the last control plane", func(t *testing.T) {
		refused{2, []string{"without a control plane", "kubewright reset"}}.check(t, e.kubewright(t, "remove", cp1, cp3))
		e.must(t, "reset", cp3)
		left(t, cp1, w1)
	})
}
