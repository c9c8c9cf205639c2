package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/lab"
)

// Hosts as they are out there: each gives a working cluster, or the right finding
// before the first change. That hosts have no default route is so in every
// other test; two NICs are TestNATNIC's, sudo without a password is TestSudo's.

// told runs the program with standard input, whatever comes of it.
func (e *env) told(t testing.TB, stdin string, args ...string) result {
	t.Helper()
	args = append(args, "-F", e.lab.SSHConfig(), "--kubeconfig", e.kubeconfig)
	return run(t.Context(), t, stdin, nil, append([]string{program(t)}, args...)...)
}

// TestSudoPassword makes a cluster as a user whose sudo asks for a password.
func TestSudoPassword(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "ask", Hosts: 2})
	one, two := "ops@"+e.host(1), "ops@"+e.host(2)
	const right = lab.SudoPassword + "\n"
	everything := ""
	must := func(args ...string) {
		t.Helper()
		r := e.told(t, right, append(args, "--ask-sudo-password", "-o", "jsonl")...)
		if everything += r.output(); r.exit != 0 {
			t.Fatalf("kubewright %s: exit %d\n%s", strings.Join(args, " "), r.exit, r.output())
		}
	}
	refused{9, []string{one, "without a password", "--ask-sudo-password", "NOPASSWD"}}.check(t, e.kubewright(t, "init", one))
	wrong := e.told(t, "open barley\n", "init", one, "--ask-sudo-password")
	refused{9, []string{one, "tried once", "sudo true"}}.check(t, wrong)
	everything += wrong.output()
	if log := e.on(t, e.host(1), "journalctl", "--identifier=sudo", "--output=cat"); strings.Count(log, "incorrect password attempt") != 1 {
		t.Errorf("sudo's log:\n%s", log)
	}
	refused{2, []string{"empty", "--ask-sudo-password"}}.check(t, e.told(t, "", "init", one, "--ask-sudo-password"))

	must("init", one, "--name", "ask")
	must("join", two)
	must("join", two)
	if got := e.kubectl(t, "get", "nodes", "-o", "name"); len(strings.Fields(got)) != 2 {
		t.Errorf("nodes: %s", got)
	}
	must("reset", two, "admin@"+e.host(1)) // whose sudo does not ask
	if e.exitOn(t, e.host(2), "test", "-e", "/opt/kubewright") == 0 {
		t.Error("the reset left /opt/kubewright")
	}
	for _, h := range e.lab.Hosts() {
		everything += e.on(t, h.Name, "journalctl", "--no-pager")
		if e.exitOn(t, h.Name, "grep", "-rqsF", lab.SudoPassword, "/etc", "/var", "/run", "/tmp", "/root", "/home") == 0 {
			t.Errorf("%s: the password is in a file", h.Name)
		}
	}
	for _, password := range []string{lab.SudoPassword, "open barley"} {
		if strings.Contains(everything, password) {
			t.Errorf("%q was told", password)
		}
	}
}

// TestBastion has a cluster whose hosts are reached through another alone.
func TestBastion(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "bastion", Hosts: 3, Bastion: true})
	e.must(t, "init", e.host(2), "--name", "bastion")
	e.must(t, "join", e.host(3))
	if s := e.counted(t, "join", e.host(3)); s.Applied != 0 {
		t.Errorf("join again applied %d steps", s.Applied)
	}
	ready := `jsonpath={range .items[*]}{.metadata.name}={.status.addresses[?(@.type=="InternalIP")].address}={.status.conditions[?(@.type=="Ready")].status} {end}`
	got := e.on(t, e.host(2), "/opt/kubewright/current/bin/kubectl", "--kubeconfig=/etc/kubernetes/admin.conf", "get", "nodes", "-o", ready)
	hosts := e.lab.Hosts()
	if want := fmt.Sprintf("%s=%s=True %s=%s=True", hosts[1].Name, hosts[1].Address, hosts[2].Name, hosts[2].Address); got != want {
		t.Errorf("nodes are %s, want %s", got, want)
	}
	if r := e.must(t, "status", "--via", e.host(2)); strings.Contains(r.stdout, "not ready") || !strings.Contains(r.stdout, "leader") {
		t.Errorf("status:\n%s", r.output())
	}
	// Nothing but the bastion was of use for that.
	if r := run(t.Context(), t, "", nil, "ssh", "-F", e.lab.SSHConfig(), "-o", "ProxyJump=none", "-o", "ConnectTimeout=2", e.host(2), "true"); r.exit == 0 {
		t.Errorf("%s is reached without the bastion", e.host(2))
	}
	if r := e.try(t, "get", "nodes", "--request-timeout=2s"); r.exit == 0 {
		t.Error("the API is reached without the bastion")
	}
	e.must(t, "reset", e.host(3), e.host(2))
}

// TestMTU has pods on a network of smaller packets: what they send fits, whole.
func TestMTU(t *testing.T) {
	const mtu, vxlan = 1400, 50
	e := newEnv(t, lab.Options{Name: "mtu", Hosts: 2, MTU: mtu})
	e.must(t, "init", e.host(1), "--name", "mtu")
	e.must(t, "join", e.host(2))
	e.importImage(t)
	e.kubectl(t, "apply", "-f", "e2e/testdata/web.yaml")
	e.kubectl(t, "scale", "deployment/web", "--replicas=2")
	e.kubectl(t, "rollout", "status", "deployment/web", "--timeout=60s")
	pods := e.webPods(t)
	if len(pods) != 2 || pods[0].node == pods[1].node {
		t.Fatalf("pods: %v", pods)
	}
	for _, p := range pods {
		if got := e.inPod(t, p, "side", "cat /sys/class/net/eth0/mtu"); got != fmt.Sprint(mtu-vxlan) {
			t.Errorf("pod %s has an MTU of %s", p.name, got)
		}
	}
	before := e.fragments(t)
	for _, way := range [][2]pod{{pods[0], pods[1]}, {pods[1], pods[0]}} {
		from, to := way[0], way[1]
		want := e.inPod(t, from, "web", "dd if=/dev/urandom of=/www/large bs=1048576 count=20 2>/dev/null; md5sum < /www/large")
		if got := e.inPod(t, to, "side", fmt.Sprintf("box sum http://%s:8080/large", from.ip)); got != want {
			t.Errorf("%s got checksum %q, %s sent %q", to.name, got, from.name, want)
		}
	}
	if after := e.fragments(t); after != before {
		t.Errorf("packets did not fit; fragments were %s, are %s", before, after)
	}
}

// fragments are the kernels' counters of packets that came in pieces, that could not be cut, and of pieces made.
func (e *env) fragments(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, h := range e.lab.Hosts() {
		f := strings.Fields(e.on(t, h.Name, "grep", "^Ip: [0-9]", "/proc/net/snmp"))
		const reasmReqds, fragFails, fragCreates = 14, 18, 19
		fmt.Fprintf(&all, "%s: %s %s %s; ", h.Name, f[reasmReqds], f[fragFails], f[fragCreates])
	}
	return all.String()
}

// findings are what preflight has to say, and how it ended.
func (e *env) findings(t *testing.T, hosts ...string) (finding.Report, int) {
	t.Helper()
	r := e.kubewright(t, append([]string{"preflight", "-o", "json"}, hosts...)...)
	var report finding.Report
	if err := json.Unmarshal([]byte(r.stdout), &report); err != nil {
		t.Fatalf("preflight: exit %d, %v\n%s", r.exit, err, r.output())
	}
	return report, r.exit
}

// found are the codes and hosts of findings.
func found(r finding.Report) []string {
	var all []string
	for _, f := range r {
		all = append(all, string(f.Code)+" "+f.Host)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// TestTroubles has a host with which all is wrong at once, beside one that is
// well: each is found, of the right host, before anything is changed.
func TestTroubles(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "ill", Hosts: 2, SameMachineID: true,
		Trouble: lab.Trouble{ClockAhead: 10 * time.Minute, Swap: true, FullDisk: true, DropUDP: 8472}})
	well, ill := e.host(1), e.host(2)
	before := e.inventory(t, ill)

	report, exit := e.findings(t, well, ill)
	if exit != 10 {
		t.Errorf("exit %d, want 10", exit)
	}
	want := []string{"clock-skew " + ill, "disk-space " + ill, "machine-id-duplicate " + ill, "swap-on " + ill, "udp-blocked " + ill}
	if got := found(report.Blocking()); !slices.Equal(got, want) {
		t.Errorf("blocking findings are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, f := range report.Blocking() {
		if f.Message == "" || f.Remedy == "" {
			t.Errorf("%s has no message or no remedy: %+v", f.Code, f)
		}
	}
	if r := e.kubewright(t, "init", "-f", e.spec(t, "")); r.exit == 0 || !strings.Contains(r.stderr, "swap-on") || !strings.Contains(r.stderr, ill) {
		t.Errorf("init: exit %d\n%s", r.exit, r.output())
	}
	if diff := cmp.Diff(before, e.inventory(t, ill)); diff != "" {
		t.Errorf("%s was touched (-before +after):\n%s", ill, diff)
	}

	report, _ = e.findings(t, well)
	if got := found(report.Blocking()); len(got) > 0 {
		t.Errorf("blocking findings of a host that is well: %v", got)
	}
}

// TestSlowDisk has etcd's disk so slow that one should know, and a cluster on it nevertheless.
func TestSlowDisk(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "slow", Hosts: 1, Trouble: lab.Trouble{SlowDisk: 40 * time.Millisecond}})
	report, exit := e.findings(t, e.host(1))
	if exit != 0 {
		t.Errorf("exit %d, want 0", exit)
	}
	i := slices.IndexFunc(report, func(f finding.Finding) bool { return f.Code == "disk-slow" })
	if i < 0 || report[i].Severity != finding.Warning || report[i].Host != e.host(1) {
		t.Errorf("findings: %+v", report)
	}
	e.must(t, "init", e.host(1), "--name", "slow")
	if got := e.on(t, e.host(1), "stat", "-f", "-c", "%T", "/var/lib/etcd/member/wal"); got != "fuseblk" {
		t.Errorf("etcd's log is on %s", got)
	}
	e.allReady(t, []string{e.host(1)})
}
