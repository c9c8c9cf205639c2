package bootstrap

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/bootstrap/spec"
)

// Nodes take part in preflight if that costs little and tells something.
func TestNeighboursOf(t *testing.T) {
	nodes := func(n int) (all []Member) {
		for i := range n {
			all = append(all, Member{Node: fmt.Sprintf("n%d", i), Host: fmt.Sprintf("h%d", i), Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})})
		}
		return all
	}
	joins := Target{Wish: spec.Host{Name: "new"}}
	for name, c := range map[string]struct {
		backend spec.Backend
		nodes   []Member
		targets []Target
		want    int
	}{
		"all":                                  {spec.VXLAN, nodes(3), []Target{joins}, 3},
		"the first ten":                        {spec.VXLAN, nodes(30), []Target{joins}, 10},
		"but one that is asked for":            {spec.VXLAN, nodes(3), []Target{joins, {Wish: spec.Host{Name: "h1"}, Serving: true}}, 2},
		"but one that kubewright has not made": {spec.VXLAN, append(nodes(2), Member{Node: "own", Address: netip.MustParseAddr("192.0.2.9")}), []Target{joins}, 2},
		"but one without an address":           {spec.VXLAN, append(nodes(2), Member{Node: "n9", Host: "h9"}), []Target{joins}, 2},
		"none, if nobody joins":                {spec.VXLAN, nodes(3), []Target{{Wish: spec.Host{Name: "h1"}, Serving: true}}, 0},
		"none, without a tunnel":               {spec.HostGW, nodes(3), []Target{joins}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			live := &Live{Nodes: c.nodes, Spec: &spec.Cluster{Network: spec.Network{Backend: c.backend}}}
			if diff := cmp.Diff(c.want, len(live.Neighbours(c.targets))); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
