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

func (a *app) resetCommand(do doer) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "reset HOST... [-f cluster.yaml]",
		Short: "Take hosts out of their cluster, and leave them as they were before",
		Long: "reset drains and removes the nodes, stops and removes everything that kubewright put on the hosts, and\n" +
			"leaves what stood there before. A control-plane node goes only together with all other nodes, or with --force.",
		Example: "  kubewright reset w3\n  kubewright reset cp1 w1 w2",
		RunE: func(c *cobra.Command, args []string) error {
			var hosts []spec.Host
			switch {
			case a.specPath != "" && len(args) > 0:
				return usage(c, fmt.Errorf("name hosts on the command line or in the file, not both"))
			case a.specPath != "":
				wish, err := a.loadSpec()
				if err != nil {
					return err
				}
				hosts = wish.Hosts
			case len(args) == 0:
				return usage(c, fmt.Errorf("name hosts, or a cluster file with -f"))
			default:
				for _, name := range args {
					hosts = append(hosts, spec.Host{Name: name})
				}
			}
			return do(c.Context(), bootstrap.Request{Verb: verbReset, Hosts: hosts, Force: force})
		},
	}
	c.Flags().StringVarP(&a.specPath, "file", "f", "", "cluster file whose hosts are all reset")
	c.Flags().BoolVar(&force, "force", false, "reset a control-plane node although other nodes need it, do not drain if the API does not answer,\n"+
		"and release a host on which something of ours is left")
	c.Flags().BoolVar(&a.verify, "verify", false, "print what each host was compared with after it was put back")
	return c
}

// findResetCluster fills in the cluster that the hosts belong to, if the kubeconfig
// leads to that very cluster and it answers.
func (a *app) findResetCluster(ctx context.Context, in *bootstrap.Reset, t bootstrap.Target, force bool) error {
	takesControlPlane := slices.ContainsFunc(in.Targets, func(t bootstrap.Target) bool {
		return t.Claim != nil && t.Claim.Role == string(spec.ControlPlaneRole)
	})
	// What never became a node has no pods to be moved.
	force = force || !slices.ContainsFunc(in.Targets, func(t bootstrap.Target) bool { return t.Member })
	name, access, err := kubeconfig.Access(a.kubeconfig, "")
	if err != nil {
		if takesControlPlane || force {
			return nil
		}
		return fault.New(fault.ClusterMissing, "name the cluster's kubeconfig with --kubeconfig, or add --force to reset without draining", "drain the nodes: %w", err)
	}
	client := cluster.New(plan.Of("the admin's access", access), t.Host.Dial)
	record, err := cluster.ReadRecord(ctx, client)
	switch {
	case err != nil && (takesControlPlane || force):
		if in.Destroys(name, access.Server) {
			in.Access, in.Leave, in.Name = access, a.kubeconfig, name
		}
		return nil // a cluster that is half gone is still to be cleaned up
	case err != nil:
		return fault.New(fault.ClusterMissing, "repair the cluster, or add --force to reset without draining", "drain the nodes: %w", err)
	case record.ID != t.Claim.ClusterID:
		if force || takesControlPlane {
			return nil
		}
		return fault.New(fault.ClusterMissing, "name the kubeconfig of cluster "+t.Claim.Cluster+" with --kubeconfig, or add --force to reset without draining",
			"the kubeconfig is of cluster %s, the host belongs to cluster %s (id %s)", record.Name, t.Claim.Cluster, t.Claim.ClusterID)
	}
	known, err := spec.Load(strings.NewReader(record.Spec), "ConfigMap kube-system/kubewright")
	if err != nil {
		return err
	}
	in.Cluster, in.Access, in.Leave, in.Name = known, access, a.kubeconfig, name
	if !takesControlPlane || force {
		return nil
	}
	left, err := cluster.OtherNodes(ctx, client, bootstrap.NodeNames(in.Targets))
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fault.New(fault.Usage, "name these hosts too, or add --force",
			"the cluster's control-plane node is to be reset, but nodes %s still need it", strings.Join(left, ", "))
	}
	return nil
}
