package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kubewright/kubewright/bootstrap"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

func (a *app) joinCommand(do doer) *cobra.Command {
	var hf hostFlags
	var controlPlane bool
	c := &cobra.Command{
		Use:   "join HOST... [-f cluster.yaml]",
		Short: "Make hosts workers of the cluster in the kubeconfig, or control-plane hosts",
		Long: "join makes any number of hosts workers at once. It needs no file from init: the kubeconfig leads to\n" +
			"the cluster, and the cluster knows the rest. With -f, the workers of the file join.\n\n" +
			"With --control-plane the hosts become further control-plane hosts: members of etcd one after the other, each\n" +
			"without a vote until it has caught up. The cluster's authorities go to them from one of the other control-plane\n" +
			"hosts, through the memory of this machine and not its disk; so do files of yours that flags of the API server name,\n" +
			"such as --encryption-provider-config. Three control-plane hosts survive the loss of one.",
		Example: "  kubewright join w1 w2 w3\n  kubewright join w4 --label disk=ssd\n  kubewright join cp2 cp3 --control-plane\n  kubewright join -f cluster.yaml",
		RunE: func(c *cobra.Command, args []string) error {
			role := spec.WorkerRole
			if controlPlane {
				role = spec.ControlPlaneRole
			}
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
				hosts = slices.DeleteFunc(slices.Clone(wish.Hosts), func(h spec.Host) bool { return h.Role != role })
			case len(args) == 0:
				return usage(c, fmt.Errorf("name hosts, or a cluster file with -f"))
			default:
				if hosts, err = hf.hosts(args, role); err != nil {
					return err
				}
			}
			return do(c.Context(), bootstrap.Request{Verb: verbJoin, Hosts: hosts})
		},
	}
	a.addRunFlags(c.Flags())
	hf.add(c.Flags())
	c.Flags().BoolVar(&controlPlane, "control-plane", false, "make the hosts control-plane hosts; with -f: those of the file")
	return c
}
