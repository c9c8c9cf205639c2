package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process identifies a process for good: a pid alone may be another's by the time it is used.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks from boot to its start
	Boot  string `json:"boot"`  // the machine's boot id
}

// identify returns the identity of a process that the caller knows to be there.
func identify(pid int) (process, error) {
	boot, err := bootID()
	if err != nil {
		return process{}, err
	}
	start, _, err := processStat(pid)
	if err != nil {
		return process{}, err
	}
	return process{PID: pid, Start: start, Boot: boot}, nil
}

// alive tells whether the process runs; one that has ended but was not yet
// waited for does not.
func (p process) alive() bool {
	if p.PID == 0 {
		return false
	}
	if boot, err := bootID(); err != nil || boot != p.Boot {
		return false
	}
	start, state, err := processStat(p.PID)
	return err == nil && start == p.Start && state != 'Z' && state != 'X'
}

// kill sends SIGKILL and returns when the process has ended. It is no error if it had before.
func (p process) kill(ctx context.Context) error {
	if !p.alive() {
		return nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	} else if err != nil {
		return fmt.Errorf("open process %d: %w", p.PID, err)
	}
	defer unix.Close(fd)
	if !p.alive() { // only now is it sure that fd is this process
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	for {
		const step = 100 * time.Millisecond // how late a cancelled ctx is seen
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(step/time.Millisecond))
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for the end of process %d: %w", p.PID, err)
		case n > 0:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("wait for the end of process %d: %w", p.PID, context.Cause(ctx))
		}
	}
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// processStat returns the start time in ticks and the state letter of a process (proc(5)).
func processStat(pid int) (start uint64, state byte, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	// The command in parentheses may hold blanks and parentheses itself.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	const stateAt, startAt = 0, 22 - 3 // proc(5) counts from 1; pid and command, its first two, are cut off
	if len(fields) <= startAt {
		return 0, 0, fmt.Errorf("read /proc/%d/stat: %d fields", pid, len(fields))
	}
	start, err = strconv.ParseUint(string(fields[startAt]), 10, 64)
	return start, fields[stateAt][0], err
}
