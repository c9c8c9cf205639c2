package claim_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
)

func TestTake(t *testing.T) {
	s := hosttest.NewSim(t, "w1")
	take := claim.Take{ClusterID: "id", Cluster: "c", Role: "worker", Node: "w1", Address: netip.MustParseAddr("192.0.2.1")}
	if diff, err := take.Check(t.Context(), s); err != nil || diff.String() != "create /var/lib/kubewright/host.json (claim for cluster c)" {
		t.Fatalf("%v, %v", diff, err)
	}
	if err := take.Apply(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if diff, err := take.Check(t.Context(), s); err != nil || len(diff) != 0 {
		t.Errorf("again: %v, %v", diff, err)
	}
	have, err := claim.Read(t.Context(), s)
	if err != nil || *have != claim.Claim(take) {
		t.Errorf("%+v, %v", have, err)
	}
	for name, change := range map[string]func(*claim.Take){
		"another cluster": func(c *claim.Take) { c.ClusterID = "other" },
		"another role":    func(c *claim.Take) { c.Role = "control-plane" },
		"another node":    func(c *claim.Take) { c.Node = "w2" },
	} {
		other := take
		change(&other)
		if _, err := other.Check(t.Context(), s); fault.CodeOf(err) != fault.HostTaken || !strings.Contains(fault.RemedyOf(err), "kubewright reset w1") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHostsOfOthersAreRefused(t *testing.T) {
	for _, trace := range claim.Foreign() {
		s := hosttest.NewSim(t, "w1")
		s.Put(trace.Path, "", 0o600)
		if _, err := (claim.Take{}).Check(t.Context(), s); fault.CodeOf(err) != fault.HostTaken || !strings.Contains(err.Error(), trace.Path) {
			t.Errorf("%s: %v", trace.Path, err)
		}
	}
	s := hosttest.NewSim(t, "w1")
	s.Put(claim.File, `{"clusterID": "id", "cluster": "c", "role": "worker", "node": "w1", "before": {"paths": {}}}`, 0o600)
	if _, err := claim.Read(t.Context(), s); fault.CodeOf(err) != fault.HostTaken || !strings.Contains(err.Error(), "older kubewright") {
		t.Errorf("a claim without a journal: %v", err)
	}
}
