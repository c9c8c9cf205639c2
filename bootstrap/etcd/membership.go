package etcd

import "context"

// Reader observes etcd's membership.
type Reader interface {
	// Members lists all members. Each is asked itself how it is: one that cannot be
	// reached is in the list, not Healthy, with the reason as its Trouble. An error means
	// that the list itself is not to be had: there is no quorum, or no way to it.
	Members(ctx context.Context) ([]Member, error)
}

// Writer changes etcd's membership. Members are named by their Member.ID.
type Writer interface {
	Reader
	// AddLearner lets a member in that has no vote until it is promoted. It is known by
	// its peer URL until it has started.
	AddLearner(ctx context.Context, peerURL string) error
	// Promote gives a learner its vote. It fails with ErrBehind until the learner has
	// caught up with the leader.
	Promote(ctx context.Context, id string) error
	// Remove takes a member out. It never comes back under this ID.
	Remove(ctx context.Context, id string) error
	// MoveLeader makes another voting member the leader.
	MoveLeader(ctx context.Context, to string) error
}
