package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
)

// A stage is this program run again, under a name that only a lab gives, to do
// one thing inside namespaces. It first waits for its orders on a pipe: until
// they come it has done nothing, and if the starter dies before, it ends. So a
// stage that does anything is known to be in its cgroup, where a destroy finds it.
const (
	hostStage = "kubewright-lab-host" // becomes a host's /sbin/init
	holdStage = "kubewright-lab-hold" // keeps a network namespace
	execStage = "kubewright-lab-exec" // runs a command in a host
	diskStage = "kubewright-lab-disk" // is a host's slow disk
)

const (
	ordersFD = 3 // JSON, then end of file
	reportFD = 4 // stageDone or what went wrong; its end of file ends the stage's set-up
	extraFD  = 5 // the first further file of a stage
)

const stageDone = "done"

// MaybeInit must be called first in main and in a test's TestMain by every
// program that uses Create, Start or Exec. In a process that one of these started to
// set up the inside of a host it never returns; in any other it does nothing.
func MaybeInit() {
	var run func() (status int, err error)
	switch os.Args[0] {
	case hostStage:
		run = bootHost
	case holdStage:
		run = holdNamespace
	case execStage:
		run = execInHost
	case diskStage:
		run = serveDisk
	default:
		return
	}
	syscall.CloseOnExec(ordersFD)
	syscall.CloseOnExec(reportFD)
	status, err := run()
	if err != nil {
		report(err.Error())
		status = 1
	}
	os.Exit(status)
}

// report tells the starter how the set-up ended. The pipe stays open until the
// stage execs or closes it, so that a failure of the exec can still be told.
func report(text string) {
	syscall.Write(reportFD, []byte(text)) //nolint:errcheck // the starter is gone then, and there is nobody to tell
}

// orders waits for what the starter sends.
func orders[T any]() (T, error) {
	var v T
	f := os.NewFile(ordersFD, "orders")
	defer f.Close()
	if err := json.NewDecoder(f).Decode(&v); err != nil {
		return v, fmt.Errorf("read orders: %w", err)
	}
	return v, nil
}

// stage is a started one, waiting for its orders.
type stage struct {
	cmd    *exec.Cmd
	orders *os.File
	report *os.File
}

// startStage runs this program again as the named stage in new namespaces.
// The further files are its extraFD and up. prepare may set its standard streams.
func startStage(ctx context.Context, name string, namespaces uintptr, further []*os.File, prepare func(*exec.Cmd)) (*stage, error) {
	ordersIn, ordersOut, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer ordersIn.Close()
	reportIn, reportOut, err := os.Pipe()
	if err != nil {
		ordersOut.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer reportOut.Close()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{name}
	cmd.Dir = "/"
	cmd.Env = []string{}
	cmd.ExtraFiles = append([]*os.File{ordersIn, reportOut}, further...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces}
	if prepare != nil {
		prepare(cmd)
	}
	if err := cmd.Start(); err != nil {
		ordersOut.Close()
		reportIn.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return &stage{cmd: cmd, orders: ordersOut, report: reportIn}, nil
}

// release sends a stage its orders and returns when its set-up is done.
func release[T any](s *stage, v T) error {
	defer s.report.Close()
	err := json.NewEncoder(s.orders).Encode(v)
	if err := errors.Join(err, s.orders.Close()); err != nil {
		return fmt.Errorf("order %s: %w", s.cmd.Args[0], err)
	}
	b, err := io.ReadAll(s.report)
	switch {
	case err != nil:
		return fmt.Errorf("read report of %s: %w", s.cmd.Args[0], err)
	case string(b) == stageDone:
		return nil
	case len(b) == 0:
		return fmt.Errorf("%s ended without a report", s.cmd.Args[0])
	}
	return errors.New(string(b))
}

// abandon ends a stage that got no orders.
func (s *stage) abandon() {
	s.orders.Close()
	s.report.Close()
	s.cmd.Wait() //nolint:errcheck // it has nothing to say
}

// reap collects the stage's process when it ends, as long as this program runs.
func (s *stage) reap() {
	go s.cmd.Wait() //nolint:errcheck // a host ends by being killed
}
