package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kubewright/kubewright/bootstrap"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/kubeconfig"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

func (a *app) applyCommand(do doer) *cobra.Command {
	c := a.convergeCommand(do)
	c.Use = "apply plan.json | -f cluster.yaml"
	c.Short = "Carry out a saved plan, or make a cluster what its file says"
	c.Long = "apply plan.json does exactly what the plan says, and refuses, naming what moved, if hosts, bundle or cluster are not\n" +
		"as they were when it was made.\n\n" + c.Long
	c.Example = "  kubewright apply plan.json\n  kubewright apply -f cluster.yaml\n  kubewright apply -f cluster.yaml --remove w3"
	c.Args = cobra.MaximumNArgs(1)
	converge := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return converge(c, args)
		}
		if a.specPath != "" {
			return usage(c, fmt.Errorf("name a plan or a cluster file, not both"))
		}
		saved, err := loadPlan(args[0])
		if err != nil {
			return err
		}
		for _, name := range []string{"remove", "timeout"} {
			if c.Flags().Changed(name) {
				return usage(c, fmt.Errorf("--%s: the plan says it all", name))
			}
		}
		return a.carryOut(c.Context(), saved.Request, saved)
	}
	return c
}

// convergeCommand is apply with a cluster file, and `plan apply`.
func (a *app) convergeCommand(do doer) *cobra.Command {
	r := bootstrap.Request{Verb: verbApply}
	c := &cobra.Command{
		Use:   "apply -f cluster.yaml",
		Short: "Make a cluster what its file says",
		Long: "apply -f makes the cluster of the file, joins hosts that are new in it, applies changed settings, and takes out hosts\n" +
			"that the file does not name any more: each has to be confirmed, on the terminal or with --remove HOST. Their pods move\n" +
			"first, as `kubewright remove` has them do.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if a.specPath == "" {
				return usage(c, fmt.Errorf("name a cluster file with -f"))
			}
			if err := checkTimeout(c, r.Timeout); err != nil {
				return err
			}
			wish, err := a.loadSpec()
			if err != nil {
				return err
			}
			r.Spec, r.Hosts = wish, controlPlaneFirst(wish.Hosts)
			return do(c.Context(), r)
		},
	}
	a.addRunFlags(c.Flags())
	addTimeout(c.Flags(), &r.Timeout)
	c.Flags().StringArrayVar(&r.Remove, "remove", nil, "host that may leave the cluster because the file does not name it (repeatable)")
	return c
}

// unreached adds to the faults of a file's hosts which of them are no nodes of its cluster, if that can be
// asked: a host that was removed is easily left in the file.
func (a *app) unreached(ctx context.Context, wish *spec.Cluster, faults error) error {
	if fault.CodeOf(faults) != fault.HostUnreachable {
		return faults
	}
	_, access, err := kubeconfig.Access(a.kubeconfig, "")
	if err != nil {
		return faults
	}
	live, err := lookThrough(ctx, access, []cluster.DialFunc{nil})
	if err != nil || live.Record.Name != wish.Name {
		return faults
	}
	return withoutNode(live, faults)
}

func withoutNode(live *bootstrap.Live, faults error) error {
	var all []error
	for _, err := range fault.Each(faults) {
		var f *fault.Fault
		if errors.As(err, &f) && f.Code == fault.HostUnreachable && f.Host != "" {
			if _, known := live.Member(f.Host); !known {
				err = noNode(live, f)
			}
		}
		all = append(all, err)
	}
	return errors.Join(all...)
}

func noNode(live *bootstrap.Live, f *fault.Fault) error {
	without := &fault.Fault{Code: f.Code, Host: f.Host, Step: f.Step,
		Err:    fmt.Errorf("%w; the file names it, and cluster %s has no such node", f.Err, live.Record.Name),
		Remedy: "if it left the cluster, take it out of the file; if it is to join, " + f.Remedy}
	if slices.Contains(live.Removed, f.Host) {
		without.Err = fmt.Errorf("%w; the file still names it, and it was removed from cluster %s", f.Err, live.Record.Name)
		without.Remedy = "take it out of the file"
	}
	return without
}

// confirm asks for what cannot be taken back: hosts that leave the cluster, members that
// are given up.
func (a *app) confirm(w *work) error {
	if w.recover != nil {
		return a.confirmRecover(w)
	}
	var open []string
	for _, t := range w.leaving {
		if !slices.Contains(w.Remove, t.Wish.Name) {
			open = append(open, t.Wish.Name)
		}
	}
	if len(open) == 0 {
		return nil
	}
	what := fmt.Sprintf("%s of the cluster, but not in the file: pods are moved away, and the hosts put back as they were before",
		strings.Join(open, ", "))
	if yes, err := a.agrees(what, "Type yes to take them out of the cluster", "yes"); yes || err != nil {
		return err
	}
	return fault.New(fault.Usage, "confirm with --remove "+strings.Join(open, " --remove ")+", or name the hosts in the file", "%s", what)
}

// driftStatus is the exit status of diff where there is some.
const driftStatus = 2

func (a *app) diffCommand() *cobra.Command {
	var brief bool
	c := &cobra.Command{
		Use:   "diff -f cluster.yaml",
		Short: "Show how a cluster differs from its file",
		Long: "diff shows what apply -f would change, and changes nothing. Exit status 0: nothing; 2: something. (A mistake in flags or\n" +
			"arguments is 2, too, with a message on standard error.)",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.diff(c.Context(), c, brief)
		},
	}
	a.addRunFlags(c.Flags())
	c.Flags().BoolVar(&brief, "brief", false, "leave out the contents of files and objects")
	return c
}

func (a *app) diff(ctx context.Context, c *cobra.Command, brief bool) error {
	if a.specPath == "" {
		return usage(c, fmt.Errorf("name a cluster file with -f"))
	}
	wish, err := a.loadSpec()
	if err != nil {
		return err
	}
	saved, err := a.plan(ctx, bootstrap.Request{Verb: verbApply, Spec: wish, Hosts: controlPlaneFirst(wish.Hosts)})
	if err != nil {
		return err
	}
	// The workstation's kubeconfig is the user's, not the cluster's.
	saved.Steps = slices.DeleteFunc(saved.Steps, func(f plan.Foreseen) bool {
		return slices.ContainsFunc(f.Diff, func(c plan.Change) bool { return c.Kind == plan.ObjectLocal })
	})
	if a.output == "json" {
		err = saved.Encode(a.stdout)
	} else {
		err = renderPlan(a.stdout, saved, brief)
	}
	if err == nil && saved.Changes() > 0 {
		return &exitStatus{driftStatus}
	}
	return err
}
