package cluster

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"

	"github.com/kubewright/kubewright/bootstrap/plan"
)

// Scale gives a Deployment more replicas if it has fewer. One that is not there, as an admin
// brought something else instead, stays so.
type Scale struct {
	Namespace, Deployment string
	AtLeast               int
}

var _ plan.Action[Reader, Writer] = Scale{}

// replicas are those that it has, or enough if it is not there.
func (a Scale) replicas(ctx context.Context, r Reader) (int, error) {
	kube, err := r.Kubernetes(ctx)
	if err != nil {
		return 0, err
	}
	d, err := kube.AppsV1().Deployments(a.Namespace).Get(ctx, a.Deployment, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return a.AtLeast, nil
	case err != nil:
		return 0, err
	case d.Spec.Replicas == nil:
		return 1, nil
	}
	return int(*d.Spec.Replicas), nil
}

func (a Scale) Check(ctx context.Context, r Reader) (plan.Diff, error) {
	have, err := a.replicas(ctx, r)
	if err != nil || have >= a.AtLeast {
		return nil, err
	}
	return plan.Diff{{Verb: plan.Update, Kind: plan.ObjectAPI, Object: fmt.Sprintf("Deployment %s/%s", a.Namespace, a.Deployment),
		Detail: fmt.Sprintf("replicas %d -> %d", have, a.AtLeast)}}, nil
}

func (a Scale) Apply(ctx context.Context, w Writer) error {
	return retry.RetryOnConflict(retry.DefaultRetry, func() error {
		if have, err := a.replicas(ctx, w); err != nil || have >= a.AtLeast {
			return err
		}
		kube, err := w.Kubernetes(ctx)
		if err != nil {
			return err
		}
		deployments := kube.AppsV1().Deployments(a.Namespace)
		d, err := deployments.Get(ctx, a.Deployment, metav1.GetOptions{})
		if err != nil {
			return err
		}
		replicas := int32(a.AtLeast)
		d.Spec.Replicas = &replicas
		_, err = deployments.Update(ctx, d, metav1.UpdateOptions{FieldManager: FieldManager})
		return err
	})
}
