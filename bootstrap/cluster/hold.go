package cluster

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// hold is something that keeps a node from being empty.
type hold struct {
	pod     corev1.Pod
	refused error                          // the eviction was, if it was asked for
	budgets []policyv1.PodDisruptionBudget // that the pod falls under
	shut    bool                           // and that will never let it go
	what    string                         // in the place of a pod
}

type holds []hold

// ending are holds of pods that were asked to go, as far as is known.
func ending(pods []corev1.Pod) holds {
	left := make(holds, len(pods))
	for i, p := range pods {
		left[i].pod = p
	}
	return left
}

// kept are the pods that one set of budgets keeps.
type kept struct {
	budgets []policyv1.PodDisruptionBudget
	pods    []string
}

// byBudget sorts pods by the budgets that keep them; the rest is in words.
func (h holds) byBudget() (all []kept, rest []string) {
	for _, one := range h {
		name := podName(one.pod)
		switch {
		case one.what != "":
			rest = append(rest, one.what)
		case one.refused != nil && len(one.budgets) > 0:
			i := slices.IndexFunc(all, func(k kept) bool { return slices.EqualFunc(k.budgets, one.budgets, same) })
			if i < 0 {
				i, all = len(all), append(all, kept{budgets: one.budgets})
			}
			all[i].pods = append(all[i].pods, name)
		case one.refused != nil:
			rest = append(rest, fmt.Sprintf("pod %s may not be evicted: %v", name, one.refused))
		default:
			rest = append(rest, "pod "+name+" ends"+grace(one.pod))
		}
	}
	return all, rest
}

func same(a, b policyv1.PodDisruptionBudget) bool {
	return a.Namespace == b.Namespace && a.Name == b.Name
}

// grace says how long a pod was given to end.
func grace(p corev1.Pod) string {
	if p.DeletionGracePeriodSeconds == nil {
		return ""
	}
	return fmt.Sprintf(" (it was given %s)", time.Duration(*p.DeletionGracePeriodSeconds)*time.Second)
}

// String says what waits for what, without what changes from second to second.
func (h holds) String() string {
	budgets, rest := h.byBudget()
	var all []string
	for _, k := range budgets {
		verb := "waits"
		if len(k.pods) > 1 {
			verb = "wait"
		}
		all = append(all, fmt.Sprintf("%s %s for %s", some(k.pods), verb, describeAll(k.budgets)))
	}
	return joinHolds(all, rest)
}

// progress is String with the budgets first: a terminal cuts the end of a line.
func (h holds) progress() string {
	budgets, rest := h.byBudget()
	var all []string
	for _, k := range budgets {
		verb := "keeps"
		if len(k.budgets) > 1 {
			verb = "keep"
		}
		all = append(all, fmt.Sprintf("%s %s %s", describeAll(k.budgets), verb, some(k.pods)))
	}
	return joinHolds(all, rest)
}

func joinHolds(budgets, rest []string) string {
	slices.Sort(rest)
	if len(rest) > 0 {
		budgets = append(budgets, some(rest))
	}
	return strings.Join(budgets, "; ")
}

func describeAll(budgets []policyv1.PodDisruptionBudget) string {
	names := make([]string, len(budgets))
	for i, b := range budgets {
		names[i] = describe(b)
	}
	return strings.Join(names, " and ")
}

// describe is a budget with its numbers, as the API names them.
func describe(b policyv1.PodDisruptionBudget) string {
	var wish string
	switch {
	case b.Spec.MinAvailable != nil:
		wish = "minAvailable " + b.Spec.MinAvailable.String()
	case b.Spec.MaxUnavailable != nil:
		wish = "maxUnavailable " + b.Spec.MaxUnavailable.String()
	default:
		wish = "neither minAvailable nor maxUnavailable"
	}
	s := b.Status
	return fmt.Sprintf("PodDisruptionBudget %s/%s (%s, currentHealthy %d, desiredHealthy %d, disruptionsAllowed %d)",
		b.Namespace, b.Name, wish, s.CurrentHealthy, s.DesiredHealthy, s.DisruptionsAllowed)
}

// remedy says what lets the pods go.
func (h holds) remedy() string {
	budgets, rest := h.byBudget()
	var all []string
	for _, k := range budgets {
		all = append(all, k.remedy())
	}
	if len(rest) > 0 {
		all = append(all, "give pods that end more time with --timeout, or look why they do not")
	}
	return strings.Join(slices.Compact(all), "; ") + "; `kubewright remove --force` deletes what is left at the timeout, in spite of budgets"
}

func (k kept) remedy() string {
	b := k.budgets[0]
	name := b.Namespace + "/" + b.Name
	switch {
	case len(k.budgets) > 1:
		return "have only one budget select a pod: Kubernetes evicts none that several do"
	case b.Status.DesiredHealthy >= b.Status.ExpectedPods:
		return fmt.Sprintf("budget %s lets no pod go as long as it wants %d healthy pods of %d: %s", name, b.Status.DesiredHealthy, b.Status.ExpectedPods, opening(b))
	case b.Status.CurrentHealthy < b.Status.DesiredHealthy:
		return "budget " + name + " wants more healthy pods than there are: see why they are not, or whether there is room for them"
	default:
		return "give budget " + name + " more time with --timeout, scale up what it selects, or lower its minAvailable (raise its maxUnavailable)"
	}
}

// opening says what has a budget let a pod go that wants all of its pods, or more.
func opening(b policyv1.PodDisruptionBudget) string {
	if b.Spec.MinAvailable == nil {
		return "raise its maxUnavailable to 1 or more"
	}
	lower := fmt.Sprintf("lower its minAvailable to %d or less", max(0, b.Status.ExpectedPods-1))
	if b.Spec.MinAvailable.Type == intstr.String {
		return lower + ", or to a smaller percentage"
	}
	return fmt.Sprintf("scale up what it selects to %d pods or more, or %s", b.Status.DesiredHealthy+1, lower)
}
