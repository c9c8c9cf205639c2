package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// observe lists the members. That there is no quorum is a fault whose remedy is the last resort.
func observe(ctx context.Context, r Reader) (Membership, error) {
	members, err := r.Members(ctx)
	if errors.Is(err, ErrNoQuorum) {
		return nil, &fault.Fault{Code: fault.Quorum, Err: err, Remedy: Recovery}
	}
	return members, err
}

// patience is how long a refusal by arithmetic is looked at again: a member that was only just
// started or given its vote may not answer for a moment.
const patience = 10 * time.Second

// refusal is one that may pass by itself.
type refusal struct{ since time.Time }

// passing says what is missing as long as there is patience with err.
func (r *refusal) passing(err error) (missing string, _ error) {
	if r.since.IsZero() {
		r.since = time.Now()
	}
	if time.Since(r.since) < patience {
		return err.Error(), nil
	}
	return "", err
}

func memberChange(verb plan.Verb, name, detail string) plan.Change {
	return plan.Change{Verb: verb, Kind: plan.ObjectMember, Object: "etcd member " + name, Detail: detail}
}

// AddLearner lets a member in that has no vote yet.
type AddLearner struct {
	Name    string // of the member, as its --name says
	PeerURL string
	// Fresh tells that its host has no data: a member at that URL that has started before is another's
	// or a lost one, whose place cannot be taken over.
	Fresh bool
	// Cluster becomes what its --initial-cluster must say.
	Cluster *plan.Value[string]
}

var _ plan.Action[Reader, Writer] = AddLearner{}

func (a AddLearner) Check(ctx context.Context, r Reader) (plan.Diff, error) {
	members, err := observe(ctx, r)
	if err != nil {
		return nil, err
	}
	m, there := members.At(a.PeerURL)
	if !there {
		return a.Foresee(), nil
	}
	if a.Fresh && m.Started() {
		return nil, fault.New(fault.HostTaken, fmt.Sprintf("if its data are lost, take it out first: `kubewright remove %s --force`", m.Name),
			"etcd has a member %s at %s already, and the host has none of its data", m.Name, a.PeerURL)
	}
	a.Cluster.Set(members.InitialCluster(a.Name, a.PeerURL))
	return nil, nil
}

// Refuse tells why the member cannot be let in now, nil if it can: by the arithmetic, or because its host has the
// data of another etcd's. That would go on as a member of what it knows: of the cluster as it was before a restore,
// say, which may even have a quorum.
func (a AddLearner) Refuse(ctx context.Context, r Reader) error {
	members, err := observe(ctx, r)
	if err != nil {
		return err
	}
	if _, there := members.At(a.PeerURL); there {
		return nil
	}
	if a.Fresh {
		return members.MayAdd(a.Name)
	}
	if _, known := members.Named(a.Name); known {
		return nil
	}
	return fault.New(fault.HostTaken, "`kubewright reset` it, which takes these data away, then join it again",
		"it has the data of a member of etcd, and the cluster's etcd has no member %s: they are of the cluster as it was before a restore, or it gave this host up", a.Name)
}

// Foresee: a member that nothing is known of is to be let in.
func (a AddLearner) Foresee() plan.Diff {
	return plan.Diff{memberChange(plan.Create, a.Name, "at "+a.PeerURL+", without a vote yet")}
}

// Apply lets the member in as soon as no other one is on its way in.
func (a AddLearner) Apply(ctx context.Context, w Writer) error {
	var refused refusal
	return plan.WaitUntil(ctx, "etcd to let "+a.Name+" in", func(ctx context.Context) (string, error) {
		members, err := observe(ctx, w)
		if err != nil {
			return unavailable(err)
		}
		if _, there := members.At(a.PeerURL); there {
			return "", nil
		}
		if old, there := members.Named(a.Name); there {
			if !old.Learner {
				return "", fault.New(fault.HostTaken, fmt.Sprintf("if that one is gone for ever: `kubewright remove %s --force`", a.Name),
					"etcd has a member %s already, at %s instead of %s", a.Name, strings.Join(old.Peers, ", "), a.PeerURL)
			}
			// It is what a broken-off join of this host at another address has left: nobody counts on it.
			plan.Report(ctx, "removes what an earlier join of "+a.Name+" has left in etcd")
			if err := w.Remove(ctx, old.ID); err != nil && !errors.Is(err, ErrMemberNotFound) {
				return unavailable(err)
			}
			return a.Name + " is still a member at " + strings.Join(old.Peers, ", "), nil
		}
		if err := members.MayAdd(a.Name); err != nil {
			return refused.passing(err)
		}
		refused = refusal{}
		if other, there := members.first(func(m Member) bool { return m.Learner }); there {
			return a.waitsFor(other), nil
		}
		err = w.AddLearner(ctx, a.PeerURL)
		if errors.Is(err, ErrMemberExists) {
			return "", nil
		}
		return unavailable(err)
	})
}

func (a AddLearner) waitsFor(other Member) string {
	return fmt.Sprintf("%s is on its way in, one member at a time (if its join was broken off and is not run again: `kubewright etcd forget %s`)",
		other.Title(), other.ID)
}

// unavailable turns what passes by itself into something to wait for.
func unavailable(err error) (missing string, _ error) {
	for _, passing := range []error{ErrNoQuorum, ErrUnreachable, ErrUnsettled, ErrElecting, ErrOtherLearner, context.DeadlineExceeded} {
		if errors.Is(err, passing) {
			return err.Error(), nil
		}
	}
	return "", err
}

// Promote gives a member its vote, once it has all data.
type Promote struct {
	Name    string
	PeerURL string
	Done    *plan.Value[bool]
}

var _ plan.Action[Reader, Writer] = Promote{}

func (a Promote) Check(ctx context.Context, r Reader) (plan.Diff, error) {
	members, err := observe(ctx, r)
	if err != nil {
		return nil, err
	}
	if m, there := members.At(a.PeerURL); !there || m.Learner {
		return a.Foresee(), nil
	}
	a.Done.Set(true)
	return nil, nil
}

// Foresee: a member that nothing is known of has no vote.
func (a Promote) Foresee() plan.Diff {
	return plan.Diff{memberChange(plan.Update, a.Name, "a vote, once it has all data")}
}

// Apply waits until the member has started and caught up, and gives it its vote.
func (a Promote) Apply(ctx context.Context, w Writer) error {
	return plan.WaitUntil(ctx, "etcd member "+a.Name+" to have all data", func(ctx context.Context) (string, error) {
		members, err := observe(ctx, w)
		if err != nil {
			return unavailable(err)
		}
		m, there := members.At(a.PeerURL)
		switch {
		case !there:
			return "", fmt.Errorf("etcd has no member at %s any more: it was taken out meanwhile", a.PeerURL)
		case !m.Learner:
			return "", nil
		case !m.Started():
			return "it has not started yet", nil
		case !m.Healthy:
			return m.Trouble, nil
		}
		err = w.Promote(ctx, m.ID)
		if errors.Is(err, ErrBehind) {
			return fmt.Sprintf("it is %d entries behind the leader", m.Behind), nil
		}
		return unavailable(err)
	})
}

// Remove takes members out for ever, one at a time.
type Remove struct {
	Names []string
	// PeerURLs of their hosts tell those that have been let in and have never started: they have no name.
	PeerURLs []string
	Done     *plan.Value[bool] // nil: nobody waits for it
}

var _ plan.Action[Reader, Writer] = Remove{}

// leaving are the members to be taken out, those first that etcd misses least: the dead ones, the
// leader at last.
func (a Remove) leaving(members Membership) Membership {
	order := func(m Member) int {
		switch {
		case m.Leader:
			return 2
		case m.votes():
			return 1
		}
		return 0
	}
	leaving := slices.DeleteFunc(slices.Clone(members), func(m Member) bool { return !a.means(m) })
	slices.SortStableFunc(leaving, func(x, y Member) int { return order(x) - order(y) })
	return leaving
}

func (a Remove) means(m Member) bool {
	if m.Started() {
		return slices.Contains(a.Names, m.Name)
	}
	return slices.ContainsFunc(m.Peers, func(url string) bool { return slices.Contains(a.PeerURLs, url) })
}

func (a Remove) Check(ctx context.Context, r Reader) (plan.Diff, error) {
	members, err := observe(ctx, r)
	if err != nil {
		return nil, err
	}
	var diff plan.Diff
	for _, m := range a.leaving(members) {
		diff = append(diff, memberChange(plan.Delete, m.Title(), "for ever"))
	}
	if len(diff) == 0 && a.Done != nil {
		a.Done.Set(true)
	}
	return diff, nil
}

// Foresee: all members named are taken out.
func (a Remove) Foresee() plan.Diff {
	diff := make(plan.Diff, len(a.Names))
	for i, name := range a.Names {
		diff[i] = memberChange(plan.Delete, name, "for ever")
	}
	return diff
}

// Refuse tells why not all of them can be taken out, nil if they can.
func (a Remove) Refuse(ctx context.Context, r Reader) error {
	members, err := observe(ctx, r)
	if err != nil {
		return err
	}
	return members.mayRemoveAll(a.leaving(members))
}

// Apply refuses all of it before the first one is taken out, if one could not be.
func (a Remove) Apply(ctx context.Context, w Writer) error {
	if err := a.Refuse(ctx, w); err != nil {
		return err
	}
	var refused refusal
	return plan.WaitUntil(ctx, "etcd to let "+strings.Join(a.Names, ", ")+" go", func(ctx context.Context) (string, error) {
		members, err := observe(ctx, w)
		if err != nil {
			return unavailable(err)
		}
		leaving := a.leaving(members)
		if len(leaving) == 0 {
			return "", nil
		}
		next := leaving[0]
		if err := members.MayRemove(next.Name); err != nil {
			return refused.passing(err)
		}
		refused = refusal{}
		if next.Leader {
			if heir, ok := members.Successor(a.Names...); ok {
				plan.Report(ctx, "moves the lead of etcd from "+next.Name+" to "+heir.Name)
				if err := w.MoveLeader(ctx, heir.ID); err != nil {
					return unavailable(err)
				}
				return next.Name + " is still the leader", nil
			}
		}
		if err := w.Remove(ctx, next.ID); err != nil && !errors.Is(err, ErrMemberNotFound) {
			return unavailable(err)
		}
		return next.Title() + " is on its way out", nil // and the others are looked at again
	})
}

// mayRemoveAll says why members cannot be taken out one after another.
func (ms Membership) mayRemoveAll(leaving Membership) error {
	for _, m := range leaving {
		if err := ms.MayRemove(m.Name); err != nil {
			return err
		}
		ms = ms.without(m)
	}
	return nil
}
