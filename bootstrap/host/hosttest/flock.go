package hosttest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/kubewright/kubewright/bootstrap/host"
)

// What package lock asks of a host needs no script: its flock that runs as long
// as its input is open, which is one operation however long that is, the
// host's clock, and whose lock it is.

const (
	locks      = "/proc/locks"
	lockDevice = 1
	lockInode  = 1
	conflict   = 75
)

// lockCommand is flock with the program it runs, but for the directory and the file.
func lockCommand(argv []string) (file string, ok bool) {
	if len(argv) != 8 || argv[0] != "flock" || argv[6] != "tee" {
		return "", false
	}
	return argv[7], true
}

// flock holds the one lock there is until its input ends, and writes that to a file.
func (s *Sim) flock(ctx context.Context, cmd host.Command, file string) ([]byte, error) {
	s.mu.Lock()
	moment, err := s.begin(ctx, "run "+strings.Join(cmd.Argv, " "))
	if err == nil {
		err = s.gone
	}
	if err == nil && moment == After && s.holder != 0 {
		err = &host.ExitError{Argv: cmd.Argv, Status: conflict}
	}
	if err != nil {
		s.mu.Unlock()
		return nil, err
	}
	s.lastPID++
	pid := s.lastPID
	s.holder = pid
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.holder = 0
		s.mu.Unlock()
	}()
	if c, ok := cmd.Stdin.(io.Closer); ok {
		defer context.AfterFunc(ctx, func() { c.Close() })() //nolint:errcheck // the read ends, that is all
	}
	input := bufio.NewReader(cmd.Stdin)
	for written := (*node)(nil); ; {
		line, err := input.ReadBytes('\n')
		if lost := s.said(&written, file, line); lost != nil {
			return nil, lost
		}
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("%s: %w", cmd.Argv[0], context.Cause(ctx))
		case errors.Is(err, io.EOF):
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("%s: %w", cmd.Argv[0], err)
		}
	}
}

// said adds a line to the file, which the first makes anew; one that was removed meanwhile stays so.
func (s *Sim) said(written **node, file string, line []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone != nil || len(line) == 0 {
		return s.gone
	}
	if *written == nil {
		*written = &node{mode: 0o644, modified: s.now}
		if err := s.place(file, *written); err != nil {
			return pathError("open", file, err)
		}
	}
	(*written).content = append((*written).content, line...)
	(*written).modified = s.now
	return nil
}

// lockQuery answers the commands that tell of the lock.
func (s *Sim) lockQuery(argv []string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case slices.Equal(argv, []string{"date", "+%s"}):
		return strconv.FormatInt(s.now.Unix(), 10) + "\n", true
	case len(argv) == 3 && argv[0] == "stat" && argv[1] == "--format=%d:%i":
		return fmt.Sprintf("%d:%d\n", lockDevice, lockInode), true
	}
	return "", false
}

// lockFile is what /proc says of the lock's holder, under the lock of s.
func (s *Sim) lockFile(name string) ([]byte, bool) {
	switch {
	case name == locks && s.holder == 0:
		return nil, true
	case name == locks:
		return fmt.Appendf(nil, "1: FLOCK  ADVISORY  WRITE %d 00:01:%d 0 EOF\n", s.holder, lockInode), true
	case s.holder != 0 && name == fmt.Sprintf("/proc/%d/stat", s.holder):
		return fmt.Appendf(nil, "%d (tee) S 1%s\n", s.holder, strings.Repeat(" 0", 20)), true
	}
	return nil, false
}
