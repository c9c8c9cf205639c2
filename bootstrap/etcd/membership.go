package etcd

import (
	"context"
	"errors"
	"slices"
	"strings"
)

// Member is one member of etcd as it says it is.
type Member struct {
	Name    string   `json:"name"` // "" until it has started for the first time
	ID      string   `json:"id"`   // hex
	Peers   []string `json:"peers"`
	Clients []string `json:"clients"`
	Learner bool     `json:"learner,omitempty"`
	Leader  bool     `json:"leader"`
	// Healthy: it answers, follows a leader and has raised no alarm.
	Healthy bool `json:"healthy"`
	// Full: it is healthy but for the alarm that its database is full. It has its vote, and takes no writes.
	Full    bool    `json:"full,omitempty"`
	Version string  `json:"version,omitempty"`
	DBSize  int64   `json:"dbSize,omitempty"`  // bytes
	InUse   int64   `json:"inUse,omitempty"`   // of DBSize: a defragmentation frees the rest
	Quota   int64   `json:"quota,omitempty"`   // of DBSize
	Index   uint64  `json:"index,omitempty"`   // of the last entry that it knows to be committed
	Behind  uint64  `json:"behind,omitempty"`  // entries that the leader has committed and it did not know of
	Alarms  []Alarm `json:"alarms,omitempty"`  // that it raised
	Trouble string  `json:"trouble,omitempty"` // why it is not healthy
}

// Alarm is what a member raises that can no longer be written to.
type Alarm string

// The alarms.
const (
	NoSpace Alarm = "NOSPACE" // the database has reached its quota: nothing but deletion is taken
	Corrupt Alarm = "CORRUPT" // its data differ from the other members'
)

// Started tells whether the member has run before: one that was only let in has no name yet.
func (m Member) Started() bool { return m.Name != "" }

// votes tells whether the member can be counted on in a vote.
func (m Member) votes() bool { return !m.Learner && (m.Healthy || m.Full) }

// Title is the member for people: its name, or where it was expected.
func (m Member) Title() string {
	if m.Started() {
		return m.Name
	}
	return strings.Join(m.Peers, ",")
}

// Membership is all members.
type Membership []Member

// Named returns the member of a name.
func (ms Membership) Named(name string) (Member, bool) {
	return ms.first(func(m Member) bool { return name != "" && m.Name == name })
}

// At returns the member that has a peer URL.
func (ms Membership) At(peerURL string) (Member, bool) {
	return ms.first(func(m Member) bool { return slices.Contains(m.Peers, peerURL) })
}

func (ms Membership) first(is func(Member) bool) (Member, bool) {
	if i := slices.IndexFunc(ms, is); i >= 0 {
		return ms[i], true
	}
	return Member{}, false
}

// InitialCluster is what a new member's --initial-cluster says: all members with their peer
// URLs. The new one, which has no name in etcd yet, is told by its peer URL.
func (ms Membership) InitialCluster(name, peerURL string) string {
	var all []string
	for _, m := range ms {
		of := m.Name
		switch {
		case slices.Contains(m.Peers, peerURL):
			of = name
		case of == "":
			of = m.ID // it has to have some name
		}
		for _, u := range m.Peers {
			all = append(all, of+"="+u)
		}
	}
	return strings.Join(all, ",")
}

// Why a change of the membership, or a look at it, failed.
var (
	ErrBehind         = errors.New("the learner has not caught up with the leader yet")
	ErrNoQuorum       = errors.New("etcd has no quorum: too few of its members answer each other")
	ErrUnreachable    = errors.New("no member of etcd answers")
	ErrMemberNotFound = errors.New("etcd has no such member")
	ErrMemberExists   = errors.New("etcd has a member with that peer URL")
	ErrOtherLearner   = errors.New("etcd takes in another member just now")
	// ErrUnsettled is etcd's own refusal: it wants its members to have been connected for five seconds.
	ErrUnsettled = errors.New("too few of etcd's members have been connected with each other for long enough")
	ErrElecting  = errors.New("etcd's lead is changing hands")
)

// Reader observes etcd's membership.
type Reader interface {
	// Members lists all members. Each is asked itself how it is: one that cannot be
	// reached is in the list, not Healthy, with the reason as its Trouble. An error means
	// that the list itself is not to be had: there is no quorum (ErrNoQuorum), or no way to
	// it (ErrUnreachable).
	Members(ctx context.Context) ([]Member, error)
	// Remembered lists the members as one of them remembers them, also without a quorum.
	Remembered(ctx context.Context) ([]Member, error)
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
