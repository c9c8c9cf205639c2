// Package component is the frame of our own components that run until they are told to stop: a
// command line, a log, a signal, an exit status.
package component

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"k8s.io/klog/v2"

	"github.com/kubewright/kubewright/bootstrap/version"
)

// Component is a program by the name of Name.
type Component struct {
	Name    string
	BuiltOn string // a component of bootstrap/version whose version --version shows, too; "" for none
	Options Options
}

// Options are a component's command line, and what it does by it.
type Options interface {
	// Declare declares the flags.
	Declare(*flag.FlagSet)
	// Check says what is wrong with them, all at once.
	Check() error
	// Run works until ctx ends (nil), or until it no longer can.
	Run(ctx context.Context, log *slog.Logger) error
}

// Main runs the component until SIGTERM or an interrupt, and exits: 0 after a signal, 1 on failure, 2 on
// a wrong command line.
func (c Component) Main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(c.Command(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// Command runs the component until ctx ends, and returns its exit status.
func (c Component) Command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	versions, err := c.parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "%s: %v\n", c.Name, err)
		return 2
	case versions:
		err = c.printVersion(stdout)
	default:
		err = c.Options.Run(ctx, Log(stderr))
	}
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", c.Name, err)
		return 1
	}
	return 0
}

// Parse reads the command line into the options.
func (c Component) Parse(args []string) error {
	_, err := c.parse(args, io.Discard)
	return err
}

func (c Component) parse(args []string, usage io.Writer) (versions bool, err error) {
	flags := flag.NewFlagSet(c.Name, flag.ContinueOnError)
	flags.SetOutput(usage)
	flags.BoolVar(&versions, "version", false, "print the version and exit")
	c.Options.Declare(flags)
	if err := flags.Parse(args); err != nil || versions {
		return versions, err
	}
	if flags.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	return false, errors.Join(err, c.Options.Check())
}

func (c Component) printVersion(w io.Writer) error {
	line := c.Name + " " + version.Kubewright
	if c.BuiltOn != "" {
		of, err := version.Components()
		if err != nil {
			return err
		}
		line += " (" + c.BuiltOn + " " + of.Of(c.BuiltOn) + ")"
	}
	_, err := fmt.Fprintln(w, line)
	return err
}

// Log is a component's log. The libraries' goes nowhere, as they tell every try: what matters of that,
// the component tells as a change of state.
func Log(w io.Writer) *slog.Logger {
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	return slog.New(slog.NewTextHandler(w, nil))
}
