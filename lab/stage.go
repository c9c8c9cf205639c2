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
	powerStage = "kubewright-lab-power" // starts a host's hostStage, and boots it again after a reboot
	hostStage  = "kubewright-lab-host"  // becomes a host's /sbin/init
	holdStage  = "kubewright-lab-hold"  // keeps a network namespace
	execStage  = "kubewright-lab-exec"  // runs a command in a host
	diskStage  = "kubewright-lab-disk"  // is a host's slow disk
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
	case powerStage:
		run = keepPower
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
	cmd    *exec.Cmd // of a hostStage: its powerStage's
	orders *os.File
	report *os.File
}

// stageFiles are the ends of its pipes that a stage gets.
type stageFiles struct{ orders, report *os.File }

func (f stageFiles) Close() {
	f.orders.Close()
	f.report.Close()
}

// newStage makes the pipes of a stage that is yet to be started.
func newStage() (*stage, stageFiles, error) {
	ordersIn, ordersOut, err := os.Pipe()
	if err != nil {
		return nil, stageFiles{}, err
	}
	reportIn, reportOut, err := os.Pipe()
	if err != nil {
		ordersIn.Close()
		ordersOut.Close()
		return nil, stageFiles{}, err
	}
	return &stage{orders: ordersOut, report: reportIn}, stageFiles{ordersIn, reportOut}, nil
}

// stageCommand is this program as the named stage, in new namespaces.
func stageCommand(ctx context.Context, name string, namespaces uintptr, files stageFiles, further []*os.File) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{name}
	cmd.Dir = "/"
	cmd.Env = []string{}
	cmd.ExtraFiles = append([]*os.File{files.orders, files.report}, further...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces}
	return cmd
}

// startStage runs this program again as the named stage in new namespaces.
// The further files are its extraFD and up. prepare may set its standard streams.
func startStage(ctx context.Context, name string, namespaces uintptr, further []*os.File, prepare func(*exec.Cmd)) (*stage, error) {
	s, files, err := newStage()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer files.Close()
	s.cmd = stageCommand(ctx, name, namespaces, files, further)
	if prepare != nil {
		prepare(s.cmd)
	}
	if err := s.cmd.Start(); err != nil {
		s.orders.Close()
		s.report.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return s, nil
}

// release sends a stage its orders and returns when its set-up is done.
func release[T any](s *stage, v T) error {
	switch told, err := order(s, v); {
	case err != nil:
		return err
	case told == stageDone:
		return nil
	default:
		return errors.New(told)
	}
}

// order sends a stage its orders and returns what it reports.
func order[T any](s *stage, v T) (string, error) {
	defer s.report.Close()
	err := json.NewEncoder(s.orders).Encode(v)
	if err := errors.Join(err, s.orders.Close()); err != nil {
		return "", fmt.Errorf("order %s: %w", s.cmd.Args[0], err)
	}
	b, err := io.ReadAll(s.report)
	switch {
	case err != nil:
		return "", fmt.Errorf("read report of %s: %w", s.cmd.Args[0], err)
	case len(b) == 0:
		return "", fmt.Errorf("%s ended without a report", s.cmd.Args[0])
	}
	return string(b), nil
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
