package doctor

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/vip"
)

func TestVirtualIP(t *testing.T) {
	s := hosttest.NewSim(t, "cp1")
	s.Script(hosttest.Answer{Argv: []string{"journalctl", "-u", vip.Unit, "-n", "50", "-o", "cat", "--no-pager"}})
	look := func(want ...string) {
		t.Helper()
		report, err := checkVirtualIP(t.Context(), nil, patient{Reader: s})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, shown(report)); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
	look() // most clusters have none
	s.Put("/etc/systemd/system/"+vip.Unit, "[Service]\nType=notify\n[Install]\nWantedBy=multi-user.target\n", 0o644)
	s.Boot()
	if err := s.Systemd().Enable(t.Context(), vip.Unit); err != nil {
		t.Fatal(err)
	}
	s.Boot()
	look()
	s.SetStatus(vip.Unit, "this host has the address")
	look()
	s.SetStatus(vip.Unit, "another machine has the virtual IP: this host does not take it (02:00:00:00:00:09)")
	look("error virtual-ip-conflict " + vip.Unit)
	s.CrashUnit(vip.Unit)
	look("error cp1 unit-failed " + vip.Unit)
}
