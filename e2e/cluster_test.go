package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kubewright/kubewright/lab"
)

// requests bounds how often a service is asked until every replica answered:
// with three replicas chosen at random, all miss one with a chance of 3*(2/3)^60.
const requests = 60

// pod is one of the web servers.
type pod struct {
	name, node string
	ip         netip.Addr
}

// TestCluster makes a cluster of three hosts by init and join, and proves with
// real traffic that it is Kubernetes. The subtests build on each other.
func TestCluster(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "e2e", Hosts: 3})
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(e.dump())
		}
	})
	hosts := []string{e.host(1), e.host(2), e.host(3)}
	ok := true
	step := func(name string, f func(*testing.T)) {
		ok = ok && t.Run(name, f)
		if !ok {
			t.Fatal("later steps need this one")
		}
	}

	step("init", func(t *testing.T) { e.must(t, "init", hosts[0], "--name", "e2e") })
	step("join two hosts at once", func(t *testing.T) {
		e.must(t, "join", hosts[1], hosts[2], "--label", "example.com/team=blue")
	})
	step("run twice, nothing changes", func(t *testing.T) {
		for _, args := range [][]string{
			{"init", hosts[0], "--name", "e2e"}, {"join", hosts[1], hosts[2], "--label", "example.com/team=blue"},
		} {
			if s := e.counted(t, args...); s.Applied != 0 || s.Skipped == 0 {
				t.Errorf("kubewright %s again: %+v", args[0], s)
			}
		}
	})
	step("nodes", func(t *testing.T) {
		if got := e.kubectl(t, "get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status} {end}`); got !=
			fmt.Sprintf("%s=True %s=True %s=True", hosts[0], hosts[1], hosts[2]) {
			t.Errorf("nodes: %s", got)
		}
		if got := e.kubectl(t, "get", "nodes", "-l", "example.com/team=blue", "-o", "name"); len(strings.Fields(got)) != 2 {
			t.Errorf("labelled nodes: %s", got)
		}
		if got := e.kubectl(t, "get", "node", hosts[0], "-o", "jsonpath={.spec.taints[*].key}"); got != "node-role.kubernetes.io/control-plane" {
			t.Errorf("taints of the control-plane node: %q", got)
		}
		if got := e.kubectl(t, "get", "secrets", "-n", "kube-system", "-o", "name"); strings.Contains(got, "bootstrap-token") {
			t.Errorf("the join token was not removed: %s", got)
		}
		if r := e.must(t, "status"); !strings.Contains(r.stdout, "leader") || strings.Contains(r.stdout, "not ready") {
			t.Errorf("status:\n%s", r.output())
		}
	})

	var pods []pod
	step("a Deployment from YAML, one pod per node", func(t *testing.T) {
		e.importImage(t)
		e.kubectl(t, "label", "node", hosts[2], "example.com/preferred=")
		e.kubectl(t, "apply", "-f", "e2e/testdata/web.yaml")
		e.kubectl(t, "rollout", "status", "deployment/web", "--timeout=60s")
		e.kubectl(t, "rollout", "status", "deployment/mover", "--timeout=60s")
		pods = e.webPods(t)
		var nodes []string
		for _, p := range pods {
			nodes = append(nodes, p.node)
			pods := netip.MustParsePrefix(e.kubectl(t, "get", "node", p.node, "-o", "jsonpath={.spec.podCIDR}"))
			if !pods.Contains(p.ip) {
				t.Errorf("pod %s has %s, its node's range is %s", p.name, p.ip, pods)
			}
		}
		slices.Sort(nodes)
		if !slices.Equal(nodes, hosts) {
			t.Errorf("the pods are on %v", nodes)
		}
	})
	step("two containers of a pod share its address", func(t *testing.T) {
		for _, p := range pods {
			if got := e.fetch(t, p, "http://127.0.0.1:8080/"); got != p.name {
				t.Errorf("%s on its loopback: %q", p.name, got)
			}
		}
	})
	step("pod to pod across nodes", func(t *testing.T) {
		for _, from := range pods {
			for _, to := range pods {
				if got := e.fetch(t, from, fmt.Sprintf("http://%s:8080/", to.ip)); got != to.name {
					t.Errorf("%s to %s: %q", from.name, to.name, got)
				}
			}
		}
	})
	step("a large transfer across nodes arrives whole", func(t *testing.T) {
		from, to := pods[0], pods[1]
		want := e.inPod(t, from, "web", "dd if=/dev/urandom of=/www/large bs=1048576 count=20 2>/dev/null; md5sum < /www/large")
		if got := e.inPod(t, to, "side", fmt.Sprintf("box sum http://%s:8080/large", from.ip)); got != want {
			t.Errorf("checksum %q, sent %q", got, want)
		}
	})
	step("ClusterIP, from pods and hosts, spread over all replicas", func(t *testing.T) {
		address := e.kubectl(t, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
		e.spread(t, "a pod, itself included", pods, e.inPod(t, pods[0], "side", fmt.Sprintf("box get http://%s/ %d", address, requests)))
		for _, h := range hosts {
			e.spread(t, h, pods, e.on(t, h, "bash", "-c", repeat(bashGet(address, 80))))
		}
	})
	step("NodePort on every node", func(t *testing.T) {
		for _, h := range e.lab.Hosts() {
			e.spread(t, "NodePort of "+h.Name, pods, e.on(t, hosts[0], "bash", "-c", repeat(bashGet(h.Address.String(), 30080))))
		}
	})
	step("names of services", func(t *testing.T) { e.names(t, pods) })
	step("kubectl logs, exec, cp, port-forward", func(t *testing.T) { e.tools(t, pods[1]) })
	step("a container that is killed runs again", func(t *testing.T) {
		p := pods[2]
		id := e.kubectl(t, "get", "pod", p.name, "-o", `jsonpath={.status.containerStatuses[?(@.name=="web")].containerID}`)
		e.on(t, p.node, "/opt/kubewright/current/bin/ctr", "-n", "k8s.io", "tasks", "kill", "-s", "KILL", strings.TrimPrefix(id, "containerd://"))
		eventually(t, time.Minute, "the container runs again", func() string {
			got := e.kubectl(t, "get", "pod", p.name, "-o", `jsonpath={range .status.containerStatuses[?(@.name=="web")]}{.restartCount} {.ready}{end}`)
			if got != "1 true" {
				return "restarts and readiness: " + got
			}
			return ""
		})
	})
	step("a pod that is deleted is replaced", func(t *testing.T) {
		e.kubectl(t, "delete", "pod", pods[1].name)
		e.kubectl(t, "rollout", "status", "deployment/web", "--timeout=60s")
		eventually(t, time.Minute, "three pods", func() string {
			if now := e.webPods(t); len(now) != 3 || slices.ContainsFunc(now, func(p pod) bool { return p.name == pods[1].name }) {
				return fmt.Sprint(now)
			}
			return ""
		})
		pods = e.webPods(t)
	})

	step("a node without power: its pods run elsewhere", func(t *testing.T) {
		if node := e.nodeOf(t, "mover"); node != hosts[2] {
			t.Fatalf("the mover is on %s", node)
		}
		if err := e.lab.Kill(t.Context(), hosts[2]); err != nil {
			t.Fatal(err)
		}
		eventually(t, 2*time.Minute, "the node is not ready", func() string {
			if got := e.ready(t, hosts[2]); got == "True" {
				return "Ready: " + got
			}
			return ""
		})
		eventually(t, 2*time.Minute, "the mover runs elsewhere", func() string {
			if node := e.nodeOf(t, "mover"); node == hosts[2] || node == "" {
				return "it is on " + node
			}
			return ""
		})
	})
	step("it comes back by itself", func(t *testing.T) {
		if err := e.lab.Start(t.Context(), hosts[2]); err != nil {
			t.Fatal(err)
		}
		e.allReady(t, hosts)
		pods = e.answering(t)
	})
	step("all hosts without power: the cluster is back with its data", func(t *testing.T) {
		e.kubectl(t, "create", "configmap", "kept", "--from-literal=answer=42")
		for _, h := range hosts {
			if err := e.lab.Kill(t.Context(), h); err != nil {
				t.Fatal(err)
			}
		}
		for _, h := range hosts {
			if err := e.lab.Start(t.Context(), h); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, 2*time.Minute, "the API answers", func() string {
			if r := e.try(t, "get", "--raw", "/readyz"); r.exit != 0 {
				return r.output()
			}
			return ""
		})
		if got := e.kubectl(t, "get", "configmap", "kept", "-o", "jsonpath={.data.answer}"); got != "42" {
			t.Errorf("the ConfigMap holds %q", got)
		}
		e.allReady(t, hosts)
		pods = e.answering(t)
		e.names(t, pods)
		if s := e.counted(t, "init", hosts[0], "--name", "e2e"); s.Applied != 0 {
			t.Errorf("init after the power cut applied %d steps", s.Applied)
		}
	})
}

// webPods are the ready pods of the Deployment, in the order of their nodes.
func (e *env) webPods(t testing.TB) []pod {
	t.Helper()
	list := e.kubectl(t, "get", "pods", "-l", "app=web", "--field-selector=status.phase=Running", "-o",
		`jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName} {.status.podIP} {.metadata.deletionTimestamp}{"\n"}{end}`)
	var pods []pod
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		if len(f) != 3 { // no address yet, or being deleted
			continue
		}
		ip, err := netip.ParseAddr(f[2])
		if err != nil {
			t.Fatal(err)
		}
		pods = append(pods, pod{f[0], f[1], ip})
	}
	slices.SortFunc(pods, func(a, b pod) int { return strings.Compare(a.node, b.node) })
	return pods
}

// inPod runs a shell line in a container.
func (e *env) inPod(t testing.TB, p pod, container, line string) string {
	t.Helper()
	return e.kubectl(t, "exec", p.name, "-c", container, "--", "sh", "-c", line)
}

// fetch gets a page from within a pod.
func (e *env) fetch(t testing.TB, from pod, url string) string {
	t.Helper()
	return e.inPod(t, from, "side", "box get "+url)
}

// repeat is a shell line, as often as a spread needs it.
func repeat(line string) string {
	return fmt.Sprintf("i=0; while [ $i -lt %d ]; do %s || exit 1; i=$((i+1)); done", requests, line)
}

// bashGet gets the body of a page with bash alone: hosts have no curl.
func bashGet(host string, port int) string {
	return fmt.Sprintf(`{ exec 3<>/dev/tcp/%s/%d && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && while read -r line <&3; do last=$line; done; echo "$last"; exec 3>&-; }`, host, port)
}

// spread fails unless every pod, and nobody else, is among the answers.
func (e *env) spread(t *testing.T, from string, pods []pod, answers string) {
	t.Helper()
	counts := map[string]int{}
	for _, a := range strings.Fields(answers) {
		counts[a]++
	}
	for _, p := range pods {
		if counts[p.name] == 0 {
			t.Errorf("from %s: %s never answered: %v", from, p.name, counts)
		}
		delete(counts, p.name)
	}
	if len(counts) > 0 {
		t.Errorf("from %s: others answered: %v", from, counts)
	}
}

// names resolves services from a pod of every node.
func (e *env) names(t *testing.T, pods []pod) {
	t.Helper()
	cluster := e.kubectl(t, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	for _, p := range pods {
		for _, name := range []string{"web", "web.default", "web.default.svc.cluster.local"} {
			if got := e.fetch(t, p, "http://"+name+"/"); !strings.HasPrefix(got, "web-") {
				t.Errorf("%s: http://%s/: %q", p.node, name, got)
			}
		}
		if got := e.inPod(t, p, "side", "box lookup web.default.svc.cluster.local"); !strings.Contains(got, cluster) {
			t.Errorf("%s: web is not at %s:\n%s", p.node, cluster, got)
		}
		headless := e.inPod(t, p, "side", "box lookup web-headless.default.svc.cluster.local")
		for _, to := range pods {
			if !strings.Contains(headless, to.ip.String()) {
				t.Errorf("%s: the headless service has no %s:\n%s", p.node, to.ip, headless)
			}
		}
	}
}

// tools uses kubectl's ways into a pod.
func (e *env) tools(t *testing.T, p pod) {
	t.Helper()
	if got := e.kubectl(t, "logs", p.name, "-c", "web"); got != "serving as "+p.name {
		t.Errorf("logs: %q", got)
	}
	if got := e.inPod(t, p, "web", "hostname"); got != p.name {
		t.Errorf("exec: %q", got)
	}
	sent := filepath.Join(e.dir, "sent")
	if err := os.WriteFile(sent, []byte("over and back\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	back := filepath.Join(e.dir, "back")
	e.kubectl(t, "cp", sent, p.name+":/www/copied", "-c", "web")
	e.kubectl(t, "cp", p.name+":/www/copied", back, "-c", "web")
	if got, err := os.ReadFile(back); err != nil || string(got) != "over and back\n" {
		t.Errorf("cp: %q, %v", got, err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	forward := exec.CommandContext(ctx, program(t), "kubectl", "port-forward", "pod/"+p.name, ":8080")
	forward.Env = append(os.Environ(), "KUBECONFIG="+e.kubeconfig)
	out, err := forward.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := forward.Start(); err != nil {
		t.Fatal(err)
	}
	defer forward.Wait() //nolint:errcheck // it is killed
	defer cancel()
	line, err := bufio.NewReader(out).ReadString('\n')
	at := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(line)
	if err != nil || at == "" {
		t.Fatalf("port-forward: %q, %v", line, err)
	}
	answer, err := http.Get("http://" + at + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close() //nolint:errcheck // only read from
	if body, err := io.ReadAll(answer.Body); err != nil || strings.TrimSpace(string(body)) != p.name {
		t.Errorf("port-forward: %q, %v", body, err)
	}
}

// nodeOf is the node of the Deployment's running pod, "" if none runs.
func (e *env) nodeOf(t testing.TB, app string) string {
	t.Helper()
	list := e.kubectl(t, "get", "pods", "-l", "app="+app, "--field-selector=status.phase=Running", "-o",
		`jsonpath={range .items[*]}{.spec.nodeName} {.status.conditions[?(@.type=="Ready")].status} {.metadata.deletionTimestamp}{"\n"}{end}`)
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); len(f) == 2 && f[1] == "True" {
			return f[0]
		}
	}
	return ""
}

func (e *env) ready(t testing.TB, node string) string {
	t.Helper()
	return e.kubectl(t, "get", "node", node, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
}

func (e *env) allReady(t testing.TB, nodes []string) {
	t.Helper()
	for _, n := range nodes {
		eventually(t, 3*time.Minute, n+" is ready", func() string {
			if got := e.ready(t, n); got != "True" {
				return "Ready: " + got
			}
			return ""
		})
	}
}

// answering waits until the Deployment is whole again after a power cut and
// every pod of it reaches every other, and returns its pods.
func (e *env) answering(t *testing.T) []pod {
	t.Helper()
	var pods []pod
	eventually(t, 3*time.Minute, "the pods are there again and reach each other", func() string {
		if pods = e.webPods(t); len(pods) != 3 {
			return fmt.Sprintf("%d pods run", len(pods))
		}
		for _, from := range pods {
			for _, to := range pods {
				r := e.try(t, "exec", from.name, "-c", "side", "--", "box", "get", fmt.Sprintf("http://%s:8080/", to.ip))
				if strings.TrimSpace(r.stdout) != to.name {
					return fmt.Sprintf("%s to %s: %s", from.name, to.name, r.output())
				}
			}
			// After a power cut addresses are given anew: until the API has heard
			// of it, a service leads to whoever has an old one now.
			r := e.try(t, "exec", from.name, "-c", "side", "--", "box", "get", "http://web/", fmt.Sprint(requests))
			if r.exit != 0 || strings.Count(r.stdout, "web-") != requests {
				return fmt.Sprintf("%s to http://web/: %s", from.name, r.output())
			}
		}
		return ""
	})
	return pods
}

// dump is what one wants to see of a cluster that failed.
func (e *env) dump() string {
	var all strings.Builder
	for _, args := range [][]string{
		{"get", "nodes", "-o", "wide"}, {"get", "pods", "-A", "-o", "wide"}, {"get", "events", "-A", "--sort-by=.lastTimestamp"},
	} {
		cmd := exec.Command("../bin/kubewright", append([]string{"kubectl"}, args...)...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+e.kubeconfig)
		out, err := cmd.CombinedOutput()
		text := string(out)
		if lines := strings.Split(text, "\n"); len(lines) > 40 {
			text = strings.Join(lines[len(lines)-40:], "\n")
		}
		fmt.Fprintf(&all, "$ kubectl %s (%v)\n%s\n", strings.Join(args, " "), err, text)
	}
	return all.String()
}
