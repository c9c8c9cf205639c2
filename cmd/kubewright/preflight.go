package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/kubewright/kubewright/bootstrap"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/host/sshhost"
	"github.com/kubewright/kubewright/bootstrap/preflight"
	"github.com/kubewright/kubewright/bootstrap/spec"
	"github.com/kubewright/kubewright/cmd/kubewright/ui"
)

func (a *app) preflightCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "preflight HOST... | -f cluster.yaml",
		Short: "Find what would keep hosts from becoming a cluster, and change nothing",
		Long: "preflight looks at hosts and at what is between them, as init and join do before their first change: the first\n" +
			"HOST as a control-plane node, the others as workers. A program is sent to each, and is gone afterwards.\n" +
			"It ends with 0 if nothing would stop init.",
		Example: "  kubewright preflight cp1 w1 w2\n  kubewright preflight -f cluster.yaml -o json",
		RunE: func(c *cobra.Command, args []string) error {
			var wish *spec.Cluster
			var err error
			switch {
			case a.specPath != "" && len(args) > 0:
				return usage(c, fmt.Errorf("name hosts on the command line or in the file, not both"))
			case a.specPath != "":
				wish, err = a.loadSpec()
			case len(args) == 0:
				return usage(c, fmt.Errorf("name hosts, or a cluster file with -f"))
			default:
				wish = &spec.Cluster{}
				for _, name := range args {
					wish.Hosts = append(wish.Hosts, spec.Host{Name: name})
				}
				wish.Default()
				err = wish.Validate()
			}
			if err != nil {
				return err
			}
			return a.runPreflight(c.Context(), wish)
		},
	}
	a.addRunFlags(c.Flags())
	return c
}

func (a *app) runPreflight(ctx context.Context, wish *spec.Cluster) error {
	b, err := a.usableBundle(ctx)
	if err != nil {
		return err
	}
	defer b.Close() //nolint:errcheck // only read from
	targets, closeAll, err := a.connect(ctx, wish.Hosts)
	if err != nil {
		return err
	}
	defer closeAll()
	if busy := others(ctx, targets); len(busy) > 0 {
		return fault.New(fault.HostLocked, "wait for that run to end", "preflight would be in its way: %s", strings.Join(busy, "; "))
	}
	founder := bootstrap.FounderFirst(targets)
	if err := bootstrap.RefuseFiles(ctx, wish, founder[0], founder[1:]); err != nil {
		return err
	}
	report, err := bootstrap.Preflight{Targets: targets, Cluster: wish, Bundle: b, Ignore: a.ignore}.Run(ctx)
	if report == nil && err != nil {
		return err
	}
	if a.output == "json" {
		if jsonErr := writeJSON(a.stdout, append(finding.Report{}, report...)); jsonErr != nil {
			return jsonErr
		}
	} else if showErr := renderFindings(a.stdout, report); showErr != nil {
		return showErr
	}
	if blocking := len(report.Blocking()); blocking > 0 { // the table says it all
		return &exitStatus{fault.Exit(fault.New(fault.HostUnsuitable, "", "%d findings", blocking))}
	}
	return err
}

// preflight looks at the hosts that something is installed on, before the first
// change. What it finds is told, but for what blocks: that is the error.
func (a *app) preflight(ctx context.Context, w *work, notice func(string)) error {
	if w.bundle == nil {
		return nil
	}
	p := bootstrap.Preflight{Targets: w.targets, Cluster: w.Spec, Bundle: w.bundle, Ignore: a.ignore}
	if w.Verb == verbJoin {
		p.Cluster, p.Servers = w.live.Spec, w.live.Servers
		var leave func()
		p.Neighbours, leave = a.neighbours(ctx, w.live.Neighbours(w.targets))
		defer leave()
	}
	report, err := p.Run(ctx)
	w.findings = append(finding.Report{}, report...)
	for _, f := range report {
		if f.Severity != finding.Error || f.Ignored {
			notice(string(f.Severity) + ": " + f.String())
		}
	}
	return err
}

// neighbourTime bounds the way to a node that nothing is to be done on: it may be dead.
const neighbourTime = 5 * time.Second

// neighbours reaches nodes, as far as they can be. What it returns closes the connections.
func (a *app) neighbours(ctx context.Context, nodes []bootstrap.Member) ([]preflight.Neighbour, func()) {
	dialing, cancel := context.WithTimeoutCause(ctx, neighbourTime, fmt.Errorf("no answer in %v", neighbourTime))
	defer cancel()
	all := make([]preflight.Neighbour, len(nodes))
	connections := make([]*sshhost.Host, len(nodes))
	var reached sync.WaitGroup
	for i, n := range nodes {
		all[i] = preflight.Neighbour{Name: n.Host, Address: n.Address}
		reached.Go(func() {
			if connections[i], all[i].Err = a.dial(dialing, n.Host); all[i].Err == nil {
				all[i].Host = connections[i]
			}
		})
	}
	reached.Wait()
	return all, func() {
		for _, c := range connections {
			if c != nil {
				c.Close() //nolint:errcheck // nothing is left to be written
			}
		}
	}
}

// ignored are the codes of findings to go on in spite of, as a flag.
type ignored []finding.Code

func (i *ignored) Set(text string) error {
	if _, known := finding.Explain(finding.Code(text)); !known {
		return fmt.Errorf("there is no such code (docs/findings.md has all)")
	}
	*i = append(*i, finding.Code(text))
	return nil
}

func (i *ignored) String() string { return "" } // there is no default to be shown

func (i *ignored) Type() string { return "CODE" }

// renderFindings prints findings by host, each with its way out, and what they mean for init.
func renderFindings(w io.Writer, r finding.Report) error {
	if err := ui.RenderReport(w, r); err != nil {
		return err
	}
	verdict := "nothing would stop init"
	if blocking := len(r.Blocking()); blocking > 0 {
		verdict = fmt.Sprintf("%d of %d findings would stop init", blocking, len(r))
	}
	_, err := fmt.Fprintln(w, verdict)
	return err
}
