package cluster

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubectl/pkg/drain"

	"golang.org/x/sync/errgroup"

	"github.com/kubewright/kubewright/bootstrap/plan"
)

// RemoveNodes moves the pods of nodes elsewhere, respecting disruption budgets,
// and deletes the nodes.
type RemoveNodes struct {
	Nodes []string
	Done  *plan.Value[bool]
}

var _ plan.Action[Reader, Writer] = RemoveNodes{}

func (a RemoveNodes) Check(ctx context.Context, r Reader) (plan.Diff, error) {
	kube, err := r.Kubernetes(ctx)
	if err != nil {
		return nil, err
	}
	var diff plan.Diff
	for _, name := range a.Nodes {
		_, err := kube.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		switch {
		case err == nil:
			diff = append(diff, plan.Change{Verb: plan.Delete, Kind: plan.ObjectAPI, Object: "Node " + name, Detail: "after its pods have moved"})
		case !apierrors.IsNotFound(err):
			return nil, err
		}
	}
	if len(diff) == 0 {
		a.Done.Set(true)
	}
	return diff, nil
}

// Apply cordons all nodes first, so that no pod moves from one to the next.
func (a RemoveNodes) Apply(ctx context.Context, w Writer) error {
	kube, err := w.Kubernetes(ctx)
	if err != nil {
		return err
	}
	var moved atomic.Int64
	helper := &drain.Helper{
		Ctx: ctx, Client: kube,
		Force: true, IgnoreAllDaemonSets: true, DeleteEmptyDirData: true,
		GracePeriodSeconds: -1, EvictErrorRetryDelay: time.Second,
		Out: io.Discard, ErrOut: io.Discard,
		OnPodDeletionOrEvictionStarted: func(p *corev1.Pod, _ bool) {
			plan.Report(ctx, fmt.Sprintf("moving pod %s/%s (%d moved)", p.Namespace, p.Name, moved.Load()))
		},
		OnPodDeletionOrEvictionFinished: func(*corev1.Pod, bool, error) { moved.Add(1) },
	}
	var present []string
	for _, name := range a.Nodes {
		node, err := kube.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		present = append(present, name)
		if err := drain.RunCordonOrUncordon(helper, node, true); err != nil {
			return fmt.Errorf("cordon node %s: %w", name, err)
		}
	}
	nodes, ctx := errgroup.WithContext(ctx)
	for _, name := range slices.Compact(present) {
		nodes.Go(func() error {
			if err := drain.RunNodeDrain(helper, name); err != nil {
				return fmt.Errorf("drain node %s: %w", name, err)
			}
			if err := kube.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("delete node %s: %w", name, err)
			}
			return nil
		})
	}
	return nodes.Wait()
}

// OtherNodes names the nodes of the cluster besides those given.
func OtherNodes(ctx context.Context, r Reader, but []string) ([]string, error) {
	kube, err := r.Kubernetes(ctx)
	if err != nil {
		return nil, err
	}
	list, err := kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var others []string
	for _, n := range list.Items {
		if !slices.Contains(but, n.Name) {
			others = append(others, n.Name)
		}
	}
	return others, nil
}
