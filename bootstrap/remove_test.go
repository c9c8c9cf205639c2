package bootstrap

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/journal"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// departure is one from a cluster of three control-plane hosts and a worker, by way of cp2.
func departure(t *testing.T, nodes ...Leaver) *Departure {
	t.Helper()
	address := func(n byte) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, n}) }
	known := &spec.Cluster{Name: "c"}
	live := &Live{Access: cluster.Access{Server: "https://192.0.2.1:6443"}, Spec: known, Record: cluster.Record{Name: "c", ID: "id"}}
	for i, name := range []string{"cp1", "cp2", "cp3", "w1"} {
		role, at := spec.ControlPlaneRole, address(byte(i+1))
		if name == "w1" {
			role = spec.WorkerRole
		} else {
			live.Servers = append(live.Servers, netip.AddrPortFrom(at, 6443))
		}
		known.Hosts = append(known.Hosts, spec.Host{Name: "admin@" + name, Role: role})
		live.Nodes = append(live.Nodes, Member{Node: name, Host: "admin@" + name, ControlPlane: role == spec.ControlPlaneRole, Address: at})
	}
	known.Default()
	d := &Departure{Live: live, By: "an admin", Timeout: DrainTimeout, Kubeconfig: "config", Name: "c",
		Keeper: Target{Host: hosttest.NewSim(t, "cp2"), Claim: &claim.Claim{ClusterID: "id", Node: "cp2", Role: "control-plane", Address: address(2)}},
		Etcd:   func(host.Reader) etcd.Writer { return nil }}
	for _, n := range nodes {
		m, ok := live.Member(n.Node)
		if !ok {
			t.Fatalf("no node %s", n.Node)
		}
		d.Add(Leaver{Member: m, Lost: n.Lost})
	}
	return d
}

// Who leaves decides which lanes there are; what cannot be taken back waits for the drain.
func TestPlanRemove(t *testing.T) {
	stopped := []string{"controlplane/stop", "host/compare", "host/forget", "host/release"}
	cluster := []string{"node/drain", "cluster/forget-hosts", "node/remove"}
	members := []string{"etcd/remove-members"}
	for name, c := range map[string]struct {
		node Leaver
		want map[string][]string
	}{
		"a worker":      {Leaver{Member: Member{Node: "w1"}}, map[string][]string{"w1": stopped[1:], clusterLane: cluster}},
		"a dead worker": {Leaver{Member: Member{Node: "w1"}, Lost: true}, map[string][]string{clusterLane: cluster}},
		"the first control-plane host": {Leaver{Member: Member{Node: "cp1"}}, map[string][]string{"cp1": stopped, clusterLane: cluster, etcdLane: members,
			localLane: {"kubeconfig/repoint", "kubeconfig/forget-servers"}}},
		"a control-plane host that was put back before": {Leaver{Member: Member{Node: "cp2"}}, map[string][]string{clusterLane: cluster, etcdLane: members,
			localLane: {"kubeconfig/forget-servers"}}},
		"a dead control-plane host": {Leaver{Member: Member{Node: "cp3"}, Lost: true}, map[string][]string{clusterLane: cluster, etcdLane: members,
			localLane: {"kubeconfig/forget-servers"}}},
	} {
		t.Run(name, func(t *testing.T) {
			in := Reset{Departure: departure(t, c.node)}
			if n := in.Departure.Nodes[0]; !n.Lost && n.Node != "cp2" {
				role := string(spec.WorkerRole)
				if n.ControlPlane {
					role = string(spec.ControlPlaneRole)
				}
				in.Targets = []Target{{Wish: spec.Host{Name: n.Node}, Host: hosttest.NewSim(t, n.Node), Journal: []journal.Entry{},
					Claim: &claim.Claim{ClusterID: "id", Node: n.Node, Role: role, Address: n.Address}}}
			}
			lanes, _, err := PlanReset(in)
			if err != nil {
				t.Fatal(err)
			}
			if err := plan.Validate(lanes...); err != nil {
				t.Error(err)
			}
			got := map[string][]string{}
			for _, l := range lanes {
				got[l.Name] = l.Steps()
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// What the cluster knows about itself afterwards is without the host, whatever it is called.
func TestRecordWithoutHosts(t *testing.T) {
	l := Reset{Departure: departure(t, Leaver{Member: Member{Node: "cp1"}}, Leaver{Member: Member{Node: "w1"}})}.begin()
	objects, err := l.record()
	if err != nil {
		t.Fatal(err)
	}
	record, _ := objects[0].Object["data"].(map[string]any)["cluster.yaml"].(string)
	for name, want := range map[string]bool{"cp1": false, "cp2": true, "cp3": true, "w1": false} {
		if strings.Contains(record, "admin@"+name) != want {
			t.Errorf("%s is in the record: %v\n%s", name, !want, record)
		}
	}
	if _, err := spec.Load(strings.NewReader(record), "record"); err != nil {
		t.Error(err)
	}
	if got := objects[1].Object["data"].(map[string]any)["servers"]; got != "192.0.2.2:6443\n192.0.2.3:6443\n" {
		t.Errorf("servers: %q", got)
	}
	if got := l.access().Server; got != "https://192.0.2.2:6443" {
		t.Errorf("the API is reached at %s", got)
	}
}

// listed is an etcd that only tells its members.
type listed struct {
	etcd.Writer
	members []etcd.Member
}

func (l listed) Members(context.Context) ([]etcd.Member, error) { return l.members, nil }

// TestNodeless: a member of etcd whose node somebody deleted leaves all the same, the way to its API server too.
func TestNodeless(t *testing.T) {
	d := departure(t)
	d.Live.Nodes = slices.DeleteFunc(d.Live.Nodes, func(m Member) bool { return m.Node == "cp3" })
	d.Etcd = func(host.Reader) etcd.Writer {
		return listed{members: []etcd.Member{
			{Name: "cp2", ID: "2", Peers: []string{"https://192.0.2.2:2380"}, Healthy: true},
			{Name: "cp3", ID: "3", Peers: []string{"https://192.0.2.3:2380"}},
			{ID: "4", Peers: []string{"https://192.0.2.4:2380"}, Learner: true},
		}}
	}
	got, err := d.Nodeless(t.Context(), d.Keeper.Host, []string{"cp3", "w9", ""})
	want := []Member{{Node: "cp3", Host: "cp3", ControlPlane: true, Address: netip.MustParseAddr("192.0.2.3")}}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" || err != nil {
		t.Fatalf("-want +got:\n%s%v", diff, err)
	}
	d.Live.Nodes = append(d.Live.Nodes, got...)
	d.Add(Leaver{Member: got[0], Lost: true})
	if l := (Reset{Departure: d}).begin(); len(l.etcdSteps()) != 1 || len(l.servers()) != 2 || !d.Stays() || len(d.Keepers()) != 2 {
		t.Errorf("it leaves by %v, and %v stay, %v keep", l.etcdSteps(), l.servers(), d.Keepers())
	}
}

func TestStays(t *testing.T) {
	cp := func(n string) Leaver { return Leaver{Member: Member{Node: n}} }
	if d := departure(t, cp("cp1"), cp("cp2")); !d.Stays() || len(d.Keepers()) != 1 || d.Keepers()[0].Node != "cp3" {
		t.Errorf("without cp1 and cp2: %+v", d.Keepers())
	}
	if d := departure(t, cp("cp1"), cp("cp2"), cp("cp3"), cp("cp3")); d.Stays() || len(d.Nodes) != 3 {
		t.Errorf("without all: %+v", d.Nodes)
	}
}
