package plan

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// Learner is a target that only pretends: it is told what each step would change,
// so that the checks of later steps see the target as it would be then.
type Learner interface {
	Learn(Diff)
}

// Foreseen is what a step would do.
type Foreseen struct {
	Lane string `json:"lane"`
	Step string `json:"step"`
	Doc  string `json:"doc"`
	Diff Diff   `json:"changes,omitempty"` // empty: nothing is to be done
	// After says what must be there before the rest can be known; then Diff is what
	// the step can tell by itself, and more may come.
	After string `json:"after,omitempty"`
}

// Preview checks the lanes without applying anything: per lane, the steps in order
// with what each would change. Lanes should be bound to targets that are
// Learners, or the steps after a change are judged by the state before it. A step that
// cannot look yet, because what it looks at is made by an earlier one, is asked to
// foresee; a check that fails for another reason fails the preview.
func Preview(ctx context.Context, lanes ...Lane) ([]Foreseen, error) {
	if err := Validate(lanes...); err != nil {
		return nil, &fault.Fault{Code: fault.Internal, Err: err}
	}
	p := &preview{seen: map[Cell]chan struct{}{}}
	for _, l := range lanes {
		for _, s := range l.steps {
			for _, c := range s.sets {
				p.seen[c] = make(chan struct{})
			}
		}
	}
	all := make([][]Foreseen, len(lanes))
	faults := make([]error, len(lanes))
	var wg sync.WaitGroup
	for i, l := range lanes {
		wg.Go(func() { all[i], faults[i] = p.lane(ctx, l) })
	}
	wg.Wait()
	var steps []Foreseen
	for i := range lanes {
		if faults[i] != nil {
			return nil, errors.Join(faults...)
		}
		steps = append(steps, all[i]...)
	}
	return steps, nil
}

type preview struct {
	seen map[Cell]chan struct{} // closed when the step that sets it was looked at
}

// lane looks at the steps in order. All cells count as seen in the end, also after
// an error: nobody else waits for this lane then.
func (p *preview) lane(ctx context.Context, l Lane) (steps []Foreseen, err error) {
	defer func() {
		for _, s := range l.steps[len(steps):] {
			p.done(s)
		}
	}()
	pending := "" // the last step of this lane that has something to do
	for _, s := range l.steps {
		for _, c := range s.needs {
			if ch, ok := p.seen[c]; ok {
				<-ch
			}
		}
		f := Foreseen{Lane: l.Name, Step: s.name, Doc: s.doc}
		diff, missing, err := look(ctx, s)
		switch {
		case err == nil && missing == "":
			f.Diff = diff
		case missing != "" || pending != "":
			f.After = missing
			if f.After == "" {
				f.After = pending
			}
			if f.Diff = s.foreseen(); f.Diff == nil {
				f.Diff = Diff{{Verb: Update, Kind: ObjectWait, Object: s.doc}}
			}
		default:
			return steps, fault.At(l.Name, s.name, err)
		}
		if len(f.Diff) > 0 {
			pending = s.name
		}
		if s.learn != nil {
			s.learn(f.Diff)
		}
		p.done(s)
		steps = append(steps, f)
	}
	return steps, nil
}

func (p *preview) done(s step) {
	for _, c := range s.sets {
		close(p.seen[c])
	}
}

// foreseen is what the action can tell by itself, nil if it cannot.
func (s step) foreseen() Diff {
	if s.foresee == nil {
		return nil
	}
	return s.foresee()
}

// look checks a step; missing names the cell that it could not do without.
func look(ctx context.Context, s step) (diff Diff, missing string, err error) {
	defer func() {
		switch p := recover().(type) {
		case nil:
		case unset:
			missing = p.name
		default:
			err = &fault.Fault{Code: fault.Internal, Err: fmt.Errorf("panic: %v", p),
				Remedy: "this is a defect of kubewright: please report it"}
		}
	}()
	for _, c := range s.needs {
		if !c.isSet() && s.foreseen() != nil {
			return nil, c.Name(), nil
		}
	}
	diff, err = s.check(ctx)
	if u := (unset{}); errors.As(err, &u) {
		return nil, u.name, nil
	}
	return diff, "", err
}
