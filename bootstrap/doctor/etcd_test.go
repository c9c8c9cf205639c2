package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/cluster"

	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// selves are the members of etcd as each host's own one sees them.
type selves map[string]etcd.View

func (s selves) Look(_ context.Context, r host.Reader) (etcd.View, error) {
	v, ok := s[r.Name()]
	if !ok {
		return v, etcd.ErrUnreachable
	}
	return v, nil
}

// cps is an examination with control-plane hosts cp1, cp2, ... at 192.0.2.1, .2, ..., the nodes among which are named with
// whether they are ready.
func cps(t *testing.T, server string, views selves, nodes map[string]bool) *examination {
	t.Helper()
	e := &examination{Inputs: Inputs{Server: server, Etcd: views}, record: cluster.Record{ID: "id"}, kube: fake.NewClientset()}
	for i := range 4 {
		name, address := fmt.Sprintf("cp%d", i+1), fmt.Sprintf("192.0.2.%d", i+1)
		if _, there := views[name]; there {
			e.seats = append(e.seats, &seat{patient: patient{Reader: hosttest.NewSim(t, name),
				claim: &claim.Claim{ClusterID: "id", Role: string(spec.ControlPlaneRole), Node: name, Address: netip.MustParseAddr(address)}},
				members: []etcd.Member{{Name: name, Healthy: true}}})
		}
		is, node := nodes[name]
		if !node {
			continue
		}
		status := corev1.ConditionFalse
		if is {
			status = corev1.ConditionTrue
		}
		e.nodes = append(e.nodes, corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{controlPlaneLabel: ""}},
			Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}},
				Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}}})
	}
	return e
}

// A host that goes on with the etcd of before a restore or a recovery is told; where it is not certain whose the API is, nobody is.
func TestOtherCluster(t *testing.T) {
	at := func(cluster, id string, members ...string) etcd.View {
		return etcd.View{Cluster: cluster, ID: id, Members: members}
	}
	restored := selves{"cp1": at("b", "7", "7", "8"), "cp2": at("b", "8", "7", "8"), "cp3": at("a", "3", "1", "2", "3")}
	recovered := selves{"cp1": at("a", "1", "1"), "cp2": at("a", "2", "1", "2", "3"), "cp3": at("a", "3", "1", "2", "3")}
	const virtual, first = "https://192.0.2.100:6443", "https://192.0.2.1:6443"
	two := map[string]bool{"cp1": true, "cp2": true}
	for name, c := range map[string]struct {
		server string
		views  selves
		nodes  map[string]bool
		change func(*examination)
		others string
	}{
		"one cluster":                      {first, selves{"cp1": restored["cp1"], "cp2": restored["cp2"]}, two, nil, ""},
		"restored, one of before":          {first, restored, two, nil, "cp3"},
		"restored, with a virtual IP":      {virtual, restored, two, nil, "cp3"},
		"by a name":                        {"https://api.example:6443", restored, two, nil, "cp3"},
		"the API is that of before":        {"https://192.0.2.3:6443", restored, two, nil, "cp1 cp2"},
		"recovered":                        {first, recovered, map[string]bool{"cp1": true, "cp2": false, "cp3": false}, nil, "cp2 cp3"},
		"recovered, with a virtual IP":     {virtual, recovered, map[string]bool{"cp1": true, "cp2": false, "cp3": false}, nil, "cp2 cp3"},
		"nodes of both report to the API":  {virtual, recovered, map[string]bool{"cp1": true, "cp2": true}, nil, ""},
		"none of its nodes was looked at":  {virtual, selves{"cp3": restored["cp3"], "cp4": at("c", "4", "4")}, two, nil, ""},
		"its host has the place of a node": {virtual, restored, map[string]bool{"cp1": true}, func(e *examination) { e.nodes[0].Status.Addresses[0].Address = "192.0.2.77" }, ""},
		"no API":                           {first, restored, nil, func(e *examination) { e.kube = nil }, ""},
		"a host of quite another cluster":  {first, restored, two, func(e *examination) { e.seats[2].claim.ClusterID = "another" }, ""},
		"fenced":                           {first, restored, two, func(e *examination) { e.seats[2].off = true }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := cps(t, c.server, c.views, c.nodes)
			if c.change != nil {
				c.change(e)
			}
			e.add(finding.Finding{Code: finding.EtcdNoLeader, Severity: finding.Error, Host: "cp3"})
			report, err := e.membership(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var others []string
			for _, f := range report {
				if f.Code == finding.EtcdOtherCluster {
					others = append(others, f.Host)
					if f = f.Advised(); f.Remedy != "kubewright reset "+f.Host+", or keep it off" {
						t.Errorf("%+v", f)
					}
				}
			}
			if got := strings.Join(others, " "); got != c.others {
				t.Errorf("of another cluster: %q, want %q", got, c.others)
			}
			if dropped := len(e.report) == 0; dropped != strings.Contains(c.others, "cp3") {
				t.Errorf("what was told of its quorum: %v", shown(e.report))
			}
		})
	}
}

// A member that joins meanwhile is not accused for what the others did not know yet.
func TestJoinsMeanwhile(t *testing.T) {
	e := cps(t, "https://192.0.2.1:6443", nil, nil)
	e.Etcd = &joining{}
	for i, name := range []string{"cp1", "cp2"} {
		e.seats = append(e.seats, &seat{patient: patient{Reader: hosttest.NewSim(t, name),
			claim: &claim.Claim{ClusterID: "id", Node: name, Address: netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", i+1))}}})
	}
	if report, err := e.membership(t.Context()); err != nil || len(report) > 0 {
		t.Errorf("%v, %v", report, err)
	}
}

// joining is cp2 that comes to cp1, which knows of it when it is asked again.
type joining struct{ asked int }

func (j *joining) Look(_ context.Context, r host.Reader) (etcd.View, error) {
	if r.Name() == "cp2" {
		return etcd.View{Cluster: "a", ID: "2", Members: []string{"1", "2"}}, nil
	}
	j.asked++
	return etcd.View{Cluster: "a", ID: "1", Members: []string{"1", "2"}[:min(2, j.asked)]}, nil
}

// The members are told as the API's own etcd has them, not as that of before.
func TestMembersOfOurs(t *testing.T) {
	e := cps(t, "https://192.0.2.2:6443", selves{"cp1": {Cluster: "a", ID: "1"}, "cp2": {Cluster: "b", ID: "2"}}, map[string]bool{"cp2": true})
	e.seats[0].members = []etcd.Member{{Name: "gone", Trouble: "it cannot be reached"}}
	report, err := e.membership(t.Context())
	if diff := cmp.Diff([]string{"error cp1 etcd-other-cluster"}, shown(report)); diff != "" || err != nil {
		t.Errorf("(-want +got)\n%s, %v", diff, err)
	}
}

// A host whose etcd is fenced is told so once, and not for what follows from it.
func TestFenced(t *testing.T) {
	s := worker(t, "cp1", 0)
	s.Put("/etc/systemd/system/"+etcd.Unit, "[Service]\nType=notify\n[Install]\nWantedBy=multi-user.target\n", 0o644)
	s.Put(etcd.DataDir+"/FENCED", "cp1 was removed\n", 0o600)
	s.Boot()
	if err := s.Systemd().Start(t.Context(), etcd.Unit); err != nil {
		t.Fatal(err)
	}
	s.CrashUnit(etcd.Unit)
	s.Script(hosttest.Answer{Argv: []string{"journalctl", "-u", etcd.Unit, "-n", "50", "-o", "cat", "--no-pager"}, Stdout: "etcd is fenced and does not start: cp1 was removed\n"})
	s.Serve("tcp", "10.96.0.10:53", func(c net.Conn) { c.Close() }) //nolint:errcheck // a test
	wish := &spec.Cluster{Name: "c"}
	wish.Default()
	e := &examination{spec: wish}
	p := patient{Reader: s, claim: &claim.Claim{Role: string(spec.ControlPlaneRole), Node: "cp1"}}
	e.check(t.Context(), "cp1", "units", func(ctx context.Context) (finding.Report, error) { return checkUnits(ctx, e, p) })
	e.check(t.Context(), "cp1", "etcd", func(ctx context.Context) (finding.Report, error) { return checkEtcd(ctx, e, p) })
	e.check(t.Context(), "cp1", "DNS", func(ctx context.Context) (finding.Report, error) { return checkDNS(ctx, e, p) })
	var of []string
	for _, f := range e.report {
		if f.Code != finding.UnitMissing { // the host of this test has no other units
			of = append(of, string(f.Code))
		}
	}
	if diff := cmp.Diff([]string{"etcd-fenced"}, of); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// What a host does not resolve is laid to CoreDNS only where it does not run.
func TestWhyNoDNS(t *testing.T) {
	pod := func(name, node string, ready corev1.ConditionStatus) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: metav1.NamespaceSystem, Labels: map[string]string{"k8s-app": "kube-dns"}},
			Spec: corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}}}
	}
	both := []*corev1.Pod{pod("a", "cp2", corev1.ConditionTrue), pod("b", "cp3", corev1.ConditionTrue)}
	all := map[string]bool{"cp1": true, "cp2": true, "cp3": true}
	for name, c := range map[string]struct {
		nodes map[string]bool
		pods  []*corev1.Pod
		off   []Host
		cause string
	}{
		"it does not run":          {all, []*corev1.Pod{pod("a", "cp2", corev1.ConditionFalse)}, nil, ""},
		"it runs":                  {all, both, nil, "kube-proxy or the pod network does not carry this host's packets to CoreDNS, which runs on cp2, cp3"},
		"on nodes that are not up": {map[string]bool{"cp1": true, "cp2": true, "cp3": false}, both, nil, "1 of 2 pods of CoreDNS that count as ready are on nodes that do not answer: cp3"},
		"on hosts that are off":    {all, both, []Host{{Name: "h3", Err: errors.New("no route")}, {Name: "h2", Err: errors.New("no route")}}, "2 of 2 pods of CoreDNS that count as ready are on nodes that do not answer: cp2, cp3"},
		"the host is not ready":    {map[string]bool{"cp1": false, "cp2": true, "cp3": true}, both, nil, "its node is not ready"},
		"the host is no node":      {map[string]bool{"cp2": true, "cp3": true}, both, nil, "the host is no node of the cluster: kube-proxy and the pod network do not serve it"},
	} {
		e := cps(t, "", selves{"cp1": {}}, c.nodes)
		for i := range e.nodes {
			e.nodes[i].Annotations = map[string]string{cluster.HostAnnotation: "h" + e.nodes[i].Name[2:]}
		}
		e.Hosts = c.off
		kube := fake.NewClientset()
		for _, p := range c.pods {
			if err := kube.Tracker().Add(p); err != nil {
				t.Fatal(err)
			}
		}
		e.kube = kube
		f := finding.Finding{Code: finding.DNSNotAvailable}
		e.explainDNS(t.Context(), e.seats[0].patient, &f)
		if f.Cause != c.cause || (f.Cause == "") != (f.Remedy == "") {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

// No firewall is blamed for an API that does not serve.
func TestWhyNoAPI(t *testing.T) {
	quorum := func(host string) finding.Finding {
		return finding.Finding{Code: finding.EtcdNoLeader, Severity: finding.Error, Host: host}
	}
	unit := func(host string) finding.Finding {
		return finding.Finding{Code: finding.UnitFailed, Severity: finding.Error, Host: host, Object: "kube-apiserver.service"}
	}
	const firewall, cp1, cp2 = "firewall", "the API server of cp1 does not serve: etcd has no leader", "the API server of cp2 does not serve: a component does not run"
	for name, c := range map[string]struct {
		host  string
		told  finding.Report
		cause string
	}{
		"all is well":                         {"cp1", nil, firewall},
		"no quorum":                           {"cp1", finding.Report{quorum("cp1"), quorum("cp2")}, cp1},
		"cut off from the others":             {"cp1", finding.Report{quorum("cp1")}, cp1},
		"no quorum, and the unit has failed":  {"cp1", finding.Report{unit("cp1"), quorum("cp1")}, cp1},
		"the API server alone":                {"cp2", finding.Report{unit("cp2")}, cp2},
		"another host's":                      {"cp1", finding.Report{unit("cp2")}, firewall},
		"a worker of a cluster without":       {"w1", finding.Report{quorum("cp1"), unit("cp2")}, cp1},
		"a worker, and one API server serves": {"w1", finding.Report{quorum("cp1")}, firewall},
	} {
		e := cps(t, "", selves{"cp1": {}, "cp2": {}}, nil)
		e.add(finding.Finding{Code: finding.APIUnreachableFromNode, Severity: finding.Error, Host: c.host})
		e.add(c.told...)
		e.explainAPI()
		if got := e.report[0]; !strings.Contains(got.Cause, c.cause) || got.Remedy == "" {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestEvenMembers(t *testing.T) {
	for voters, want := range map[int]string{1: "", 2: "needs 2: it survives the loss of 0, no more than with 1", 3: "", 4: "needs 3: it survives the loss of 1, no more than with 3"} {
		report := checkTally(etcd.Tally{Voters: voters})
		if want == "" != (len(report) == 0) || len(report) > 0 && !strings.Contains(report[0].Message, want) {
			t.Errorf("%d: %v", voters, report)
		}
	}
}

func TestMembersInTrouble(t *testing.T) {
	const quota = 100 << 20
	for name, c := range map[string]struct {
		member etcd.Member
		codes  string
	}{
		"healthy":     {etcd.Member{Name: "cp1", Healthy: true, DBSize: 80 << 20, Quota: quota}, ""},
		"nearly full": {etcd.Member{Name: "cp1", Healthy: true, DBSize: 81 << 20, Quota: quota}, "warning etcd-filling cp1"},
		"full": {etcd.Member{Name: "cp1", Full: true, Alarms: []etcd.Alarm{etcd.NoSpace}, DBSize: quota, Quota: quota},
			"warning etcd-filling cp1, error etcd-no-space cp1"},
		"damaged": {etcd.Member{Name: "cp1", Alarms: []etcd.Alarm{etcd.Corrupt}}, "error etcd-damaged cp1"},
		"dead":    {etcd.Member{Name: "cp2", Trouble: "it cannot be reached"}, "error etcd-member-down cp2"},
		"left over": {etcd.Member{Learner: true, Peers: []string{"https://x:2380"}, Trouble: "it has not started yet"},
			"warning etcd-member-down https://x:2380"},
	} {
		var codes []string
		for _, f := range checkMember(c.member) {
			codes = append(codes, string(f.Severity)+" "+string(f.Code)+" "+f.Object)
			if _, known := finding.Explain(f.Code); !known {
				t.Errorf("%s: %s is not explained", name, f.Code)
			}
		}
		if got := strings.Join(codes, ", "); got != c.codes {
			t.Errorf("%s: %s, want %s", name, got, c.codes)
		}
	}
}
