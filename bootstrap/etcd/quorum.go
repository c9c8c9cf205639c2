package etcd

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// quorum is how many of so many voting members must agree.
func quorum(voters int) int { return voters/2 + 1 }

// recoverRemedy is what to do when so many members are gone that none can be removed or let in any more.
const recoverRemedy = "bring back a host whose member is not healthy; if that cannot be done, rebuild etcd from one that is left: `kubewright recover --from HOST`"

// count is the state of a vote.
type count struct {
	voters  int
	healthy []string // of them
	sick    []string // of them
}

func (ms Membership) count() count {
	var c count
	for _, m := range ms {
		switch {
		case m.Learner: // has no vote, also one that a join has left half-way
		case m.votes():
			c.voters, c.healthy = c.voters+1, append(c.healthy, m.Title())
		default:
			c.voters, c.sick = c.voters+1, append(c.sick, m.Title())
		}
	}
	return c
}

func (c count) lost() bool { return len(c.healthy) < quorum(c.voters) }

func (c count) String() string {
	s := fmt.Sprintf("etcd has %s, a quorum is %d, and %s healthy", plural(c.voters, "voting member"), quorum(c.voters), are(len(c.healthy)))
	if len(c.healthy) > 0 {
		s += " (" + strings.Join(c.healthy, ", ") + ")"
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
func (c count) refuseLost() error {
	if !c.lost() {
		return nil
	}
	return fault.New(fault.Quorum, recoverRemedy, "%s: the quorum is lost, and no member can be removed or let in", c)
}

// MayRemove says with a fault.Quorum why the member of a name cannot be taken out now, with the
// arithmetic; nil if it can, also of one that is not there.
func (ms Membership) MayRemove(name string) error {
	gone, there := ms.Named(name)
	if !there {
		return nil
	}
	now := ms.count()
	if err := now.refuseLost(); err != nil || gone.Learner {
		return err
	}
	then := ms.without(gone).count()
	switch {
	case then.voters == 0:
		return fault.New(fault.Quorum, "join another control-plane host first, or take the whole cluster down with `kubewright reset`",
			"%s. Without %s none would be left: the cluster's data would be gone", now, name)
	case then.lost():
		remedy := "join another control-plane host first"
		if len(then.sick) > 0 {
			remedy = fmt.Sprintf("bring %s back, or remove it first: `kubewright remove %s --force`", then.sick[0], then.sick[0])
		}
		return fault.New(fault.Quorum, remedy, "%s. Without %s there would be %s, a quorum would be %d, and %d would be healthy: the cluster would stop",
			now, name, plural(then.voters, "voting member"), quorum(then.voters), len(then.healthy))
	}
	return nil
}

// MayAdd says with a fault.Quorum why a member of a name cannot be let in now, with the arithmetic;
// nil if it can. A member that is to have a vote counts as one that could fail: there must
// be a quorum of the larger number without it.
func (ms Membership) MayAdd(name string) error {
	now := ms.count()
	if now.voters == 1 && len(now.healthy) == 1 {
		return nil // the second member is needed for the quorum of two: there is no other way to grow
	}
	if err := now.refuseLost(); err != nil {
		return err
	}
	if needed := quorum(now.voters + 1); len(now.healthy) < needed {
		remedy := "wait until all members are healthy: `kubewright etcd health`"
		if len(now.sick) > 0 {
			remedy = fmt.Sprintf("bring %s back, or remove it for ever: `kubewright remove %s --force`", now.sick[0], now.sick[0])
		}
		return fault.New(fault.Quorum, remedy, "%s. With %s there would be %s, and a quorum would be %d: if %s failed, the cluster would stop",
			now, name, plural(now.voters+1, "voting member"), needed, name)
	}
	return nil
}

// without is the membership after a member was taken out.
func (ms Membership) without(gone Member) Membership {
	return slices.DeleteFunc(slices.Clone(ms), func(m Member) bool { return m.ID == gone.ID })
}

// successor is the voting member that is best made the leader in the place of others: the one
// that is the least behind. false: there is none.
func (ms Membership) successor(not ...string) (Member, bool) {
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
