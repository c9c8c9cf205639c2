package cluster

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"

	"golang.org/x/sync/errgroup"
	"sigs.k8s.io/yaml"

	"github.com/kubewright/kubewright/bootstrap/plan"
)

// await is plan.WaitUntil, for which a server that is still starting is one more thing to wait for.
func await(ctx context.Context, what string, see func(context.Context) (missing string, err error)) error {
	return plan.WaitUntil(ctx, what, func(ctx context.Context) (string, error) {
		missing, err := see(ctx)
		if err != nil && ctx.Err() == nil && transient(err) {
			return err.Error(), nil
		}
		return missing, err
	})
}

// waitDiff turns what a wait misses into a diff.
func waitDiff(object, missing string, err error) (plan.Diff, error) {
	if err != nil || missing == "" {
		return nil, err
	}
	return plan.Diff{{Verb: plan.Await, Kind: plan.ObjectWait, Object: object, Detail: missing}}, nil
}

// APIReady waits until the API server serves, and has made the namespaces that all else goes into.
type APIReady struct{}

var _ plan.Action[Reader, Writer] = APIReady{}

func (a APIReady) see(ctx context.Context, r Reader) (string, error) {
	kube, err := r.Kubernetes(ctx)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	failing, err := Readyz(ctx, kube)
	switch {
	case len(failing) > 0:
		return "it says that it is not ready: " + strings.Join(failing, ", "), nil
	case err != nil:
		return err.Error(), nil
	}
	for _, ns := range []string{metav1.NamespaceSystem, metav1.NamespaceDefault} {
		if _, err := kube.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{}); err != nil {
			return fmt.Sprintf("namespace %s: %v", ns, err), nil
		}
	}
	return "", nil
}

func (a APIReady) Check(ctx context.Context, r Reader) (plan.Diff, error) {
	missing, err := a.see(ctx, r)
	return waitDiff("API server", missing, err)
}

// Foresee: whatever is not there is waited for.
func (a APIReady) Foresee() plan.Diff { return awaited("API server") }

func awaited(object string) plan.Diff {
	return plan.Diff{{Verb: plan.Await, Kind: plan.ObjectWait, Object: object}}
}

func (a APIReady) Apply(ctx context.Context, w Writer) error {
	return await(ctx, "the API server to serve", func(ctx context.Context) (string, error) { return a.see(ctx, w) })
}

// Objects applies objects on the server's side, in the order given, several at a time.
type Objects struct {
	Objects []*unstructured.Unstructured
}

var _ plan.Action[Reader, Writer] = Objects{}

// atOnce bounds concurrent calls to an API server that has just started.
const atOnce = 4

func (a Objects) Check(ctx context.Context, r Reader) (plan.Diff, error) {
	changes := make([]plan.Diff, len(a.Objects))
	calls, ctx := errgroup.WithContext(ctx)
	calls.SetLimit(atOnce)
	for i, o := range a.Objects {
		calls.Go(func() error {
			live, err := r.Live(ctx, o)
			if err != nil {
				return fmt.Errorf("get %s: %w", Name(o), err)
			}
			if live == nil {
				changes[i] = plan.Diff{created(o)}
				return nil
			}
			wished, err := r.Wished(ctx, o)
			if err != nil {
				return fmt.Errorf("apply %s (dry run): %w", Name(o), err)
			}
			if fields := differing(live, wished); len(fields) > 0 {
				changes[i] = plan.Diff{{Verb: plan.Update, Kind: plan.ObjectAPI, Object: Name(o), Detail: strings.Join(fields, ", "),
					Before: objectState(live), After: objectState(wished)}}
			}
			return nil
		})
	}
	err := calls.Wait()
	return slices.Concat(changes...), err
}

// Foresee: in a new cluster every object is to be made.
func (a Objects) Foresee() plan.Diff {
	diff := make(plan.Diff, len(a.Objects))
	for i, o := range a.Objects {
		diff[i] = created(o)
	}
	return diff
}

func created(o *unstructured.Unstructured) plan.Change {
	return plan.Change{Verb: plan.Create, Kind: plan.ObjectAPI, Object: Name(o), After: objectState(o)}
}

// objectState is an object without what the server keeps for itself; of a Secret
// the digest only.
func objectState(o *unstructured.Unstructured) *plan.State {
	o = o.DeepCopy()
	for _, f := range []string{"managedFields", "resourceVersion", "uid", "generation", "creationTimestamp"} {
		unstructured.RemoveNestedField(o.Object, "metadata", f)
	}
	unstructured.RemoveNestedField(o.Object, "status")
	text, err := yaml.Marshal(o.Object)
	if err != nil {
		return nil
	}
	s := &plan.State{Digest: plan.Digest(text)}
	if o.GetKind() != "Secret" {
		s.Text = string(text)
	}
	return s
}

// differing names the top-level fields in which two states of an object differ
// by meaning: what the server keeps for itself does not count.
func differing(a, b *unstructured.Unstructured) []string {
	var fields []string
	for k := range maps.Keys(b.Object) {
		x, y := a.Object[k], b.Object[k]
		if k == "metadata" {
			x, y = wishedMetadata(a), wishedMetadata(b)
		}
		if k != "status" && !equality.Semantic.DeepEqual(x, y) {
			fields = append(fields, k)
		}
	}
	slices.Sort(fields)
	return fields
}

func wishedMetadata(o *unstructured.Unstructured) any {
	return []any{o.GetLabels(), o.GetAnnotations(), o.GetOwnerReferences(), o.GetFinalizers()}
}

func (a Objects) Apply(ctx context.Context, w Writer) error {
	calls, ctx := errgroup.WithContext(ctx)
	calls.SetLimit(atOnce)
	for _, o := range a.Objects {
		calls.Go(func() error {
			err := retry.OnError(retry.DefaultBackoff, transient, func() error { return w.Apply(ctx, o) })
			if err != nil {
				return fmt.Errorf("apply %s: %w", Name(o), err)
			}
			return nil
		})
	}
	return calls.Wait()
}

// HostAnnotation of a node remembers by which name SSH reaches its host. Without it, the run that was
// to make it a node has not come to its end.
const HostAnnotation = "kubewright.dev/host"

// NodeMeta gives a node labels, annotations and taints, and takes away the taints in Without.
// and the labels in WithoutLabels. Other labels and taints of the node stay as they are. A node
// that a Drain of ours has cordoned takes pods again.
type NodeMeta struct {
	Node        string
	Labels      map[string]string
	Annotations map[string]string
	Taints      []corev1.Taint
	Without     []corev1.Taint
	// WithoutLabels are keys that an earlier wish had and this one has not.
	WithoutLabels []string
}

var _ plan.Action[Reader, Writer] = NodeMeta{}

// change edits n, and says what it changed.
func (a NodeMeta) change(n *corev1.Node) plan.Diff {
	var diff plan.Diff
	object := "Node " + a.Node
	for _, k := range slices.Sorted(maps.Keys(a.Labels)) {
		if v, ok := n.Labels[k]; !ok || v != a.Labels[k] {
			metav1.SetMetaDataLabel(&n.ObjectMeta, k, a.Labels[k])
			diff = append(diff, plan.Change{Verb: plan.Update, Kind: plan.ObjectAPI, Object: object, Detail: "label " + k + "=" + a.Labels[k]})
		}
	}
	for _, k := range a.WithoutLabels {
		if _, ok := n.Labels[k]; ok {
			delete(n.Labels, k)
			diff = append(diff, plan.Change{Verb: plan.Update, Kind: plan.ObjectAPI, Object: object, Detail: "remove label " + k})
		}
	}
	for _, k := range slices.Sorted(maps.Keys(a.Annotations)) {
		if v, ok := n.Annotations[k]; !ok || v != a.Annotations[k] {
			metav1.SetMetaDataAnnotation(&n.ObjectMeta, k, a.Annotations[k])
			diff = append(diff, plan.Change{Verb: plan.Update, Kind: plan.ObjectAPI, Object: object, Detail: "annotation " + k + "=" + a.Annotations[k]})
		}
	}
	if marked(n) { // a removal was broken off, and the node stays after all
		n.Spec.Unschedulable = false
		delete(n.Annotations, cordonedKey)
		delete(n.Annotations, drainedKey)
		diff = append(diff, plan.Change{Verb: plan.Update, Kind: plan.ObjectAPI, Object: object, Detail: "uncordon"})
	}
	for _, t := range a.Without {
		n.Spec.Taints = slices.DeleteFunc(n.Spec.Taints, func(have corev1.Taint) bool {
			if have.MatchTaint(&t) {
				diff = append(diff, plan.Change{Verb: plan.Update, Kind: plan.ObjectAPI, Object: object, Detail: "remove taint " + t.ToString()})
				return true
			}
			return false
		})
	}
	for _, t := range a.Taints {
		i := slices.IndexFunc(n.Spec.Taints, func(have corev1.Taint) bool { return have.MatchTaint(&t) })
		switch {
		case i < 0:
			n.Spec.Taints = append(n.Spec.Taints, t)
		case n.Spec.Taints[i].Value != t.Value:
			n.Spec.Taints[i].Value = t.Value
		default:
			continue
		}
		diff = append(diff, plan.Change{Verb: plan.Update, Kind: plan.ObjectAPI, Object: object, Detail: "taint " + t.ToString()})
	}
	return diff
}

func (a NodeMeta) Check(ctx context.Context, r Reader) (plan.Diff, error) {
	kube, err := r.Kubernetes(ctx)
	if err != nil {
		return nil, err
	}
	n, err := kube.CoreV1().Nodes().Get(ctx, a.Node, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return append(plan.Diff{{Verb: plan.Await, Kind: plan.ObjectWait, Object: "Node " + a.Node, Detail: "not registered yet"}}, a.Foresee()...), nil
	}
	if err != nil {
		return nil, err
	}
	return a.change(n), nil
}

func (a NodeMeta) Apply(ctx context.Context, w Writer) error {
	kube, err := w.Kubernetes(ctx)
	if err != nil {
		return err
	}
	if err := await(ctx, "node "+a.Node+" to register", func(ctx context.Context) (string, error) {
		_, err := kube.CoreV1().Nodes().Get(ctx, a.Node, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return "the API has no such node yet", nil
		}
		return "", err
	}); err != nil {
		return err
	}
	return retry.RetryOnConflict(retry.DefaultRetry, func() error {
		n, err := kube.CoreV1().Nodes().Get(ctx, a.Node, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if len(a.change(n)) == 0 {
			return nil
		}
		_, err = kube.CoreV1().Nodes().Update(ctx, n, metav1.UpdateOptions{FieldManager: FieldManager})
		return err
	})
}

// Foresee is said of a node that has not registered yet.
func (a NodeMeta) Foresee() plan.Diff { return a.change(&corev1.Node{}) }

// NodeMetas is NodeMeta for several nodes.
type NodeMetas struct {
	Nodes []NodeMeta
}

var _ plan.Action[Reader, Writer] = NodeMetas{}

func (a NodeMetas) Check(ctx context.Context, r Reader) (plan.Diff, error) {
	var all plan.Diff
	for _, n := range a.Nodes {
		diff, err := n.Check(ctx, r)
		if err != nil {
			return nil, err
		}
		all = append(all, diff...)
	}
	return all, nil
}

// Foresee is said of nodes that have not registered yet.
func (a NodeMetas) Foresee() plan.Diff {
	var all plan.Diff
	for _, n := range a.Nodes {
		all = append(all, n.Foresee()...)
	}
	return all
}

func (a NodeMetas) Apply(ctx context.Context, w Writer) error {
	nodes, ctx := errgroup.WithContext(ctx)
	for _, n := range a.Nodes {
		nodes.Go(func() error { return n.Apply(ctx, w) })
	}
	return nodes.Wait()
}

// NodesReady waits until all the nodes named are Ready.
type NodesReady struct {
	Nodes []string
}

var _ plan.Action[Reader, Writer] = NodesReady{}

func (a NodesReady) see(ctx context.Context, r Reader) (string, error) {
	kube, err := r.Kubernetes(ctx)
	if err != nil {
		return "", err
	}
	var missing []string
	for _, name := range a.Nodes {
		n, err := kube.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			missing = append(missing, name+" is not registered")
		case err != nil:
			return "", err
		default:
			if why := NotReady(n); why != "" {
				missing = append(missing, name+": "+why)
			}
		}
	}
	return strings.Join(missing, "; "), nil
}

// NotReady says why a node is not Ready, "" if it is.
func NotReady(n *corev1.Node) string {
	for _, c := range n.Status.Conditions {
		if c.Type != corev1.NodeReady {
			continue
		}
		if c.Status == corev1.ConditionTrue {
			return ""
		}
		return c.Message
	}
	return "no Ready condition yet"
}

func (a NodesReady) Check(ctx context.Context, r Reader) (plan.Diff, error) {
	missing, err := a.see(ctx, r)
	return waitDiff("nodes", missing, err)
}

// Foresee: whatever is not there is waited for.
func (a NodesReady) Foresee() plan.Diff { return awaited("nodes") }

func (a NodesReady) Apply(ctx context.Context, w Writer) error {
	return await(ctx, "nodes to be ready", func(ctx context.Context) (string, error) { return a.see(ctx, w) })
}

// Available waits until a Deployment is available as it is wished now.
type Available struct {
	Namespace, Deployment string
}

var _ plan.Action[Reader, Writer] = Available{}

func (a Available) see(ctx context.Context, r Reader) (string, error) {
	kube, err := r.Kubernetes(ctx)
	if err != nil {
		return "", err
	}
	d, err := kube.AppsV1().Deployments(a.Namespace).Get(ctx, a.Deployment, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentAvailable && c.Status == corev1.ConditionTrue && d.Status.ObservedGeneration >= d.Generation {
			return "", nil
		}
	}
	return fmt.Sprintf("%d of %d replicas are%s", d.Status.AvailableReplicas, *d.Spec.Replicas,
		podTrouble(ctx, kube, d)), nil
}

// podTrouble says what the first pod of a Deployment that is not running waits for.
func podTrouble(ctx context.Context, kube kubernetes.Interface, d *appsv1.Deployment) string {
	pods, err := kube.CoreV1().Pods(d.Namespace).List(ctx, metav1.ListOptions{
		LabelSelector: metav1.FormatLabelSelector(d.Spec.Selector)})
	if err != nil {
		return ""
	}
	for _, p := range pods.Items {
		for _, c := range p.Status.ContainerStatuses {
			if w := c.State.Waiting; w != nil && w.Reason != "" {
				return fmt.Sprintf(" (pod %s: %s %s)", p.Name, w.Reason, w.Message)
			}
		}
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status != corev1.ConditionTrue {
				return fmt.Sprintf(" (pod %s: %s)", p.Name, c.Message)
			}
		}
	}
	return ""
}

func (a Available) Check(ctx context.Context, r Reader) (plan.Diff, error) {
	missing, err := a.see(ctx, r)
	return waitDiff(a.object(), missing, err)
}

// Foresee: whatever is not there is waited for.
func (a Available) Foresee() plan.Diff { return awaited(a.object()) }

func (a Available) object() string { return "Deployment " + a.Namespace + "/" + a.Deployment }

func (a Available) Apply(ctx context.Context, w Writer) error {
	return await(ctx, a.Deployment+" to be available", func(ctx context.Context) (string, error) { return a.see(ctx, w) })
}
