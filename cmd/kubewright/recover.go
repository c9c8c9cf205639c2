package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kubewright/kubewright/bootstrap"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

func (a *app) recoverCommand(do doer) *cobra.Command {
	var from string
	var yes bool
	c := &cobra.Command{
		Use:   "recover --from HOST",
		Short: "Rebuild etcd from one host that is left, when its quorum is lost for good",
		Long: "recover makes etcd a cluster of one member: the one on HOST, with the data that it has. No backup is needed. It is for when so\n" +
			"many control-plane hosts are lost for ever that no quorum can come together again; it refuses as long as one answers. A copy of the data as\n" +
			"they were is kept on the host. The other members are no members any more: their hosts have to stay off, or be reset.",
		Example: "  kubewright recover --from cp2",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if from == "" {
				return usage(c, fmt.Errorf("name the host that is left with --from"))
			}
			return do(c.Context(), bootstrap.Request{Verb: verbRecover, Hosts: []spec.Host{{Name: from, Role: spec.ControlPlaneRole}}, Force: yes})
		},
	}
	c.Flags().StringVar(&from, "from", "", "control-plane host whose data of etcd are left")
	c.Flags().BoolVar(&yes, "yes", false, "do it without asking")
	return c
}

// confirmRecover asks for what cannot be taken back: the other members are given up.
func (a *app) confirmRecover(w *work) error {
	lost := w.recover.Others()
	done := len(w.recover.Lost) == 0 && !w.recover.Silent
	if w.Force || done || len(lost) == 0 {
		return nil
	}
	what := fmt.Sprintf("%s is made etcd's only member; %s will be members no more, and what only they had agreed on is lost",
		w.recover.Target.Claim.Node, strings.Join(lost, ", "))
	if yes, err := a.agrees(what, "Type yes to go on", "yes"); yes || err != nil {
		return err
	}
	return fault.New(fault.Usage, "confirm with --yes", "%s", what)
}

// tellRecovered says what to do next.
func tellRecovered(r *bootstrap.Recover, notice func(string)) {
	if r == nil {
		return
	}
	for _, line := range r.Advice() {
		notice(line)
	}
}
