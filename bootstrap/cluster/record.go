package cluster

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// recordName is the ConfigMap in kube-system that holds what a later run must
// know about the cluster: nothing of it lives only on a workstation.
const recordName = "kubewright"

// Record is what the cluster knows about itself.
type Record struct {
	Name   string // of the cluster
	ID     string // random, made at init; the same as in every host's claim
	Spec   string // the cluster file, as completed by init
	Bundle string // name of the bundle that its nodes run
}

// Object is the record as a ConfigMap.
func (r Record) Object() (*unstructured.Unstructured, error) {
	return Unstructured(&corev1.ConfigMap{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Name: recordName, Namespace: metav1.NamespaceSystem,
			Labels: map[string]string{"app.kubernetes.io/managed-by": "kubewright"}},
		Data: map[string]string{"name": r.Name, "id": r.ID, "cluster.yaml": r.Spec, "bundle": r.Bundle},
	})
}

// ReadRecord returns what the cluster knows about itself. A cluster without it
// was not made by kubewright: a fault.ClusterMissing.
func ReadRecord(ctx context.Context, r Reader) (Record, error) {
	kube, err := r.Kubernetes(ctx)
	if err != nil {
		return Record{}, err
	}
	m, err := kube.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, recordName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return Record{}, fault.New(fault.ClusterMissing, "name the kubeconfig of a cluster that `kubewright init` made (--kubeconfig)",
			"the cluster has no ConfigMap kube-system/%s: it was not made by kubewright", recordName)
	}
	if err != nil {
		return Record{}, fmt.Errorf("read ConfigMap kube-system/%s: %w", recordName, err)
	}
	return Record{Name: m.Data["name"], ID: m.Data["id"], Spec: m.Data["cluster.yaml"], Bundle: m.Data["bundle"]}, nil
}

// Unstructured converts a typed object, without the empty fields that would
// claim ownership of what we do not wish to own.
func Unstructured(o runtime.Object) (*unstructured.Unstructured, error) {
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return nil, err
	}
	u := &unstructured.Unstructured{Object: m}
	unstructured.RemoveNestedField(u.Object, "metadata", "creationTimestamp")
	unstructured.RemoveNestedField(u.Object, "status")
	return u, nil
}
