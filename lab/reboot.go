package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// powerMember is, in the lab's cgroups, whoever boots a host again.
const powerMember = "power-"

// powerOrders are what a powerStage gets. Its files from extraFD on are the host's stage's: its
// pipes, its console, and what else its set-up wants.
type powerOrders struct {
	Lab, Host string
	Further   int // how many files, after the console
}

// startHost has a host's first process started, waiting for its orders. It is the child of a
// process that stays as long as it does: that alone is told how it ended.
func (l *Lab) startHost(h *hostState, further []*os.File) (*stage, process, error) {
	member := powerMember + h.Name
	if err := makeCgroups(l.trees, l.state.Name, member); err != nil {
		return nil, process{}, err
	}
	host, files, err := newStage()
	if err != nil {
		return nil, process{}, err
	}
	defer files.Close()
	fail := func(err error) (*stage, process, error) {
		host.orders.Close()
		host.report.Close()
		return nil, process{}, err
	}
	// Not bound to a context: a host outlives the program that started it.
	power, err := startStage(context.Background(), powerStage, 0, append([]*os.File{files.orders, files.report}, further...), func(cmd *exec.Cmd) {
		cmd.SysProcAttr.Setsid = true
	})
	if err != nil {
		return fail(err)
	}
	if err := enterCgroups(l.trees, l.state.Name, member, power.cmd.Process.Pid); err != nil {
		power.abandon()
		return fail(err)
	}
	host.cmd = power.cmd
	p, err := told(order(power, powerOrders{Lab: l.state.Name, Host: h.Name, Further: len(further) - 1}))
	if err != nil {
		power.reap() // it ends with the host, which gets no orders
		return fail(err)
	}
	return host, p, nil
}

// told is the process that a powerStage reports, by its id; or what else it has to say.
func told(report string, err error) (process, error) {
	if err != nil {
		return process{}, err
	}
	pid, err := strconv.Atoi(report)
	if err != nil {
		return process{}, errors.New(report)
	}
	return identify(pid)
}

// keepPower is the parent of a host's init. When that ends by reboot(2) it boots the host again,
// as a machine would; a host that was switched off, from inside or outside, stays off.
func keepPower() (int, error) {
	o, err := orders[powerOrders]()
	if err != nil {
		return 0, err
	}
	var files []*os.File
	for fd := extraFD; fd < extraFD+3+o.Further; fd++ {
		syscall.CloseOnExec(fd)
		files = append(files, os.NewFile(uintptr(fd), "stage"))
	}
	console := files[2]
	cmd := hostCommand(stageFiles{files[0], files[1]}, console, files[3:])
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start %s: %w", hostStage, err)
	}
	for i, f := range files {
		if i != 2 {
			f.Close() // the pipes' other ends see the host's
		}
	}
	p, err := identify(cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	report(strconv.Itoa(p.PID))
	syscall.Close(reportFD)
	cmd.Wait() //nolint:errcheck // how it ended is in its state
	if !restarted(cmd.ProcessState) {
		return 0, nil
	}
	fmt.Fprintf(console, "%s: reboot\n", o.Host)
	if err := bootAgain(o, p); err != nil {
		fmt.Fprintf(console, "%s: boot again: %v\n", o.Host, err)
		return 1, nil
	}
	return 0, nil
}

// hostCommand is a host's first process, in namespaces of its own.
func hostCommand(files stageFiles, console *os.File, further []*os.File) *exec.Cmd {
	const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET
	cmd := stageCommand(context.Background(), hostStage, namespaces, files, further)
	cmd.Stdout, cmd.Stderr = console, console
	cmd.SysProcAttr.Setsid = true
	return cmd
}

// restarted tells whether the first process of a pid namespace ended because one in it asked for
// a restart: reboot(2) says by which signal it then seems to have ended.
func restarted(s *os.ProcessState) bool {
	status, ok := s.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGHUP
}

// bootAgain boots a host whose init was p, unless somebody has switched it off or on since.
func bootAgain(o powerOrders, p process) error {
	ctx, cancel := bootContext(context.Background())
	defer cancel()
	l, err := Open(o.Lab)
	if err != nil {
		return err
	}
	return l.change(ctx, func() error {
		h, ok := l.state.host(o.Host)
		if !ok || h.Init != p {
			return nil
		}
		if err := l.ensureSwitch(ctx); err != nil {
			return err
		}
		return l.boot(ctx, h)
	})
}
