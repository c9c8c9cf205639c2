package drill

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// verb is what an operation of the load does.
type verb string

const (
	write verb = "write"
	read  verb = "read"
)

// op is one operation of a client, as it ended.
type op struct {
	verb         verb
	began, ended time.Time
	err          error // nil: the API said that it was done
}

// Record is one write of the load: the Number-th of a Writer, both from 0.
type Record struct {
	Writer int `json:"writer"`
	Number int `json:"number"`
}

// account is what clients did and were told. It is asked for figures once they have ended.
type account struct {
	mu    sync.Mutex
	ops   map[client][]op
	acked map[Record]bool
	last  map[int]Record // by writer, the newest that was acknowledged
	stale []Record       // acknowledged before a read began that did not see them
}

// client is one of the load, which does one operation after the other.
type client struct {
	verb   verb
	number int
}

func newAccount() *account {
	return &account{ops: map[client][]op{}, acked: map[Record]bool{}, last: map[int]Record{}}
}

// did notes an operation that has ended.
func (a *account) did(c client, o op) {
	a.mu.Lock()
	defer a.mu.Unlock()
	o.verb = c.verb
	a.ops[c] = append(a.ops[c], o)
}

// acknowledge notes that the API said a write was done.
func (a *account) acknowledge(r Record) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.acked[r], a.last[r.Writer] = true, r
}

// newest is the last acknowledged write of a writer.
func (a *account) newest(writer int) (r Record, any bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r, any = a.last[writer]
	return r, any
}

// missed notes a read that did not see what had been acknowledged before it began.
func (a *account) missed(r Record) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stale = append(a.stale, r)
}

// count is how many operations of a kind succeeded, and how many did not.
func (a *account) count(v verb) (done, failed int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for c, ops := range a.ops {
		if c.verb != v {
			continue
		}
		for _, o := range ops {
			if o.err == nil {
				done++
			} else {
				failed++
			}
		}
	}
	return done, failed
}

// lost are the acknowledged writes that are not among those found, in order.
func (a *account) lost(found map[Record]bool) []Record {
	a.mu.Lock()
	defer a.mu.Unlock()
	var lost []Record
	for r := range a.acked {
		if !found[r] {
			lost = append(lost, r)
		}
	}
	slices.SortFunc(lost, func(x, y Record) int {
		return cmp.Or(cmp.Compare(x.Writer, y.Writer), cmp.Compare(x.Number, y.Number))
	})
	return lost
}

// outage is the longest time that a client of the kind, the unluckiest one, went without a
// success between the two moments, over what was usual for it before them.
func (a *account) outage(v verb, from, until time.Time) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	var worst time.Duration
	for c, ops := range a.ops {
		if c.verb == v {
			worst = max(worst, longest(ops, from, until)-usual(ops, from))
		}
	}
	return worst
}

// longest is the longest time without a success that reaches into [from, until], of one
// client's operations in their order. It begins and ends outside if the silence does, but
// not before the first operation began.
func longest(ops []op, from, until time.Time) time.Duration {
	if len(ops) == 0 {
		return until.Sub(from)
	}
	var gap time.Duration
	last := ops[0].began
	for _, o := range ops {
		if o.err != nil {
			continue
		}
		if o.ended.After(from) && last.Before(until) {
			gap = max(gap, o.ended.Sub(last))
		}
		last = o.ended
	}
	if last.Before(until) { // it was still silent
		gap = max(gap, until.Sub(last))
	}
	return gap
}

// usual is the median time between two successes of one client before a moment, 0 if
// there were none.
func usual(ops []op, before time.Time) time.Duration {
	var gaps []time.Duration
	var last time.Time
	for _, o := range ops {
		if o.err != nil || o.ended.After(before) {
			continue
		}
		if !last.IsZero() {
			gaps = append(gaps, o.ended.Sub(last))
		}
		last = o.ended
	}
	if len(gaps) == 0 {
		return 0
	}
	slices.Sort(gaps)
	return gaps[len(gaps)/2]
}
