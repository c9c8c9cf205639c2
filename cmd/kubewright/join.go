package main

import (
	"context"
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

func (a *app) joinCommand() *cobra.Command {
	var hf hostFlags
	c := &cobra.Command{
		Use:   "join HOST... [-f cluster.yaml]",
		Short: "Make hosts workers of the cluster in the kubeconfig",
		Long: "join makes any number of hosts workers at once. It needs no file from init: the kubeconfig leads to\n" +
			"the cluster, and the cluster knows the rest. With -f, the workers of the file join.",
		Example: "  kubewright join w1 w2 w3\n  kubewright join w4 --label disk=ssd\n  kubewright join -f cluster.yaml",
		RunE: func(c *cobra.Command, args []string) error {
			var hosts []spec.Host
			var err error
			switch {
			case a.specPath != "" && len(args) > 0:
				return usage(c, fmt.Errorf("name hosts on the command line or in the file, not both"))
			case a.specPath != "":
				wish, err := a.loadSpec()
				if err != nil {
					return err
				}
				hosts = slices.DeleteFunc(slices.Clone(wish.Hosts), func(h spec.Host) bool { return h.Role != spec.WorkerRole })
			case len(args) == 0:
				return usage(c, fmt.Errorf("name hosts, or a cluster file with -f"))
			default:
				if hosts, err = hf.hosts(args, spec.WorkerRole); err != nil {
					return err
				}
			}
			return a.runJoin(c.Context(), hosts)
		},
	}
	a.addRunFlags(c.Flags())
	hf.add(c.Flags())
	return c
}

func (a *app) runJoin(ctx context.Context, hosts []spec.Host) error {
	_, access, err := kubeconfig.Access(a.kubeconfig, "")
	if err != nil {
		return err
	}
	b, err := a.usableBundle(ctx)
	if err != nil {
		return err
	}
	defer b.Close() //nolint:errcheck // only read from
	return a.run(ctx, hosts, func(ctx context.Context, targets []bootstrap.Target, notice func(string)) ([]plan.Lane, error) {
		client := cluster.New(plan.Of("the admin's access", access), targets[0].Host.Dial)
		record, err := cluster.ReadRecord(ctx, client)
		if err != nil {
			return nil, err
		}
		if !strings.HasPrefix(record.Bundle, b.Version()+"-") {
			return nil, fault.New(fault.BundleRefused, "use the bundle that the cluster was made with (--bundle)",
				"the cluster runs bundle %s, this one is %s", record.Bundle, b.Name())
		}
		for _, t := range targets {
			if t.Claim != nil && t.Claim.Role != string(spec.WorkerRole) {
				return nil, t.Claim.Taken(t.Wish.Name)
			}
		}
		known, err := spec.Load(strings.NewReader(record.Spec), "ConfigMap kube-system/kubewright")
		if err != nil {
			return nil, err
		}
		known.Hosts = append(slices.DeleteFunc(known.Hosts, func(h spec.Host) bool {
			return slices.ContainsFunc(hosts, func(j spec.Host) bool { return j.Name == h.Name })
		}), hosts...)
		known.Default()
		if err := known.Validate(); err != nil {
			return nil, err
		}
		if err := a.preflight(ctx, bootstrap.Preflight{Targets: targets, Cluster: known, Bundle: b, Server: access.Server}, notice); err != nil {
			return nil, err
		}
		return bootstrap.PlanJoin(bootstrap.Join{Cluster: known, ID: record.ID, Access: access, Targets: targets, Bundle: b})
	})
}
