package bootstrap

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/apilb"
	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// TestFounderFirst: others are added to a member that votes, wherever it is in the file.
func TestFounderFirst(t *testing.T) {
	cp := func(name string) Target { return Target{Wish: spec.Host{Name: name, Role: spec.ControlPlaneRole}} }
	worker := Target{Wish: spec.Host{Name: "w", Role: spec.WorkerRole}, Member: true, Serving: true}
	voter := func(t Target) Target { t.EtcdData, t.HasAPI = true, true; return t }
	learner := func(t Target) Target { t.EtcdData = true; return t }
	begun := func(t Target) Target { t.HasAPI = true; return t }
	for name, c := range map[string]struct {
		targets []Target
		want    string
	}{
		"bare hosts":                      {[]Target{cp("a"), cp("b"), worker}, "a b w"},
		"a worker first":                  {[]Target{worker, cp("a"), cp("b")}, "a b w"},
		"the second is the founder":       {[]Target{cp("a"), voter(cp("b")), cp("c")}, "b a c"},
		"all are members":                 {[]Target{voter(cp("a")), voter(cp("b")), voter(cp("c"))}, "a b c"},
		"a learner before the founder":    {[]Target{learner(cp("a")), cp("b"), voter(cp("c"))}, "c a b"},
		"a founder that is about to":      {[]Target{cp("a"), begun(cp("b"))}, "b a"},
		"and data are more than that":     {[]Target{begun(cp("a")), learner(cp("b"))}, "b a"},
		"an API server that lost etcd":    {[]Target{begun(cp("a")), voter(cp("b"))}, "b a"},
		"whoever claimed first is no one": {[]Target{cp("a"), cp("b")}, "a b"},
	} {
		before := slices.Clone(c.targets)
		var names []string
		for _, t := range FounderFirst(c.targets) {
			names = append(names, t.Wish.Name)
		}
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
		for i := range before {
			if before[i].Wish.Name != c.targets[i].Wish.Name {
				t.Errorf("%s: it sorts what it is given", name)
			}
		}
	}
}

// TestRefuseSecond: whoever lost etcd's data does not found its cluster anew while others have it.
func TestRefuseSecond(t *testing.T) {
	target := func(n int, role spec.Role, knows ...int) Target {
		name := fmt.Sprintf("h%d", n)
		s := hosttest.NewSim(t, name)
		var servers []string
		for _, k := range knows {
			servers = append(servers, fmt.Sprintf("%q", fmt.Sprintf("192.0.2.%d:6443", k)))
		}
		if servers != nil {
			s.Put(apilb.ServersFile, `{"servers":[`+strings.Join(servers, ",")+`]}`, 0o644)
		}
		own := netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 24)
		return Target{Wish: spec.Host{Name: name, Role: role}, Host: s, Claim: &claim.Claim{Cluster: "prod", Role: string(role)},
			Facts: host.Facts{Interfaces: []host.Interface{{Name: "eth0", Addrs: []netip.Prefix{own}}}}}
	}
	controlPlane := func(n int, knows ...int) Target { return target(n, spec.ControlPlaneRole, knows...) }
	told := func(t Target, state string) Target {
		t.Host.(*hosttest.Sim).Put("/etc/kubernetes/etcd.env", "ETCD_INITIAL_CLUSTER=x\nETCD_INITIAL_CLUSTER_STATE="+state+"\n", 0o644)
		return t
	}
	whole := func(t Target) Target { t.EtcdData = true; return t }
	bare := func(t Target) Target { t.Claim = nil; return t }
	for name, c := range map[string]struct {
		targets []Target
		remedy  string // "": it may
	}{
		"new hosts":                         {[]Target{bare(controlPlane(1)), bare(controlPlane(2))}, ""},
		"an init that was broken off early": {[]Target{controlPlane(1)}, ""},
		"one that was broken off later":     {[]Target{told(controlPlane(1), "new"), controlPlane(2)}, ""},
		"the only one, which lost its data": {[]Target{told(controlPlane(1, 1), "existing")}, "kubewright reset h1"},
		"all of them, which lost theirs":    {[]Target{controlPlane(1, 1, 2), told(controlPlane(2, 1, 2), "existing")}, "kubewright reset h2"},
		"one whose join was broken off":     {[]Target{told(controlPlane(2), "existing")}, "kubewright reset h2"},
		"and whom it joins":                 {[]Target{whole(controlPlane(1)), told(controlPlane(2), "existing")}, ""},
		"one of several":                    {[]Target{controlPlane(1, 1, 2, 3)}, "kubewright remove h1, then kubewright join h1 --control-plane"},
		"one of several with its data":      {[]Target{whole(controlPlane(1, 1, 2, 3))}, ""},
		"one of several, and another":       {[]Target{whole(controlPlane(2, 1, 2, 3)), controlPlane(1, 1, 2, 3)}, ""},
		"two of several":                    {[]Target{controlPlane(2, 1, 2, 3), controlPlane(1, 1, 2, 3)}, "kubewright remove h2"},
		"a worker of another control plane": {[]Target{bare(controlPlane(1)), target(4, spec.WorkerRole, 2)}, "kubewright reset h4"},
		"a worker of this one, half made":   {[]Target{bare(controlPlane(1)), target(4, spec.WorkerRole, 1)}, ""},
	} {
		err := RefuseSecond(t.Context(), c.targets)
		if (err != nil) != (c.remedy != "") || err != nil && fault.CodeOf(err) != fault.HostTaken || !strings.Contains(fault.RemedyOf(err), c.remedy) {
			t.Errorf("%s: %v (%s)", name, err, fault.RemedyOf(err))
		}
	}
}
