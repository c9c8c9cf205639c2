package vip

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// inNetns runs the test that calls it in a process of its own in a new network
// namespace (goroutines do not stay on one thread, a process does), and returns
// true in there. The caller returns at once on false.
func inNetns(t *testing.T) bool {
	t.Helper()
	const inside = "VIP_TEST_NETNS"
	if os.Getenv(inside) == t.Name() {
		return true
	}
	test := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	test.Env = append(os.Environ(), inside+"="+t.Name())
	test.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := test.CombinedOutput()
	if err != nil {
		t.Errorf("in a network namespace (run as root): %v\n%s", err, out)
	}
	return false
}
