package main

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/term"

	"github.com/kubewright/kubewright/bootstrap"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/sshhost"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
	"github.com/kubewright/kubewright/cmd/kubewright/ui"
)

// ways of showing a run.
const (
	outputAuto  = "auto"
	outputPlain = "plain"
	outputLines = "jsonl"
)

// renderer shows a run the way that was asked for.
func (a *app) renderer() (ui.Renderer, error) {
	switch a.output {
	case outputLines:
		return ui.NewJSONLines(a.stdout, time.Now), nil
	case outputPlain:
		return ui.NewPlain(a.stdout), nil
	case outputAuto, "live":
		if !isTerminal(a.stdout) || os.Getenv("TERM") == "dumb" {
			return ui.NewPlain(a.stdout), nil
		}
		file := a.stdout.(*os.File)
		width := func() int {
			columns, _, err := term.GetSize(int(file.Fd()))
			if err != nil {
				return 80
			}
			return columns
		}
		return ui.NewLive(a.stdout, width, os.Getenv("NO_COLOR") == "", time.Now), nil
	default:
		return nil, fault.New(fault.Usage, "use auto, plain or jsonl", "--output %s is not a way to show a run", a.output)
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// dial connects to a host as the flags and the user's ssh_config say.
func (a *app) dial(ctx context.Context, name string) (*sshhost.Host, error) {
	return sshhost.Dial(ctx, name, sshhost.Config{
		ConfigFile: a.sshConfig, AcceptNewHostKeys: a.acceptNew, KnownHosts: a.knownHosts,
	})
}

// connect reaches all hosts at once and looks at them. What it returns closes the connections.
func (a *app) connect(ctx context.Context, hosts []spec.Host) ([]bootstrap.Target, func(), error) {
	targets, err := bootstrap.Connect(ctx, hosts, func(ctx context.Context, h spec.Host) (bootstrap.Connection, error) {
		conn, err := a.dial(ctx, h.Name)
		if err != nil {
			return bootstrap.Connection{}, err
		}
		return bootstrap.Connection{Host: conn, Reached: conn.ServerAddr()}, nil
	})
	closeAll := func() {
		for _, t := range targets {
			if c, ok := t.Host.(io.Closer); ok {
				c.Close() //nolint:errcheck // nothing is left to be written
			}
		}
	}
	if err != nil {
		closeAll()
		return nil, nil, err
	}
	return targets, closeAll, nil
}

// dialHost is dial for those who only look.
func (a *app) dialHost(ctx context.Context, name string) (host.Host, error) {
	return a.dial(ctx, name)
}

// run connects to hosts, has the lanes planned from what is found, and runs them.
func (a *app) run(ctx context.Context, hosts []spec.Host, arch string, planLanes func(context.Context, []bootstrap.Target) ([]plan.Lane, error)) error {
	show, err := a.renderer()
	if err != nil {
		return err
	}
	began := time.Now()
	ctx, stop, done := interruptible(ctx, show.Notice)
	defer done()
	summary := ui.Summary{Hosts: len(hosts)}
	finish := func(err error) error {
		summary.Took, summary.Err = time.Since(began), err
		show.Close(summary)
		return err
	}

	targets, closeAll, err := a.connect(ctx, hosts)
	if err != nil {
		return finish(err)
	}
	defer closeAll()
	if arch != "" {
		if err := bootstrap.Suitable(targets, arch); err != nil {
			return finish(err)
		}
	}
	lanes, err := planLanes(ctx, targets)
	if err != nil {
		return finish(err)
	}
	names := make([]string, len(lanes))
	for i, l := range lanes {
		names[i] = l.Name
	}
	show.Begin(names)
	summary.Count, err = plan.Run(ctx, plan.Options{Emit: show.Event, Stop: stop, Diagnose: a.diagnosis(targets).Step}, lanes...)
	if err != nil && ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fault.New(fault.Interrupted, "run the same command again: it goes on where this one stopped", "aborted: %w", err)
	}
	return finish(err)
}
