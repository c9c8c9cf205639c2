package trial

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kubewright/kubewright/bootstrap/bundle"
)

// program is the bundle's component binary, in memory: no folder has to allow programs,
// and nothing is left when its last process ends.
type program struct{ file *os.File }

// load takes it out of the bundle.
func load(b *bundle.Bundle) (*program, error) {
	fd, err := unix.MemfdCreate("kube", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // a kernel before 6.3, where all of them may be run
		fd, err = unix.MemfdCreate("kube", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("make room for the programs in memory: %w", err)
	}
	p := &program{os.NewFile(uintptr(fd), "kube")}
	if err := b.Extract("bin/kube", p.file); err != nil {
		return nil, errors.Join(err, p.file.Close())
	}
	return p, nil
}

// Close frees the memory, as soon as no process runs it any more.
func (p *program) Close() error { return p.file.Close() }

// process is a component that runs.
type process struct {
	cmd  *exec.Cmd
	log  tail
	done chan struct{} // closed when it ended
	err  error         // how, once done is closed
}

// start runs a component in dir. It ends when this program does, whatever ends it.
func (p *program) start(dir string, argv ...string) (*process, error) {
	run := &process{done: make(chan struct{})}
	// By our own number: the file is closed in the new process before it is opened there.
	run.cmd = exec.Command(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), p.file.Fd()), argv...)
	run.cmd.Dir = dir
	run.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir}
	run.cmd.Stdout, run.cmd.Stderr = &run.log, &run.log
	// A group of its own: Ctrl-C is ours to deal with.
	run.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := run.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	go func() {
		run.err = run.cmd.Wait()
		close(run.done)
	}()
	return run, nil
}

// wait returns when the process has ended by itself, or was killed because ctx ended.
func (p *process) wait(ctx context.Context) error {
	select {
	case <-p.done:
	case <-ctx.Done():
		p.kill()
		return context.Cause(ctx)
	}
	if p.err != nil {
		return fmt.Errorf("%w%s", p.err, p.log.said())
	}
	return nil
}

// kill ends it and waits until it has ended.
func (p *process) kill() {
	p.cmd.Process.Kill() //nolint:errcheck // it may have ended by itself
	<-p.done
}

// until waits until ask succeeds, which it tries as long as the process runs, and no
// longer than within.
func (p *process) until(ctx context.Context, what string, within time.Duration, ask func(context.Context) error) error {
	waiting, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("not within %s", within))
	defer cancel()
	asking, enough := context.WithCancel(waiting)
	defer enough()
	go func() {
		select {
		case <-p.done:
			enough() // nobody will answer any more
		case <-asking.Done():
		}
	}()
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		err := ask(asking)
		var last *final
		if err == nil || errors.As(err, &last) {
			return err
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s does not start: it ended: %w%s", what, p.err, p.log.said())
		case <-waiting.Done():
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("wait for %s: %w: %w%s", what, context.Cause(waiting), err, p.log.said())
		case <-tick.C:
		}
	}
}

// tail keeps the end of what a process writes.
type tail struct {
	mu   sync.Mutex
	text []byte
}

const tailSize = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if extra := len(t.text) - tailSize; extra > 0 {
		t.text = bytes.Clone(t.text[extra:])
	}
	return len(p), nil
}

// said are the last lines, for messages.
func (t *tail) said() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(string(t.text)), "\n")
	const last = 5
	return "\n" + strings.Join(lines[max(0, len(lines)-last):], "\n")
}

var _ io.Writer = (*tail)(nil)
