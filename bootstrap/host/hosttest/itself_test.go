package hosttest

import (
	"slices"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
)

// What a machine does by itself goes on without a connection, and ends without power.
func TestByItself(t *testing.T) {
	s := prepare(t)
	if err := deploy(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	operations := len(s.Operations())
	pid := s.PID("app.service")
	s.Cut()
	if _, err := s.ReadFile(t.Context(), "/opt/current"); fault.CodeOf(err) != fault.HostUnreachable {
		t.Errorf("it answers after a cut: %v", err)
	}
	if pid == 0 || s.PID("app.service") != pid || !s.Powered() {
		t.Errorf("process %d became %d by a cut", pid, s.PID("app.service"))
	}
	s.PutDir("/var/lib/app", 0o700)
	s.Put("/var/lib/app/data", "1", 0o600)
	s.PutLink("/var/lib/app", "/var/lib/link")
	if got, ok := s.Get("/var/lib/link/data"); got != "1" || !ok {
		t.Errorf("%q, %v", got, ok)
	}
	if _, ok := s.Get("/var/lib/app"); ok {
		t.Error("a directory is read as a file")
	}
	if got := s.List("/var/lib/app"); !slices.Equal(got, []string{"data"}) {
		t.Errorf("%q", got)
	}
	s.Drop("/var/lib/app")
	s.Drop("/absent/file")
	if s.List("/var/lib/app") != nil {
		t.Error("it is not gone")
	}
	s.Kill()
	if s.Powered() || s.PID("app.service") != 0 {
		t.Error("it runs without power")
	}
	s.Restore()
	if now := s.PID("app.service"); now == 0 || now == pid {
		t.Errorf("process %d after a boot, %d before", now, pid)
	}
	if got := len(s.Operations()); got != operations {
		t.Errorf("%d operations became %d", operations, got)
	}
}

func TestOtherwise(t *testing.T) {
	s := prepare(t)
	s.Otherwise(func(argv []string) (Answer, bool) {
		return Answer{Stdout: argv[len(argv)-1], Do: func([]byte) ([]byte, error) { s.Put("/said", argv[0], 0o600); return nil, nil }},
			argv[0] == "echo"
	})
	out, err := s.Run(t.Context(), host.Command{Argv: []string{"echo", "a"}})
	if said, _ := s.Get("/said"); err != nil || string(out) != "a" || said != "echo" {
		t.Errorf("%q, %q, %v", out, said, err)
	}
	if _, err := s.Run(t.Context(), host.Command{Argv: []string{"modprobe", "overlay"}}); err != nil {
		t.Errorf("what is scripted comes first: %v", err)
	}
}
