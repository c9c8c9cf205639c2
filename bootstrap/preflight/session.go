package preflight

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/probe"
)

// folders are where the probe's file may stand for the moment until it runs: in
// memory first. Any of them may be mounted so that programs do not run.
var folders = [...]string{"/dev/shm", "/run", "/tmp", "/var/tmp", "/root"}

// notExecutable is the exit status of a program that is there and may not run.
const notExecutable = 126

// session is a probe that runs on a host.
type session struct {
	orders  *json.Encoder
	replies *json.Decoder
	stdin   *io.PipeWriter
	ended   chan struct{} // closed when the probe has ended
}

// open sends the probe to a host and starts it.
func open(ctx context.Context, h host.Host, program []byte) (*session, error) {
	found, err := h.Stat(ctx, folders[:]...)
	if err != nil {
		return nil, err
	}
	err = errors.New("there is no folder for temporary files")
	for _, dir := range found {
		if !dir.Exists || !dir.Mode.IsDir() {
			continue
		}
		var s *session
		if s, err = openIn(ctx, h, program, path.Join(dir.Path, ".kubewright-probe-"+rand.Text())); err == nil {
			return s, nil
		}
		var exit *host.ExitError
		if !errors.As(err, &exit) || exit.Status != notExecutable {
			return nil, err
		}
	}
	return nil, err
}

// openIn tries one place. The probe removes its own file; one that never ran cannot.
func openIn(ctx context.Context, h host.Host, program []byte, file string) (*session, error) {
	if err := h.WriteFile(ctx, file, bytes.NewReader(program), host.Meta{Mode: 0o700}); err != nil {
		return nil, err
	}
	orders, stdin := io.Pipe()
	stdout, replies := io.Pipe()
	s := &session{orders: json.NewEncoder(stdin), replies: json.NewDecoder(stdout), stdin: stdin, ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		_, err := h.Run(ctx, host.Command{Argv: []string{file}, Stdin: orders, Stdout: replies})
		if err == nil {
			err = errors.New("the probe has ended")
		}
		orders.CloseWithError(err)
		replies.CloseWithError(err)
	}()
	if _, err := s.ask(probe.Order{Hello: &probe.Hello{}}); err != nil {
		s.close()
		return nil, errors.Join(err, h.Remove(context.WithoutCancel(ctx), file))
	}
	return s, nil
}

// ask gives an order and waits for the reply.
func (s *session) ask(o probe.Order) (probe.Reply, error) {
	var r probe.Reply
	if err := s.orders.Encode(o); err != nil {
		return r, err
	}
	if err := s.replies.Decode(&r); err != nil {
		return r, err
	}
	if r.Error != "" {
		return r, &refusal{r.Error}
	}
	return r, nil
}

// refusal is an order that the host could not carry out.
type refusal struct{ text string }

func (r *refusal) Error() string { return r.text }

// close ends the probe and waits until it is gone.
func (s *session) close() {
	s.stdin.Close() //nolint:errcheck // a pipe's never fails
	<-s.ended
}

// clock is how far a host's clock is ahead of the workstation's.
type clock struct {
	ahead time.Duration
	error time.Duration // at most, either way
}

// readClock asks a few times: the quickest answer is the most exact one. It asks
// the host's own date, as lock does: what its programs take for the time counts.
func readClock(ctx context.Context, h host.Host) (clock, error) {
	const times = 3
	best := clock{error: time.Hour}
	for range times {
		asked := time.Now()
		out, err := h.Query(ctx, "date", "+%s%N")
		if err != nil {
			return best, fmt.Errorf("ask for the time: %w", err)
		}
		half := time.Since(asked) / 2
		now, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
		if err != nil {
			return best, fmt.Errorf("ask for the time: %w", err)
		}
		if half < best.error {
			// Wall clocks are compared: the round trip alone is the monotonic one's.
			best = clock{ahead: time.Unix(0, now).Sub(asked.Round(0).Add(half)), error: half}
		}
	}
	return best, nil
}
