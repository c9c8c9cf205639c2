package support

import (
	"context"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
)

// list is one kind of object that is collected.
type list struct {
	name string
	of   func(context.Context, kubernetes.Interface) (runtime.Object, error)
}

// lists are all that is asked of the API. Secrets are not among them, and must never be.
func lists() []list {
	const ns = metav1.NamespaceSystem
	all := metav1.ListOptions{}
	return []list{
		{"nodes", func(ctx context.Context, k kubernetes.Interface) (runtime.Object, error) {
			return k.CoreV1().Nodes().List(ctx, all)
		}},
		{"pods", func(ctx context.Context, k kubernetes.Interface) (runtime.Object, error) {
			return k.CoreV1().Pods(ns).List(ctx, all)
		}},
		{"events", func(ctx context.Context, k kubernetes.Interface) (runtime.Object, error) {
			return k.CoreV1().Events(ns).List(ctx, all)
		}},
		{"services", func(ctx context.Context, k kubernetes.Interface) (runtime.Object, error) {
			return k.CoreV1().Services(ns).List(ctx, all)
		}},
		{"endpointslices", func(ctx context.Context, k kubernetes.Interface) (runtime.Object, error) {
			return k.DiscoveryV1().EndpointSlices(ns).List(ctx, all)
		}},
		{"configmaps", func(ctx context.Context, k kubernetes.Interface) (runtime.Object, error) { return configMaps(ctx, k) }},
		{"daemonsets", func(ctx context.Context, k kubernetes.Interface) (runtime.Object, error) {
			return k.AppsV1().DaemonSets(ns).List(ctx, all)
		}},
		{"deployments", func(ctx context.Context, k kubernetes.Interface) (runtime.Object, error) {
			return k.AppsV1().Deployments(ns).List(ctx, all)
		}},
		{"leases", func(ctx context.Context, k kubernetes.Interface) (runtime.Object, error) {
			return k.CoordinationV1().Leases(ns).List(ctx, all)
		}},
	}
}

// configMaps are those of kube-system, but for what people keep tokens in.
func configMaps(ctx context.Context, k kubernetes.Interface) (*corev1.ConfigMapList, error) {
	found, err := k.CoreV1().ConfigMaps(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var kept []corev1.ConfigMap
	for _, m := range found.Items {
		if !strings.Contains(m.Name, "token") {
			kept = append(kept, m)
		}
	}
	found.Items = kept
	return found, nil
}

func (a *archive) objects(ctx context.Context, kube kubernetes.Interface) {
	var all sync.WaitGroup
	for _, l := range lists() {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, itemTimeout)
			defer cancel()
			found, err := l.of(ctx, kube)
			if err == nil {
				err = meta.EachListItem(found, strip)
			}
			a.json("cluster/"+l.name+".json", found, err)
		})
	}
	all.Wait()
}

// strip takes away what only repeats the object.
func strip(o runtime.Object) error {
	m, err := meta.Accessor(o)
	if err != nil {
		return err
	}
	m.SetManagedFields(nil)
	notes := m.GetAnnotations()
	delete(notes, corev1.LastAppliedConfigAnnotation)
	m.SetAnnotations(notes)
	return nil
}

const (
	// logLines is how much of a pod's log is collected.
	logLines = 2000
	// logTimeout bounds the question for one log: a node that is down does not answer.
	logTimeout = 5 * time.Second
)

// podLogs are the logs of kube-system: of each container's run, and of the one before.
func (a *archive) podLogs(ctx context.Context, kube kubernetes.Interface) {
	asking, cancel := context.WithTimeout(ctx, itemTimeout)
	defer cancel()
	pods, err := kube.CoreV1().Pods(metav1.NamespaceSystem).List(asking, metav1.ListOptions{})
	if err != nil {
		a.add("cluster/logs", nil, err)
		return
	}
	calls := errgroup.Group{}
	calls.SetLimit(atOnce)
	for _, p := range pods.Items {
		for _, c := range p.Status.ContainerStatuses {
			calls.Go(func() error { a.podLog(ctx, kube, p, c, false); return nil })
			if c.RestartCount > 0 {
				calls.Go(func() error { a.podLog(ctx, kube, p, c, true); return nil })
			}
		}
	}
	calls.Wait() //nolint:errcheck // each tells its own trouble
}

func (a *archive) podLog(ctx context.Context, kube kubernetes.Interface, p corev1.Pod, c corev1.ContainerStatus, previous bool) {
	ctx, cancel := context.WithTimeout(ctx, logTimeout)
	defer cancel()
	name := "cluster/logs/" + safe(p.Name) + "." + safe(c.Name)
	if previous {
		name += ".previous"
	}
	lines := int64(logLines)
	out, err := kube.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{
		Container: c.Name, Previous: previous, TailLines: &lines, Timestamps: true}).DoRaw(ctx)
	a.add(name+".log", out, err)
}
