package cluster

import (
	"context"

	"github.com/kubewright/kubewright/bootstrap/plan"
)

// DeadPods takes the pods of nodes out of the API whose hosts are no more: controllers make
// them anew elsewhere at once, where Kubernetes itself would believe for a minute that they run.
type DeadPods struct {
	Nodes []string
}

var _ plan.Action[Reader, Writer] = DeadPods{}

func (a DeadPods) Check(ctx context.Context, r Reader) (plan.Diff, error) {
	kube, err := r.Kubernetes(ctx)
	if err != nil {
		return nil, err
	}
	var diff plan.Diff
	for _, node := range a.Nodes {
		pods, err := podsOf(ctx, kube, node)
		if err != nil {
			return nil, err
		}
		for _, p := range pods {
			diff = append(diff, plan.Change{Verb: plan.Delete, Kind: plan.ObjectAPI, Object: "Pod " + podName(p), Detail: "its node " + node + " is no more"})
		}
	}
	return diff, nil
}

func (a DeadPods) Apply(ctx context.Context, w Writer) error {
	kube, err := w.Kubernetes(ctx)
	if err != nil {
		return err
	}
	d := drainer{kube: kube}
	for _, node := range a.Nodes {
		pods, err := podsOf(ctx, kube, node)
		if err != nil {
			return err
		}
		if err := d.delete(ctx, pods, true); err != nil {
			return err
		}
	}
	return nil
}
