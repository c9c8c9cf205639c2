package kubeconfig

import (
	"context"

	"github.com/kubewright/kubewright/bootstrap/plan"
)

// Repoint leads a cluster in a kubeconfig to another server, if it leads to From.
type Repoint struct {
	Path     string
	Name     string // of the cluster
	From, To string // URLs
}

var _ plan.Action[Local, Local] = Repoint{}

func (r Repoint) Check(context.Context, Local) (plan.Diff, error) {
	cfg, err := Merge{Path: r.Path}.load()
	if err != nil {
		return nil, err
	}
	if c, ok := cfg.Clusters[r.Name]; !ok || c.Server != r.From || r.From == r.To {
		return nil, nil
	}
	return plan.Diff{{Verb: plan.Update, Kind: plan.ObjectLocal, Object: r.Path, Detail: "server of " + r.Name + ": " + r.From + " -> " + r.To}}, nil
}

func (r Repoint) Apply(context.Context, Local) error {
	cfg, err := Merge{Path: r.Path}.load()
	if err != nil {
		return err
	}
	if c, ok := cfg.Clusters[r.Name]; ok {
		c.Server = r.To
	}
	return write(r.Path, cfg)
}
