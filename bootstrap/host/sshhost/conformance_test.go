package sshhost

import (
	"io"
	"net"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
)

// Over loopback, root's files, commands and sockets. Units are tested on a lab
// host, which has a systemd of its own.
func TestConformance(t *testing.T) {
	s := newServer(t)
	s.know(t)
	h, err := dial(t, "one", s.config(t, "one"), Config{})
	if err != nil {
		t.Fatal(err)
	}
	hosttest.Conformance(t, func(t *testing.T) hosttest.Fixture {
		return hosttest.Fixture{
			Host: h, Dir: t.TempDir(),
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
