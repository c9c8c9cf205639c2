package localhost

import (
	"errors"
	"io"
	"net"
	"path/filepath"
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
		return hosttest.Fixture{
			Host: New("here"), Dir: t.TempDir(),
			Mount: func(t *testing.T, dir string) {
				if err := syscall.Mount("kubewright-test", dir, "tmpfs", 0, "size=512k"); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := syscall.Unmount(dir, 0); err != nil {
						t.Error(err)
					}
				})
			},
			Servers: map[string]string{
				"tcp":  greeter(t, "tcp", "127.0.0.1:0"),
				"unix": greeter(t, "unix", filepath.Join(t.TempDir(), "socket")),
			},
		}
	})
}

// greeter serves connections a word, until the test ends.
func greeter(t *testing.T, network, address string) string {
	listener, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, "hello")
			conn.Close()
		}
	}()
	return listener.Addr().String()
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
