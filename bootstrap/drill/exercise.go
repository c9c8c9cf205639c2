package drill

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// Victim is the host that is dealt a fault.
type Victim interface {
	// Host returns a connection to it.
	Host(ctx context.Context) (host.Host, error)
	// Forget gives the connection up: what it led to is no more.
	Forget()
	// Mend starts what of the host's part in the control plane does not run and is not being
	// started, and says what.
	Mend(ctx context.Context) ([]string, error)
}

// exercise is a drill with all that it needs at hand.
type exercise struct {
	fault   Fault
	lasts   time.Duration // of a fault that does
	within  time.Duration // how soon after it all has to be well
	watch   Watch
	victim  Victim
	writers []Store
	readers []Store
	judge   Store // where is looked for what was written

	kind Kind
	tell teller
}

// moments are when what happened.
type moments struct {
	began time.Time // the fault
	ended time.Time
	well  time.Time // all was again; zero: it was not
}

const (
	calmTime  = 5 * time.Second // before the fault, to see what is usual
	afterTime = 2 * time.Second // after the recovery
	lookPoll  = 250 * time.Millisecond
	// mendTime is how long a host has to become well by itself before it is helped.
	mendTime = time.Minute
)

// run practises the fault under load. The result is as full as it could be also if there is an error.
func (e *exercise) run(ctx context.Context) (*Result, error) {
	result := &Result{Fault: e.kind, Host: e.tell.lane, Lost: []Record{}, Stale: []Record{}}
	load := startLoad(ctx, e.writers, e.readers)
	when, err := e.practise(ctx, result)
	seen := load.end()
	e.count(result, seen, when)
	if ctx.Err() != nil {
		return result, err
	}
	// Also when not all is well again: then above all.
	lost := e.tell.step("compare", "looks for all acknowledged writes", func() error { return e.compare(ctx, seen, result) })
	return result, errors.Join(lost, err)
}

// compare looks for all that was acknowledged.
func (e *exercise) compare(ctx context.Context, seen *account, r *Result) error {
	found, err := e.judge.All(ctx)
	if err != nil {
		return err
	}
	r.Lost = append(r.Lost, seen.lost(found)...)
	if lost, stale := len(r.Lost), len(r.Stale); lost+stale > 0 {
		return fault.New(fault.WritesLost, "keep etcd's data of all members for a report, and do not trust the cluster with more",
			"%d of %d acknowledged writes are lost, %d were not seen by a later read", lost, r.Writes, stale)
	}
	return nil
}

// count makes figures of what the clients did.
func (e *exercise) count(r *Result, seen *account, when moments) {
	var failedWrites, failedReads int
	r.Writes, failedWrites = seen.count(write)
	r.Reads, failedReads = seen.count(read)
	r.Failed = failedWrites + failedReads
	r.Stale = append(r.Stale, seen.stale...)
	if when.began.IsZero() {
		return
	}
	until := when.well
	if until.IsZero() {
		until = time.Now()
	} else {
		r.RecoveryMS = max(1, when.well.Sub(when.ended).Milliseconds())
	}
	r.WriteOutageMS = seen.outage(write, when.began, until).Milliseconds()
	r.ReadOutageMS = seen.outage(read, when.began, until).Milliseconds()
}

// practise deals the fault and waits until all is well again.
func (e *exercise) practise(ctx context.Context, r *Result) (when moments, err error) {
	err = e.tell.step("calm", fmt.Sprintf("writers: %d, readers: %d; sees for %s what is usual", len(e.writers), len(e.readers), calmTime),
		func() error { return pause(ctx, calmTime) })
	if err != nil {
		return when, err
	}
	text := "deals it"
	if e.fault.Nature().Lasts {
		text = fmt.Sprintf("deals it for %s", e.lasts)
	}
	err = e.tell.step(string(e.kind), text, func() error { return e.deal(ctx, &when) })
	if err != nil {
		return when, err
	}
	err = e.tell.step("recover", "waits until all members, API servers and nodes are well", func() error {
		return e.awaitWell(ctx, r, &when)
	})
	if err != nil {
		return when, err
	}
	return when, e.tell.step("after", fmt.Sprintf("goes on for %s", afterTime), func() error { return pause(ctx, afterTime) })
}

// deal deals the fault, and ends one that lasts when its time is over. It ends it in any case.
func (e *exercise) deal(ctx context.Context, when *moments) error {
	n := e.fault.Nature()
	if n.Parts && !n.Lasts {
		e.watch.Mark(ctx)
	}
	when.began = time.Now()
	when.ended = when.began
	err := e.fault.Begin(ctx, e.victim)
	if !n.Lasts {
		return err
	}
	if err == nil {
		err = pause(ctx, e.lasts)
	}
	if n.Parts {
		e.watch.Mark(ctx)
	}
	when.ended = time.Now()
	return errors.Join(err, e.end(ctx))
}

// endTime bounds the end of a fault. One on a host that is not reached ends by itself.
const endTime = 30 * time.Second

// end ends the fault, also when ctx has ended.
func (e *exercise) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), endTime,
		fault.New(fault.Timeout, "", "the fault was not ended within %s; it ends by itself %s after it began", endTime, e.lasts+spellGrace))
	defer cancel()
	return e.fault.End(ctx, e.victim)
}

// awaitWell waits until all is well, and helps the host if it does not come to it by itself.
func (e *exercise) awaitWell(ctx context.Context, r *Result, when *moments) error {
	tell := func(now string) { e.tell.progress("recover", now) }
	for _, patience := range []time.Duration{min(mendTime, e.within), e.within} {
		bounded, cancel := context.WithDeadline(ctx, when.ended.Add(patience))
		troubles := untilWell(bounded, e.watch, tell)
		cancel()
		switch {
		case len(troubles) == 0:
			when.well = time.Now()
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case patience == e.within:
			return fault.New(fault.Timeout, "see `kubewright doctor`", "not all is well %s after the fault: %s", e.within, strings.Join(troubles, "; "))
		}
		e.mend(ctx, r)
	}
	return nil
}

// mend helps the host, and notes it.
func (e *exercise) mend(ctx context.Context, r *Result) {
	done, err := e.victim.Mend(ctx)
	if err != nil {
		done = append(done, "it could not be helped: "+err.Error())
	}
	for _, text := range done {
		r.Notes = append(r.Notes, fmt.Sprintf("%s: not well by itself after %s: %s", e.tell.lane, mendTime, text))
	}
}

// tellEvery is how often it is told what is not well, if it is something else.
const tellEvery = 5 * time.Second

// untilWell looks until all is well, and tells now and then what is not. What it returns is not
// well still when ctx ends.
func untilWell(ctx context.Context, w Watch, tell func(string)) []string {
	tick := time.NewTicker(lookPoll)
	defer tick.Stop()
	seen := []string{"nobody looked yet"}
	var told string
	var at time.Time
	for {
		troubles := w.Look(ctx)
		if ctx.Err() != nil {
			return seen // what was asked last was not answered
		}
		if len(troubles) == 0 {
			return nil
		}
		seen = troubles
		if now := strings.Join(seen, "; "); now != told && time.Since(at) >= tellEvery {
			told, at = now, time.Now()
			tell(now)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return seen
		}
	}
}

// teller says how a drill goes, as the steps of a lane that has its victim's name.
type teller struct {
	lane string
	emit func(plan.Event)
}

// step tells of a part of the drill, and how it ended.
func (t teller) step(name, text string, do func() error) error {
	began := time.Now()
	t.progress(name, text)
	err := fault.At(t.lane, stepName(name), do())
	done := plan.Event{Time: time.Now(), Lane: t.lane, Step: stepName(name), Kind: plan.Applied, Took: time.Since(began), Err: err}
	if err != nil {
		done.Kind = plan.Failed
	} else {
		done.Diff = plan.Diff{{Verb: plan.Await, Kind: plan.ObjectWait, Object: text}}
	}
	t.emit(done)
	return err
}

func (t teller) progress(name, text string) {
	t.emit(plan.Event{Time: time.Now(), Lane: t.lane, Step: stepName(name), Kind: plan.Progress, Text: text})
}

func stepName(name string) string { return "drill/" + name }

// pause waits, or returns the cause of ctx's end.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
