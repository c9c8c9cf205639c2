package plan

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// Kind says what an Event reports.
type Kind string

const (
	Waiting  Kind = "waiting"  // for a cell of another lane; Text names it, For who sets it
	Applying Kind = "applying" // Check found Diff, Apply begins
	Progress Kind = "progress" // of the step that is being applied
	Skipped  Kind = "skipped"  // nothing to change
	Applied  Kind = "applied"  // Diff was changed
	Failed   Kind = "failed"   // Err says why
	Canceled Kind = "canceled" // the run ended before the step could
	Done     Kind = "done"     // the lane came to its end; Step is empty
)

// Event is one thing that happened in a lane. Events of one lane come in order.
type Event struct {
	Time  time.Time
	Lane  string
	Step  string
	Kind  Kind
	Diff  Diff
	Text  string        // progress for people
	For   Ref           // of Waiting: the step that ends the wait
	Bytes int64         // done so far, with Total
	Total int64         // 0: unknown
	Took  time.Duration // of a step that ended, waiting for cells not included
	Err   error
}

// Ref names a step of a lane.
type Ref struct {
	Lane string `json:"lane"`
	Step string `json:"step"`
}

// Count is how many steps ended in each way.
type Count struct {
	Applied, Skipped, Failed, Canceled int
}

// Options of a run.
type Options struct {
	// Emit is told every event, one at a time.
	Emit func(Event)
	// Stop, when closed, ends the run cleanly: steps under way come to their end,
	// no further one begins.
	Stop <-chan struct{}
	// Diagnose is given the error of a step that failed, once the other lanes have been
	// told to halt, and returns it with what it found out about the cause. nil: nobody looks.
	Diagnose func(ctx context.Context, lane, step string, err error) error
	// Allow is asked before a step applies what its Check found; an error fails the
	// step with nothing done. nil allows all.
	Allow func(lane, step string, diff Diff) error
}

// Intent is what a step is about to change. Whoever carries out its operations
// can ask for it, to write down first what stands there.
type Intent struct {
	Lane, Step string
	Diff       Diff
}

type intentKey struct{}

// IntentOf returns the intent of the step whose Apply ctx belongs to, nil outside
// of one. It is the same pointer for the whole of an Apply.
func IntentOf(ctx context.Context) *Intent {
	i, _ := ctx.Value(intentKey{}).(*Intent)
	return i
}

// Run validates the lanes and runs them all at once. A step that fails ends its
// lane; the other lanes then come to a halt between two steps, and waits are cut
// short. The error joins the fault of every failed step, or is an
// Interrupted fault if the run was stopped.
func Run(ctx context.Context, opts Options, lanes ...Lane) (Count, error) {
	if err := Validate(lanes...); err != nil {
		return Count{}, &fault.Fault{Code: fault.Internal, Err: err}
	}
	waits, cutWaits := context.WithCancel(ctx)
	defer cutWaits()
	r := &run{ctx: ctx, waits: waits, halt: make(chan struct{}), setBy: setters(lanes), emitTo: opts.Emit, allow: opts.Allow, diagnose: opts.Diagnose}
	go func() {
		select {
		case <-opts.Stop:
		case <-ctx.Done():
		case <-r.halt:
		case <-waits.Done():
		}
		r.haltOnce.Do(func() { close(r.halt) })
		cutWaits()
	}()

	var wg sync.WaitGroup
	for _, l := range lanes {
		wg.Go(func() { r.lane(l) })
	}
	wg.Wait()

	err := errors.Join(r.errs...)
	if err == nil && r.count.Canceled > 0 {
		err = fault.New(fault.Interrupted, "run the same command again: it goes on where this one stopped",
			"stopped before the end, between two steps")
	}
	return r.count, err
}

type run struct {
	ctx      context.Context // for steps that change things
	waits    context.Context // for waits: ends as soon as the run has no future
	halt     chan struct{}   // closed: no further step begins
	haltOnce sync.Once
	setBy    map[Cell]Ref
	emitTo   func(Event)
	diagnose func(ctx context.Context, lane, step string, err error) error
	allow    func(lane, step string, diff Diff) error

	mu    sync.Mutex
	count Count
	errs  []error
}

// setters says which step sets each cell.
func setters(lanes []Lane) map[Cell]Ref {
	by := map[Cell]Ref{}
	for _, l := range lanes {
		for _, s := range l.steps {
			for _, c := range s.sets {
				by[c] = Ref{l.Name, s.name}
			}
		}
	}
	return by
}

func (r *run) emit(e Event) {
	e.Time = time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	switch e.Kind {
	case Applied:
		r.count.Applied++
	case Skipped:
		r.count.Skipped++
	case Failed:
		r.count.Failed++
		r.errs = append(r.errs, e.Err)
	case Canceled:
		r.count.Canceled++
	}
	if r.emitTo != nil {
		r.emitTo(e)
	}
}

func (r *run) lane(l Lane) {
	for _, s := range l.steps {
		if !r.await(l, s) {
			r.emit(Event{Lane: l.Name, Step: s.name, Kind: Canceled})
			return
		}
		began := time.Now()
		e := r.step(l, s)
		e.Lane, e.Step, e.Took = l.Name, s.name, time.Since(began)
		ended := e.Kind == Failed || e.Kind == Canceled
		if ended {
			r.haltOnce.Do(func() { close(r.halt) })
		}
		if e.Kind == Failed && r.diagnose != nil {
			e.Err = r.diagnose(r.ctx, l.Name, s.name, e.Err)
		}
		r.emit(e)
		if ended {
			return
		}
	}
	r.emit(Event{Lane: l.Name, Kind: Done})
}

// await returns false if the run was halted before the step could begin.
func (r *run) await(l Lane, s step) bool {
	for _, c := range s.needs {
		if c.isSet() {
			continue
		}
		r.emit(Event{Lane: l.Name, Step: s.name, Kind: Waiting, Text: c.Name(), For: r.setBy[c]})
		select {
		case <-c.ready():
		case <-r.halt:
			return false
		}
	}
	select {
	case <-r.halt:
		return false
	default:
		return true
	}
}

// step runs one step to its end and returns the event that tells of it. A panic
// of the step is a failure of that step alone: the others still come to a halt cleanly.
func (r *run) step(l Lane, s step) (ended Event) {
	defer func() {
		if p := recover(); p != nil {
			ended = Event{Kind: Failed, Err: &fault.Fault{Code: fault.Internal, Host: l.Name, Step: s.name,
				Err:    fmt.Errorf("panic: %v\n%s", p, debug.Stack()),
				Remedy: "this is a defect of kubewright: please report it with the lines above"}}
		}
	}()
	ctx := r.ctx
	if s.wait {
		ctx = r.waits
	}
	failed := func(err error) Event {
		if (s.wait || r.ctx.Err() == nil) && r.waits.Err() != nil && errors.Is(err, context.Canceled) {
			return Event{Kind: Canceled}
		}
		return Event{Kind: Failed, Err: fault.At(l.Name, s.name, err)}
	}

	diff, err := s.check(ctx)
	if err != nil {
		return failed(err)
	}
	kind := Skipped
	if len(diff) > 0 {
		kind = Applied
		if r.allow != nil {
			if err := r.allow(l.Name, s.name, diff); err != nil {
				return failed(err)
			}
		}
		r.emit(Event{Lane: l.Name, Step: s.name, Kind: Applying, Diff: diff})
		var last atomic.Pointer[string] // what it said it was doing last
		bounded, cancel := context.WithTimeout(withReporter(ctx, func(e Event) {
			last.Store(&e.Text)
			e.Lane, e.Step, e.Kind = l.Name, s.name, Progress
			r.emit(e)
		}), s.timeout)
		defer cancel()
		bounded = context.WithValue(bounded, waitsKey{}, r.waits)
		bounded = context.WithValue(bounded, intentKey{}, &Intent{Lane: l.Name, Step: s.name, Diff: diff})
		if err := s.apply(bounded); err != nil {
			if errors.Is(bounded.Err(), context.DeadlineExceeded) {
				err = timedOut(s, last.Load(), err)
			}
			return failed(err)
		}
		left, err := s.check(ctx)
		if err != nil {
			return failed(fmt.Errorf("check after apply: %w", err))
		}
		if len(left) > 0 {
			return failed(fmt.Errorf("applied, but it still differs: %s", left))
		}
	}
	for _, c := range s.sets {
		if !c.isSet() {
			return failed(&fault.Fault{Code: fault.Internal, Err: fmt.Errorf("the step did not set %s", c.Name())})
		}
	}
	return Event{Kind: kind, Diff: diff}
}

func timedOut(s step, last *string, err error) error {
	var f *fault.Fault
	if errors.As(err, &f) && f.Code != fault.StepFailed {
		return err
	}
	doing := s.doc
	if last != nil && *last != "" {
		doing = *last
	}
	return &fault.Fault{Code: fault.Timeout,
		Err:    fmt.Errorf("not done after %s: %s: %w", s.timeout, doing, err),
		Remedy: "look at the unit logs on the host (journalctl -u kubelet -u kube-apiserver -u etcd), then run the same command again"}
}

type waitsKey struct{}

// WaitContext returns the context of a part of a step that only waits, within the
// step's own: it ends as well when the run has no future, because another step
// failed or it is stopped. What is waited for might never come then. A step that
// returns its error ends as one that was canceled.
func WaitContext(ctx context.Context) (context.Context, context.CancelFunc) {
	waiting, cancel := context.WithCancel(ctx)
	waits, ok := ctx.Value(waitsKey{}).(context.Context)
	if !ok {
		return waiting, cancel
	}
	stop := context.AfterFunc(waits, cancel)
	return waiting, func() { stop(); cancel() }
}

type reporterKey struct{}

func withReporter(ctx context.Context, report func(Event)) context.Context {
	return context.WithValue(ctx, reporterKey{}, report)
}

// Report tells what the step that ctx belongs to is doing or waiting for.
func Report(ctx context.Context, text string) { report(ctx, Event{Text: text}) }

// ReportBytes tells how much of a transfer is done; total 0 is unknown.
func ReportBytes(ctx context.Context, text string, done, total int64) {
	report(ctx, Event{Text: text, Bytes: done, Total: total})
}

func report(ctx context.Context, e Event) {
	if f, ok := ctx.Value(reporterKey{}).(func(Event)); ok {
		f(e)
	}
}
