package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kubewright/kubewright/bootstrap"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

func (a *app) resetCommand(do doer) *cobra.Command {
	r := bootstrap.Request{Verb: verbReset}
	c := &cobra.Command{
		Use:   "reset HOST... [-f cluster.yaml]",
		Short: "Take hosts out of their cluster, and leave them as they were before",
		Long: "reset drains and removes the nodes, stops and removes everything that kubewright put on the hosts, and\n" +
			"leaves what stood there before. Where the cluster lives on, that is `kubewright remove`; its last control-plane node\n" +
			"goes only together with all other nodes, or with --force.",
		Example: "  kubewright reset w3\n  kubewright reset cp1 w1 w2",
		RunE: func(c *cobra.Command, args []string) error {
			if err := checkTimeout(c, r.Timeout); err != nil {
				return err
			}
			switch {
			case a.specPath != "" && len(args) > 0:
				return usage(c, fmt.Errorf("name hosts on the command line or in the file, not both"))
			case a.specPath != "":
				wish, err := a.loadSpec()
				if err != nil {
					return err
				}
				r.Hosts = wish.Hosts
			case len(args) == 0:
				return usage(c, fmt.Errorf("name hosts, or a cluster file with -f"))
			default:
				for _, name := range args {
					r.Hosts = append(r.Hosts, spec.Host{Name: name})
				}
			}
			return do(c.Context(), r)
		},
	}
	c.Flags().StringVarP(&a.specPath, "file", "f", "", "cluster file whose hosts are all reset")
	addTimeout(c.Flags(), &r.Timeout)
	c.Flags().BoolVar(&r.Force, "force", false, "reset the last control-plane node although other nodes need it, do not drain if the API does not answer, give up\n"+
		"pods that cannot be moved as remove does, and release a host on which something of ours is left")
	c.Flags().BoolVar(&a.verify, "verify", false, "print what each host was compared with after it was put back")
	return c
}
