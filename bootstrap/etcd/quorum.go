package etcd

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// quorum is how many of so many voting members must agree.
func quorum(voters int) int { return voters/2 + 1 }

// Recovery is what to do when so many members are gone that none can be removed or let in any more.
const Recovery = "bring back a host whose member is not healthy; if that cannot be done, rebuild etcd from one that is left: `kubewright recover --from HOST`"

// Tally is the state of a vote.
type Tally struct {
	Voters  int      `json:"voters"`
	Healthy []string `json:"healthy"` // of them
	Sick    []string `json:"sick"`    // of them
}

// Tally counts who has a vote, and can give it. One whose database is full can; a learner has
// none, also one that a join has left half-way.
func (ms Membership) Tally() Tally {
	t := Tally{Healthy: []string{}, Sick: []string{}}
	for _, m := range ms {
		switch {
		case m.Learner:
		case m.votes():
			t.Voters, t.Healthy = t.Voters+1, append(t.Healthy, m.Title())
		default:
			t.Voters, t.Sick = t.Voters+1, append(t.Sick, m.Title())
		}
	}
	return t
}

// Quorum is how many votes decide.
func (t Tally) Quorum() int { return quorum(t.Voters) }

// Lost tells that nothing can be decided any more.
func (t Tally) Lost() bool { return len(t.Healthy) < t.Quorum() }

// Spare is how many more may fail.
func (t Tally) Spare() int { return max(0, len(t.Healthy)-t.Quorum()) }

func (t Tally) String() string {
	s := fmt.Sprintf("etcd has %s, a quorum is %d, and %s healthy", plural(t.Voters, "voting member"), t.Quorum(), are(len(t.Healthy)))
	if len(t.Healthy) > 0 {
		s += " (" + strings.Join(t.Healthy, ", ") + ")"
	}
	return s
}

func plural(n int, what string) string {
	if n == 1 {
		return fmt.Sprintf("%d %s", n, what)
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func are(n int) string {
	if n == 1 {
		return "1 is"
	}
	return fmt.Sprintf("%d are", n)
}

// refuseLost is the fault of a membership that cannot be changed any more, nil if it can.
func (t Tally) refuseLost() error {
	if !t.Lost() {
		return nil
	}
	return fault.New(fault.Quorum, Recovery, "%s: the quorum is lost, and no member can be removed or let in", t)
}

// MayRemove says with a fault.Quorum why the member of a name cannot be taken out now, with the
// arithmetic; nil if it can, also of one that is not there.
func (ms Membership) MayRemove(name string) error {
	gone, there := ms.Named(name)
	if !there {
		return nil
	}
	now := ms.Tally()
	if err := now.refuseLost(); err != nil || gone.Learner {
		return err
	}
	then := ms.without(gone).Tally()
	switch {
	case then.Voters == 0:
		return fault.New(fault.Quorum, "join another control-plane host first, or take the whole cluster down with `kubewright reset`",
			"%s. Without %s none would be left: the cluster's data would be gone", now, name)
	case then.Lost():
		remedy := "join another control-plane host first"
		if len(then.Sick) > 0 {
			remedy = fmt.Sprintf("bring %s back, or remove it first: `kubewright remove %s --force`", then.Sick[0], then.Sick[0])
		}
		return fault.New(fault.Quorum, remedy, "%s. Without %s there would be %s, a quorum would be %d, and %d would be healthy: the cluster would stop",
			now, name, plural(then.Voters, "voting member"), then.Quorum(), len(then.Healthy))
	}
	return nil
}

// MayAdd says with a fault.Quorum why a member of a name cannot be let in now, with the arithmetic;
// nil if it can. A member that is to have a vote counts as one that could fail: there must
// be a quorum of the larger number without it.
func (ms Membership) MayAdd(name string) error {
	now := ms.Tally()
	if now.Voters == 1 && len(now.Healthy) == 1 {
		return nil // the second member is needed for the quorum of two: there is no other way to grow
	}
	if err := now.refuseLost(); err != nil {
		return err
	}
	if needed := quorum(now.Voters + 1); len(now.Healthy) < needed {
		remedy := "wait until all members are healthy: `kubewright etcd health`"
		if len(now.Sick) > 0 {
			remedy = fmt.Sprintf("bring %s back, or remove it for ever: `kubewright remove %s --force`", now.Sick[0], now.Sick[0])
		}
		return fault.New(fault.Quorum, remedy, "%s. With %s there would be %s, and a quorum would be %d: if %s failed, the cluster would stop",
			now, name, plural(now.Voters+1, "voting member"), needed, name)
	}
	return nil
}

// without is the membership after a member was taken out.
func (ms Membership) without(gone Member) Membership {
	return slices.DeleteFunc(slices.Clone(ms), func(m Member) bool { return m.ID == gone.ID })
}

// Successor is the voting member that is best made the leader in the place of others: a healthy
// one, the least behind. false: there is none.
func (ms Membership) Successor(not ...string) (Member, bool) {
	fit := slices.DeleteFunc(slices.Clone(ms), func(m Member) bool { return !m.votes() || slices.Contains(not, m.Name) })
	if len(fit) == 0 {
		return Member{}, false
	}
	return slices.MinFunc(fit, func(a, b Member) int {
		switch {
		case a.Healthy != b.Healthy && a.Healthy:
			return -1
		case a.Healthy != b.Healthy:
			return 1
		case a.Behind < b.Behind:
			return -1
		case a.Behind > b.Behind:
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	}), true
}
