package sshhost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/kubewright/kubewright/bootstrap/host"
	"golang.org/x/crypto/ssh"
)

// searchPath is where commands are looked for: sessions that are no login shell
// of a user other than root often lack the sbin folders.
const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// maxSessions bounds the commands that run at once on a connection: sshd
// refuses more than MaxSessions, 10 by default, of which SFTP and D-Bus use up to 3.
const maxSessions = 6

// stderrKept is how much of a command's standard error an ExitError has.
const stderrKept = 4 << 10

// quote makes one argument a word of the POSIX shell.
func quote(arg string) string {
	if arg != "" && strings.Trim(arg, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789%+,-./:=@_") == "" {
		return arg
	}
	return "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
}

// commandLine is argv as sshd hands it to the user's shell. This is the one
// place where a command becomes text.
func commandLine(argv ...string) (string, error) {
	words := make([]string, len(argv))
	for i, arg := range argv {
		if strings.IndexByte(arg, 0) >= 0 {
			return "", fmt.Errorf("argument %d of %s holds a NUL", i, argv[0])
		}
		words[i] = quote(arg)
	}
	return strings.Join(words, " "), nil
}

// asRoot is argv as it becomes root, with messages in English and a known search
// path. It announces itself.
func (h *Host) asRoot(argv ...string) []string {
	wrapped := append([]string(nil), h.sudo...)
	return append(append(wrapped, "env", searchPath, "LC_ALL=C", "sh", "-c", announce, "sh"), argv...)
}

// announce makes a command tell its process id before all else: so that it can be
// ended, for sshd passes on no signals to what root runs, nor to what sudo runs;
// and so that it is known to run, and not to have been refused by sudo.
const announce = `echo "` + pidMark + `$$" >&2; exec "$@"`

const killGrace = time.Second

// Query runs a command that changes nothing.
func (h *Host) Query(ctx context.Context, argv ...string) ([]byte, error) {
	return h.Run(ctx, host.Command{Argv: argv})
}

// Run runs a command as root. When ctx ends, the command is sent SIGTERM and
// left to itself: whether it heeds that is not waited for.
func (h *Host) Run(ctx context.Context, cmd host.Command) ([]byte, error) {
	if len(cmd.Argv) == 0 {
		return nil, errors.New("run: no command")
	}
	out, _, err := h.run(ctx, cmd)
	return out, err
}

// kill ends a command that was given up, as far as that can be done in a moment.
func (h *Host) kill(pid string) {
	ctx, cancel := context.WithTimeout(context.Background(), killGrace)
	defer cancel()
	await(ctx, func() (none, error) { //nolint:errcheck // it may have ended by itself
		p, err := h.start("kill", "-TERM", pid)
		if err != nil {
			return none{}, err
		}
		defer p.Close() //nolint:errcheck // it is closed with the command's end
		_, err = io.Copy(io.Discard, p)
		return none{}, err
	})
}

// exec runs full in a session with the console c, and speaks of it as cmd.
func (h *Host) exec(ctx context.Context, full []string, c *console, cmd host.Command) ([]byte, error) {
	line, err := commandLine(full...)
	if err != nil {
		return nil, err
	}
	select {
	case h.sessions <- struct{}{}:
		defer func() { <-h.sessions }()
	case <-ctx.Done():
		return nil, givenUp{context.Cause(ctx)}
	}
	session, err := await(ctx, h.client.NewSession)
	if err != nil {
		return nil, h.explain(fmt.Errorf("%s: open a session: %w", cmd.Argv[0], err))
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if c.stdin, err = session.StdinPipe(); err != nil {
		return nil, err
	}
	feed := func() {
		defer c.stdin.Close() //nolint:errcheck // the command sees its end, or is gone
		if !c.begun() || cmd.Stdin == nil {
			return
		}
		from := &source{r: cmd.Stdin}
		io.Copy(c.stdin, from) //nolint:errcheck // a command may end without reading all
		if from.err != nil {
			cancel(fmt.Errorf("%s: read what it is to be given: %w", cmd.Argv[0], from.err))
		}
	}
	out, err := await(ctx, func() ([]byte, error) {
		defer c.settle()
		var stdout bytes.Buffer
		session.Stdout, session.Stderr = &stdout, c
		if cmd.Stdout != nil {
			session.Stdout = cmd.Stdout
		}
		if err := session.Start(line); err != nil {
			return nil, err
		}
		go feed() // not before: sshd drops what comes before it knows the command
		err := session.Wait()
		return stdout.Bytes(), err
	})
	if ctx.Err() != nil { // also if the command ended well on half of its input
		// It may run already, and its word of that be on the way: it would go on for ever.
		select {
		case <-c.settled:
		case <-time.After(killGrace):
		}
		if pid := c.announced(); pid != "" {
			h.kill(pid)
		}
		go session.Close() //nolint:errcheck // the connection may be stuck
		return nil, fmt.Errorf("%s: %w", cmd.Argv[0], context.Cause(ctx))
	}
	session.Close() //nolint:errcheck // the server closes it with the command's end
	var exit *ssh.ExitError
	switch {
	case err == nil:
		return out, nil
	case errors.As(err, &exit):
		return out, exitError(exit, c, cmd.Argv)
	default:
		return nil, h.explain(fmt.Errorf("%s: %w", strings.Join(cmd.Argv, " "), err))
	}
}

func exitError(exit *ssh.ExitError, c *console, argv []string) *host.ExitError {
	failed := &host.ExitError{Argv: argv, Status: exit.ExitStatus(), Stderr: c.text()}
	if exit.Signal() != "" {
		failed.Stderr += "\nkilled by signal " + exit.Signal()
	}
	return failed
}

// await returns what f returns, or ctx's cause if that comes first; f then goes
// on by itself until the connection answers or ends.
func await[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := f()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		var zero T
		return zero, givenUp{context.Cause(ctx)}
	}
}

// givenUp is the end of a caller's ctx, whatever its cause.
type givenUp struct{ error }

func (g givenUp) Unwrap() error { return g.error }

// source tells the errors of a reader from those of what it is copied to.
type source struct {
	r   io.Reader
	err error // nil at EOF
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // io.Reader returns EOF itself
		s.err = err
	}
	return n, err
}

// pipe is a program on the host as a stream: its standard input and output.
type pipe struct {
	io.Reader
	io.WriteCloser
	session *ssh.Session
}

// start runs a command as root in a session of its own that lasts until the pipe is closed.
func (h *Host) start(argv ...string) (*pipe, error) {
	line, err := commandLine(h.asRoot(argv...)...)
	if err != nil {
		return nil, err
	}
	session, err := h.client.NewSession()
	if err != nil {
		return nil, err
	}
	p, c := &pipe{session: session}, h.newConsole()
	session.Stderr = c
	p.WriteCloser, err = session.StdinPipe()
	if err == nil {
		p.Reader, err = session.StdoutPipe()
	}
	if err == nil {
		c.stdin = p.WriteCloser
		err = session.Start(line)
	}
	if err != nil {
		session.Close() //nolint:errcheck // it never ran
		return nil, err
	}
	ended := make(chan error, 1)
	go func() {
		ended <- session.Wait()
		c.settle()
	}()
	if c.begun() {
		return p, nil
	}
	p.Close() //nolint:errcheck // it has ended
	err = <-ended
	if exit := (*ssh.ExitError)(nil); errors.As(err, &exit) {
		return nil, h.sudoRefused(c, exitError(exit, c, argv))
	}
	return nil, fmt.Errorf("%s: %w", strings.Join(argv, " "), err)
}

func (p *pipe) Close() error {
	err := p.WriteCloser.Close()
	p.session.Close() //nolint:errcheck // the other end may have closed it first
	return err
}

// closeGrace bounds the wait for a connection's own word on why it ended.
const closeGrace = time.Second
