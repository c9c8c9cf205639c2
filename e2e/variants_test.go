package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubewright/kubewright/lab"
)

// spec writes a cluster file for the lab's hosts; rest is what else it says.
func (e *env) spec(t testing.TB, rest string) string {
	t.Helper()
	text := "apiVersion: kubewright.dev/v1alpha1\nkind: Cluster\nname: " + e.lab.Name() + "\n" + rest
	if !strings.Contains(rest, "hosts:") {
		text += "hosts:\n"
		for _, h := range e.lab.Hosts() {
			text += "- name: " + h.Name + "\n"
		}
	}
	path := filepath.Join(e.dir, "cluster.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// works proves that a cluster of three nodes carries pods and their traffic.
func (e *env) works(t *testing.T) []pod {
	t.Helper()
	e.importImage(t)
	e.kubectl(t, "apply", "-f", "e2e/testdata/web.yaml")
	e.kubectl(t, "rollout", "status", "deployment/web", "--timeout=60s")
	pods := e.answering(t)
	e.names(t, pods)
	address := e.kubectl(t, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	for _, h := range e.lab.Hosts() {
		e.spread(t, h.Name, pods, e.on(t, h.Name, "bash", "-c", repeat(bashGet(address, 80))))
	}
	return pods
}

// exitOn runs a command on a host and returns its exit status.
func (e *env) exitOn(t *testing.T, host string, argv ...string) int {
	t.Helper()
	var out bytes.Buffer
	status, err := e.lab.Exec(t.Context(), host, argv, nil, &out, &out)
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// TestEverySetting makes a whole cluster of one file that sets all there is to set.
func TestEverySetting(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "set", Hosts: 3})
	file := e.spec(t, fmt.Sprintf(`
network:
  backend: host-gw
  podCIDR: 172.20.0.0/16
  serviceCIDR: 172.30.0.0/20
  dnsDomain: example.internal
apiServer:
  port: 443
  extraSANs: [api.example.com]
  extraArgs: {audit-log-maxage: "3", v: "2"}
controllerManager:
  extraArgs: {node-monitor-period: 3s}
scheduler:
  extraArgs: {v: "2"}
etcd:
  extraArgs: {quota-backend-bytes: "1073741824"}
kubelet:
  readOnlyPort: 10255
  extraArgs: {max-pods: "42"}
kubeProxy:
  extraArgs: {v: "2"}
controlPlane:
  schedulable: true
hosts:
- name: %[1]s
  labels: {example.com/first: "yes"}
- name: %[2]s
  taints: ["example.com/kept=free:PreferNoSchedule"]
- name: %[3]s
  node: third
`, e.host(1), e.host(2), e.host(3)))
	e.must(t, "init", "-f", file)
	if s := e.counted(t, "init", "-f", file); s.Applied != 0 {
		t.Errorf("init again applied %d steps", s.Applied)
	}
	// The dump below would have cluster.local's names.
	e.importImage(t)
	e.kubectl(t, "apply", "-f", "e2e/testdata/web.yaml")
	e.kubectl(t, "rollout", "status", "deployment/web", "--timeout=60s")
	pods := e.answering(t)
	if got := e.inPod(t, pods[0], "side", "box lookup web.default.svc.example.internal"); !strings.HasPrefix(got, "172.30.") {
		t.Errorf("web.default.svc.example.internal is at %q", got)
	}
	for _, p := range pods {
		if !strings.HasPrefix(p.ip.String(), "172.20.") {
			t.Errorf("pod %s has %s", p.name, p.ip)
		}
	}
	if routes := e.on(t, e.host(1), "ip", "route"); strings.Contains(routes, "flannel") || !strings.Contains(routes, "172.20.1.0/24 via") {
		t.Errorf("routes of host-gw:\n%s", routes)
	}

	for what, want := range map[string]string{
		`{.items[0].metadata.labels.example\.com/first}`:                           "yes",
		`{.items[*].metadata.name}`:                                                e.host(1) + " " + e.host(2) + " third",
		`{.items[1].spec.taints[?(@.key=="example.com/kept")].effect}`:             "PreferNoSchedule",
		`{.items[0].spec.taints}`:                                                  "",
		`{.items[2].status.capacity.pods}`:                                         "42",
		`{.items[0].metadata.labels.node-role\.kubernetes\.io/control-plane}{"x"}`: "x",
	} {
		if got := e.kubectl(t, "get", "nodes", "-o", "jsonpath="+what); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	if server := e.kubectl(t, "config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"); !strings.HasSuffix(server, ":443") {
		t.Errorf("server: %s", server)
	}

	// The kubelet's read-only port is for the host itself.
	own := e.lab.Hosts()[1].Address.String()
	for _, address := range []string{"127.0.0.1", own} {
		if got := e.on(t, e.host(2), "bash", "-c", bashGet(address, 10255)); got == "" {
			t.Errorf("the read-only port says nothing on %s", address)
		}
	}
	if status := e.exitOn(t, e.host(1), "timeout", "3", "bash", "-c", "exec 3<>/dev/tcp/"+own+"/10255"); status == 0 {
		t.Error("the read-only port can be reached from another host")
	}
}

// TestNATNIC is Vagrant's trap: the first NIC has the same address on all hosts,
// and the default route.
func TestNATNIC(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "nat", Hosts: 3, NATNIC: true})
	e.must(t, "init", e.host(1), "--name", "nat")
	e.must(t, "join", e.host(2), e.host(3))
	for i, h := range e.lab.Hosts() {
		what := fmt.Sprintf(`jsonpath={.items[%d].status.addresses[?(@.type=="InternalIP")].address}`, i)
		if got := e.kubectl(t, "get", "nodes", "-o", what); got != h.Address.String() {
			t.Errorf("%s has node address %s, not %s", h.Name, got, h.Address)
		}
	}
	e.works(t)
}

// TestSudo makes a cluster as a user who is not root.
func TestSudo(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "sudo", Hosts: 2})
	e.must(t, "init", "admin@"+e.host(1), "--name", "sudo")
	e.must(t, "join", "admin@"+e.host(2))
	if s := e.counted(t, "join", "admin@"+e.host(2)); s.Applied != 0 {
		t.Errorf("join again applied %d steps", s.Applied)
	}
	e.must(t, "reset", "admin@"+e.host(2), "admin@"+e.host(1))
	if e.exitOn(t, e.host(1), "test", "-e", "/opt/kubewright") == 0 {
		t.Error("the reset left /opt/kubewright")
	}
}

// TestNoNetwork brings no pod network: nodes wait for the admin's own, and say so.
func TestNoNetwork(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "nonet", Hosts: 1})
	e.must(t, "init", e.host(1), "--network-backend", "none")
	if got := e.kubectl(t, "get", "daemonsets", "-A", "-o", "name"); got != "" {
		t.Errorf("a pod network was installed: %s", got)
	}
	if r := e.must(t, "status"); !strings.Contains(r.stdout, "is not ready") || !strings.Contains(r.stdout, "cni") {
		t.Errorf("status:\n%s", r.stdout)
	}
}
