package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// execOrders are what an execStage gets. The namespaces are its files from extraFD on.
type execOrders struct {
	Argv []string
}

// joined are the namespaces that a command enters, in this order: after the
// mount namespace the others could not be found any more, were they not open.
func joined() []struct {
	name string
	flag int
} {
	return []struct {
		name string
		flag int
	}{
		{"cgroup", unix.CLONE_NEWCGROUP}, {"ipc", unix.CLONE_NEWIPC}, {"uts", unix.CLONE_NEWUTS},
		{"net", unix.CLONE_NEWNET}, {"pid", unix.CLONE_NEWPID}, {"mnt", unix.CLONE_NEWNS},
	}
}

// signalled is what a shell adds to the number of the signal that ended a command.
const signalled = 128

// execGrace is how long a cancelled command's output is waited for.
const execGrace = 2 * time.Second

// Exec runs a command in a host, as root, in the host's namespaces and cgroups,
// without its sshd. It returns the command's exit status, 128+n if signal n
// ended it; that it could not be run at all is an error. The command is killed
// when ctx ends.
func (l *Lab) Exec(ctx context.Context, host string, argv []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	st, err := readState(l.Name()) // not l.state: another process may have booted the host since
	if err != nil {
		return 0, err
	}
	h, ok := st.host(host)
	if !ok {
		return 0, l.noHost(host)
	}
	if len(argv) == 0 {
		return 0, fault.New(fault.Usage, "", "no command to run in %s", host)
	}
	if !h.Init.alive() {
		return 0, fault.New(fault.HostUnreachable, "kubewright lab start "+l.Name()+" "+host, "%s has no power", host)
	}
	status, err := l.exec(ctx, *h, argv, stdin, stdout, stderr)
	if err != nil {
		return 0, fmt.Errorf("run %s in %s: %w", argv[0], host, err)
	}
	return status, nil
}

func (l *Lab) exec(ctx context.Context, h hostState, argv []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	files, err := namespaceFiles(h.Init)
	if err != nil {
		return 0, err
	}
	defer closeAll(files)
	s, err := startStage(ctx, execStage, 0, files, func(cmd *exec.Cmd) {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
		// The stage kills the command: SIGKILL would leave that running.
		cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
		cmd.WaitDelay = execGrace
	})
	if err != nil {
		return 0, err
	}
	if err := enterExecCgroups(l.trees, l.Name(), h.Name, s.cmd.Process.Pid); err != nil {
		s.abandon()
		return 0, err
	}
	released := release(s, execOrders{Argv: argv})
	err = s.cmd.Wait()
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if released != nil {
		return 0, released
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	if ws := s.cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() { // with its host
		return signalled + int(ws.Signal()), nil
	}
	return s.cmd.ProcessState.ExitCode(), nil
}

// namespaceFiles opens the namespaces of a process, in the order of joined.
func namespaceFiles(p process) ([]*os.File, error) {
	var files []*os.File
	for _, ns := range joined() {
		f, err := os.Open("/proc/" + strconv.Itoa(p.PID) + "/ns/" + ns.name)
		if err != nil {
			closeAll(files)
			return nil, err
		}
		files = append(files, f)
	}
	if !p.alive() { // then the pid may have been another's
		closeAll(files)
		return nil, fmt.Errorf("open namespaces of process %d: %w", p.PID, unix.ESRCH)
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// execInHost joins the namespaces that it was given and runs the command as a
// child, which is the way into a pid namespace.
func execInHost() (int, error) {
	o, err := orders[execOrders]()
	if err != nil {
		return 0, err
	}
	runtime.LockOSThread() // all of this, the fork included, is of one thread
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return 0, fmt.Errorf("unshare: %w", err)
	}
	for i, ns := range joined() {
		if err := unix.Setns(extraFD+i, ns.flag); err != nil {
			return 0, fmt.Errorf("join %s namespace: %w", ns.name, err)
		}
		syscall.Close(extraFD + i)
	}
	os.Setenv("PATH", searchPath) // where the command is looked for
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	cmd := exec.CommandContext(ctx, o.Argv[0], o.Argv[1:]...)
	cmd.Dir = "/root"
	cmd.Env = []string{"HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/bash", "LANG=C.UTF-8", "PATH=" + searchPath}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	report(stageDone)
	syscall.Close(reportFD)
	err = cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 1, nil
	}
	ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		return signalled + int(ws.Signal()), nil
	}
	return ws.ExitStatus(), nil
}
