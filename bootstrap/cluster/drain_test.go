package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// api is an API of a few objects in which pods end at once, unless they are stuck.
type api struct {
	Writer
	kube    *fake.Clientset
	stuck   map[string]bool // pods that go on although they are deleted
	evicted []string
	deleted []string // with the grace they were given, if any
}

func (a *api) Kubernetes(context.Context) (kubernetes.Interface, error) { return a.kube, nil }

func newAPI(objects ...runtime.Object) *api {
	a := &api{kube: fake.NewClientset(objects...), stuck: map[string]bool{}}
	pods := corev1.SchemeGroupVersion.WithResource("pods")
	a.kube.PrependReactor("list", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
		list, err := a.kube.Tracker().List(pods, corev1.SchemeGroupVersion.WithKind("Pod"), metav1.NamespaceAll)
		if err != nil {
			return true, nil, err
		}
		all := list.(*corev1.PodList)
		only := action.(clienttesting.ListAction).GetListRestrictions()
		node, ok := only.Fields.RequiresExactMatch("spec.nodeName")
		var on corev1.PodList
		for _, p := range all.Items {
			if (!ok || p.Spec.NodeName == node) && (only.Labels == nil || only.Labels.Matches(labels.Set(p.Labels))) {
				on.Items = append(on.Items, p)
			}
		}
		return true, &on, nil
	})
	end := func(namespace, name string) error {
		if !a.stuck[name] {
			return a.kube.Tracker().Delete(pods, namespace, name)
		}
		o, err := a.kube.Tracker().Get(pods, namespace, name)
		if err != nil {
			return err
		}
		p := o.(*corev1.Pod)
		p.DeletionTimestamp, p.DeletionGracePeriodSeconds = new(metav1.Now()), new(int64(30))
		return a.kube.Tracker().Update(pods, p, namespace)
	}
	a.kube.PrependReactor("create", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
		e := action.(clienttesting.CreateAction).GetObject().(*policyv1.Eviction)
		o, err := a.kube.Tracker().Get(pods, e.Namespace, e.Name)
		if err != nil {
			return true, nil, err
		}
		budgets, err := a.kube.Tracker().List(policyv1.SchemeGroupVersion.WithResource("poddisruptionbudgets"),
			policyv1.SchemeGroupVersion.WithKind("PodDisruptionBudget"), e.Namespace)
		if err != nil {
			return true, nil, err
		}
		of, err := covering(budgets.(*policyv1.PodDisruptionBudgetList).Items, *o.(*corev1.Pod))
		switch {
		case err != nil:
		case len(of) > 1:
			err = apierrors.NewInternalError(errors.New("more than one budget"))
		case len(of) == 1 && of[0].Status.DisruptionsAllowed == 0:
			err = violates(of[0].Name)
		default:
			a.evicted = append(a.evicted, e.Name)
			err = end(e.Namespace, e.Name)
		}
		return true, nil, err
	})
	a.kube.PrependReactor("delete", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
		d := action.(clienttesting.DeleteAction)
		name := d.GetName()
		if g := d.GetDeleteOptions().GracePeriodSeconds; g != nil && *g == 0 {
			a.stuck[name] = false
			name += " at once"
		}
		a.deleted = append(a.deleted, name)
		return true, nil, end(d.GetNamespace(), d.GetName())
	})
	return a
}

// violates is how the API refuses an eviction because of a budget.
func violates(budget string) error {
	err := apierrors.NewTooManyRequests("it would violate the budget", 0)
	err.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: policyv1.DisruptionBudgetCause, Message: "of " + budget}}
	return err
}

func node(name string, change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, c := range change {
		c(n)
	}
	return n
}

func isSilent(n *corev1.Node) {
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown}}
}

func pod(name, node string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{"app": strings.TrimRight(name, "-0123456789")},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "of", Controller: new(true)}}},
		Spec: corev1.PodSpec{NodeName: node},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func isOrphan(p *corev1.Pod) { p.OwnerReferences = nil }

func hasEmptyDir(p *corev1.Pod) {
	p.Spec.Volumes = []corev1.Volume{{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
}

func budget(name, app string, minAvailable, healthy, desired, expected int32) *policyv1.PodDisruptionBudget {
	return &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: policyv1.PodDisruptionBudgetSpec{MinAvailable: new(intstr.FromInt32(minAvailable)),
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}},
		Status: policyv1.PodDisruptionBudgetStatus{CurrentHealthy: healthy, DesiredHealthy: desired, ExpectedPods: expected,
			DisruptionsAllowed: max(0, healthy-desired)},
	}
}

// drain runs an action as the runner does: what it said on the way, and its end.
func (a *api) drain(t *testing.T, d Drain) (said []string, err error) {
	t.Helper()
	_, err = plan.Run(t.Context(), plan.Options{Emit: func(e plan.Event) {
		if e.Kind == plan.Progress {
			said = append(said, e.Text)
		}
	}}, plan.NewLane[Reader, Writer]("cluster", a, a, plan.Step[Reader, Writer]{Name: "node/drain", Do: d, Timeout: DrainTime(d.Timeout)}))
	return said, err
}

func (a *api) node(t *testing.T, name string) *corev1.Node {
	t.Helper()
	n, err := a.kube.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestDrainMovesAllButDaemons(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		static := pod("static", "w1", isOrphan, func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"} })
		a := newAPI(node("w1"), node("w2"), pod("web-1", "w1"), pod("web-2", "w2"), static,
			pod("done", "w1", isOrphan, func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }))
		if _, err := a.drain(t, Drain{Nodes: []Leaving{{Node: "w1"}, {Node: "gone"}}, Timeout: time.Minute}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"done", "web-1"}, a.evicted); diff != "" {
			t.Errorf("evicted: -want +got:\n%s", diff)
		}
		if n := a.node(t, "w1"); !n.Spec.Unschedulable || !marked(n) {
			t.Errorf("w1 is not cordoned: %+v", n)
		}
		if a.node(t, "w2").Spec.Unschedulable {
			t.Error("w2 is cordoned")
		}
	})
}

// A drain that is blocked says by what and what to do, and leaves nodes as it found them.
func TestDrainBlocked(t *testing.T) {
	for name, c := range map[string]struct {
		objects  []runtime.Object
		stuck    string
		cordoned bool
		want     string
		remedy   string
		progress string
	}{
		"a budget that allows nothing": {
			objects:  []runtime.Object{pod("web-1", "w1"), pod("web-2", "w1"), pod("other-1", "w1"), budget("web", "web", 2, 2, 2, 2)},
			want:     "default/web-1, default/web-2 wait for PodDisruptionBudget default/web (minAvailable 2, currentHealthy 2, desiredHealthy 2, disruptionsAllowed 0); the node takes pods again, but pods were evicted before, for their controllers to make others: default/other-1",
			remedy:   "budget default/web lets no pod go as long as it wants 2 healthy pods of 2: scale up what it selects to 3 pods or more, or lower its minAvailable to 1 or less",
			progress: "2 pods left on node w1: PodDisruptionBudget default/web (minAvailable 2, currentHealthy 2, desiredHealthy 2, disruptionsAllowed 0) keeps default/web-1, default/web-2",
		},
		"pods that are not healthy": {
			objects: []runtime.Object{pod("web-1", "w1"), budget("web", "web", 2, 1, 2, 3)},
			want:    "default/web-1 waits for PodDisruptionBudget default/web (minAvailable 2, currentHealthy 1, desiredHealthy 2, disruptionsAllowed 0)",
			remedy:  "budget default/web wants more healthy pods than there are",
		},
		"two budgets": {
			objects: []runtime.Object{pod("web-1", "w1"), budget("a", "web", 1, 5, 1, 5), budget("b", "web", 1, 5, 1, 5)},
			want:    "default/web-1 waits for PodDisruptionBudget default/a (minAvailable 1, currentHealthy 5, desiredHealthy 1, disruptionsAllowed 4) and PodDisruptionBudget default/b",
			remedy:  "have only one budget select a pod",
		},
		"a pod that does not end": {
			objects: []runtime.Object{pod("web-1", "w1")}, stuck: "web-1",
			want:   "pod default/web-1 ends (it was given 30s)",
			remedy: "give pods that end more time with --timeout",
		},
		"an admin's cordon stays": {
			objects: []runtime.Object{pod("web-1", "w1"), budget("web", "web", 1, 1, 1, 1)}, cordoned: true,
			want:   "the node stays cordoned, as it was before, nothing else was changed",
			remedy: "`kubewright remove --force` deletes what is left at the timeout",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPI(append(c.objects, node("w1", func(n *corev1.Node) { n.Spec.Unschedulable = c.cordoned }))...)
				a.stuck[c.stuck] = true
				began := time.Now()
				said, err := a.drain(t, Drain{Nodes: []Leaving{{Node: "w1"}}, Timeout: time.Minute})
				if took := time.Since(began); fault.CodeOf(err) != fault.DrainBlocked || took < time.Minute || took > 2*time.Minute {
					t.Fatalf("after %s: %v", took, err)
				}
				for _, want := range []string{"node w1 is not drained after 1m0s", c.want} {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("error:\n%v\ndoes not say:\n%s", err, want)
					}
				}
				if remedy := fault.RemedyOf(err); !strings.Contains(remedy, c.remedy) {
					t.Errorf("remedy:\n%s\ndoes not say:\n%s", remedy, c.remedy)
				}
				if !strings.Contains(strings.Join(said, "\n"), c.progress) {
					t.Errorf("progress:\n%s", strings.Join(said, "\n"))
				}
				if n := a.node(t, "w1"); n.Spec.Unschedulable != c.cordoned || marked(n) {
					t.Errorf("afterwards: %+v", n)
				}
			})
		})
	}
}

// A drain that was killed leaves a node cordoned. The next one knows that it was none of an admin's.
func TestDrainAfterOneThatWasKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(node("w1"), pod("web-1", "w1"), budget("web", "web", 1, 1, 1, 1))
		d := drainer{Drain: Drain{Nodes: []Leaving{{Node: "w1"}}}, kube: a.kube}
		if err := d.cordon(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := a.drain(t, Drain{Nodes: []Leaving{{Node: "w1"}}, Timeout: time.Second}); fault.CodeOf(err) != fault.DrainBlocked {
			t.Fatal(err)
		}
		if n := a.node(t, "w1"); n.Spec.Unschedulable || marked(n) {
			t.Errorf("afterwards: %+v", n)
		}
	})
}

func TestDrainStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(node("w1"), pod("web-1", "w1"), budget("web", "web", 1, 1, 1, 1))
		stop := make(chan struct{})
		go func() { time.Sleep(10 * time.Second); close(stop) }()
		_, err := plan.Run(t.Context(), plan.Options{Stop: stop}, plan.NewLane[Reader, Writer]("cluster", a, a,
			plan.Step[Reader, Writer]{Name: "node/drain", Do: Drain{Nodes: []Leaving{{Node: "w1"}}, Timeout: time.Minute}}))
		if fault.CodeOf(err) != fault.Interrupted {
			t.Fatal(err)
		}
		if n := a.node(t, "w1"); n.Spec.Unschedulable {
			t.Error("the node is still cordoned")
		}
	})
}

// Pods that nothing makes anew are a reason not to begin.
func TestDrainOrphans(t *testing.T) {
	a := newAPI(node("w1"), pod("alone", "w1", isOrphan), pod("web-1", "w1", hasEmptyDir))
	drain := Drain{Nodes: []Leaving{{Node: "w1"}}, Timeout: time.Minute}
	if _, err := a.drain(t, drain); fault.CodeOf(err) != fault.DrainBlocked || !strings.Contains(err.Error(), "default/alone on node w1") {
		t.Fatal(err)
	}
	if a.node(t, "w1").Spec.Unschedulable {
		t.Error("the node is cordoned")
	}
	drain.Force = true
	diff, err := drain.Check(t.Context(), a)
	if want := "cordon, and move 2 pods: default/alone, default/web-1; emptyDir volumes do not move with default/web-1"; err != nil || diff[0].Detail != want {
		t.Errorf("%v, %v", diff, err)
	}
	synctest.Test(t, func(t *testing.T) {
		if _, err := a.drain(t, drain); err != nil {
			t.Fatal(err)
		}
	})
}

// Force waits for budgets, too, but not for ever; and then for pods to end, but not for ever.
func TestDrainForced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(node("w1"), pod("web-1", "w1"), pod("web-2", "w1"), pod("other-1", "w1"), budget("web", "web", 2, 2, 2, 2))
		a.stuck["web-2"] = true
		began := time.Now()
		if _, err := a.drain(t, Drain{Nodes: []Leaving{{Node: "w1"}}, Timeout: time.Minute, Force: true}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"other-1"}, a.evicted); diff != "" {
			t.Errorf("evicted: -want +got:\n%s", diff)
		}
		if diff := cmp.Diff([]string{"web-1", "web-2", "web-2 at once"}, a.deleted); diff != "" {
			t.Errorf("deleted: -want +got:\n%s", diff)
		}
		if took := time.Since(began); took < time.Minute+overtime || took > DrainTime(time.Minute) {
			t.Errorf("it took %s", took)
		}
	})
}

// The pods of a dead node are given up as soon as its kubelet is silent, and volumes are waited for.
func TestDrainOfTheDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		attachment := &storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: "vol"}, Spec: storagev1.VolumeAttachmentSpec{NodeName: "w1"}}
		a := newAPI(node("w1"), pod("web-1", "w1"), pod("alone", "w1", isOrphan), budget("web", "web", 1, 1, 1, 1), attachment)
		nodes, attachments := corev1.SchemeGroupVersion.WithResource("nodes"), storagev1.SchemeGroupVersion.WithResource("volumeattachments")
		go func() {
			time.Sleep(10 * time.Second)
			if len(a.deleted) > 0 {
				t.Errorf("deleted although the kubelet may live: %v", a.deleted)
			}
			n := a.node(t, "w1")
			isSilent(n)
			if err := a.kube.Tracker().Update(nodes, n, ""); err != nil {
				t.Error(err)
			}
			time.Sleep(10 * time.Second)
			if err := a.kube.Tracker().Delete(attachments, "", "vol"); err != nil {
				t.Error(err)
			}
		}()
		a.stuck["alone"] = true
		began := time.Now()
		said, err := a.drain(t, Drain{Nodes: []Leaving{{Node: "w1", Lost: true}}, Timeout: time.Minute, Force: true})
		if took := time.Since(began); err != nil || took < 20*time.Second || took > 23*time.Second {
			t.Fatalf("after %s: %v", took, err)
		}
		if diff := cmp.Diff([]string{"alone at once", "web-1 at once"}, a.deleted); diff != "" {
			t.Errorf("deleted: -want +got:\n%s", diff)
		}
		if n := a.node(t, "w1"); len(n.Spec.Taints) != 1 || n.Spec.Taints[0].Key != corev1.TaintNodeOutOfService {
			t.Errorf("taints: %v", n.Spec.Taints)
		}
		if last := said[len(said)-1]; !strings.Contains(last, "volume vol") {
			t.Errorf("it said last: %s", last)
		}
	})
}

func TestRemoveAndReadmit(t *testing.T) {
	a := newAPI(node("w1"), node("w2"))
	remove := func(nodes ...string) {
		t.Helper()
		r := Remove{Nodes: nodes, By: "an admin"}
		if err := r.Apply(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		if diff, err := r.Check(t.Context(), a); err != nil || len(diff) > 0 {
			t.Errorf("%v, %v", diff, err)
		}
	}
	remove("w1")
	remove("w1", "w2")
	if was, err := RemovedNames(t.Context(), a); err != nil || !cmp.Equal(was, []string{"w1", "w2"}) {
		t.Errorf("%v, %v", was, err)
	}
	back := Readmit{Nodes: []string{"w1", "w3"}}
	diff, err := back.Check(t.Context(), a)
	if err != nil || len(diff) != 1 || !strings.Contains(diff.String(), "node w1 may register again; it was removed on ") {
		t.Errorf("%v, %v", diff, err)
	}
	if err := back.Apply(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if was, err := RemovedNames(t.Context(), a); err != nil || !cmp.Equal(was, []string{"w2"}) {
		t.Errorf("%v, %v", was, err)
	}
}

// What tolerates a node that is cordoned is made anew there as often as it is evicted: it is asked
// once, and then goes with the node.
func TestDrainOfWhatToleratesAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := metav1.NewTime(time.Now().Add(-time.Hour))
		made := 0
		a := newAPI(node("w1"), pod("agent-0", "w1", func(p *corev1.Pod) { p.CreationTimestamp = old }))
		a.kube.PrependReactor("create", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
			if action.GetSubresource() == "eviction" { // its controller does not wait
				made++
				again := pod(fmt.Sprintf("agent-%d", made), "w1", func(p *corev1.Pod) { p.CreationTimestamp = metav1.NewTime(time.Now()) })
				if err := a.kube.Tracker().Add(again); err != nil {
					t.Error(err)
				}
			}
			return false, nil, nil
		})
		if _, err := a.drain(t, Drain{Nodes: []Leaving{{Node: "w1"}}, Timeout: time.Minute}); err != nil {
			t.Fatal(err)
		}
		if made < 1 || made > int(latecoming/drainPoll)+2 {
			t.Errorf("it was asked %d times", made)
		}
	})
}
