package cluster

import (
	"context"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
)

// A budget is shut if it lets no pod go however long one waits: until an admin changes it, or
// what it selects. A drain need not wait for it. It is not shut as long as anything else may open it:
// pods that are still to be made or to become ready, a rollout, an autoscaler, a controller
// that owns the budget or the pods and may move them in its own way.

// settling is how long a budget has been shut, and evictions were asked for, before it is believed: some
// controllers make room as soon as they see that one was refused.
const settling = 10 * time.Second

// look is what one round of a drain sees of budgets, and of what they select.
type look struct {
	kube       kubernetes.Interface
	budgets    []policyv1.PodDisruptionBudget
	selections map[string]selection // by budget
}

func newLook(ctx context.Context, kube kubernetes.Interface) (*look, error) {
	list, err := kube.PolicyV1().PodDisruptionBudgets(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list PodDisruptionBudgets: %w", err)
	}
	return &look{kube: kube, budgets: list.Items, selections: map[string]selection{}}, nil
}

// selection is what a budget selects.
type selection struct {
	// settled tells that it is all pods of some workloads, and nothing else; that all of them are ready,
	// and that nobody is about to change that.
	settled bool
	// most is how many pods autoscalers may make of it; without any, how many there are.
	most int
}

// shut tells whether the budgets that keep a pod are.
func (l *look) shut(ctx context.Context, h hold) (bool, error) {
	// Kubernetes evicts no pod that several budgets select, whatever they say. If there is one, it may not
	// have been that which refused, but a webhook, and that may see to the pod itself.
	several := len(h.budgets) > 1
	if !several && !apierrors.HasStatusCause(h.refused, policyv1.DisruptionBudgetCause) {
		return false, nil
	}
	for _, b := range h.budgets {
		if len(b.OwnerReferences) > 0 || b.DeletionTimestamp != nil {
			return false, nil
		}
		s, err := l.selects(ctx, b)
		if err != nil || !s.settled || !several && (!current(b) || opens(b, s.most)) {
			return false, err
		}
	}
	return len(h.budgets) > 0, nil
}

// current tells whether a budget's numbers are of what it asks for now, and of pods that are all ready.
func current(b policyv1.PodDisruptionBudget) bool {
	s := b.Status
	c := meta.FindStatusCondition(s.Conditions, policyv1.DisruptionAllowedCondition)
	failed := c != nil && c.Reason == policyv1.SyncFailedReason
	return !failed && s.ObservedGeneration >= b.Generation && s.ExpectedPods > 0 && s.CurrentHealthy == s.ExpectedPods
}

// opens tells whether a budget lets a pod go if it selects so many, all of them ready.
// Percentages are rounded up, as Kubernetes does. What is not understood may open.
func opens(b policyv1.PodDisruptionBudget, pods int) bool {
	switch {
	case b.Spec.MaxUnavailable != nil:
		n, err := intstr.GetScaledValueFromIntOrPercent(b.Spec.MaxUnavailable, pods, true)
		return err != nil || n > 0
	case b.Spec.MinAvailable != nil:
		n, err := intstr.GetScaledValueFromIntOrPercent(b.Spec.MinAvailable, pods, true)
		return err != nil || n < pods
	default:
		return true
	}
}

// selects looks at what a budget selects, once.
func (l *look) selects(ctx context.Context, b policyv1.PodDisruptionBudget) (selection, error) {
	name := b.Namespace + "/" + b.Name
	if s, known := l.selections[name]; known {
		return s, nil
	}
	s, err := l.selection(ctx, b)
	if err == nil {
		l.selections[name] = s
	}
	return s, err
}

func (l *look) selection(ctx context.Context, b policyv1.PodDisruptionBudget) (selection, error) {
	selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
	if err != nil {
		return selection{}, fmt.Errorf("PodDisruptionBudget %s/%s: %w", b.Namespace, b.Name, err)
	}
	pods, err := l.kube.CoreV1().Pods(b.Namespace).List(ctx, metav1.ListOptions{LabelSelector: selector.String()})
	if err != nil {
		return selection{}, fmt.Errorf("list the pods of PodDisruptionBudget %s/%s: %w", b.Namespace, b.Name, err)
	}
	var makers []metav1.OwnerReference
	for _, p := range pods.Items {
		by := metav1.GetControllerOf(&p)
		if by == nil || p.DeletionTimestamp != nil || !isReady(p) {
			return selection{}, nil
		}
		if !slices.ContainsFunc(makers, func(o metav1.OwnerReference) bool { return o.Kind == by.Kind && o.Name == by.Name }) {
			makers = append(makers, *by)
		}
	}
	var workloads []workload
	for _, by := range makers {
		w, known, err := l.workload(ctx, b.Namespace, by)
		if err != nil || !known {
			return selection{}, err
		}
		if !slices.Contains(workloads, w) { // of two ReplicaSets, say
			workloads = append(workloads, w)
		}
	}
	scalers, err := l.kube.AutoscalingV2().HorizontalPodAutoscalers(b.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return selection{}, fmt.Errorf("list HorizontalPodAutoscalers: %w", err)
	}
	wished, most := 0, 0
	for _, w := range workloads {
		wished += w.replicas
		most += w.most(scalers.Items)
	}
	return selection{settled: wished == len(pods.Items), most: most}, nil
}

func isReady(p corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// workload is what pods are made by.
type workload struct {
	kind, name string
	replicas   int // wished
}

// workload looks at what pods are made by. It is not known if it is something else than a Deployment, a
// ReplicaSet or a StatefulSet, if another controller owns that, or if it is being rolled out.
func (l *look) workload(ctx context.Context, namespace string, by metav1.OwnerReference) (w workload, known bool, err error) {
	switch {
	case by.APIVersion != appsv1.SchemeGroupVersion.String():
	case by.Kind == "StatefulSet":
		w, known, err = l.statefulSet(ctx, namespace, by.Name)
	case by.Kind == "ReplicaSet":
		w, known, err = l.replicaSet(ctx, namespace, by.Name)
	}
	switch {
	case apierrors.IsNotFound(err): // it has just been deleted, and its pods go
		return workload{}, false, nil
	case err != nil:
		return workload{}, false, fmt.Errorf("%s %s/%s: %w", by.Kind, namespace, by.Name, err)
	}
	return w, known, nil
}

func (l *look) statefulSet(ctx context.Context, namespace, name string) (workload, bool, error) {
	s, err := l.kube.AppsV1().StatefulSets(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return workload{}, false, err
	}
	known := metav1.GetControllerOf(s) == nil && s.Status.ObservedGeneration >= s.Generation && s.Status.CurrentRevision == s.Status.UpdateRevision
	return workload{"StatefulSet", name, replicas(s.Spec.Replicas)}, known, nil
}

func (l *look) replicaSet(ctx context.Context, namespace, name string) (workload, bool, error) {
	s, err := l.kube.AppsV1().ReplicaSets(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return workload{}, false, err
	}
	switch by := metav1.GetControllerOf(s); {
	case by == nil:
		return workload{"ReplicaSet", name, replicas(s.Spec.Replicas)}, s.Status.ObservedGeneration >= s.Generation, nil
	case by.APIVersion == appsv1.SchemeGroupVersion.String() && by.Kind == "Deployment":
		return l.deployment(ctx, namespace, by.Name)
	}
	return workload{}, false, nil
}

func (l *look) deployment(ctx context.Context, namespace, name string) (workload, bool, error) {
	d, err := l.kube.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return workload{}, false, err
	}
	n := replicas(d.Spec.Replicas)
	known := metav1.GetControllerOf(d) == nil && d.Status.ObservedGeneration >= d.Generation && int(d.Status.UpdatedReplicas) == n
	return workload{"Deployment", name, n}, known, nil
}

// replicas are those wished; the API fills in 1.
func replicas(n *int32) int {
	if n == nil {
		return 1
	}
	return int(*n)
}

// most is how many pods of the workload there may be without an admin's doing.
func (w workload) most(scalers []autoscalingv2.HorizontalPodAutoscaler) int {
	n := w.replicas
	for _, s := range scalers {
		if to := s.Spec.ScaleTargetRef; to.Kind == w.kind && to.Name == w.name {
			n = max(n, int(s.Spec.MaxReplicas))
		}
	}
	return n
}

// patience remembers since when budgets have been shut, from round to round.
type patience map[string]time.Time

// shut are the holds whose budgets have been shut for long enough.
func (p patience) shut(left holds) holds {
	seen := map[string]bool{}
	var settled holds
	for _, h := range left {
		if !h.shut {
			continue
		}
		name := describeAll(h.budgets) // with its numbers: those of another wish are others
		seen[name] = true
		if _, known := p[name]; !known {
			p[name] = time.Now()
		}
		if time.Since(p[name]) >= settling {
			settled = append(settled, h)
		}
	}
	for name := range p {
		if !seen[name] {
			delete(p, name)
		}
	}
	return settled
}
