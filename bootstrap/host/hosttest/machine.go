package hosttest

import (
	"io"
	"net"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/host"
)

// ThisMachine is the fixture of a host that is the machine the test runs on,
// however it is reached.
func ThisMachine(t *testing.T, h host.Host) Fixture {
	return Fixture{
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
}

// greeter serves each connection a word, until the test ends.
func greeter(t *testing.T, network, address string) string {
	t.Helper()
	listener, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() }) //nolint:errcheck // nothing is lost
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			greet(conn)
		}
	}()
	return listener.Addr().String()
}

func greet(conn net.Conn) {
	io.WriteString(conn, "hello") //nolint:errcheck // the suite sees what it misses
	conn.Close()                  //nolint:errcheck // likewise
}
