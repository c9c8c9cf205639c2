package hosttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/kubewright/kubewright/bootstrap/host"
)

// Answer is what a command does. The same command is answered alike each time.
type Answer struct {
	Argv   []string // all of it, exactly
	Stdout string
	Stderr string
	Status int // not zero: the command fails, after Do

	// Do is what the command changes, nil for one that only tells. It may use the
	// methods of Sim that set things up, and returns standard output, put after Stdout.
	Do func(stdin []byte) ([]byte, error)
	// Half is as much of Do as has happened in the middle of it, nil: nothing.
	Half func()
	// Hang has the command run until its context ends.
	Hang bool
}

// errNotScripted is of a command that the test did not foresee.
var errNotScripted = errors.New("the test has no answer to this command")

// Script adds answers; a later one to the same command counts.
func (s *Sim) Script(answers ...Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range answers {
		s.answers[key(a.Argv)] = a
	}
}

// key tells apart command lines.
func key(argv []string) string { return fmt.Sprintf("%q", argv) }

func (s *Sim) answer(argv []string) (Answer, error) {
	s.mu.Lock()
	a, ok := s.answers[key(argv)]
	otherwise := s.otherwise
	s.mu.Unlock()
	if !ok && otherwise != nil {
		a, ok = otherwise(argv)
		a.Argv = argv
	}
	if !ok {
		s.t.Errorf("%s: not scripted: %s", s.name, key(argv))
		return a, fmt.Errorf("%s: %w", strings.Join(argv, " "), errNotScripted)
	}
	return a, nil
}

// Query answers a command that was scripted without a Do.
func (s *Sim) Query(ctx context.Context, argv ...string) ([]byte, error) {
	if out, ok := s.lockQuery(argv); ok {
		return look(ctx, s, func() ([]byte, error) { return []byte(out), nil })
	}
	a, err := s.answer(argv)
	if err != nil {
		return nil, err
	}
	if a.Do != nil {
		s.t.Errorf("%s: Query of a command that changes the host: %s", s.name, key(argv))
	}
	if _, err := look(ctx, s, func() (struct{}, error) { return struct{}{}, nil }); err != nil {
		return nil, err
	}
	return a.result(ctx, nil)
}

// Run answers a scripted command.
func (s *Sim) Run(ctx context.Context, cmd host.Command) ([]byte, error) {
	if file, ok := lockCommand(cmd.Argv); ok {
		return s.flock(ctx, cmd, file)
	}
	a, err := s.answer(cmd.Argv)
	if err != nil {
		return nil, err
	}
	var stdin []byte
	if cmd.Stdin != nil {
		if stdin, err = io.ReadAll(cmd.Stdin); err != nil {
			return nil, fmt.Errorf("%s: read what it is to be given: %w", cmd.Argv[0], err)
		}
	}
	s.mu.Lock()
	moment, err := s.begin(ctx, "run "+strings.Join(cmd.Argv, " "))
	lost := s.gone
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	var out []byte
	switch {
	case moment == In && a.Half != nil:
		a.Half()
	case moment == After && a.Do != nil:
		out, err = a.Do(stdin)
	}
	switch {
	case lost != nil:
		return nil, lost
	case err != nil:
		return nil, fmt.Errorf("%s: %w", cmd.Argv[0], err)
	}
	out, err = a.result(ctx, out)
	if cmd.Stdout != nil {
		_, writeErr := cmd.Stdout.Write(out)
		return nil, errors.Join(err, writeErr)
	}
	return out, err
}

func (a Answer) result(ctx context.Context, out []byte) ([]byte, error) {
	if a.Hang {
		<-ctx.Done()
		return nil, fmt.Errorf("%s: %w", a.Argv[0], context.Cause(ctx))
	}
	out = append([]byte(a.Stdout), out...)
	if a.Status != 0 {
		return out, &host.ExitError{Argv: a.Argv, Status: a.Status, Stderr: a.Stderr[max(0, len(a.Stderr)-stderrKept):]}
	}
	return out, nil
}

const stderrKept = 4 << 10

// Serve has a server listen at an address of the host; serve is called with
// each connection, in a goroutine of its own.
func (s *Sim) Serve(network, address string, serve func(net.Conn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.servers[network+" "+address] = serve
}

// Dial connects to a server of Serve's; others refuse the connection.
func (s *Sim) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if network != "tcp" && network != "unix" {
		return nil, fmt.Errorf("dial %s %s: %w", network, address, net.UnknownNetworkError(network))
	}
	return look(ctx, s, func() (net.Conn, error) {
		serve, ok := s.servers[network+" "+address]
		if !ok {
			return nil, fmt.Errorf("dial %s %s from the host: %w", network, address, syscall.ECONNREFUSED)
		}
		ours, theirs := net.Pipe()
		go serve(theirs)
		return ours, nil
	})
}
