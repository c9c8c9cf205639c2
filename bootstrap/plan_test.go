package bootstrap

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/bootstrap/foresee"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// changes are what steps change, waits aside. Whether a file is there before its step is not always known:
// a kubelet writes some by itself.
func changes(steps []plan.Foreseen) []string {
	var lines []string
	for _, s := range steps {
		for _, c := range s.Diff {
			if c.Kind != plan.ObjectWait {
				verb := c.Verb
				if c.Kind == plan.ObjectFile && verb == plan.Create {
					verb = plan.Update
				}
				lines = append(lines, fmt.Sprintf("%s: %s: %s %s %s", s.Lane, s.Step, verb, c.Kind, c.Object))
			}
		}
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}

// foreseen is what steps did, together with what was planned unless it was so already.
func foreseen(planned, did []plan.Foreseen) []string {
	lines := changes(did)
	for _, s := range planned {
		for _, c := range s.Diff {
			if strings.HasSuffix(c.Detail, unlessSo) {
				lines = append(lines, changes([]plan.Foreseen{{Lane: s.Lane, Step: s.Step, Diff: plan.Diff{c}}})...)
			}
		}
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}

// TestPlanIsWhatARunDoes plans each verb on hosts that only learn what each step would change, and then runs
// it: the run does what the plan says and nothing else. A plan of what was done says nothing.
func TestPlanIsWhatARunDoes(t *testing.T) {
	b := testBundle(t)
	for name, verbs := range map[string][]verb{
		"init":         {initAll},
		"init-three":   {initThree},
		"join":         {initOne, joinTwo},
		"join-members": {initOne, joinMembers},
		"remove-first": {initThree, removeFirst},
		"reset":        {initThree, resetThree},
		"restore":      {initThree, takeBackup, reinstallThree, restoreSame},
		"restore-new":  {initTwo, takeBackup, loseFirst, restoreNew},
		"recover":      {initThree, loseTwo, recoverFirst},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, 1, b, t.TempDir(), func(t *testing.T, w *world) {
				before, last := verbs[:len(verbs)-1], verbs[len(verbs)-1]
				if _, err := w.play(stagesOf(before)); err != nil {
					t.Fatal(err)
				}
				w.rest()
				planned := w.preview(t, last)
				did := w.record(t, last)
				if diff := cmp.Diff(changes(planned), foreseen(planned, did)); diff != "" {
					t.Errorf("the plan (-) and the run (+):\n%s", diff)
				}
				w.rest()
				if left := changes(w.preview(t, last)); len(left) > 0 {
					t.Errorf("planned once more: %q", left)
				}
			})
		})
	}
}

// preview is the plan of a verb.
func (w *world) preview(t *testing.T, v verb) (steps []plan.Foreseen) {
	t.Helper()
	operations := len(w.log)
	err := w.do(v, func(h host.Host) host.Host { return foresee.New(h) }, func(ctx context.Context, lanes []plan.Lane) (err error) {
		steps, err = plan.Preview(ctx, lanes...)
		return err
	})
	if err != nil {
		t.Fatalf("plan of %v: %v", v, err)
	}
	if done := w.log[operations+1:]; len(done) > 0 {
		t.Fatalf("a plan changes something:\n%s", tail(done))
	}
	return steps
}

// record is what a run of the verb did.
func (w *world) record(t *testing.T, v verb) (steps []plan.Foreseen) {
	t.Helper()
	err := w.do(v, func(h host.Host) host.Host { return h }, func(ctx context.Context, lanes []plan.Lane) error {
		_, err := plan.Run(ctx, plan.Options{Emit: func(e plan.Event) {
			if e.Kind == plan.Applying {
				steps = append(steps, plan.Foreseen{Lane: e.Lane, Step: e.Step, Diff: e.Diff})
			}
		}}, lanes...)
		return err
	})
	if err != nil {
		t.Fatalf("%v: %v", v, err)
	}
	return steps
}
