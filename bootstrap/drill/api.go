package drill

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/kubewright/kubewright/bootstrap/cluster"
)

// Namespace is where the load writes, in the cluster that is practised on.
const Namespace = "kubewright-drill"

// perObject is how many records of a writer are in one ConfigMap: each write sends one, but
// etcd stores the whole object again.
const perObject = 20

// configMaps is a Store in the API: a record is a key of a ConfigMap.
type configMaps struct {
	kube  kubernetes.Interface
	value string // of each record
}

var _ Store = configMaps{}

func objectName(r Record) string { return fmt.Sprintf("writer-%d-%d", r.Writer, r.Number/perObject) }
func keyName(r Record) string    { return strconv.Itoa(r.Number) }

// Append adds a key and touches no other, so that the server's own copy is what is added to:
// a write that was lost is not made again by the next.
func (s configMaps) Append(ctx context.Context, r Record) error {
	maps := s.kube.CoreV1().ConfigMaps(Namespace)
	patch, err := json.Marshal(corev1.ConfigMap{Data: map[string]string{keyName(r): s.value}})
	if err != nil {
		return err
	}
	_, err = maps.Patch(ctx, objectName(r), types.MergePatchType, patch, metav1.PatchOptions{FieldManager: cluster.FieldManager})
	if !apierrors.IsNotFound(err) {
		return err
	}
	_, err = maps.Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: objectName(r)}, Data: map[string]string{keyName(r): s.value},
	}, metav1.CreateOptions{FieldManager: cluster.FieldManager})
	return err
}

// Has asks etcd, not a cache: that is what a get without a resource version does.
func (s configMaps) Has(ctx context.Context, r Record) (bool, error) {
	m, err := s.kube.CoreV1().ConfigMaps(Namespace).Get(ctx, objectName(r), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	_, found := m.Data[keyName(r)]
	return found, nil
}

func (s configMaps) All(ctx context.Context) (map[Record]bool, error) {
	list, err := s.kube.CoreV1().ConfigMaps(Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list ConfigMaps of namespace %s: %w", Namespace, err)
	}
	found := map[Record]bool{}
	for _, m := range list.Items {
		words := strings.Split(m.Name, "-")
		if len(words) != 3 || words[0] != "writer" {
			continue // kube-root-ca.crt, which each namespace has
		}
		writer, err := strconv.Atoi(words[1])
		if err != nil {
			return nil, fmt.Errorf("ConfigMap %s/%s: %w", Namespace, m.Name, err)
		}
		for key := range m.Data {
			number, err := strconv.Atoi(key)
			if err != nil {
				return nil, fmt.Errorf("ConfigMap %s/%s: %w", Namespace, m.Name, err)
			}
			found[Record{writer, number}] = true
		}
	}
	return found, nil
}

const namespacePoll = 250 * time.Millisecond

// makeNamespace makes the load's namespace, empty: what a drill that was killed has left there is removed.
func makeNamespace(ctx context.Context, kube kubernetes.Interface) error {
	if err := removeNamespace(ctx, kube); err != nil {
		return err
	}
	_, err := kube.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: Namespace, Labels: map[string]string{"app.kubernetes.io/managed-by": "kubewright"},
	}}, metav1.CreateOptions{FieldManager: cluster.FieldManager})
	if err != nil {
		return fmt.Errorf("make namespace %s: %w", Namespace, err)
	}
	return nil
}

// removeNamespace returns when the load's namespace is gone with all that is in it.
func removeNamespace(ctx context.Context, kube kubernetes.Interface) error {
	tick := time.NewTicker(namespacePoll)
	defer tick.Stop()
	for {
		// One that is being deleted is a conflict; an API that does not answer now may the next time.
		err := kube.CoreV1().Namespaces().Delete(ctx, Namespace, metav1.DeleteOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("remove namespace %s: %w (%w)", Namespace, context.Cause(ctx), err)
		}
	}
}
