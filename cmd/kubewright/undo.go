package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kubewright/kubewright/bootstrap"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/journal"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

func (a *app) undoCommand(do doer) *cobra.Command {
	r := bootstrap.Request{Verb: verbUndo}
	u := &r.Undo
	var list bool
	c := &cobra.Command{
		Use:   "undo HOST...",
		Short: "Put hosts back step by step, as their journals say",
		Long: "undo takes back what the last run changed on hosts: files, units, settings, network, the last step first. Each\n" +
			"host keeps a journal with the state before every change. A host on which nothing is left of the journal leaves\n" +
			"the cluster, as with reset. Where only a part is undone, pods are not moved away first.",
		Example: "  kubewright undo w1 --list\n  kubewright undo w1\n  kubewright undo w1 --steps 2\n  kubewright undo w1 --to kubelet/configure",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage(c, fmt.Errorf("name hosts"))
			}
			if c.Flags().Changed("steps") && u.Steps < 1 {
				return usage(c, fmt.Errorf("--steps is at least 1"))
			}
			if err := checkTimeout(c, r.Timeout); err != nil {
				return err
			}
			var given []string
			for _, name := range []string{"steps", "to", "all", "list"} {
				if c.Flags().Changed(name) {
					given = append(given, "--"+name)
				}
			}
			if len(given) > 1 {
				return usage(c, fmt.Errorf("%s: only one of them", strings.Join(given, ", ")))
			}
			for _, name := range args {
				r.Hosts = append(r.Hosts, spec.Host{Name: name})
			}
			if list {
				return a.listJournals(c.Context(), r.Hosts)
			}
			return do(c.Context(), r)
		},
	}
	c.Flags().BoolVar(&list, "list", false, "only show what can be undone, the last step first")
	c.Flags().IntVar(&u.Steps, "steps", 0, "undo the last so many steps")
	c.Flags().StringVar(&u.To, "to", "", "undo back to before this step, such as kubelet/configure")
	c.Flags().BoolVar(&u.All, "all", false, "undo everything")
	addTimeout(c.Flags(), &r.Timeout)
	c.Flags().BoolVar(&r.Force, "force", false, "as of reset, where a host leaves the cluster")
	return c
}

// listJournals shows what the journals of hosts have, the last step first.
func (a *app) listJournals(ctx context.Context, hosts []spec.Host) error {
	targets, closeAll, err := a.connect(ctx, hosts)
	if err != nil {
		return err
	}
	defer closeAll()
	if err := bootstrap.ReadJournals(ctx, targets); err != nil {
		return err
	}
	if a.output == "json" {
		type row struct {
			Host string      `json:"host"`
			Seq  int         `json:"seq"`
			Step string      `json:"step"`
			Time time.Time   `json:"time"`
			Run  journal.Run `json:"run"`
			// Objects are kind and name of what the step changed.
			Objects []string `json:"objects"`
		}
		rows := []row{}
		for _, t := range targets {
			for _, e := range t.Journal {
				r := row{Host: t.Wish.Name, Seq: e.Seq, Step: e.Step, Time: e.Time, Run: e.Run}
				for _, b := range e.Before {
					r.Objects = append(r.Objects, b.String())
				}
				rows = append(rows, r)
			}
		}
		return writeJSON(a.stdout, rows)
	}
	for _, t := range targets {
		if err := renderJournal(a.stdout, t); err != nil {
			return err
		}
	}
	return nil
}

func renderJournal(w io.Writer, t bootstrap.Target) error {
	if len(t.Journal) == 0 {
		_, err := fmt.Fprintf(w, "%s: nothing was changed\n", t.Wish.Name)
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "%s\nSEQ\tSTEP\tTIME\tOBJECTS\tRUN\n", t.Wish.Name)
	for i := len(t.Journal) - 1; i >= 0; i-- {
		e := t.Journal[i]
		fmt.Fprintf(tw, "%d\t%s\t%s\t%d\t%s by %s\n", e.Seq, e.Step, e.Time.Format(time.DateTime), len(e.Before), e.Run.Verb, e.Run.By)
	}
	return tw.Flush()
}

// noSuchStep refuses an undo to a step that no host's journal has.
func noSuchStep(step string) error {
	return fault.New(fault.Usage, "see what can be undone with `kubewright undo HOST --list`", "--to %s: no journal has that step", step)
}
