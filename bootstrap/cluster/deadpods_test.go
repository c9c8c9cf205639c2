package cluster

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
)

// typed is a cluster with typed objects only.
type typed struct{ kubernetes.Interface }

func (c typed) Kubernetes(context.Context) (kubernetes.Interface, error) { return c.Interface, nil }
func (typed) Live(context.Context, *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	return nil, nil
}
func (typed) Wished(context.Context, *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	return nil, nil
}
func (typed) Apply(context.Context, *unstructured.Unstructured) error { return nil }

func TestDeadPods(t *testing.T) {
	pod := func(name, node string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "a"}, Spec: corev1.PodSpec{NodeName: node}}
	}
	c := typed{fake.NewClientset(pod("one", "lost"), pod("two", "lost"))}
	a := DeadPods{Nodes: []string{"lost"}}
	if diff, err := a.Check(t.Context(), c); err != nil || len(diff) != 2 {
		t.Errorf("%v, %v", diff, err)
	}
	if err := a.Apply(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if diff, err := a.Check(t.Context(), c); err != nil || len(diff) != 0 {
		t.Errorf("%v, %v", diff, err)
	}
}
