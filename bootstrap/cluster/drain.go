package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/kubectl/pkg/drain"

	"golang.org/x/sync/errgroup"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// Drain moves the pods of nodes to others, as far as disruption budgets let it. All nodes
// are cordoned first, so that no pod moves from one to the next. A drain that does not
// come to its end uncordons what it cordoned: nothing else has changed then but for the pods that it
// evicted until then, which its error names.
type Drain struct {
	Nodes []Leaving
	// Timeout is how long budgets are waited for, and pods that end. After it, a drain
	// without Force fails with a fault.DrainBlocked; before it, if a budget is shut.
	Timeout time.Duration
	// Force lets pods go that no controller makes anew, and deletes what is still there
	// after Timeout, in spite of budgets.
	Force bool
}

var _ plan.Action[Reader, Writer] = Drain{}

// Leaving is a node that is to be drained.
type Leaving struct {
	Node string
	// Lost tells that SSH does not reach its host. With Force, as soon as its kubelet is
	// silent, too, its pods are taken for dead, and their volumes for free.
	Lost bool
}

// DrainTime is how long a Drain with this timeout may take in all.
func DrainTime(timeout time.Duration) time.Duration { return timeout + overtime + time.Minute }

const (
	// drainPoll is how often a node's pods are looked at, and evicted again.
	drainPoll = time.Second
	// overtime is how long a Drain with Force waits for pods to end that it deletes in
	// spite of budgets. Then they are taken out of the API without their kubelet.
	overtime = time.Minute
	// uncordonTime bounds putting nodes back after a drain that failed.
	uncordonTime = 10 * time.Second
	// cordonedKey marks a node that was cordoned by a drain, and not by an admin.
	cordonedKey = "kubewright.dev/cordoned-for-drain"
	// drainedKey says since when a node is drained, in RFC 3339.
	drainedKey = "kubewright.dev/drained-since"
	// latecoming is how long after that the scheduler may still take the node for one that
	// takes pods. Whatever is made later tolerates a node that is cordoned, as the pods of a DaemonSet
	// do: made anew as often as it is evicted, it goes with the node.
	latecoming = 5 * time.Second
)

func (a Drain) Check(ctx context.Context, r Reader) (plan.Diff, error) {
	kube, err := r.Kubernetes(ctx)
	if err != nil {
		return nil, err
	}
	var diff plan.Diff
	var orphans []string
	for _, n := range a.Nodes {
		node, err := kube.CoreV1().Nodes().Get(ctx, n.Node, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		pods, err := movable(ctx, kube, node)
		if err != nil {
			return nil, err
		}
		if a.Force && n.Lost && buried(node) { // what comes now was never there
			pods = nil
		}
		if a.Force { // what does not end although it was deleted is not waited for
			pods = slices.DeleteFunc(pods, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
		}
		for _, p := range pods {
			if !a.Force && orphan(p) {
				orphans = append(orphans, podName(p)+" on node "+n.Node)
			}
		}
		if !node.Spec.Unschedulable || len(pods) > 0 {
			diff = append(diff, plan.Change{Verb: plan.Update, Kind: plan.ObjectAPI, Object: "Node " + n.Node, Detail: moving(pods)})
		}
	}
	if len(orphans) > 0 {
		return nil, fault.New(fault.DrainBlocked, "delete them, or have a Deployment or another controller make them; or give them up with `kubewright remove --force`",
			"pods that no controller would make anew: %s", some(orphans))
	}
	return diff, nil
}

// moving says what a drain does to a node with these pods.
func moving(pods []corev1.Pod) string {
	if len(pods) == 0 {
		return "cordon"
	}
	var names, data []string
	for _, p := range pods {
		names = append(names, podName(p))
		if keepsData(p) {
			data = append(data, podName(p))
		}
	}
	text := fmt.Sprintf("cordon, and move %s: %s", count(len(pods), "pod"), some(names))
	if len(data) > 0 {
		text += "; emptyDir volumes do not move with " + some(data)
	}
	return text
}

// Apply reports which pod waits for which budget.
func (a Drain) Apply(ctx context.Context, w Writer) error {
	kube, err := w.Kubernetes(ctx)
	if err != nil {
		return err
	}
	waiting, cancel := plan.WaitContext(ctx)
	defer cancel()
	d := drainer{Drain: a, kube: kube, began: time.Now()}
	if err = d.cordon(waiting); err == nil {
		err = d.empty(waiting)
	}
	if err == nil {
		return nil
	}
	back, done := context.WithTimeout(context.WithoutCancel(ctx), uncordonTime)
	defer done()
	return errors.Join(err, d.uncordon(back))
}

// drainer is a drain under way.
type drainer struct {
	Drain
	kube  kubernetes.Interface
	began time.Time

	mu      sync.Mutex
	evicted []string // pods that were asked to go, of all nodes
}

func (d *drainer) patch(ctx context.Context, node, patch string) (*corev1.Node, error) {
	return d.kube.CoreV1().Nodes().Patch(ctx, node, types.MergePatchType, []byte(patch), metav1.PatchOptions{FieldManager: FieldManager})
}

// cordon keeps new pods from the nodes. It marks those that took some until then, and all
// with the time.
func (d *drainer) cordon(ctx context.Context) error {
	for _, n := range d.Nodes {
		node, err := d.kube.CoreV1().Nodes().Get(ctx, n.Node, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err == nil && (!node.Spec.Unschedulable || node.Annotations[drainedKey] == "") {
			err = d.mark(ctx, node)
		}
		if err != nil {
			return fmt.Errorf("cordon node %s: %w", n.Node, err)
		}
	}
	return nil
}

// mark cordons a node, unless it is, and says since when. The time is the API server's, as it is that
// of pods: this machine's clock may be another.
func (d *drainer) mark(ctx context.Context, node *corev1.Node) (err error) {
	change := `{"metadata":{"annotations":{"` + drainedKey + `":"now"}}}`
	if !node.Spec.Unschedulable {
		change = `{"metadata":{"annotations":{"` + cordonedKey + `":"","` + drainedKey + `":"now"}},"spec":{"unschedulable":true}}`
	}
	if node, err = d.patch(ctx, node.Name, change); err != nil {
		return err
	}
	since := d.began
	for _, f := range node.ManagedFields {
		if f.Manager == FieldManager && f.Operation == metav1.ManagedFieldsOperationUpdate && f.Time != nil {
			since = f.Time.Time
		}
	}
	_, err = d.patch(ctx, node.Name, `{"metadata":{"annotations":{"`+drainedKey+`":"`+since.UTC().Format(time.RFC3339)+`"}}}`)
	return err
}

// uncordon lets pods on the nodes again that a drain cordoned, this one or one before.
func (d *drainer) uncordon(ctx context.Context) error {
	var faults []error
	for _, n := range d.Nodes {
		node, err := d.kube.CoreV1().Nodes().Get(ctx, n.Node, metav1.GetOptions{})
		switch {
		case err != nil:
		case marked(node):
			_, err = d.patch(ctx, n.Node, `{"metadata":{"annotations":{"`+cordonedKey+`":null,"`+drainedKey+`":null}},"spec":{"unschedulable":null}}`)
		case node.Annotations[drainedKey] != "":
			_, err = d.patch(ctx, n.Node, `{"metadata":{"annotations":{"`+drainedKey+`":null}}}`)
		}
		if err != nil && !apierrors.IsNotFound(err) {
			faults = append(faults, fmt.Errorf("uncordon node %s: %w", n.Node, err))
		}
	}
	return errors.Join(faults...)
}

func marked(n *corev1.Node) bool { _, ok := n.Annotations[cordonedKey]; return ok }

// empty drains all nodes at once. The first that is blocked ends it for all.
func (d *drainer) empty(ctx context.Context) error {
	nodes, ctx := errgroup.WithContext(ctx)
	for _, n := range d.Nodes {
		nodes.Go(func() error { return d.drain(ctx, n) })
	}
	return nodes.Wait()
}

func (d *drainer) drain(ctx context.Context, n Leaving) error {
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	said, patience := "", patience{}
	for {
		left, err := d.round(ctx, n)
		if err != nil && (ctx.Err() != nil || !transient(err)) {
			return fmt.Errorf("drain node %s: %w", n.Node, err)
		}
		var text string
		switch {
		case err != nil:
			text = "drain node " + n.Node + ": " + err.Error()
		case len(left) == 0:
			return nil
		default:
			text = fmt.Sprintf("%s left on node %s: %s", count(len(left), "pod"), n.Node, left.progress())
		}
		if text != said {
			plan.Report(ctx, text)
			said = text
		}
		shut := patience.shut(left)
		switch {
		case d.Force:
		case len(shut) > 0:
			return d.blocked(ctx, n.Node, "cannot be drained", shut, nil)
		case time.Since(d.began) >= d.Timeout:
			return d.blocked(ctx, n.Node, "is not drained after "+d.Timeout.String(), left, err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// round asks each pod to go that was not asked yet, in the way that is due, and tells
// which are left for how long.
func (d *drainer) round(ctx context.Context, n Leaving) (holds, error) {
	node, err := d.kube.CoreV1().Nodes().Get(ctx, n.Node, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	pods, err := movable(ctx, d.kube, node)
	if err != nil {
		return nil, err
	}
	over := time.Since(d.began) - d.Timeout
	switch dead := d.Force && n.Lost && silent(node); {
	case dead:
		return d.bury(ctx, node, over >= 0)
	case d.Force && over >= overtime:
		return nil, d.delete(ctx, pods, true)
	case d.Force && over >= 0:
		return ending(pods), d.delete(ctx, pods, false)
	default:
		return d.evict(ctx, pods)
	}
}

// buried tells that all pods of a dead node were taken out of the API.
func buried(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService })
}

// silent tells that a node's kubelet gives no sign of life any more.
func silent(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown
	})
}

// evict asks for what budgets may refuse.
func (d *drainer) evict(ctx context.Context, pods []corev1.Pod) (holds, error) {
	left := ending(pods)
	var seen *look
	for i, p := range pods {
		if p.DeletionTimestamp != nil {
			continue
		}
		err := d.kube.PolicyV1().Evictions(p.Namespace).Evict(ctx, &policyv1.Eviction{
			ObjectMeta:    metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace},
			DeleteOptions: &metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(p.UID))},
		})
		switch {
		case err == nil:
			d.mu.Lock()
			d.evicted = append(d.evicted, podName(p))
			d.mu.Unlock()
			continue
		case apierrors.IsNotFound(err), apierrors.IsConflict(err): // it went
			continue
		case !transient(err):
			return nil, fmt.Errorf("evict pod %s: %w", podName(p), err)
		}
		left[i].refused = err
		if seen == nil {
			if seen, err = newLook(ctx, d.kube); err != nil {
				return nil, err
			}
		}
		if left[i].budgets, err = covering(seen.budgets, p); err != nil {
			return nil, err
		}
		if left[i].shut, err = seen.shut(ctx, left[i]); err != nil {
			return nil, err
		}
	}
	return left, nil
}

// delete takes pods away whatever budgets say: as they would end by themselves or, at
// once, out of the API without hearing their kubelet.
func (d *drainer) delete(ctx context.Context, pods []corev1.Pod, atOnce bool) error {
	for _, p := range pods {
		if p.DeletionTimestamp != nil && !atOnce {
			continue
		}
		opts := metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(p.UID))}
		if atOnce {
			opts.GracePeriodSeconds = new(int64)
		}
		err := d.kube.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, opts)
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return fmt.Errorf("delete pod %s: %w", podName(p), err)
		}
	}
	return nil
}

// bury takes all pods of a dead node out of the API. The taint has Kubernetes detach
// their volumes at once, so that they can run elsewhere; that is waited for unless it is late.
func (d *drainer) bury(ctx context.Context, n *corev1.Node, late bool) (holds, error) {
	if !buried(n) {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: corev1.TaintNodeOutOfService, Value: "removed", Effect: corev1.TaintEffectNoExecute})
		if _, err := d.kube.CoreV1().Nodes().Update(ctx, n, metav1.UpdateOptions{FieldManager: FieldManager}); err != nil {
			if apierrors.IsConflict(err) { // the next round is another try
				return holds{{what: "the out-of-service taint"}}, nil
			}
			return nil, fmt.Errorf("taint node %s: %w", n.Name, err)
		}
	}
	pods, err := podsOf(ctx, d.kube, n.Name)
	if err != nil {
		return nil, err
	}
	if err := d.delete(ctx, pods, true); err != nil || late {
		return nil, err
	}
	attached, err := d.kube.StorageV1().VolumeAttachments().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list VolumeAttachments: %w", err)
	}
	var left holds
	for _, v := range attached.Items {
		if v.Spec.NodeName == n.Name {
			left = append(left, hold{what: "the detaching of volume " + v.Name})
		}
	}
	return left, nil
}

// blocked is the fault of a drain that is given up: how it stands with the node, and why.
func (d *drainer) blocked(ctx context.Context, node, state string, left holds, cause error) error {
	if cause != nil { // the last look did not succeed
		return fault.New(fault.DrainBlocked, "run the same command again", "node %s %s: %w", node, state, cause)
	}
	n, err := d.kube.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	after := ""
	switch {
	case err != nil:
	case marked(n):
		after = "; the node takes pods again, " + d.changed()
	default:
		after = "; the node stays cordoned, as it was before, " + d.changed()
	}
	return fault.New(fault.DrainBlocked, left.remedy(), "node %s %s: %s%s", node, state, left, after)
}

// changed says what a drain that is given up leaves behind.
func (d *drainer) changed() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.evicted) == 0 {
		return "nothing else was changed"
	}
	return "but pods were evicted before, for their controllers to make others: " + some(d.evicted)
}

// movable are the pods of a node that go before it does: not those of DaemonSets, nor static ones,
// nor those that came although it is cordoned.
func movable(ctx context.Context, kube kubernetes.Interface, node *corev1.Node) ([]corev1.Pod, error) {
	helper := drain.Helper{Ctx: ctx, Client: kube, Force: true, IgnoreAllDaemonSets: true, DeleteEmptyDirData: true, Out: io.Discard, ErrOut: io.Discard}
	list, faults := helper.GetPodsForDeletion(node.Name)
	if len(faults) > 0 {
		return nil, fmt.Errorf("list the pods of node %s: %w", node.Name, errors.Join(faults...))
	}
	since, err := time.Parse(time.RFC3339, node.Annotations[drainedKey])
	if err != nil || !node.Spec.Unschedulable {
		return list.Pods(), nil
	}
	return slices.DeleteFunc(list.Pods(), func(p corev1.Pod) bool { return p.CreationTimestamp.After(since.Add(latecoming)) }), nil
}

// podsOf are all pods of a node.
func podsOf(ctx context.Context, kube kubernetes.Interface, node string) ([]corev1.Pod, error) {
	list, err := kube.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
	if err != nil {
		return nil, fmt.Errorf("list the pods of node %s: %w", node, err)
	}
	return list.Items, nil
}

func finished(p corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// orphan tells a pod that nothing makes anew elsewhere.
func orphan(p corev1.Pod) bool {
	return metav1.GetControllerOf(&p) == nil && p.DeletionTimestamp == nil && !finished(p)
}

func podName(p corev1.Pod) string { return p.Namespace + "/" + p.Name }

// covering are the budgets that a pod falls under.
func covering(all []policyv1.PodDisruptionBudget, p corev1.Pod) ([]policyv1.PodDisruptionBudget, error) {
	var of []policyv1.PodDisruptionBudget
	for _, b := range all {
		if b.Namespace != p.Namespace {
			continue
		}
		selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err != nil {
			return nil, fmt.Errorf("PodDisruptionBudget %s/%s: %w", b.Namespace, b.Name, err)
		}
		if selector.Matches(labels.Set(p.Labels)) {
			of = append(of, b)
		}
	}
	return of, nil
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

// maxNamed is how many objects a message names.
const maxNamed = 10

// some joins names, those of the first few.
func some(names []string) string {
	if more := len(names) - maxNamed; more > 0 {
		return strings.Join(names[:maxNamed], ", ") + fmt.Sprintf(" and %d more", more)
	}
	return strings.Join(names, ", ")
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// Loss says what is lost with a node whose host is given up as it is.
func Loss(ctx context.Context, r Reader, node string) (string, error) {
	kube, err := r.Kubernetes(ctx)
	if err != nil {
		return "", err
	}
	pods, err := movable(ctx, kube, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}})
	if err != nil {
		return "", err
	}
	var alone, moving, data []string
	for _, p := range pods {
		switch {
		case finished(p):
			continue
		case orphan(p):
			alone = append(alone, podName(p))
		default:
			moving = append(moving, podName(p))
		}
		if keepsData(p) {
			data = append(data, podName(p))
		}
	}
	words := []string{"what is on its disks"}
	if len(moving) > 0 {
		start := "start"
		if len(moving) == 1 {
			start = "starts"
		}
		words = append(words, fmt.Sprintf("%s that %s anew elsewhere without waiting for an end here (%s)", count(len(moving), "pod"), start, some(moving)))
	}
	if len(data) > 0 {
		words = append(words, "the emptyDir volumes of "+some(data))
	}
	if len(alone) > 0 {
		words = append(words, "pods that no controller makes anew: "+some(alone))
	}
	return strings.Join(words, ", "), nil
}

// keepsData tells whether a pod has an emptyDir volume on its node's disk.
func keepsData(p corev1.Pod) bool {
	return slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool {
		return v.EmptyDir != nil && v.EmptyDir.Medium != corev1.StorageMediumMemory
	})
}
