package plan

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// learner is a target that remembers what would be changed.
type learner struct{ *box }

func (l learner) Learn(d Diff) {
	for _, c := range d {
		l.set(c.Object)
	}
}

// needing is an action whose check reads a cell, and needs another switch to be on.
type needing struct {
	turnOn
	cell  *Value[int]
	after string
	says  Diff
}

func (a needing) Check(ctx context.Context, b *box) (Diff, error) {
	if a.cell != nil {
		a.cell.Get()
	}
	if a.after != "" && !b.has(a.after) {
		return nil, errors.New("not there: " + a.after)
	}
	return a.turnOn.Check(ctx, b)
}

func (a needing) Foresee() Diff { return a.says }

func told(steps []Foreseen) []string {
	var lines []string
	for _, f := range steps {
		lines = append(lines, fmt.Sprintf("%s %s: %s after %q", f.Lane, f.Step, f.Diff, f.After))
	}
	return lines
}

func TestPreviewForeseesWhatCannotBeLookedAt(t *testing.T) {
	b := newBox()
	key := NewValue[int]("the key")
	steps, err := Preview(t.Context(),
		lane("host", b,
			Step[*box, *box]{Name: "make-key", Doc: "make it", Sets: []Cell{key}, Do: turnOn{name: "key", sets: key}},
			Step[*box, *box]{Name: "look", Do: needing{turnOn: turnOn{name: "late"}, after: "key", says: Diff{{Verb: Create, Object: "foreseen"}}}},
			Step[*box, *box]{Name: "blind", Doc: "something", Do: needing{turnOn: turnOn{name: "x"}, after: "key"}}),
		lane("other", newBox(),
			Step[*box, *box]{Name: "use", Needs: []Cell{key}, Do: needing{turnOn: turnOn{name: "use"}, cell: key, says: Diff{{Verb: Update, Object: "lock"}}}},
			Step[*box, *box]{Name: "use-blind", Doc: "turn the key", Needs: []Cell{key}, Do: needing{turnOn: turnOn{name: "use"}, cell: key}}))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`host make-key: create key after ""`,
		`host look: create foreseen after "make-key"`,
		`host blind: update something after "look"`,
		`other use: update lock after "the key"`,
		`other use-blind: update turn the key after "the key"`,
	}
	if diff := cmp.Diff(want, told(steps)); diff != "" {
		t.Error(diff)
	}
	if len(b.on) != 0 {
		t.Errorf("a preview changed %v", b.on)
	}
}

func TestPreviewSeesWhatEarlierStepsWouldLeave(t *testing.T) {
	b := learner{newBox()}
	steps, err := Preview(t.Context(), NewLane[learner, *box]("host", b, b.box,
		Step[learner, *box]{Name: "a", Do: looking{turnOn{name: "a"}, ""}},
		Step[learner, *box]{Name: "b", Do: looking{turnOn{name: "b"}, "a"}}))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{`host a: create a after ""`, `host b: create b after ""`}, told(steps)); diff != "" {
		t.Error(diff)
	}
}

// looking is turnOn on a target that learns; it cannot look before another switch is on.
type looking struct {
	turnOn
	after string
}

func (a looking) Check(ctx context.Context, l learner) (Diff, error) {
	return needing{turnOn: a.turnOn, after: a.after}.Check(ctx, l.box)
}

func TestPreviewFailsWhereNothingIsPending(t *testing.T) {
	gone := fault.New(fault.HostUnreachable, "", "gone")
	for name, l := range map[string]Lane{
		"a check that fails":  lane("host", newBox(), Step[*box, *box]{Name: "a", Do: failing{gone}}),
		"a check that panics": lane("host", newBox(), Step[*box, *box]{Name: "a", Do: failing{nil}}),
		"in a later lane":     lane("host", newBox(), on("done", 0)),
	} {
		lanes := []Lane{l}
		if name == "in a later lane" {
			lanes = append(lanes, lane("other", newBox(), Step[*box, *box]{Name: "a", Do: failing{gone}}))
		}
		_, err := Preview(t.Context(), lanes...)
		if code := fault.CodeOf(err); code != fault.HostUnreachable && code != fault.Internal {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// failing is an action that cannot be checked.
type failing struct{ err error }

func (f failing) Check(context.Context, *box) (Diff, error) {
	if f.err == nil {
		panic("boom")
	}
	return nil, f.err
}

func (f failing) Apply(context.Context, *box) error { return f.err }

func TestPreviewOfWhatIsDone(t *testing.T) {
	b := newBox()
	cell := NewValue[int]("cell")
	steps := []Step[*box, *box]{
		{Name: "a", Sets: []Cell{cell}, Do: turnOn{name: "a", sets: cell}},
		{Name: "b", Needs: []Cell{cell}, Do: needing{turnOn: turnOn{name: "b"}, cell: cell}},
	}
	b.set("a")
	b.set("b")
	got, err := Preview(t.Context(), lane("host", b, steps...))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{`host a:  after ""`, `host b:  after ""`}, told(got)); diff != "" {
		t.Error(diff)
	}
}

func TestAllowHoldsARunToItsPlan(t *testing.T) {
	b := newBox()
	stale := fault.New(fault.PlanStale, "", "not in the plan")
	_, err := Run(t.Context(), Options{Allow: func(lane, step string, d Diff) error {
		if step == "b" {
			return stale
		}
		return nil
	}}, lane("host", b, on("a", 0), on("b", 0)))
	if fault.CodeOf(err) != fault.PlanStale || !b.has("a") || b.has("b") {
		t.Errorf("%v, %v", err, b.on)
	}
}

func TestApplyKnowsItsIntent(t *testing.T) {
	var seen []*Intent
	do := intentSeer{&seen}
	if _, err := Run(t.Context(), Options{}, lane("host", newBox(), Step[*box, *box]{Name: "a/b", Do: do})); err != nil {
		t.Fatal(err)
	}
	if len(seen) != 2 || seen[0] == nil || seen[0] != seen[1] || seen[0].Lane != "host" || seen[0].Step != "a/b" || len(seen[0].Diff) != 1 {
		t.Errorf("%+v", seen)
	}
	if IntentOf(t.Context()) != nil {
		t.Error("an intent outside of a step")
	}
}

// intentSeer notes the intent twice, and is done then.
type intentSeer struct{ seen *[]*Intent }

func (s intentSeer) Check(context.Context, *box) (Diff, error) {
	if len(*s.seen) > 0 {
		return nil, nil
	}
	return Diff{{Verb: Create, Object: "x"}}, nil
}

func (s intentSeer) Apply(ctx context.Context, _ *box) error {
	*s.seen = append(*s.seen, IntentOf(ctx), IntentOf(ctx))
	return nil
}
