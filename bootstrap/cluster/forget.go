package cluster

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubewright/kubewright/bootstrap/plan"
)

// ForgetNodes deletes nodes whose hosts are no more. Nothing is drained: nothing runs
// there, and what the API thinks does is made anew elsewhere.
type ForgetNodes struct {
	Nodes []string
}

var _ plan.Action[Reader, Writer] = ForgetNodes{}

func (a ForgetNodes) Check(ctx context.Context, r Reader) (plan.Diff, error) {
	kube, err := r.Kubernetes(ctx)
	if err != nil {
		return nil, err
	}
	var diff plan.Diff
	for _, name := range a.Nodes {
		_, err := kube.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		switch {
		case err == nil:
			diff = append(diff, plan.Change{Verb: plan.Delete, Kind: plan.ObjectAPI, Object: "Node " + name, Detail: "its host is no more"})
		case !apierrors.IsNotFound(err):
			return nil, err
		}
	}
	return diff, nil
}

// Foresee is said where the API does not run yet.
func (a ForgetNodes) Foresee() plan.Diff {
	var diff plan.Diff
	for _, name := range a.Nodes {
		diff = append(diff, plan.Change{Verb: plan.Delete, Kind: plan.ObjectAPI, Object: "Node " + name, Detail: "its host is no more"})
	}
	return diff
}

func (a ForgetNodes) Apply(ctx context.Context, w Writer) error {
	kube, err := w.Kubernetes(ctx)
	if err != nil {
		return err
	}
	for _, name := range a.Nodes {
		if err := kube.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete node %s: %w", name, err)
		}
	}
	return nil
}
