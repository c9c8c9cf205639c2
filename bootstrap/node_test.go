package bootstrap

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// TestAddressIsKept goes through what decides a node's address, the strongest last.
func TestAddressIsKept(t *testing.T) {
	var addrs []netip.Addr
	target := Target{}
	for _, text := range []string{"198.19.1.1/24", "198.19.2.1/24", "198.19.3.1/24", "198.19.4.1/24"} {
		p := netip.MustParsePrefix(text)
		addrs = append(addrs, p.Addr())
		target.Facts.Interfaces = append(target.Facts.Interfaces, host.Interface{Name: "to " + text, Addrs: []netip.Prefix{p}})
	}
	want := func(what string, want netip.Addr) {
		t.Helper()
		if got, _, err := chooseAddress(target, nil, netip.Addr{}); err != nil || got != want {
			t.Errorf("%s: %v, %v, want %v", what, got, err, want)
		}
	}
	if _, _, err := chooseAddress(target, nil, netip.Addr{}); err == nil {
		t.Error("several could be it, and one was taken")
	}
	target.Reached = addrs[0]
	want("SSH reached it", addrs[0])
	target.Proven = addrs[1]
	want("other hosts reached it", addrs[1])
	target.Claim = &claim.Claim{Address: addrs[2]}
	want("it has it in the cluster", addrs[2])
	target.Claim.Address = netip.MustParseAddr("198.19.9.9")
	want("it had it, and has it no more", addrs[1])
	target.Wish = spec.Host{Address: addrs[3]}
	want("it is wished", addrs[3])
}

// TestFencedHostIsNoNode: its data are of a member that its cluster has given up.
func TestFencedHostIsNoNode(t *testing.T) {
	p := netip.MustParsePrefix("198.19.1.1/24")
	cp := Target{Wish: spec.Host{Name: "cp2", Address: p.Addr()}, Fenced: "it was taken out",
		Facts: host.Facts{Hostname: "cp2", Interfaces: []host.Interface{{Name: "eth0", Addrs: []netip.Prefix{p}}}}}
	_, err := resolve([]Target{cp}, netip.Addr{})
	if fault.CodeOf(err) != fault.HostTaken || !strings.Contains(err.Error(), "cp2: etcd on it is fenced: it was taken out") ||
		!strings.Contains(fault.RemedyOf(err), "kubewright reset cp2") {
		t.Errorf("%v, remedy %s", err, fault.RemedyOf(err))
	}
	cp.Fenced = ""
	if _, err := resolve([]Target{cp}, netip.Addr{}); err != nil {
		t.Error(err)
	}
}
