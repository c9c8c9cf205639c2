package etcd

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// Keeper looks after etcd's members and data. Client is one.
type Keeper interface {
	Writer
	// Defragment gives the space that a member's database does not use back to its file
	// system. The member answers nobody meanwhile.
	Defragment(ctx context.Context, m Member) error
	// Compact throws all revisions of the data away but the newest: what is there now stays.
	Compact(ctx context.Context) error
	// Disarm takes back a member's alarm. If its reason still stands, it is raised again.
	Disarm(ctx context.Context, id string, alarm Alarm) error
	// Snapshot streams all data, followed by their SHA-256, into w. Without a quorum they
	// are what one member has.
	Snapshot(ctx context.Context, w io.Writer) error
}

var _ Keeper = (*Client)(nil)

// Defragmented is what a defragmentation did to one member.
type Defragmented struct {
	Member   string  `json:"member"`
	Before   int64   `json:"before"` // bytes of the database's file
	After    int64   `json:"after"`
	Disarmed []Alarm `json:"disarmed,omitempty"`
	Skipped  string  `json:"skipped,omitempty"` // why it was left out
}

// Defrag defragments all members, one at a time, the leader last.
type Defrag struct {
	Force bool // go on although a member is not healthy; such a one is left out
	// Disarm makes room in a database that is full, and takes its alarm back. It compacts first: the API
	// server, which does that every five minutes, cannot do it any more, as it is a write.
	Disarm bool
}

// Run tells of each member when it is done. It ends between two members when stop is closed.
func (d Defrag) Run(ctx context.Context, k Keeper, stop <-chan struct{}, tell func(Defragmented)) error {
	members, err := observe(ctx, k)
	if err != nil {
		return err
	}
	for _, m := range Membership(members) {
		if !d.Force && !m.Healthy && !m.Full {
			return fault.New(fault.Unhealthy, "bring it back first; or defragment the others with --force",
				"etcd member %s is not healthy: %s. One that is defragmented answers nobody meanwhile: that may be one too many", m.Title(), m.Trouble)
		}
	}
	if d.Disarm && slices.ContainsFunc(members, func(m Member) bool { return m.Full }) {
		if err := k.Compact(ctx); err != nil {
			return err
		}
	}
	slices.SortStableFunc(members, func(a, b Member) int {
		switch {
		case a.Leader == b.Leader:
			return 0
		case a.Leader:
			return 1
		}
		return -1
	})
	for _, m := range members {
		select {
		case <-stop:
			return fault.New(fault.Interrupted, "run the same command again", "stopped before etcd member %s", m.Title())
		default:
		}
		done, err := d.one(ctx, k, m)
		if err != nil {
			return err
		}
		tell(done)
	}
	return nil
}

func (d Defrag) one(ctx context.Context, k Keeper, m Member) (Defragmented, error) {
	done := Defragmented{Member: m.Title(), Before: m.DBSize, After: m.DBSize}
	if !m.Healthy && !m.Full {
		done.Skipped = m.Trouble
		return done, nil
	}
	if err := k.Defragment(ctx, m); err != nil {
		return done, err
	}
	// The next one waits until this one serves again.
	return done, plan.WaitUntil(ctx, "etcd member "+m.Name+" to serve again", func(ctx context.Context) (string, error) {
		members, err := observe(ctx, k)
		if err != nil {
			return unavailable(err)
		}
		now, ok := members.first(func(n Member) bool { return n.ID == m.ID })
		switch {
		case !ok:
			return "", fmt.Errorf("etcd member %s was taken out meanwhile", m.Title())
		case !now.Healthy && !now.Full:
			return now.Trouble, nil
		}
		done.After = now.DBSize
		if now.Full && d.Disarm {
			if err := k.Disarm(ctx, m.ID, NoSpace); err != nil {
				return unavailable(err)
			}
			done.Disarmed = []Alarm{NoSpace}
		}
		return "", nil
	})
}

// Forget takes a learner out that a broken-off join has left. A member that has a vote is
// a control-plane node's, and leaves the cluster with it.
func Forget(ctx context.Context, w Writer, id string) (Member, error) {
	members, err := observe(ctx, w)
	if err != nil {
		return Member{}, err
	}
	m, ok := members.first(func(m Member) bool { return m.ID == id })
	if !ok {
		return m, fault.New(fault.Usage, "see the IDs with `kubewright etcd members`", "etcd has no member with the ID %s", id)
	}
	if !m.Learner {
		return m, fault.New(fault.Usage, fmt.Sprintf("take its node out: `kubewright remove %s`", m.Name), "etcd member %s has a vote: it is no left-over of a join", m.Name)
	}
	return m, w.Remove(ctx, id)
}

// Lead makes the member of a name the leader, or, if that is "", the one that is best
// made so in the place of the leader. It returns who led before, and who leads now.
func Lead(ctx context.Context, w Writer, name string) (before, now Member, err error) {
	members, err := observe(ctx, w)
	if err != nil {
		return before, now, err
	}
	before, led := members.first(func(m Member) bool { return m.Leader })
	if !led {
		return before, now, fault.New(fault.Unhealthy, "see what is wrong with `kubewright etcd health`", "etcd has no leader just now")
	}
	var ok bool
	if name == "" {
		if now, ok = members.Successor(before.Name); !ok {
			return before, now, fault.New(fault.Unhealthy, "join another control-plane host, or bring one back", "no other member of etcd could lead in the place of %s", before.Name)
		}
	} else if now, ok = members.Named(name); !ok {
		return before, now, fault.New(fault.Usage, "see the members with `kubewright etcd members`", "etcd has no member %s", name)
	}
	switch {
	case now.ID == before.ID:
		return before, now, nil
	case !now.votes():
		return before, now, fault.New(fault.Unhealthy, "bring it back first", "etcd member %s cannot lead: %s", now.Name, now.why())
	}
	return before, now, w.MoveLeader(ctx, now.ID)
}

// why a member does not count.
func (m Member) why() string {
	if m.Learner {
		return "it has no vote yet"
	}
	return m.Trouble
}
