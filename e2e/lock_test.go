package e2e

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/sshhost"
	"github.com/kubewright/kubewright/bootstrap/lock"
	"github.com/kubewright/kubewright/lab"
)

// lockHolder makes the test's program a run that holds a lock: its target and
// ssh_config. It says when it has it, and for each line that it reads how an
// operation on the host went.
const lockHolder = "KUBEWRIGHT_TEST_LOCK_HOLDER"

func maybeHoldLock() {
	target, config, ok := strings.Cut(os.Getenv(lockHolder), " ")
	if !ok {
		return
	}
	ctx := context.Background()
	h, err := sshhost.Dial(ctx, target, sshhost.Config{ConfigFile: config})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	held, err := lock.Take(ctx, h, lock.Holder{User: "alice", From: "laptop7", Verb: "init " + target, Cluster: "prod"})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("held")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		<-held.Lost()
		err := h.WriteFile(ctx, "/root/late", strings.NewReader("late\n"), host.Meta{Mode: 0o600})
		fmt.Println(fault.CodeOf(err))
	}
	os.Exit(0)
}

// holder is another run that holds a lock.
type holder struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
	ask   func()
}

func (e *env) holder(t *testing.T, target string) holder {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), lockHolder+"="+target+" "+e.lab.SSHConfig())
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill() //nolint:errcheck // it may have ended
		cmd.Wait()         //nolint:errcheck // likewise
	})
	h := holder{cmd, bufio.NewScanner(out), func() { fmt.Fprintln(in, "go") }} //nolint:errcheck // the answer is missed then
	if got := h.line(); got != "held" {
		t.Fatalf("the holder says %q", got)
	}
	return h
}

func (h holder) line() string {
	h.lines.Scan()
	return h.lines.Text()
}

// TestLock has two runs on a host: the second is told of the first, a killed one
// is out at once, and one that froze is ended on the host before its lock is taken.
func TestLock(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "lock", Hosts: 1})
	for _, user := range []string{"root", "admin"} { // admin: through sudo
		t.Run(user, func(t *testing.T) {
			target := user + "@" + e.host(1)
			h, err := sshhost.Dial(t.Context(), target, sshhost.Config{ConfigFile: e.lab.SSHConfig()})
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close() //nolint:errcheck // nothing is lost
			bob := lock.Holder{User: "bob", From: "desk3", Verb: "reset"}

			first := e.holder(t, target)
			_, err = lock.Take(t.Context(), h, bob)
			t.Log(err)
			if fault.CodeOf(err) != fault.HostLocked || !strings.Contains(err.Error(), "alice on laptop7, since 20") ||
				!strings.Contains(err.Error(), "kubewright init "+target+" (cluster prod)") {
				t.Fatalf("the second is told: %v", err)
			}

			if err := first.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			var held *lock.Held
			eventually(t, 5*time.Second, "lock of a run that was killed", func() string {
				if held, err = lock.Take(t.Context(), h, bob); err != nil {
					return err.Error()
				}
				return ""
			})
			if held.TookOver != nil {
				t.Errorf("the lock of a run that was killed was held by %v", held.TookOver)
			}
			if err := held.Release(t.Context()); err != nil {
				t.Error(err)
			}

			frozen := e.holder(t, target)
			if err := frozen.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			eventually(t, time.Minute, "lock of a run that froze", func() string {
				if held, err = lock.Take(t.Context(), h, bob); err != nil {
					return err.Error()
				}
				return ""
			})
			t.Logf("taken over after %v", time.Since(start).Round(time.Second))
			if held.TookOver == nil || held.TookOver.User != "alice" {
				t.Errorf("taken over from %v", held.TookOver)
			}
			if err := frozen.cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			frozen.ask()
			if got := frozen.line(); got != string(fault.HostUnreachable) {
				t.Errorf("the one that woke up: its operation ended as %q", got)
			}
			if err := held.Release(t.Context()); err != nil {
				t.Error(err)
			}
			files, err := h.Stat(t.Context(), lock.File, "/root/late")
			if err != nil || files[0].Exists || files[1].Exists {
				t.Errorf("left: %+v, %v", files, err)
			}
		})
	}
}
