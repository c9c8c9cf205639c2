// Package lock says who works on a host. One run at a time has it, and whoever
// comes second is told whose it is.
//
// The lock is the kernel's: a process on the host holds a flock for as long as
// our connection stands, so that it is free at the moment in which the run is
// killed, the connection is closed or the host loses its power. What is left is
// a run whose workstation vanished without a word. It gives no sign of life, by
// the host's clock, and the next one that wants the lock ends its connection on
// the host first: a laptop that wakes up later cannot go on changing the host.
package lock

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"sync"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
)

const (
	// File has the holder as JSON in its first line, then a line for each sign of
	// life. It is there while the lock is held, and after a run that was killed.
	File = "/run/kubewright.lock"
	// lockedDir is what the flock is on: it is there wherever systemd runs, so
	// nothing has to be made or left.
	lockedDir = "/run/systemd"
)

const (
	beat     = 5 * time.Second        // between two signs of life
	silence  = 30 * time.Second       // without one, after which a holder may be dead
	watch    = 2*beat + 2*time.Second // that it is looked at then: a clock that was set makes no run dead
	patience = 10 * time.Second       // for the host to do what takes it a moment
	poll     = 25 * time.Millisecond
)

// Holder is who works on a host, and on what.
type Holder struct {
	User    string    `json:"user"`    // on the workstation
	From    string    `json:"from"`    // the workstation's host name
	Verb    string    `json:"verb"`    // with its arguments: init w1 w2
	Cluster string    `json:"cluster"` // name, "" if it has none yet
	Since   time.Time `json:"since"`   // by the host's clock; set by Take
	Nonce   string    `json:"nonce"`   // of this one Take; set by it
}

// String is who it is, since when, and at what: for messages.
func (h Holder) String() string {
	s := fmt.Sprintf("%s on %s, since %s: kubewright %s", h.User, h.From, h.Since.UTC().Format(time.DateTime+" MST"), h.Verb)
	if h.Cluster != "" {
		s += " (cluster " + h.Cluster + ")"
	}
	return s
}

// Held is a lock that we have.
type Held struct {
	// TookOver is the dead holder whose connection was ended for this, nil: there was none.
	TookOver *Holder

	m     mechanism
	host  host.Host
	quiet chan struct{} // closed to end the signs of life, and the input they go to
	hush  func()        // closes quiet, once
	end   func()        // gives the command up
	ended chan struct{} // closed when the command has ended
	err   error         // how; to be read after that
}

// Take takes a host's lock for who, until Release, also beyond ctx's end. If
// another has it, it is a fault.HostLocked that says who, since when, and on
// what. A holder that is dead is ended on the host first.
func Take(ctx context.Context, h host.Host, who Holder) (*Held, error) {
	return standard().take(ctx, h, who)
}

// mechanism is how it is done; its parts differ in tests alone.
type mechanism struct {
	dir, file            string
	beat, silence, watch time.Duration
}

func standard() mechanism { return mechanism{lockedDir, File, beat, silence, watch} }

// conflict is the exit status of flock where another has the lock.
const conflict = 75

// command holds the lock while its input is open, and writes that input to the
// file once it has the lock and not before. One process does both: the one that
// /proc/locks names.
func (m mechanism) command() []string {
	return []string{"flock", "--nonblock", "--no-fork", "--conflict-exit-code", strconv.Itoa(conflict), m.dir, "tee", m.file}
}

// tries bounds how often holders may come and go while we look at them.
const tries = 3

func (m mechanism) take(ctx context.Context, h host.Host, who Holder) (*Held, error) {
	var dead *Holder
	for range tries {
		held, err := m.try(ctx, h, who)
		if exit := (*host.ExitError)(nil); !errors.As(err, &exit) || exit.Status != conflict {
			if held != nil {
				held.TookOver = dead
			}
			return held, err
		}
		seen, err := m.observe(ctx, h)
		if err != nil {
			return nil, err
		}
		if seen.process.pid == 0 {
			continue // it has ended meanwhile
		}
		if seen.age() < m.silence {
			return nil, seen.refusal(h.Name())
		}
		select {
		case <-time.After(m.watch):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		again, err := m.observe(ctx, h)
		if err != nil {
			return nil, err
		}
		if !again.same(seen) {
			if again.process.pid != 0 {
				return nil, again.refusal(h.Name())
			}
			continue
		}
		if err := m.fence(ctx, h, seen); err != nil {
			return nil, err
		}
		dead = seen.holder()
	}
	return nil, fault.New(fault.HostLocked, "run the same command again", "other runs take the host's lock in turn")
}

// try takes the lock if it is free; an *host.ExitError with status conflict, if not.
func (m mechanism) try(ctx context.Context, h host.Host, who Holder) (*Held, error) {
	now, err := clock(ctx, h)
	if err != nil {
		return nil, err
	}
	who.Since, who.Nonce = now, rand.Text()
	line, err := json.Marshal(who)
	if err != nil {
		return nil, err
	}
	run, end := context.WithCancel(context.WithoutCancel(ctx))
	input, output := io.Pipe()
	quiet := make(chan struct{})
	held := &Held{
		m: m, host: h, ended: make(chan struct{}), end: end,
		quiet: quiet, hush: sync.OnceFunc(func() { close(quiet) }),
	}
	go func() {
		_, held.err = h.Run(run, host.Command{Argv: m.command(), Stdin: input})
		input.Close() //nolint:errcheck // it always succeeds; whoever writes sees it
		close(held.ended)
	}()
	go held.speak(output, append(line, '\n'))
	if err := held.begin(ctx, who.Nonce); err != nil {
		held.drop(ctx)
		return nil, err
	}
	return held, nil
}

// speak says who we are, and then that we live.
func (h *Held) speak(w *io.PipeWriter, line []byte) {
	defer w.Close() //nolint:errcheck // it always succeeds
	tick := time.NewTicker(h.m.beat)
	defer tick.Stop()
	for {
		if _, err := w.Write(line); err != nil {
			return // the command has ended
		}
		line = []byte("\n")
		select {
		case <-tick.C:
		case <-h.quiet:
			return
		}
	}
}

// begin waits until the file has our nonce: we have the lock then.
func (h *Held) begin(ctx context.Context, nonce string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fault.New(fault.Timeout, "look what keeps the host busy, then run the same command again",
		"%s: the lock was not taken within %s", h.m.file, patience))
	defer cancel()
	for {
		content, err := h.host.ReadFile(ctx, h.m.file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if bytes.Contains(content, []byte(nonce)) {
			return nil
		}
		select {
		case <-h.ended:
			return h.why()
		case <-time.After(poll):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// why is what the command ended with, before it was to.
func (h *Held) why() error {
	exit := (*host.ExitError)(nil)
	switch {
	case h.err == nil:
		return errors.New("the command that holds the lock has ended")
	case errors.As(h.err, &exit) && exit.Status == host.NoProgram:
		return fault.New(fault.HostUnsuitable, "install util-linux and coreutils on the host", "the host cannot be locked: %w", h.err)
	}
	return h.err
}

// drop ends the command, if need be by force, and returns when it has ended.
func (h *Held) drop(ctx context.Context) {
	defer h.end()
	h.hush()
	select {
	case <-h.ended:
		return
	case <-ctx.Done():
	case <-time.After(patience):
	}
	h.end()
	<-h.ended
}

// Lost is closed when the lock's command on the host has ended: also by Release,
// but before that it is no longer ours. The run must not begin another operation.
func (h *Held) Lost() <-chan struct{} { return h.ended }

// Err says why a lock that is Lost was; nil before that.
func (h *Held) Err() error {
	select {
	case <-h.ended:
	default:
		return nil
	}
	err := h.why()
	if f := (*fault.Fault)(nil); errors.As(err, &f) {
		return fmt.Errorf("the host's lock was lost: %w", err)
	}
	return fault.New(fault.HostLocked, "see who works on the host, then run the same command again: it goes on from there",
		"the host's lock was lost: %w", err)
}

// Release gives the lock back and leaves nothing on the host. ctx must be one
// that has not ended with the run. A lock that was lost is Err.
func (h *Held) Release(ctx context.Context) error {
	if err := h.Err(); err != nil {
		return err // the file is another's now, or of no interest to anyone
	}
	err := h.host.Remove(ctx, h.m.file) // while it is ours
	h.drop(ctx)
	return err
}
