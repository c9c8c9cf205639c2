package localhost

import (
	"errors"
	"net"
	"syscall"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
)

// The suite changes owners and mounts a file system: it runs as root.
func TestConformance(t *testing.T) {
	hosttest.Conformance(t, func(t *testing.T) hosttest.Fixture {
		// As on a host with a strict umask: modes must not depend on it.
		old := syscall.Umask(0o077)
		t.Cleanup(func() { syscall.Umask(old) })
		return hosttest.ThisMachine(t, New("here"))
	})
}

func TestNoUnits(t *testing.T) {
	if _, err := New("here").Units(t.Context(), "x.service"); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	if err := New("here").Systemd().Reload(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

// The facts of the machine that this runs on are those that Go itself sees.
func TestGather(t *testing.T) {
	facts, err := host.Gather(t.Context(), New("here"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", facts)
	if facts.Hostname == "" || facts.Kernel == "" || facts.BootID == "" || facts.CPUs < 1 || facts.MemoryBytes == 0 || facts.OSID == "" {
		t.Errorf("incomplete: %+v", facts)
	}
	mine, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range mine {
		if i.Name == "lo" && (len(facts.Interfaces) == 0 || facts.Interfaces[0].MTU != i.MTU) {
			t.Errorf("lo: %+v", facts.Interfaces)
		}
	}
}
