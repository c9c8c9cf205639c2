package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/kubewright/kubewright/bootstrap/plan"
)

// RemovedNodes is the ConfigMap in kube-system with a key for each node that was
// removed: addon `removed` keeps it from registering again.
const RemovedNodes = "kubewright-removed"

// readRemoved returns what is said of the nodes that were removed, by name. There is no
// ConfigMap as long as none was.
func readRemoved(ctx context.Context, kube kubernetes.Interface) (removed map[string]string, exists bool, err error) {
	m, err := kube.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, RemovedNodes, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read ConfigMap kube-system/%s: %w", RemovedNodes, err)
	}
	return m.Data, true, nil
}

// patchRemoved sets entries, or takes those away that are nil.
func patchRemoved(ctx context.Context, kube kubernetes.Interface, entries map[string]*string) error {
	patch, err := json.Marshal(map[string]map[string]*string{"data": entries})
	if err != nil {
		return err
	}
	_, err = kube.CoreV1().ConfigMaps(metav1.NamespaceSystem).Patch(ctx, RemovedNodes, types.MergePatchType, patch,
		metav1.PatchOptions{FieldManager: FieldManager})
	if err != nil {
		return fmt.Errorf("write ConfigMap kube-system/%s: %w", RemovedNodes, err)
	}
	return nil
}

// Remove deletes nodes for good: a host that still has its certificate cannot register
// as one of them again, until Readmit.
type Remove struct {
	Nodes []string
	By    string // who removes them
}

var _ plan.Action[Reader, Writer] = Remove{}

func (a Remove) Check(ctx context.Context, r Reader) (plan.Diff, error) {
	kube, err := r.Kubernetes(ctx)
	if err != nil {
		return nil, err
	}
	removed, _, err := readRemoved(ctx, kube)
	if err != nil {
		return nil, err
	}
	var diff plan.Diff
	for _, name := range a.Nodes {
		if _, ok := removed[name]; !ok {
			diff = append(diff, barred(name))
		}
	}
	for _, name := range a.Nodes {
		_, err := kube.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		switch {
		case err == nil:
			diff = append(diff, deleted(name))
		case !apierrors.IsNotFound(err):
			return nil, err
		}
	}
	return diff, nil
}

// Foresee: all of them are nodes still, and none was removed before.
func (a Remove) Foresee() plan.Diff {
	diff := plan.Diff{}
	for _, name := range a.Nodes {
		diff = append(diff, barred(name), deleted(name))
	}
	return diff
}

func barred(node string) plan.Change {
	return plan.Change{Verb: plan.Update, Kind: plan.ObjectAPI, Object: "ConfigMap kube-system/" + RemovedNodes,
		Detail: "node " + node + " may not register again, until it joins"}
}

func deleted(node string) plan.Change {
	return plan.Change{Verb: plan.Delete, Kind: plan.ObjectAPI, Object: "Node " + node}
}

// Apply marks the nodes before it deletes them: a kubelet that is started just then
// would be back otherwise.
func (a Remove) Apply(ctx context.Context, w Writer) error {
	kube, err := w.Kubernetes(ctx)
	if err != nil {
		return err
	}
	if err := a.mark(ctx, kube); err != nil {
		return err
	}
	for _, name := range a.Nodes {
		if err := kube.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete node %s: %w", name, err)
		}
	}
	// What a DaemonSet made between the drain and the end of its node: no kubelet ends it.
	return DeadPods{Nodes: a.Nodes}.Apply(ctx, w)
}

func (a Remove) mark(ctx context.Context, kube kubernetes.Interface) error {
	removed, exists, err := readRemoved(ctx, kube)
	if err != nil {
		return err
	}
	text := fmt.Sprintf("removed on %s by %s", time.Now().UTC().Format(time.DateOnly), a.By)
	entries, data := map[string]*string{}, map[string]string{}
	for _, name := range a.Nodes {
		if _, ok := removed[name]; !ok {
			entries[name], data[name] = &text, text
		}
	}
	switch {
	case len(entries) == 0:
		return nil
	case exists:
		return patchRemoved(ctx, kube, entries)
	}
	_, err = kube.CoreV1().ConfigMaps(metav1.NamespaceSystem).Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: RemovedNodes, Namespace: metav1.NamespaceSystem,
			Labels: map[string]string{"app.kubernetes.io/managed-by": "kubewright"}},
		Data: data,
	}, metav1.CreateOptions{FieldManager: FieldManager})
	if err != nil {
		return fmt.Errorf("make ConfigMap kube-system/%s: %w", RemovedNodes, err)
	}
	return nil
}

// Readmit lets nodes register that were removed once.
type Readmit struct {
	Nodes []string
}

var _ plan.Action[Reader, Writer] = Readmit{}

func (a Readmit) Check(ctx context.Context, r Reader) (plan.Diff, error) {
	kube, err := r.Kubernetes(ctx)
	if err != nil {
		return nil, err
	}
	removed, _, err := readRemoved(ctx, kube)
	if err != nil {
		return nil, err
	}
	var diff plan.Diff
	for _, name := range a.Nodes {
		if why, ok := removed[name]; ok {
			diff = append(diff, plan.Change{Verb: plan.Update, Kind: plan.ObjectAPI, Object: "ConfigMap kube-system/" + RemovedNodes,
				Detail: "node " + name + " may register again; it was " + why})
		}
	}
	return diff, nil
}

// Foresee: in a new cluster no node was removed.
func (a Readmit) Foresee() plan.Diff { return plan.Diff{} }

func (a Readmit) Apply(ctx context.Context, w Writer) error {
	kube, err := w.Kubernetes(ctx)
	if err != nil {
		return err
	}
	entries := map[string]*string{}
	for _, name := range a.Nodes {
		entries[name] = nil
	}
	return patchRemoved(ctx, kube, entries)
}

// RemovedNames are the nodes that were removed for good, and not readmitted since.
func RemovedNames(ctx context.Context, r Reader) ([]string, error) {
	kube, err := r.Kubernetes(ctx)
	if err != nil {
		return nil, err
	}
	removed, _, err := readRemoved(ctx, kube)
	return slices.Sorted(maps.Keys(removed)), err
}
