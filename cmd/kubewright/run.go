package main

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/kubewright/kubewright/bootstrap"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/sshhost"
	"github.com/kubewright/kubewright/bootstrap/journal"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/version"
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
	password, err := a.sudo()
	if err != nil {
		return nil, err
	}
	return sshhost.Dial(ctx, name, sshhost.Config{
		ConfigFile: a.sshConfig, AcceptNewHostKeys: a.acceptNew, KnownHosts: a.knownHosts, SudoPassword: password,
	})
}

// dialHost is dial for those who only look.
func (a *app) dialHost(ctx context.Context, name string) (host.Host, error) {
	return a.dial(ctx, name)
}

// run does what is asked for, now.
func (a *app) run(ctx context.Context, r bootstrap.Request) error {
	return a.carryOut(ctx, r, nil)
}

// carryOut does what is asked for, with what saved holds it to; nil: whatever is needed.
func (a *app) carryOut(ctx context.Context, r bootstrap.Request, saved *bootstrap.Saved) error {
	show, err := a.renderer()
	if err != nil {
		return err
	}
	began := time.Now()
	page, err := a.newPage(string(r.Verb), began)
	if err != nil {
		return err
	}
	screen := show
	show = page.over(screen)
	ctx, stop, done := interruptible(ctx, show.Notice)
	defer done()
	summary := ui.Summary{Hosts: len(r.Hosts)}
	finish := func(err error) error {
		summary.Took, summary.Err = time.Since(began), err
		show.Close(summary)
		return page.end(err)
	}

	verb := r.String()
	if saved != nil {
		verb = "apply of a saved plan: " + verb
	}
	held := newLocks(verb, show.Notice)
	w, err := a.prepare(ctx, r, held)
	if err != nil {
		return finish(err)
	}
	defer w.close()
	defer held.release(ctx)
	page.describe(w)
	if err := a.confirm(w); err != nil {
		return finish(err)
	}
	err = a.preflight(ctx, w, screen.Notice)
	page.describe(w)
	if err != nil {
		return finish(err)
	}
	opts := plan.Options{Emit: show.Event, Stop: held.orLost(stop), Diagnose: a.diagnosis(w.all()).Step}
	if saved != nil {
		now, err := a.preview(ctx, w)
		if err != nil {
			return finish(err)
		}
		if err := saved.Stale(now); err != nil {
			return finish(err)
		}
		opts.Allow = saved.Allow
	}
	lanes, proofs, err := w.lanes(journal.Run{
		ID: strings.ToLower(rand.Text())[:8], Verb: w.String(), By: signature(), Began: began.UTC(), Version: version.Kubewright,
	}, func(h host.Host) host.Host { return h }, a.kubeconfig)
	if err != nil {
		return finish(err)
	}
	page.plan(lanes)
	names := make([]string, len(lanes))
	for i, l := range lanes {
		names[i] = l.Name
	}
	show.Begin(names)
	summary.Count, err = plan.Run(ctx, opts, lanes...)
	if lost := held.lost(); lost != nil && err != nil {
		err = errors.Join(lost, err)
	}
	if isAborted(ctx, err) {
		err = fault.New(fault.Interrupted, "run the same command again: it goes on where this one stopped", "aborted: %w", err)
	}
	if err == nil {
		a.showProofs(show.Notice, proofs)
		showLost(show.Notice, w.reset.Departure)
		tellRecovered(w.recover, show.Notice)
		err = tellRestored(w.restore, show.Notice)
		tellReplaced(w, show.Notice)
	}
	return finish(err)
}
