package drill

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var errRefused = errors.New("refused")

// at is a moment of the tests, in seconds.
func at(seconds float64) time.Time {
	return time.Unix(1000, 0).Add(time.Duration(seconds * float64(time.Second)))
}

// ops are operations of a client that took no time: at a negative second's amount it failed.
func ops(seconds ...float64) []op {
	all := make([]op, len(seconds))
	for i, s := range seconds {
		if all[i] = (op{began: at(s), ended: at(s)}); s < 0 {
			all[i] = op{began: at(-s), ended: at(-s), err: errRefused}
		}
	}
	return all
}

func TestOutage(t *testing.T) {
	slow := ops(1, 2)
	slow = append(slow, op{began: at(3), ended: at(7)}, op{began: at(8), ended: at(8)})
	for _, c := range []struct {
		name        string
		ops         []op
		from, until float64
		longest     float64
		usual       float64
	}{
		{"nothing happened", ops(1, 2, 3, 4, 5, 6), 3.5, 5.5, 1, 1},
		{"refused for a while", ops(1, 2, 3, -4, -5, -6, 7, 8), 3.5, 7.5, 4, 1},
		{"an operation that hung and was done", slow, 2.5, 7.5, 5, 1},
		{"silent until the end", ops(1, 2, 3, -4, -5), 3.5, 9, 6, 1},
		{"a gap before the fault is not its", ops(1, 5, 6, 7, 8, 9), 6.5, 8.5, 1, 4},
		{"a gap after the recovery neither", ops(1, 2, 3, 4, 9), 2.5, 3.5, 1, 1},
		{"a gap that ends after the recovery is", ops(1, 2, 3, 9), 2.5, 3.5, 6, 1},
		{"never served", ops(-1, -2, -3), 1.5, 3, 2, 0},
		{"no operation at all", nil, 1, 3, 2, 0},
		{"the usual is the median", ops(1, 2, 3, 3.5, 10, 11), 10.5, 11, 1, 1},
	} {
		if got := longest(c.ops, at(c.from), at(c.until)).Seconds(); got != c.longest {
			t.Errorf("%s: longest %v, want %v", c.name, got, c.longest)
		}
		if got := usual(c.ops, at(c.from)).Seconds(); got != c.usual {
			t.Errorf("%s: usual %v, want %v", c.name, got, c.usual)
		}
	}
}

func TestOutageIsTheUnluckiestClients(t *testing.T) {
	a := newAccount()
	for c, seconds := range map[client][]float64{
		{write, 0}: {1, 2, 3, 4, 5},
		{write, 1}: {1, 2, -3, -4, 5},
		{read, 0}:  {1, -2, -3, -4, -5},
	} {
		for _, o := range ops(seconds...) {
			a.did(c, o)
		}
	}
	if got := a.outage(write, at(2.5), at(5)); got != 2*time.Second { // 3 s, of which 1 s is usual
		t.Errorf("writes: %s", got)
	}
	if got := a.outage(read, at(2.5), at(5)); got != 4*time.Second {
		t.Errorf("reads: %s", got)
	}
	if done, failed := a.count(write); done != 8 || failed != 2 {
		t.Errorf("writes: %d done, %d failed", done, failed)
	}
}

func TestLost(t *testing.T) {
	a := newAccount()
	for _, r := range []Record{{1, 0}, {0, 0}, {0, 1}, {0, 3}, {1, 1}} {
		a.acknowledge(r)
	}
	found := map[Record]bool{
		{0, 0}: true, {0, 2}: true, // not acknowledged, but done: no harm
		{1, 1}: true,
	}
	if diff := cmp.Diff([]Record{{0, 1}, {0, 3}, {1, 0}}, a.lost(found)); diff != "" {
		t.Error(diff)
	}
	if r, any := a.newest(0); r != (Record{0, 3}) || !any {
		t.Errorf("newest of writer 0: %v %t", r, any)
	}
	if _, any := a.newest(2); any {
		t.Error("a writer that wrote nothing has a newest record")
	}
}
