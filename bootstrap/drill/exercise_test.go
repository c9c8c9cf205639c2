package drill

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// world is a cluster of the tests: it is away while a fault is there, and for a while after it.
type world struct {
	nature  Nature
	away    time.Duration // the API, from the fault's begin
	unwell  time.Duration // the cluster, from the fault's end; negative: for ever
	forgets int           // how many of the newest records are gone when the API is back
	refuses error         // of Begin
	hangs   bool          // operations are not answered, instead of refused

	mu     sync.Mutex
	stored map[Record]bool
	order  []Record
	began  time.Time
	ended  time.Time
	does   []string
}

func (w *world) answer(ctx context.Context) error {
	w.mu.Lock()
	away := !w.began.IsZero() && time.Since(w.began) < w.away
	w.mu.Unlock()
	switch {
	case !away:
		time.Sleep(2 * time.Millisecond)
		return nil
	case w.hangs:
		<-ctx.Done()
		return ctx.Err()
	}
	return errRefused
}

func (w *world) Append(ctx context.Context, r Record) error {
	if err := w.answer(ctx); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.began.IsZero() {
		for ; w.forgets > 0; w.forgets-- {
			last := w.order[len(w.order)-1]
			w.order = w.order[:len(w.order)-1]
			delete(w.stored, last)
		}
	}
	w.stored[r] = true
	w.order = append(w.order, r)
	return nil
}

func (w *world) Has(ctx context.Context, r Record) (bool, error) {
	if err := w.answer(ctx); err != nil {
		return false, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stored[r], nil
}

func (w *world) All(context.Context) (map[Record]bool, error) { return w.stored, nil }

func (w *world) did(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.does = append(w.does, what)
}

func (w *world) Begin(context.Context, Victim) error {
	w.did("begin")
	if w.refuses != nil {
		return w.refuses
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.began = time.Now()
	w.ended = w.began
	return nil
}

func (w *world) End(context.Context, Victim) error {
	w.did("end")
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = time.Now()
	return nil
}

func (w *world) Nature() Nature { return w.nature }

func (w *world) Mark(context.Context) { w.did("mark") }

func (w *world) Look(context.Context) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.unwell < 0 || time.Since(w.ended) < w.unwell {
		return []string{"cp1: etcd: no leader"}
	}
	return nil
}

func (w *world) Host(context.Context) (host.Host, error) { return nil, errors.New("there is none") }
func (w *world) Forget()                                 { w.did("forget") }
func (w *world) Mend(context.Context) ([]string, error) {
	w.did("mend")
	return []string{"etcd.service was failed and started again"}, nil
}

// exercise is one on the world, with two writers and two readers.
func (w *world) exercise(emit func(plan.Event)) *exercise {
	w.stored = map[Record]bool{}
	stores := []Store{w, w}
	return &exercise{
		fault: w, lasts: 30 * time.Second, within: 2 * time.Minute, watch: w, victim: w,
		writers: stores, readers: stores, judge: w, kind: Killed, tell: teller{"cp1", emit},
	}
}

func TestExercise(t *testing.T) {
	for _, c := range []struct {
		name   string
		world  *world
		want   Result // without counts of operations
		lost   int
		code   fault.Code
		does   string
		failed bool // some operations have to
	}{
		{name: "no fault is seen", world: &world{}, does: "begin"},
		{
			name: "refused for 3 s", world: &world{away: 3 * time.Second, unwell: 6 * time.Second}, failed: true,
			want: Result{WriteOutageMS: 3000, ReadOutageMS: 3000, RecoveryMS: 6000}, does: "begin",
		},
		{
			name:  "not answered for 3 s: what the deadline of the last operation adds is the clients' time too",
			world: &world{away: 3200 * time.Millisecond, unwell: 6 * time.Second, hangs: true}, failed: true,
			want: Result{WriteOutageMS: 4000, ReadOutageMS: 4000, RecoveryMS: 6000}, does: "begin",
		},
		{
			name:  "a fault that lasts is ended after its time, and recovery counts from there",
			world: &world{nature: Nature{Lasts: true, Parts: true}, away: time.Second, unwell: 2 * time.Second}, failed: true,
			want: Result{WriteOutageMS: 1000, ReadOutageMS: 1000, RecoveryMS: 2000}, does: "begin mark end",
		},
		{
			name:  "one that parts the node and is over at once is marked before",
			world: &world{nature: Nature{Parts: true}, unwell: 2 * time.Second},
			want:  Result{RecoveryMS: 2000}, does: "mark begin",
		},
		{
			name: "acknowledged writes are gone", world: &world{away: time.Second, unwell: 2 * time.Second, forgets: 3}, failed: true,
			want: Result{WriteOutageMS: 1000, ReadOutageMS: 1000, RecoveryMS: 2000}, lost: 3, code: fault.WritesLost, does: "begin",
		},
		{
			name: "a fault that cannot be dealt is ended all the same", world: &world{nature: Nature{Lasts: true}, refuses: errRefused},
			code: fault.StepFailed, does: "begin end",
		},
		{
			name: "never well again", world: &world{unwell: -1}, code: fault.Timeout, does: "begin mend",
			want: Result{Notes: []string{"cp1: not well by itself after 1m0s: etcd.service was failed and started again"}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, err := c.world.exercise(func(plan.Event) {}).run(t.Context())
				if code := fault.CodeOf(err); code != c.code {
					t.Errorf("error %v, want code %q", err, c.code)
				}
				if len(r.Lost) != c.lost {
					t.Errorf("lost: %v", r.Lost)
				}
				if got := strings.Join(c.world.does, " "); got != c.does {
					t.Errorf("it did %q, want %q", got, c.does)
				}
				if (r.Failed > 0) != c.failed || r.Writes == 0 || r.Reads == 0 {
					t.Errorf("writes %d, reads %d, failed %d", r.Writes, r.Reads, r.Failed)
				}
				// A pace more or less is chance, also of simulated clients.
				for _, ms := range []*int64{&r.WriteOutageMS, &r.ReadOutageMS, &r.RecoveryMS} {
					*ms = (*ms + 250) / 500 * 500
				}
				c.want.Fault, c.want.Host = Killed, "cp1"
				r.Writes, r.Reads, r.Failed, r.Lost, r.Stale = 0, 0, 0, nil, nil
				if diff := cmp.Diff(&c.want, r); diff != "" {
					t.Errorf("(-want +got)\n%s", diff)
				}
			})
		})
	}
}

// TestInterrupted ends a drill in the middle of its fault, which is ended at once.
func TestInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stopped := fault.New(fault.Interrupted, "", "stopped")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(calmTime+10*time.Second, func() { cancel(stopped) })
		w := &world{nature: Nature{Lasts: true}}
		began := time.Now()
		_, err := w.exercise(func(plan.Event) {}).run(ctx)
		if fault.CodeOf(err) != fault.Interrupted {
			t.Errorf("error %v", err)
		}
		if took := time.Since(began); took > calmTime+11*time.Second {
			t.Errorf("it took %s", took)
		}
		if got := strings.Join(w.does, " "); got != "begin end" {
			t.Errorf("it did %q", got)
		}
	})
}

// TestStale has a reader that is told less than what was acknowledged before it asked.
func TestStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{}
		e := w.exercise(func(plan.Event) {})
		e.readers = []Store{blind{w}}
		r, err := e.run(t.Context())
		if fault.CodeOf(err) != fault.WritesLost || len(r.Stale) == 0 || len(r.Lost) != 0 {
			t.Errorf("error %v, stale %d, lost %v", err, len(r.Stale), r.Lost)
		}
	})
}

// blind is a store whose reads see nothing.
type blind struct{ Store }

func (blind) Has(context.Context, Record) (bool, error) { return false, nil }

func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines []string
		w := &world{nature: Nature{Lasts: true, Parts: true}, unwell: 2 * time.Second}
		_, err := w.exercise(func(e plan.Event) {
			lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", e.Lane, e.Step, e.Kind, e.Text)))
		}).run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := []string{
			"cp1 drill/calm progress writers: 2, readers: 2; sees for 5s what is usual",
			"cp1 drill/calm applied",
			"cp1 drill/kill-leader progress deals it for 30s",
			"cp1 drill/kill-leader applied",
			"cp1 drill/recover progress waits until all members, API servers and nodes are well",
			"cp1 drill/recover progress cp1: etcd: no leader",
			"cp1 drill/recover applied",
			"cp1 drill/after progress goes on for 2s",
			"cp1 drill/after applied",
			"cp1 drill/compare progress looks for all acknowledged writes",
			"cp1 drill/compare applied",
		}
		if diff := cmp.Diff(want, lines); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	})
}

func TestBeWell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tell := teller{"cp1", func(plan.Event) {}}
		if err := beWell(t.Context(), &world{ended: time.Now(), unwell: 5 * time.Second}, tell); err != nil {
			t.Errorf("a cluster that comes to it: %v", err)
		}
		err := beWell(t.Context(), &world{unwell: -1}, tell)
		if fault.CodeOf(err) != fault.Unhealthy || !strings.Contains(err.Error(), "cp1: etcd: no leader") {
			t.Errorf("a sick cluster: %v", err)
		}
	})
}
