package sshhost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
)

// SudoPassword is what users type when sudo asks, the same on all hosts. One
// host tries it before all others do: a wrong one is tried once in all, for an
// account that a directory keeps is locked after a few.
type SudoPassword struct {
	secret host.Secret
	trial  chan trial // holds one value; whoever took it out is trying
}

// trial is what is known of a password.
type trial struct {
	accepted bool
	refused  string // the host that refused it
}

// maxPassword is the longest line, in bytes, that every sudo reads as a whole. It
// would leave the rest of a longer one to the command.
const maxPassword = 255

// NewSudoPassword takes a password of 1 to 255 bytes on one line; any other is a
// fault with code Usage.
func NewSudoPassword(secret host.Secret) (*SudoPassword, error) {
	switch {
	case len(secret) == 0:
		return nil, fault.New(fault.Usage, "leave out --ask-sudo-password if sudo needs none", "the password for sudo is empty")
	case len(secret) > maxPassword || bytes.ContainsAny(secret, "\n\x00"):
		return nil, fault.New(fault.Usage, "", "a password for sudo is one line of at most %d bytes", maxPassword)
	}
	p := &SudoPassword{secret: secret, trial: make(chan trial, 1)}
	p.trial <- trial{}
	return p, nil
}

// sudo is the command line by which a user becomes root. With a password it is
// asked for each command anew (-k): what sudo remembers from another session
// neither helps nor is left behind.
func sudo(p *SudoPassword) []string {
	if p == nil {
		return []string{"sudo", "-n", "--"}
	}
	return []string{"sudo", "-S", "-k", "-p", promptMark, "--"}
}

// checkSudo finds out whether sudo lets the user be root.
func (h *Host) checkSudo(ctx context.Context) error {
	if len(h.sudo) == 0 {
		return nil
	}
	check := func() (asked bool, err error) {
		_, asked, err = h.run(ctx, host.Command{Argv: []string{"true"}})
		return asked, err
	}
	if h.password == nil {
		_, err := check()
		return err
	}
	var t trial
	select {
	case t = <-h.password.trial:
	case <-ctx.Done():
		return givenUp{context.Cause(ctx)}
	}
	if t.accepted || t.refused != "" {
		h.password.trial <- t
	}
	if t.refused != "" {
		return fault.New(fault.SudoRefused, "run the same command again with the right password",
			"sudo on %s was not given the password: %s refused it, and it is tried once", h.endpoint.hostName, t.refused)
	}
	asked, err := check()
	if t.accepted {
		return err
	}
	switch {
	case err == nil:
		t.accepted = asked // a host that did not ask says nothing of it
	case asked && fault.CodeOf(err) == fault.SudoRefused:
		t.refused = h.endpoint.hostName
	}
	h.password.trial <- t
	return err
}

// run runs a command as root, and tells whether sudo asked for a password.
func (h *Host) run(ctx context.Context, cmd host.Command) (out []byte, asked bool, err error) {
	c := h.newConsole()
	out, err = h.exec(ctx, h.asRoot(cmd.Argv...), c, cmd)
	if exit := (*host.ExitError)(nil); errors.As(err, &exit) && len(h.sudo) > 0 && c.announced() == "" {
		err = h.sudoRefused(c, exit)
	}
	return out, c.prompts() > 0, err
}

// sudoRefused is the fault of a command that sudo did not run; exit is sudo's own end.
func (h *Host) sudoRefused(c *console, exit *host.ExitError) error {
	exit.Argv = append([]string{"sudo"}, exit.Argv...)
	user, name := h.endpoint.user, h.endpoint.written.host
	switch {
	case exit.Status == host.NoProgram:
		return fault.New(fault.SudoRefused, "install sudo there, or connect as root@"+name,
			"%s has no sudo, which user %s needs: %w", h.endpoint.hostName, user, exit)
	case h.password == nil:
		return fault.New(fault.SudoRefused,
			fmt.Sprintf("add --ask-sudo-password, or put the line \"%s ALL=(ALL) NOPASSWD: ALL\" in /etc/sudoers.d/%s there, or connect as root@%s", user, user, name),
			"sudo on %s does not let %s be root without a password: %w", h.endpoint.hostName, user, exit)
	case c.prompts() > 0:
		return fault.New(fault.SudoRefused,
			fmt.Sprintf("see whether `ssh -t %s@%s sudo true` takes the password, then run the same command again", user, name),
			"sudo on %s does not let %s be root with this password, which was tried once: %w", h.endpoint.hostName, user, exit)
	default:
		return fault.New(fault.SudoRefused,
			fmt.Sprintf("see that sudoers there has the line \"%s ALL=(ALL) ALL\" and no requiretty for %s, or connect as root@%s", user, user, name),
			"sudo on %s did not ask for a password, and does not let %s be root: %w", h.endpoint.hostName, user, exit)
	}
}

// What a session's standard error holds before the command itself runs.
const (
	promptMark = "kubewright-sudo:" // sudo waits for a password
	pidMark    = "kubewright-pid:"  // the command's process id follows, and it begins
)

// console is the standard error of a session. It answers sudo, tells when the
// command itself begins, and keeps the last bytes for an error.
//
// Until a command begins, sudo may read what is written to standard input: the
// password alone must go there, and not unless sudo asks, or the command would get it.
type console struct {
	password host.Secret    // nil: sudo does not ask
	stdin    io.WriteCloser // the session's, to be set before it starts

	mu    sync.Mutex
	kept  []byte
	asked int
	pid   string

	settled chan struct{} // closed when the command has begun, or never will
	settle  func()
}

// newConsole is for a session in which root's command runs.
func (h *Host) newConsole() *console {
	if h.password == nil {
		return newConsole(nil)
	}
	return newConsole(h.password.secret)
}

func newConsole(password host.Secret) *console {
	c := &console{password: password, settled: make(chan struct{})}
	c.settle = sync.OnceFunc(func() { close(c.settled) })
	return c
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept = append(c.kept, p...)
	if c.pid == "" {
		c.advance()
	}
	if over := len(c.kept) - stderrKept; over > 0 {
		c.kept = append(c.kept[:0], c.kept[over:]...)
	}
	return len(p), nil
}

// advance looks for the command's beginning, then for a prompt: what the command
// itself says may have come with the former, and is not sudo's.
func (c *console) advance() {
	if before, after, ok := bytes.Cut(c.kept, []byte(pidMark)); ok { // sshd may have put lines of its own before it
		if pid, rest, ok := bytes.Cut(after, []byte("\n")); ok {
			c.pid, c.kept = string(pid), append(bytes.Clone(before), rest...)
			c.settle()
		}
		return
	}
	if _, after, ok := bytes.Cut(c.kept, []byte(promptMark)); ok && c.password != nil {
		c.kept = bytes.Clone(after) // a lecture, or what sshd said, goes with the prompt
		c.answer()
	}
}

// answer gives sudo the password, once. When it asks again it gets the end of its
// input, and gives up: every wrong answer brings an account closer to being locked.
func (c *console) answer() {
	if c.asked++; c.asked > 1 {
		c.stdin.Close() //nolint:errcheck // sudo sees its end, or is gone
		return
	}
	line := append(bytes.Clone(c.password), '\n')
	c.stdin.Write(line) //nolint:errcheck // sudo may be gone: the session's end tells
	clear(line)
}

// begun waits until standard input is the command's, and tells whether it ever is.
func (c *console) begun() bool {
	if c.password == nil {
		return true
	}
	<-c.settled
	return c.announced() != ""
}

func (c *console) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.kept)
}

// announced is the process id that the command told, "" if it has not begun.
func (c *console) announced() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pid
}

// prompts is how often sudo asked for a password.
func (c *console) prompts() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked
}
