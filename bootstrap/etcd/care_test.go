package etcd

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// keeper is a fake that can be cared for, too. A defragmented member is half as large, and does
// not answer to the next look.
type keeper struct {
	*fake
	Keeper
	away string
}

func (k *keeper) Members(ctx context.Context) ([]Member, error) {
	members, err := k.fake.Members(ctx)
	for i := range members {
		if members[i].ID == k.away {
			members[i].Healthy, members[i].Trouble, k.away = false, "it did not answer in time", ""
		}
	}
	return members, err
}

func (k *keeper) Remembered(ctx context.Context) ([]Member, error) { return k.fake.Remembered(ctx) }

func (k *keeper) Defragment(_ context.Context, m Member) error {
	return k.do("defrag "+m.Name, func() { k.member(m.ID).DBSize /= 2; k.away = m.ID })
}

func (k *keeper) Compact(context.Context) error { return k.do("compact", func() {}) }

func (k *keeper) Disarm(_ context.Context, id string, alarm Alarm) error {
	return k.do(fmt.Sprintf("disarm %s %s", alarm, id), func() { k.member(id).Healthy, k.member(id).Full = true, false })
}

func (k *keeper) AddLearner(ctx context.Context, url string) error {
	return k.fake.AddLearner(ctx, url)
}
func (k *keeper) Promote(ctx context.Context, id string) error    { return k.fake.Promote(ctx, id) }
func (k *keeper) Remove(ctx context.Context, id string) error     { return k.fake.Remove(ctx, id) }
func (k *keeper) MoveLeader(ctx context.Context, id string) error { return k.fake.MoveLeader(ctx, id) }

func TestDefrag(t *testing.T) {
	for name, c := range map[string]struct {
		members Membership
		d       Defrag
		did     []string
		done    []Defragmented
		code    fault.Code
	}{
		"the leader last": {members: members("cp1", "cp2", "cp3"), did: []string{"defrag cp2", "defrag cp3", "defrag cp1"},
			done: []Defragmented{{Member: "cp2", Before: 8, After: 4}, {Member: "cp3", Before: 8, After: 4}, {Member: "cp1", Before: 8, After: 4}}},
		"one is not healthy": {members: members("cp1", "-cp2", "cp3"), code: fault.Unhealthy},
		"in spite of it": {members: members("cp1", "-cp2", "cp3"), d: Defrag{Force: true}, did: []string{"defrag cp3", "defrag cp1"},
			done: []Defragmented{{Member: "cp2", Before: 8, After: 8, Skipped: "it cannot be reached"}, {Member: "cp3", Before: 8, After: 4}, {Member: "cp1", Before: 8, After: 4}}},
		"full, and stays so": {members: members("!cp1"), did: []string{"defrag cp1"}, done: []Defragmented{{Member: "cp1", Before: 8, After: 4}}},
		"not full":           {members: members("cp1"), d: Defrag{Disarm: true}, did: []string{"defrag cp1"}, done: []Defragmented{{Member: "cp1", Before: 8, After: 4}}},
		"full": {members: members("!cp1"), d: Defrag{Disarm: true}, did: []string{"compact", "defrag cp1", "disarm NOSPACE id-cp1"},
			done: []Defragmented{{Member: "cp1", Before: 8, After: 4, Disarmed: []Alarm{NoSpace}}}},
	} {
		synctest.Test(t, func(t *testing.T) {
			for i := range c.members {
				c.members[i].DBSize = 8
			}
			c.members[0].Leader = true
			k := &keeper{fake: &fake{members: c.members}}
			var done []Defragmented
			err := c.d.Run(t.Context(), k, make(chan struct{}), func(m Defragmented) { done = append(done, m) })
			if fault.CodeOf(err) != c.code {
				t.Errorf("%s: %v", name, err)
			}
			if diff := cmp.Diff(c.did, k.did) + cmp.Diff(c.done, done); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		})
	}
	stop := make(chan struct{})
	close(stop)
	k := &keeper{fake: &fake{members: members("cp1")}}
	if err := (Defrag{}).Run(t.Context(), k, stop, nil); fault.CodeOf(err) != fault.Interrupted || len(k.did) > 0 {
		t.Errorf("not stopped: %v, %v", err, k.did)
	}
}

func TestLead(t *testing.T) {
	for name, c := range map[string]struct {
		members Membership
		to      string
		did     []string
		code    fault.Code
	}{
		"the best other": {members: members("cp1", "!cp2", "cp3"), did: []string{"lead id-cp3"}},
		"one by name":    {members: members("cp1", "cp2", "cp3"), to: "cp3", did: []string{"lead id-cp3"}},
		"the leader":     {members: members("cp1", "cp2"), to: "cp1"},
		"nobody else":    {members: members("cp1", "-cp2", "~cp3"), code: fault.Unhealthy},
		"a dead one":     {members: members("cp1", "-cp2", "cp3"), to: "cp2", code: fault.Unhealthy},
		"a learner":      {members: members("cp1", "~cp2"), to: "cp2", code: fault.Unhealthy},
		"a stranger":     {members: members("cp1", "cp2"), to: "cp9", code: fault.Usage},
	} {
		c.members[0].Leader = true
		f := &fake{members: c.members}
		_, _, err := Lead(t.Context(), f, c.to)
		if fault.CodeOf(err) != c.code || cmp.Diff(c.did, f.did) != "" {
			t.Errorf("%s: %v, %v", name, err, f.did)
		}
	}
	if _, _, err := Lead(t.Context(), &fake{members: members("cp1")}, ""); fault.CodeOf(err) != fault.Unhealthy {
		t.Errorf("without a leader: %v", err)
	}
}

func TestForget(t *testing.T) {
	f := &fake{members: members("cp1", "~")}
	for id, code := range map[string]fault.Code{"id-cp1": fault.Usage, "none": fault.Usage, "id-": ""} {
		if _, err := Forget(t.Context(), f, id); fault.CodeOf(err) != code {
			t.Errorf("%s: %v", id, err)
		}
	}
	if len(f.members) != 1 {
		t.Errorf("%+v", f.members)
	}
}
