package apilb

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
)

func seed(t *testing.T, s *hosttest.Sim, servers ...string) (changes int) {
	t.Helper()
	var a Seed
	for _, server := range servers {
		a.Servers = append(a.Servers, netip.MustParseAddrPort(server))
	}
	diff, err := a.Check(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if len(diff) == 0 {
		return 0
	}
	if err := a.Apply(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if again, err := a.Check(t.Context(), s); err != nil || len(again) > 0 {
		t.Errorf("after it was applied: %v, %v", again, err)
	}
	return len(diff)
}

// A node that knows a server which is still there has learned more than it can be told. One
// that knows only lost ones is told, while it cannot write down what it knew.
func TestSeed(t *testing.T) {
	s := hosttest.NewSim(t, "w1")
	active := func() string {
		units, err := s.Units(t.Context(), Unit)
		if err != nil {
			t.Fatal(err)
		}
		return units[0].Active
	}
	if n := seed(t, s, "192.0.2.1:6443"); n == 0 {
		t.Error("a node without any is told nothing")
	}
	s.Put("/etc/systemd/system/"+Unit, "[Service]\nType=notify\n", 0o644)
	if err := s.Systemd().Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Systemd().Start(t.Context(), Unit); err != nil {
		t.Fatal(err)
	}
	if n := seed(t, s, "192.0.2.2:6443", "192.0.2.1:6443"); n != 0 || active() != "active" {
		t.Errorf("%d changes, and it is %s", n, active())
	}
	if n := seed(t, s, "192.0.2.7:6443"); n == 0 || active() != "inactive" {
		t.Errorf("%d changes, and it is %s", n, active())
	}
	if content, _ := s.Get(ServersFile); !strings.Contains(content, "192.0.2.7:6443") || strings.Contains(content, "192.0.2.1") {
		t.Errorf("%s", content)
	}
}
