package cluster

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	clienttesting "k8s.io/client-go/testing"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// shop is a namespace in which Deployment web runs two pods that are ready, one of them on node w1, and
// budget web, that wants both.
type shop struct {
	deployment *appsv1.Deployment
	budget     *policyv1.PodDisruptionBudget
	pods       []*corev1.Pod
	more       []runtime.Object
	refusal    error // in the place of the budget's
}

func isUp(p *corev1.Pod) {
	p.Status = corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
}

// madeBy has something else make a pod.
func madeBy(version, kind, name string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: version, Kind: kind, Name: name, Controller: new(true)}}
	}
}

func newShop() *shop {
	s := &shop{
		deployment: &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", Generation: 3},
			Spec:   appsv1.DeploymentSpec{Replicas: new(int32(2))},
			Status: appsv1.DeploymentStatus{ObservedGeneration: 3, UpdatedReplicas: 2}},
		budget: budget("web", "web", 2, 2, 2, 2),
		more: []runtime.Object{node("w1"), node("w2"), &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Name: "web-7", Namespace: "default",
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "Deployment", Name: "web", Controller: new(true)}}}}},
	}
	s.adds("web-1", "w1")
	s.adds("web-2", "w2")
	return s
}

// adds a pod that is ready.
func (s *shop) adds(name, node string, change ...func(*corev1.Pod)) {
	s.pods = append(s.pods, pod(name, node, append([]func(*corev1.Pod){madeBy("apps/v1", "ReplicaSet", "web-7"), isUp}, change...)...))
}

// wants has the budget want this, of pods that are all ready.
func (s *shop) wants(minAvailable, maxUnavailable *intstr.IntOrString, desired int32) {
	s.budget.Spec.MinAvailable, s.budget.Spec.MaxUnavailable, s.budget.Status.DesiredHealthy = minAvailable, maxUnavailable, desired
}

func (s *shop) api() *api {
	objects := append([]runtime.Object{s.deployment, s.budget}, s.more...)
	for _, p := range s.pods {
		objects = append(objects, p)
	}
	a := newAPI(objects...)
	if s.refusal != nil {
		a.kube.PrependReactor("create", "pods", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, s.refusal })
	}
	return a
}

// statefulSet has two pods.
func statefulSet() *appsv1.StatefulSet {
	return &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "db", Namespace: "default"}, Spec: appsv1.StatefulSetSpec{Replicas: new(int32(2))}}
}

// isOf has the pods be those of a StatefulSet.
func (s *shop) isOf(db *appsv1.StatefulSet) {
	s.more = append(s.more, db)
	for _, p := range s.pods {
		madeBy("apps/v1", "StatefulSet", db.Name)(p)
	}
}

// scaler may make more of the Deployment.
func scaler(most int32) *autoscalingv2.HorizontalPodAutoscaler {
	return &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"},
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{MaxReplicas: most,
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "web"}}}
}

func percent(p int) *intstr.IntOrString { return new(intstr.FromString(fmt.Sprintf("%d%%", p))) }

func number(n int) *intstr.IntOrString { return new(intstr.FromInt32(int32(n))) }

// A budget that will never let a pod go is not waited for until the drain's time is over.
func TestDrainBudgetThatIsShut(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*shop)
		want   string
		remedy string
	}{
		"as many as there are": {
			change: func(*shop) {},
			want:   "default/web-1 waits for PodDisruptionBudget default/web (minAvailable 2, currentHealthy 2, desiredHealthy 2, disruptionsAllowed 0)",
			remedy: "budget default/web lets no pod go as long as it wants 2 healthy pods of 2: scale up what it selects to 3 pods or more, or lower its minAvailable to 1 or less",
		},
		"more than there are": {
			change: func(s *shop) { s.wants(number(5), nil, 5) },
			remedy: "it wants 5 healthy pods of 2: scale up what it selects to 6 pods or more, or lower its minAvailable to 1 or less",
		},
		"all of them, in percent": {
			change: func(s *shop) { s.wants(percent(100), nil, 2) },
			remedy: "lower its minAvailable to 1 or less, or to a smaller percentage",
		},
		"so many in percent that it is all of them": {
			change: func(s *shop) { s.wants(percent(51), nil, 2) },
			want:   "minAvailable 51%",
			remedy: "lower its minAvailable to 1 or less, or to a smaller percentage",
		},
		"none may be missing": {
			change: func(s *shop) { s.wants(nil, number(0), 2) },
			want:   "maxUnavailable 0",
			remedy: "it wants 2 healthy pods of 2: raise its maxUnavailable to 1 or more",
		},
		"none may be missing, in percent": {
			change: func(s *shop) { s.wants(nil, percent(0), 2) },
			remedy: "raise its maxUnavailable to 1 or more",
		},
		"an autoscaler that cannot help": {
			change: func(s *shop) { s.wants(nil, number(0), 2); s.more = append(s.more, scaler(9)) },
			remedy: "raise its maxUnavailable to 1 or more",
		},
		"an autoscaler that has reached its end": {
			change: func(s *shop) { s.more = append(s.more, scaler(2)) },
			remedy: "scale up",
		},
		"a StatefulSet": {
			change: func(s *shop) { s.isOf(statefulSet()) },
			remedy: "scale up",
		},
		"one pod of a ReplicaSet": {
			change: func(s *shop) {
				s.more = append(s.more, &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Name: "one", Namespace: "default"}})
				s.pods = s.pods[:1]
				madeBy("apps/v1", "ReplicaSet", "one")(s.pods[0])
				s.budget.Status = policyv1.PodDisruptionBudgetStatus{CurrentHealthy: 1, DesiredHealthy: 1, ExpectedPods: 1}
				s.budget.Spec.MinAvailable = number(1)
			},
			remedy: "scale up what it selects to 2 pods or more, or lower its minAvailable to 0 or less",
		},
		"two budgets": {
			change: func(s *shop) {
				s.budget.Spec.MinAvailable, s.budget.Status = number(1), policyv1.PodDisruptionBudgetStatus{CurrentHealthy: 2, DesiredHealthy: 1, ExpectedPods: 2, DisruptionsAllowed: 1}
				second := s.budget.DeepCopy()
				second.Name = "second"
				s.more = append(s.more, second)
			},
			want:   "PodDisruptionBudget default/second",
			remedy: "have only one budget select a pod",
		},
		"another pod that has long to end": {
			change: func(s *shop) { s.pods = append(s.pods, pod("slow-1", "w1", isUp)) },
			remedy: "scale up what it selects to 3 pods or more, or lower its minAvailable to 1 or less; `kubewright remove --force`",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newShop()
				c.change(s)
				a := s.api()
				a.stuck["slow-1"] = true
				began := time.Now()
				_, err := a.drain(t, Drain{Nodes: []Leaving{{Node: "w1"}}, Timeout: time.Hour})
				if took := time.Since(began); fault.CodeOf(err) != fault.DrainBlocked || took < settling || took > settling+2*drainPoll {
					t.Fatalf("after %s: %v", took, err)
				}
				for _, want := range []string{"node w1 cannot be drained: default/web-1 waits for PodDisruptionBudget default/", c.want, "; the node takes pods again, "} {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("error:\n%v\ndoes not say:\n%s", err, want)
					}
				}
				if blames, _, _ := strings.Cut(err.Error(), "; the node"); strings.Contains(blames, "slow") {
					t.Errorf("it blames what would have ended: %v", err)
				}
				if remedy := fault.RemedyOf(err); !strings.Contains(remedy, c.remedy) {
					t.Errorf("remedy:\n%s\ndoes not say:\n%s", remedy, c.remedy)
				}
				if n := a.node(t, "w1"); n.Spec.Unschedulable || marked(n) {
					t.Errorf("afterwards: %+v", n)
				}
			})
		})
	}
}

// Whatever may let a pod go without an admin's doing is waited for.
func TestDrainBudgetThatMayOpen(t *testing.T) {
	for name, change := range map[string]func(*shop){
		"a pod that is still starting": func(s *shop) {
			s.pods[1].Status.Conditions = nil
			s.budget.Status.CurrentHealthy = 1
		},
		"a pod that is not ready, which the budget has not seen yet": func(s *shop) { s.pods[1].Status.Conditions = nil },
		"a pod that is ready, which the budget has not seen yet":     func(s *shop) { s.budget.Status.CurrentHealthy = 1 },
		"a pod that ends":                             func(s *shop) { s.pods[1].DeletionTimestamp, s.pods[1].Finalizers = new(metav1.Now()), []string{"x/y"} },
		"a pod that is still to be made":              func(s *shop) { s.deployment.Spec.Replicas = new(int32(3)) },
		"one pod too many":                            func(s *shop) { s.adds("web-3", "w2") },
		"a budget whose numbers are of an older wish": func(s *shop) { s.budget.Generation = 1 },
		"a budget that allows one by its wish, and not yet by its numbers": func(s *shop) { s.budget.Spec.MinAvailable = number(1) },
		"a budget whose numbers are not known": func(s *shop) {
			s.budget.Status.Conditions = []metav1.Condition{{Type: policyv1.DisruptionAllowedCondition, Status: metav1.ConditionFalse, Reason: policyv1.SyncFailedReason}}
		},
		"a budget that selects nothing yet":        func(s *shop) { s.budget.Status = policyv1.PodDisruptionBudgetStatus{} },
		"a budget that somebody's controller sets": func(s *shop) { s.budget.OwnerReferences = []metav1.OwnerReference{{Kind: "Elasticsearch"}} },
		"a budget that is being deleted":           func(s *shop) { s.budget.DeletionTimestamp, s.budget.Finalizers = new(metav1.Now()), []string{"x/y"} },
		"a rollout":                                func(s *shop) { s.deployment.Status.UpdatedReplicas = 1 },
		"a Deployment that was just changed":       func(s *shop) { s.deployment.Generation++ },
		"a Deployment that somebody's controller sets": func(s *shop) {
			s.deployment.OwnerReferences = []metav1.OwnerReference{{Kind: "CephCluster", Controller: new(true)}}
		},
		"an autoscaler that may make more": func(s *shop) { s.more = append(s.more, scaler(3)) },
		"an autoscaler that may make more of a percentage": func(s *shop) {
			s.wants(percent(51), nil, 2)
			s.more = append(s.more, scaler(3))
		},
		"pods of a controller that moves them in its own way": func(s *shop) {
			for _, p := range s.pods {
				madeBy("kubevirt.io/v1", "VirtualMachineInstance", "vm")(p)
			}
		},
		"a ReplicaSet of another kind of rollout": func(s *shop) {
			rs := s.more[2].(*appsv1.ReplicaSet)
			rs.OwnerReferences[0].APIVersion, rs.OwnerReferences[0].Kind = "argoproj.io/v1alpha1", "Rollout"
		},
		"a pod of a StatefulSet that is still to be made": func(s *shop) {
			db := statefulSet()
			db.Spec.Replicas = new(int32(3))
			s.isOf(db)
		},
		"a rollout of a StatefulSet": func(s *shop) {
			db := statefulSet()
			db.Status.UpdateRevision = "next"
			s.isOf(db)
		},
		"a StatefulSet that was just changed": func(s *shop) {
			db := statefulSet()
			db.Generation++
			s.isOf(db)
		},
		"a StatefulSet that somebody's controller sets": func(s *shop) {
			db := statefulSet()
			db.OwnerReferences = []metav1.OwnerReference{{Kind: "Postgres", Controller: new(true)}}
			s.isOf(db)
		},
		"the leader of several, which may be another one": func(s *shop) {
			s.pods[1].Labels["app"] = "replica"
			s.budget.Spec.MinAvailable = number(1)
			s.budget.Status = policyv1.PodDisruptionBudgetStatus{CurrentHealthy: 1, DesiredHealthy: 1, ExpectedPods: 1}
		},
		"a Job that comes to its end": func(s *shop) { s.pods = append(s.pods, pod("web-3", "w2", madeBy("batch/v1", "Job", "web"), isUp)) },
		"a pod that nothing makes":    func(s *shop) { s.adds("web-3", "w2", isOrphan) },
		"a webhook that sees to the pod itself": func(s *shop) {
			s.refusal = apierrors.NewTooManyRequests("it is being moved", 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newShop()
				change(s)
				_, err := s.api().drain(t, Drain{Nodes: []Leaving{{Node: "w1"}}, Timeout: 2 * settling})
				if fault.CodeOf(err) != fault.DrainBlocked || !strings.Contains(err.Error(), "node w1 is not drained after 20s") {
					t.Error(err)
				}
			})
		})
	}
}

// A budget that was shut, and that another pod opens while it is watched, was none.
func TestDrainBudgetThatOpens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShop()
		a := s.api()
		go func() {
			time.Sleep(settling / 2)
			s.adds("web-3", "w2")
			more, open := s.deployment.DeepCopy(), s.budget.DeepCopy()
			more.Spec.Replicas, more.Status.UpdatedReplicas = new(int32(3)), 3
			open.Status.CurrentHealthy, open.Status.ExpectedPods, open.Status.DisruptionsAllowed = 3, 3, 1
			if err := a.kube.Tracker().Update(appsv1.SchemeGroupVersion.WithResource("deployments"), more, "default"); err != nil {
				t.Error(err)
			}
			if err := a.kube.Tracker().Add(s.pods[2]); err != nil {
				t.Error(err)
			}
			if err := a.kube.Tracker().Update(policyv1.SchemeGroupVersion.WithResource("poddisruptionbudgets"), open, "default"); err != nil {
				t.Error(err)
			}
		}()
		if _, err := a.drain(t, Drain{Nodes: []Leaving{{Node: "w1"}}, Timeout: time.Minute}); err != nil {
			t.Error(err)
		}
	})
}

// A budget is waited for from when it was last seen open.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := patience{}
		shut := holds{{pod: *pod("web-1", "w1"), budgets: []policyv1.PodDisruptionBudget{*budget("web", "web", 2, 2, 2, 2)}, shut: true},
			{pod: *pod("web-2", "w1")}}
		look := func(after time.Duration, left holds, want int) {
			t.Helper()
			time.Sleep(after)
			if got := p.shut(left); len(got) != want {
				t.Errorf("%d are shut for long, want %d", len(got), want)
			}
		}
		look(0, shut, 0)
		look(settling-1, shut, 0)
		look(0, shut[1:], 0)
		look(1, shut, 0)
		look(settling-1, shut, 0)
		look(1, shut, 1)
	})
}

// With Force a budget that is shut has its time like any other: whoever gave it one may open it.
func TestDrainForcedBudgetThatIsShut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newShop().api()
		began := time.Now()
		if _, err := a.drain(t, Drain{Nodes: []Leaving{{Node: "w1"}}, Timeout: time.Minute, Force: true}); err != nil || time.Since(began) < time.Minute {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
	})
}
