package plan

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// box is a target with one switch per name.
type box struct {
	mu sync.Mutex
	on map[string]bool
}

func newBox() *box { return &box{on: map[string]bool{}} }

func (b *box) set(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.on[name] = true
}

func (b *box) has(name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.on[name]
}

// turnOn is an action that turns a switch on, after a while.
type turnOn struct {
	name  string
	takes time.Duration
	sets  *Value[int]
	fails error
	idles bool // does nothing
	panic bool
}

func (a turnOn) Check(_ context.Context, b *box) (Diff, error) {
	if !b.has(a.name) {
		return Diff{{Verb: Create, Object: a.name}}, nil
	}
	if a.sets != nil {
		a.sets.Set(len(a.name))
	}
	return nil, nil
}

func (a turnOn) Apply(ctx context.Context, b *box) error {
	if a.panic {
		panic("boom")
	}
	Report(ctx, "turning on "+a.name)
	select {
	case <-time.After(a.takes):
	case <-ctx.Done():
		return ctx.Err()
	}
	if a.fails != nil {
		return a.fails
	}
	if !a.idles {
		b.set(a.name)
	}
	return nil
}

func lane(name string, b *box, steps ...Step[*box, *box]) Lane { return NewLane(name, b, b, steps...) }

func on(name string, takes time.Duration) Step[*box, *box] {
	return Step[*box, *box]{Name: name, Doc: "turn on " + name, Do: turnOn{name: name, takes: takes}}
}

// log collects events as "lane step kind".
type log struct {
	lines []string
}

func (l *log) emit(e Event) {
	line := fmt.Sprintf("%s %s %s", e.Lane, e.Step, e.Kind)
	if e.For != (Ref{}) {
		line += fmt.Sprintf(" for %s %s", e.For.Lane, e.For.Step)
	}
	l.lines = append(l.lines, strings.TrimSpace(line))
}

func (l *log) has(line string) bool {
	for _, x := range l.lines {
		if x == line {
			return true
		}
	}
	return false
}

func TestAppliesWhatDiffersAndNothingTwice(t *testing.T) {
	b := newBox()
	steps := []Step[*box, *box]{on("a", 0), on("b", 0)}
	n, err := Run(t.Context(), Options{}, lane("host", b, steps...))
	if err != nil || n != (Count{Applied: 2}) {
		t.Fatalf("first run: %+v, %v", n, err)
	}
	n, err = Run(t.Context(), Options{}, lane("host", b, steps...))
	if err != nil || n != (Count{Skipped: 2}) {
		t.Fatalf("second run: %+v, %v", n, err)
	}
}

func TestStepThatAppliedNothingFails(t *testing.T) {
	_, err := Run(t.Context(), Options{}, lane("host", newBox(),
		Step[*box, *box]{Name: "a", Do: turnOn{name: "a", idles: true}}))
	if fault.CodeOf(err) != fault.StepFailed || !strings.Contains(err.Error(), "host: a: applied, but it still differs: create a") {
		t.Fatalf("error: %v", err)
	}
}

func TestLanesMeetAtCells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cell := NewValue[int]("the length")
		var l log
		began := time.Now()
		_, err := Run(t.Context(), Options{Emit: l.emit},
			lane("first", newBox(), Step[*box, *box]{Name: "slow", Sets: []Cell{cell}, Do: turnOn{name: "slow", takes: time.Second, sets: cell}}),
			lane("second", newBox(), on("early", 0), Step[*box, *box]{Name: "late", Needs: []Cell{cell}, Do: turnOn{name: "late", takes: time.Second}}))
		if err != nil {
			t.Fatal(err)
		}
		if cell.Get() != 4 {
			t.Errorf("cell: %d", cell.Get())
		}
		if took := time.Since(began); took != 2*time.Second {
			t.Errorf("took %s: the lanes did not overlap", took)
		}
		if !l.has("second late waiting for first slow") {
			t.Errorf("no event says that the lane waits, and for whom:\n%s", strings.Join(l.lines, "\n"))
		}
	})
}

func TestPlansThatCannotEndAreRefused(t *testing.T) {
	a, b, nobody := NewValue[int]("a"), NewValue[int]("b"), NewValue[int]("nobody's")
	needs := func(name string, needs, sets Cell) Step[*box, *box] {
		s := on(name, 0)
		if needs != nil {
			s.Needs = []Cell{needs}
		}
		if sets != nil {
			s.Sets = []Cell{sets}
		}
		return s
	}
	for name, c := range map[string]struct {
		lanes []Lane
		want  string
	}{
		"each waits for the other": {
			[]Lane{lane("x", newBox(), needs("one", a, b)), lane("y", newBox(), needs("two", b, a))},
			"lane x: one would wait for a for ever"},
		"nobody sets it":        {[]Lane{lane("x", newBox(), needs("one", nobody, nil))}, "would wait for nobody's for ever"},
		"set later in the lane": {[]Lane{lane("x", newBox(), needs("one", a, nil), needs("two", nil, a))}, "would wait for a for ever"},
		"set twice":             {[]Lane{lane("x", newBox(), needs("one", nil, a), needs("two", nil, a))}, "a is set by both one and two"},
		"a name twice":          {[]Lane{lane("x", newBox(), on("one", 0), on("one", 0))}, "two steps one"},
		"a lane twice":          {[]Lane{lane("x", newBox()), lane("x", newBox())}, "two lanes are named x"},
	} {
		n, err := Run(t.Context(), Options{}, c.lanes...)
		if fault.CodeOf(err) != fault.Internal || !strings.Contains(err.Error(), c.want) || n != (Count{}) {
			t.Errorf("%s: %+v, %v", name, n, err)
		}
	}
	if err := Validate(lane("x", newBox(), needs("one", Of("known", 1), nil))); err != nil {
		t.Errorf("a cell that is set before the run: %v", err)
	}
}

func TestFailureHaltsTheOthersBetweenSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		never := NewValue[int]("never")
		disk := fault.New(fault.DiskFull, "make room", "no space left")
		other, waiting := newBox(), newBox()
		var l log
		n, err := Run(t.Context(), Options{Emit: l.emit},
			lane("bad", newBox(),
				Step[*box, *box]{Name: "fail", Do: turnOn{name: "fail", takes: time.Second, fails: fmt.Errorf("write: %w", disk)}},
				Step[*box, *box]{Name: "set", Sets: []Cell{never}, Do: turnOn{name: "set", sets: never}}),
			lane("busy", other, on("long", 5*time.Second), on("next", 0)),
			lane("waits", waiting, Step[*box, *box]{Name: "wait", Wait: true, Do: turnOn{name: "wait", takes: time.Hour}}),
			lane("blocked", newBox(), Step[*box, *box]{Name: "need", Needs: []Cell{never}, Do: turnOn{name: "need"}}))
		if fault.CodeOf(err) != fault.DiskFull || fault.RemedyOf(err) != "make room" || !strings.Contains(err.Error(), "bad: fail: write: no space left") {
			t.Errorf("error: %v", err)
		}
		if !other.has("long") {
			t.Error("a step under way was not brought to its end")
		}
		if other.has("next") {
			t.Error("a step began after the failure")
		}
		if want := (Count{Applied: 1, Failed: 1, Canceled: 3}); n != want {
			t.Errorf("count %+v, want %+v\n%s", n, want, strings.Join(l.lines, "\n"))
		}
	})
}

func TestStopEndsBetweenSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, stop := newBox(), make(chan struct{})
		go func() {
			time.Sleep(time.Second)
			close(stop)
		}()
		n, err := Run(t.Context(), Options{Stop: stop}, lane("host", b, on("a", 3*time.Second), on("b", 0)))
		if fault.CodeOf(err) != fault.Interrupted || !b.has("a") || b.has("b") || n != (Count{Applied: 1, Canceled: 1}) {
			t.Errorf("%+v, %v, %v", n, err, b.on)
		}
	})
}

func TestTimeoutSaysWhatItWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := on("a", time.Hour)
		s.Timeout = time.Minute
		_, err := Run(t.Context(), Options{}, lane("host", newBox(), s))
		if fault.CodeOf(err) != fault.Timeout || !strings.Contains(err.Error(), "not done after 1m0s: turning on a") {
			t.Errorf("error: %v", err)
		}
	})
}

func TestContextEndsStepsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			time.Sleep(time.Second)
			cancel()
		}()
		_, err := Run(ctx, Options{}, lane("host", newBox(), on("a", time.Hour)))
		if !errors.Is(err, context.Canceled) {
			t.Errorf("error: %v", err)
		}
	})
}

func TestPanicIsAFaultOfThatStep(t *testing.T) {
	_, err := Run(t.Context(), Options{}, lane("host", newBox(), Step[*box, *box]{Name: "a", Do: turnOn{name: "a", panic: true}}))
	if fault.CodeOf(err) != fault.Internal || !strings.Contains(err.Error(), "host: a: ") || !strings.Contains(err.Error(), "boom") {
		t.Errorf("error: %v", err)
	}
}

func TestCellThatWasNotSetIsADefect(t *testing.T) {
	cell := NewValue[int]("cell")
	_, err := Run(t.Context(), Options{}, lane("host", newBox(), Step[*box, *box]{Name: "a", Sets: []Cell{cell}, Do: turnOn{name: "a"}}))
	if fault.CodeOf(err) != fault.Internal || !strings.Contains(err.Error(), "did not set cell") {
		t.Errorf("error: %v", err)
	}
}

func TestJoinedErrorsKeepTheirCodes(t *testing.T) {
	gone := fault.New(fault.HostUnreachable, "", "gone")
	_, err := Run(t.Context(), Options{},
		lane("x", newBox(), Step[*box, *box]{Name: "a", Do: turnOn{name: "a", fails: gone}}),
		lane("y", newBox(), Step[*box, *box]{Name: "b", Do: turnOn{name: "b", fails: gone}}))
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) == 0 {
		t.Fatalf("error: %v", err)
	}
	for _, e := range joined.Unwrap() {
		if fault.CodeOf(e) != fault.HostUnreachable {
			t.Errorf("code of %v: %s", e, fault.CodeOf(e))
		}
	}
}

// TestSchedules runs thousands of random plans that can end, with random
// durations and failures, and checks what must hold of all of them.
func TestSchedules(t *testing.T) {
	const seeds = 2000
	for seed := range uint64(seeds) {
		synctest.Test(t, func(t *testing.T) {
			if err := schedule(t.Context(), rand.New(rand.NewPCG(seed, 0))); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		})
	}
}

func schedule(ctx context.Context, r *rand.Rand) error {
	lanes, order := 1+r.IntN(5), 0
	steps := make([][]Step[*box, *box], lanes)
	boxes := make([]*box, lanes)
	for i := range boxes {
		boxes[i] = newBox()
	}
	var cells []*Value[int]
	failing := r.IntN(3) == 0
	total := 0
	for range 3 + r.IntN(20) { // steps in an order in which they can run
		i := r.IntN(lanes)
		name := fmt.Sprintf("s%d", order)
		order++
		do := turnOn{name: name, takes: time.Duration(r.IntN(1000)) * time.Millisecond}
		s := Step[*box, *box]{Name: name, Wait: r.IntN(4) == 0}
		for _, c := range cells {
			if r.IntN(4) == 0 {
				s.Needs = append(s.Needs, c)
			}
		}
		if r.IntN(2) == 0 {
			c := NewValue[int](name)
			do.sets = c
			s.Sets = []Cell{c}
			cells = append(cells, c)
		}
		if failing && r.IntN(8) == 0 {
			do.fails = errors.New("failed")
		}
		if r.IntN(5) == 0 && do.fails == nil {
			boxes[i].set(name) // done before
		}
		s.Do = do
		steps[i] = append(steps[i], s)
		total++
	}
	all := make([]Lane, lanes)
	for i := range all {
		all[i] = lane(fmt.Sprintf("lane%d", i), boxes[i], steps[i]...)
	}
	ended := map[string]Kind{}
	var broken error
	n, err := Run(ctx, Options{Emit: func(e Event) {
		switch e.Kind {
		case Applied, Skipped, Failed, Canceled:
			if _, twice := ended[e.Step]; twice {
				broken = fmt.Errorf("%s ended twice", e.Step)
			}
			ended[e.Step] = e.Kind
		}
	}}, all...)
	if broken != nil {
		return broken
	}
	switch {
	case err == nil && n.Applied+n.Skipped != total:
		return fmt.Errorf("no error, but %+v of %d steps", n, total)
	case err != nil && n.Failed == 0:
		return fmt.Errorf("error without a failed step: %w", err)
	}
	for i, ss := range steps { // what ran of a lane is its beginning
		stopped := false
		for _, s := range ss {
			kind, did := ended[s.Name]
			ran := did && (kind == Applied || kind == Skipped)
			if ran && stopped {
				return fmt.Errorf("lane %d: %s ran after an earlier step did not", i, s.Name)
			}
			stopped = stopped || !ran
			if ran && !boxes[i].has(s.Name) {
				return fmt.Errorf("%s is said to be done", s.Name)
			}
		}
	}
	return nil
}

// TestDiagnose has the error of the step that failed, and of it alone, looked into.
func TestDiagnose(t *testing.T) {
	b := newBox()
	broken := errors.New("broken")
	why := errors.New("out of order")
	var asked []string
	var failed error
	opts := Options{
		Diagnose: func(_ context.Context, lane, step string, err error) error {
			asked = append(asked, lane+" "+step)
			return errors.Join(why, err)
		},
		Emit: func(e Event) {
			if e.Kind == Failed {
				failed = e.Err
			}
		},
	}
	never := Step[*box, *box]{Name: "a/wait", Wait: true, Do: turnOn{name: "never", takes: time.Hour}}
	_, err := Run(t.Context(), opts, lane("one", b, never), lane("two", b, on("b/on", 0), Step[*box, *box]{Name: "c/break", Do: turnOn{name: "c", fails: broken}}))
	if len(asked) != 1 || asked[0] != "two c/break" {
		t.Errorf("asked about %q", asked)
	}
	for _, err := range []error{err, failed} {
		if !errors.Is(err, why) || !errors.Is(err, broken) || fault.CodeOf(err) != fault.StepFailed {
			t.Errorf("%v", err)
		}
	}
}

// awaits is an action that changes something, and then waits for what never comes.
type awaits struct{}

func (awaits) Check(context.Context, *box) (Diff, error) {
	return Diff{{Verb: Create, Object: "x"}}, nil
}

func (awaits) Apply(ctx context.Context, _ *box) error {
	waiting, cancel := WaitContext(ctx)
	defer cancel()
	<-waiting.Done()
	return fmt.Errorf("waiting: %w", context.Cause(waiting))
}

// TestWaitWithinAStepEndsWithTheRun has one lane fail while a step of another waits.
func TestWaitWithinAStepEndsWithTheRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		n, err := Run(t.Context(), Options{},
			lane("a", newBox(), Step[*box, *box]{Name: "x/wait", Do: awaits{}}),
			lane("b", newBox(), Step[*box, *box]{Name: "x/fail", Do: turnOn{name: "y", takes: time.Second, fails: errors.New("boom")}}))
		if err == nil || strings.Contains(err.Error(), "waiting") || n.Canceled != 1 || n.Failed != 1 || time.Since(began) > 2*time.Second {
			t.Errorf("%+v after %v: %v", n, time.Since(began), err)
		}

		stop := make(chan struct{})
		time.AfterFunc(time.Second, func() { close(stop) })
		n, err = Run(t.Context(), Options{Stop: stop}, lane("a", newBox(), Step[*box, *box]{Name: "x/wait", Do: awaits{}}))
		if fault.CodeOf(err) != fault.Interrupted || n.Canceled != 1 {
			t.Errorf("stopped: %+v, %v", n, err)
		}
	})
}
