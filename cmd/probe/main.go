// Command probe runs on a host while preflight looks at it. It is sent there, and
// carries out the orders on its standard input (package probe), one after the
// other. It removes its own file as soon as it runs, makes nothing that outlives
// it, and ends when its standard input does: also when the workstation is killed.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/kubewright/kubewright/bootstrap/probe"
)

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "probe: %v\n", err)
		os.Exit(1)
	}
}

// longest is how long a program lives whose workstation says nothing: a stuck
// connection may keep its standard input open for hours.
const longest = 2 * time.Minute

func run(orders io.Reader, replies io.Writer) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.Remove(self); err != nil {
		return err
	}
	signal.Ignore(syscall.SIGPIPE) // the end of the input says that nobody listens
	overdue := time.AfterFunc(longest, func() { os.Exit(1) })
	defer overdue.Stop()
	return serve(orders, replies)
}

// serve carries out orders until there are no more.
func serve(orders io.Reader, replies io.Writer) error {
	var h here
	defer h.close()
	in, out := json.NewDecoder(orders), json.NewEncoder(replies)
	for {
		var o probe.Order
		if err := in.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read an order: %w", err)
		}
		reply, err := h.carryOut(o)
		if err != nil {
			reply.Error = err.Error()
		}
		if err := out.Encode(reply); err != nil {
			return fmt.Errorf("reply: %w", err)
		}
	}
}

// here is what the program has open on its host.
type here struct {
	listeners []io.Closer
	udp       io.Closer // frees the port for the tunnel, nil: not open
	tunnel    *tunnel   // nil: not made
}

func (h *here) close() {
	for _, l := range h.listeners {
		l.Close() //nolint:errcheck // it ends with the process
	}
	if h.udp != nil {
		h.udp.Close() //nolint:errcheck // likewise
	}
	if h.tunnel != nil {
		h.tunnel.close()
	}
}

func (h *here) carryOut(o probe.Order) (r probe.Reply, err error) {
	switch {
	case o.Hello != nil:
	case o.Look != nil:
		r.Seen, err = look(*o.Look)
	case o.Listen != nil:
		r.Listening, err = h.listen(*o.Listen)
	case o.Reach != nil:
		r.Reached = reach(*o.Reach)
	case o.Tunnel != nil:
		err = h.dig(*o.Tunnel)
	case o.Carry != nil:
		if h.tunnel == nil {
			return r, errors.New("there is no tunnel")
		}
		r.Carried = h.tunnel.carry(*o.Carry)
	default:
		err = errors.New("an order of nothing")
	}
	return r, err
}
