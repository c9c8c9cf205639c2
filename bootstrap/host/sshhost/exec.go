package sshhost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
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

// asRoot is argv as it becomes root, with messages in English and a known search path.
func (h *Host) asRoot(argv ...string) []string {
	wrapped := append([]string(nil), h.sudo...)
	return append(append(wrapped, "env", searchPath, "LC_ALL=C"), argv...)
}

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
	return h.exec(ctx, h.asRoot(append([]string{"sh", "-c", announce, "sh"}, cmd.Argv...)...), cmd)
}

// announce makes a command tell its process id before all else, so that it can
// be ended: sshd passes on no signals to what root runs, nor to what sudo runs.
const (
	announce  = `echo "` + pidMark + `$$" >&2; exec "$@"`
	pidMark   = "kubewright-pid:"
	killGrace = time.Second
)

// kill ends a command that was given up, as far as that can be done in a moment.
func (h *Host) kill(pid string) {
	ctx, cancel := context.WithTimeout(context.Background(), killGrace)
	defer cancel()
	line, err := commandLine(h.asRoot("kill", "-TERM", pid)...)
	if err != nil {
		return
	}
	await(ctx, func() (none, error) { //nolint:errcheck // it may have ended by itself
		session, err := h.client.NewSession()
		if err != nil {
			return none{}, err
		}
		defer session.Close() //nolint:errcheck // it is closed with the command's end
		return none{}, session.Run(line)
	})
}

// exec runs full in a session, and speaks of it as cmd.
func (h *Host) exec(ctx context.Context, full []string, cmd host.Command) ([]byte, error) {
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
	if cmd.Stdin != nil {
		stdin, err := session.StdinPipe()
		if err != nil {
			return nil, err
		}
		go func() {
			defer stdin.Close() //nolint:errcheck // the command sees its end, or is gone
			from := &source{r: cmd.Stdin}
			io.Copy(stdin, from) //nolint:errcheck // a command may end without reading all
			if from.err != nil {
				cancel(fmt.Errorf("%s: read what it is to be given: %w", cmd.Argv[0], from.err))
			}
		}()
	}
	stderr := &tail{}
	session.Stderr = stderr
	out, err := await(ctx, func() ([]byte, error) {
		if cmd.Stdout == nil {
			return session.Output(line)
		}
		session.Stdout = cmd.Stdout
		return nil, session.Run(line)
	})
	if ctx.Err() != nil { // also if the command ended well on half of its input
		if pid := stderr.announced(); pid != "" {
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
		failed := &host.ExitError{Argv: cmd.Argv, Status: exit.ExitStatus(), Stderr: stderr.text()}
		if exit.Signal() != "" {
			failed.Stderr += "\nkilled by signal " + exit.Signal()
		}
		return out, failed
	default:
		return nil, h.explain(fmt.Errorf("%s: %w", strings.Join(cmd.Argv, " "), err))
	}
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

// tail keeps the last bytes written to it, and the process id among the first.
type tail struct {
	mu   sync.Mutex
	kept []byte
	pid  string
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, p...)
	if t.pid == "" { // sshd may have put lines of its own before it
		if before, after, ok := bytes.Cut(t.kept, []byte(pidMark)); ok {
			if pid, rest, ok := bytes.Cut(after, []byte("\n")); ok {
				t.pid, t.kept = string(pid), append(bytes.Clone(before), rest...)
			}
		}
	}
	if over := len(t.kept) - stderrKept; over > 0 {
		t.kept = append(t.kept[:0], t.kept[over:]...)
	}
	return len(p), nil
}

func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.kept)
}

// announced is the process id that the command told, "" if it has not yet.
func (t *tail) announced() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.pid
}

// pipe is a program on the host as a stream: its standard input and output.
type pipe struct {
	io.Reader
	io.WriteCloser
	session *ssh.Session
}

// start runs full in a session of its own that lasts until the pipe is closed.
func start(client *ssh.Client, full ...string) (*pipe, error) {
	line, err := commandLine(full...)
	if err != nil {
		return nil, err
	}
	session, err := client.NewSession()
	if err != nil {
		return nil, err
	}
	p := &pipe{session: session}
	p.WriteCloser, err = session.StdinPipe()
	if err == nil {
		p.Reader, err = session.StdoutPipe()
	}
	if err == nil {
		err = session.Start(line)
	}
	if err != nil {
		session.Close() //nolint:errcheck // it never ran
		return nil, err
	}
	return p, nil
}

func (p *pipe) Close() error {
	err := p.WriteCloser.Close()
	p.session.Close() //nolint:errcheck // the other end may have closed it first
	return err
}

// closeGrace bounds the wait for a connection's own word on why it ended.
const closeGrace = time.Second
