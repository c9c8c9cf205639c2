package sshhost

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/lab"
)

func TestMain(m *testing.M) {
	lab.MaybeInit()
	os.Exit(m.Run())
}

// TestConformance is of root's files, commands and sockets, over loopback. Units
// are TestLab's.
func TestConformance(t *testing.T) {
	h := connect(t)
	hosttest.Conformance(t, func(t *testing.T) hosttest.Fixture { return hosttest.ThisMachine(t, h) })
}

// TestLab goes to a lab host, which has its own systemd and users: as root by
// a forwarded bus socket, as admin by sudo and systemd-stdio-bridge, as ops
// likewise with sudo's password.
func TestLab(t *testing.T) {
	name := fmt.Sprintf("t%d-ssh", os.Getpid()) // that no other run of the tests uses
	t.Cleanup(func() {
		if err := lab.Destroy(context.WithoutCancel(t.Context()), name); err != nil {
			t.Error(err)
		}
	})
	l, err := lab.Create(t.Context(), lab.Options{Name: name, Hosts: 1}, func(line string) { t.Log(line) })
	if err != nil {
		t.Fatal(err)
	}
	machine := l.Hosts()[0]
	cfg := Config{ConfigFile: l.SSHConfig()}
	asking := cfg
	asking.SudoPassword = newPassword(t, lab.SudoPassword)
	for user, cfg := range map[string]Config{"root": cfg, "admin": cfg, "ops": asking} {
		t.Run(user, func(t *testing.T) {
			h, err := Dial(t.Context(), user+"@"+machine.Name, cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := h.Close(); err != nil {
					t.Error(err)
				}
			}()
			if h.ServerAddr() != machine.Address {
				t.Errorf("its address is %v, want %v", h.ServerAddr(), machine.Address)
			}
			hosttest.Conformance(t, func(t *testing.T) hosttest.Fixture { return labFixture(t, h) })
			t.Run("Systemd", func(t *testing.T) { hosttest.ConformanceSystemd(t, h) })
			t.Run("Facts", func(t *testing.T) {
				facts, err := host.Gather(t.Context(), h)
				if err != nil {
					t.Fatal(err)
				}
				if facts.Hostname != machine.Name || facts.OSID != "debian" || facts.Tool("nft") == "" || facts.CPUs < 1 ||
					len(facts.Interfaces) < 2 || len(facts.Routes) == 0 || facts.DefaultInterface() != "" || facts.Virtualization == "" {
					t.Errorf("%+v", facts)
				}
			})
		})
	}
	t.Run("nosudo", func(t *testing.T) {
		_, err := Dial(t.Context(), "nosudo@"+machine.Name, cfg)
		wantFault(t, err, fault.SudoRefused, "nosudo", "NOPASSWD", "--ask-sudo-password", "root@"+machine.Name)
	})
	t.Run("a wrong password is tried once", func(t *testing.T) {
		wrong := cfg
		wrong.SudoPassword = newPassword(t, "open barley")
		_, err := Dial(t.Context(), "nosudo@"+machine.Name, wrong)
		wantFault(t, err, fault.SudoRefused, "nosudo", "tried once", "1 incorrect password attempt")
	})
	t.Run("sudo wants a terminal", func(t *testing.T) {
		h, err := Dial(t.Context(), machine.Name, cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		if err := h.WriteFile(t.Context(), "/etc/sudoers.d/tty", strings.NewReader("Defaults:ops requiretty\n"), host.Meta{Mode: 0o440}); err != nil {
			t.Fatal(err)
		}
		_, err = Dial(t.Context(), "ops@"+machine.Name, asking)
		wantFault(t, err, fault.SudoRefused, "you must have a tty", "requiretty")
	})
}

// labFixture uses a lab host through h itself; sshd is a server that speaks first.
func labFixture(t *testing.T, h *Host) hosttest.Fixture {
	run := func(t *testing.T, argv ...string) string {
		t.Helper()
		out, err := h.Run(context.WithoutCancel(t.Context()), host.Command{Argv: argv})
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	dir := run(t, "mktemp", "-d", "/root/suite.XXXXXX")
	t.Cleanup(func() { run(t, "rm", "-rf", "--one-file-system", "--", dir) })
	return hosttest.Fixture{
		Host: h, Dir: dir,
		Mount: func(t *testing.T, at string) {
			run(t, "mount", "-t", "tmpfs", "-o", "size=512k", "kubewright-test", at)
			t.Cleanup(func() { run(t, "umount", at) })
		},
		Servers: map[string]string{"tcp": "127.0.0.1:22"},
	}
}
