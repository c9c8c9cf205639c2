package etcd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// fake is etcd's membership in memory. meanwhile is what others do, before each look.
type fake struct {
	members   Membership
	meanwhile func(look int)
	looks     int
	did       []string
	next      []error // of changes: the first one fails with the first of them
}

var _ Writer = (*fake)(nil)

func (f *fake) Members(context.Context) ([]Member, error) {
	f.looks++
	if f.meanwhile != nil {
		f.meanwhile(f.looks)
	}
	return slices.Clone(f.members), nil
}

func (f *fake) Remembered(context.Context) ([]Member, error) { return slices.Clone(f.members), nil }

func (f *fake) do(what string, change func()) error {
	f.did = append(f.did, what)
	if len(f.next) > 0 {
		err := f.next[0]
		f.next = f.next[1:]
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	change()
	return nil
}

func (f *fake) AddLearner(_ context.Context, url string) error {
	return f.do("add "+url, func() {
		f.members = append(f.members, Member{ID: "id-new", Peers: []string{url}, Learner: true, Trouble: "it has not started yet"})
	})
}

func (f *fake) Promote(_ context.Context, id string) error {
	return f.do("promote "+id, func() { f.member(id).Learner = false })
}

func (f *fake) Remove(_ context.Context, id string) error {
	return f.do("remove "+id, func() { f.members = f.members.without(Member{ID: id}) })
}

func (f *fake) MoveLeader(_ context.Context, id string) error {
	return f.do("lead "+id, func() {
		for i := range f.members {
			f.members[i].Leader = f.members[i].ID == id
		}
	})
}

func (f *fake) member(id string) *Member {
	return &f.members[slices.IndexFunc(f.members, func(m Member) bool { return m.ID == id })]
}

// start has the member at a URL start and be healthy.
func (f *fake) start(url, name string) {
	i := slices.IndexFunc(f.members, func(m Member) bool { return slices.Contains(m.Peers, url) })
	f.members[i].Name, f.members[i].Healthy, f.members[i].Clients = name, true, []string{"https://" + name + ":2379"}
}

const newURL = "https://new:2380"

// run runs one step as a plan does, and returns what it said.
func run(t *testing.T, f *fake, do plan.Action[Reader, Writer]) (said []string, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		_, err = plan.Run(t.Context(), plan.Options{Emit: func(e plan.Event) {
			if e.Kind == plan.Progress {
				said = append(said, e.Text)
			}
		}}, plan.NewLane[Reader, Writer]("cluster", f, f, plan.Step[Reader, Writer]{Name: "etcd/step", Doc: "the step", Do: do}))
	})
	return said, err
}

func TestAddLearner(t *testing.T) {
	other := func(look int, f *fake) {
		if look == 4 {
			f.members[1].Learner = false
		}
	}
	for name, c := range map[string]struct {
		members   Membership
		fresh     bool
		meanwhile func(int, *fake)
		next      []error
		did       []string
		cluster   string
		said      string
		code      fault.Code
		fails     string
	}{
		"a new one":   {members: members("cp1"), did: []string{"add " + newURL}, cluster: "cp1=https://cp1:2380,cp9=" + newURL},
		"it is there": {members: members("cp1", "~"), fresh: true, cluster: "cp1=https://cp1:2380,cp9=" + newURL},
		"after another": {members: members("cp1", "~cp2"), meanwhile: other, did: []string{"add " + newURL},
			cluster: "cp1=https://cp1:2380,cp2=https://cp2:2380,cp9=" + newURL, said: "cp2 is on its way in"},
		"etcd wants to wait": {members: members("cp1", "cp2"), next: []error{ErrUnsettled, ErrOtherLearner, nil},
			did: []string{"add " + newURL, "add " + newURL, "add " + newURL}, cluster: "cp1=https://cp1:2380,cp2=https://cp2:2380,cp9=" + newURL,
			said: ErrUnsettled.Error()},
		"a learner of its name elsewhere": {members: members("cp1", "~cp9"), did: []string{"remove id-cp9", "add " + newURL},
			cluster: "cp1=https://cp1:2380,cp9=" + newURL},
		"a voter of its name elsewhere": {members: members("cp1", "cp9"), code: fault.HostTaken, fails: "at https://cp9:2380 instead of " + newURL},
		"one is not healthy":            {members: members("cp1", "cp2", "-cp3"), code: fault.Quorum, fails: "With cp9 there would be 4 voting members"},
		"one is not healthy at first": {members: members("cp1", "-cp2"), did: []string{"add " + newURL},
			meanwhile: func(look int, f *fake) { f.members[1].Healthy = look > 20 },
			cluster:   "cp1=https://cp1:2380,cp2=https://cp2:2380,cp9=" + newURL, said: "the quorum is lost"},
		"etcd refuses": {members: members("cp1"), next: []error{errors.New("no")}, did: []string{"add " + newURL}, code: fault.StepFailed, fails: "no"},
		"its data are gone": {members: Membership{{Name: "cp9", ID: "1", Peers: []string{newURL}}}, fresh: true, code: fault.HostTaken,
			fails: "the host has none of its data"},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{members: c.members, next: c.next}
			if c.meanwhile != nil {
				f.meanwhile = func(look int) { c.meanwhile(look, f) }
			}
			cluster := plan.NewValue[string]("the members of etcd")
			said, err := run(t, f, AddLearner{Name: "cp9", PeerURL: newURL, Fresh: c.fresh, Cluster: cluster})
			expect(t, f, c.did, said, c.said, err, c.code, c.fails)
			if err == nil && cluster.Get() != c.cluster {
				t.Errorf("initial cluster %s, want %s", cluster.Get(), c.cluster)
			}
		})
	}
}

func TestPromote(t *testing.T) {
	for name, c := range map[string]struct {
		members   Membership
		meanwhile func(int, *fake)
		next      []error
		did       []string
		said      string
		code      fault.Code
		fails     string
	}{
		"it votes": {members: Membership{{Name: "cp9", ID: "id-new", Peers: []string{newURL}, Healthy: true}}},
		"it starts late, and catches up": {members: members("cp1", "~"),
			meanwhile: func(look int, f *fake) {
				if look == 3 {
					f.start(newURL, "cp9")
				}
			},
			next: []error{ErrBehind, ErrElecting, nil}, did: []string{"promote id-", "promote id-", "promote id-"}, said: "it has not started yet"},
		"it is taken out": {members: members("cp1", "~"), meanwhile: func(look int, f *fake) {
			if look == 3 {
				f.members = f.members[:1]
			}
		}, code: fault.StepFailed, fails: "it was taken out meanwhile"},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{members: c.members, next: c.next}
			if c.meanwhile != nil {
				f.meanwhile = func(look int) { c.meanwhile(look, f) }
			}
			done := plan.NewValue[bool]("the vote")
			said, err := run(t, f, Promote{Name: "cp9", PeerURL: newURL, Done: done})
			expect(t, f, c.did, said, c.said, err, c.code, c.fails)
			if done.IsSet() != (err == nil) {
				t.Errorf("done: %t", done.IsSet())
			}
		})
	}
}

func TestRefuse(t *testing.T) {
	for name, c := range map[string]struct {
		joins   AddLearner
		members Membership
		code    fault.Code
	}{
		"a new host":                    {AddLearner{Name: "cp2", Fresh: true}, members("cp1"), ""},
		"a new host, one too many down": {AddLearner{Name: "cp3", Fresh: true}, members("cp1", "-cp2"), fault.Quorum},
		"a member, again":               {AddLearner{Name: "cp2"}, members("cp1", "cp2"), ""},
		"a member of another etcd":      {AddLearner{Name: "cp3"}, members("cp1", "cp2"), fault.HostTaken},
	} {
		if err := c.joins.Refuse(t.Context(), &fake{members: c.members}); fault.CodeOf(err) != c.code {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// newcomer is the address of a host whose member has not started.
var newcomer = netip.MustParseAddr("192.0.2.9")

func TestRemove(t *testing.T) {
	led := func(ms Membership, leader int) Membership { ms[leader].Leader = true; return ms }
	for name, c := range map[string]struct {
		members   Membership
		names     []string
		meanwhile func(int, *fake)
		next      []error
		did       []string
		said      string
		code      fault.Code
		fails     string
	}{
		"it is gone":         {members: members("cp1"), names: []string{"cp9"}},
		"a follower":         {members: led(members("cp1", "cp2", "cp3"), 0), names: []string{"cp3"}, did: []string{"remove id-cp3"}},
		"the leader":         {members: led(members("cp1", "cp2", "cp3"), 0), names: []string{"cp1"}, did: []string{"lead id-cp2", "remove id-cp1"}},
		"the dead one first": {members: led(members("cp1", "cp2", "-cp3"), 0), names: []string{"cp2", "cp3"}, did: []string{"remove id-cp3", "remove id-cp2"}},
		"all but a follower": {members: led(members("cp1", "cp2", "cp3"), 0), names: []string{"cp1", "cp2"}, did: []string{"remove id-cp2", "lead id-cp3", "remove id-cp1"}},
		"one that never started": {members: append(led(members("cp1"), 0), Member{ID: "new", Peers: []string{PeerURL(newcomer)}, Learner: true}),
			names: []string{"cp2"}, did: []string{"remove new"}},
		"another's that never started": {members: append(led(members("cp1"), 0), Member{ID: "new", Peers: []string{"https://192.0.2.99:2380"}, Learner: true}),
			names: []string{"cp2"}},
		"one is needed":        {members: led(members("cp1", "cp2", "-cp3"), 0), names: []string{"cp2"}, code: fault.Quorum, fails: "the cluster would stop"},
		"all at once":          {members: led(members("cp1", "cp2"), 0), names: []string{"cp1", "cp2"}, code: fault.Quorum, fails: "none would be left"},
		"the lead moves later": {members: led(members("cp1", "cp2"), 0), names: []string{"cp1"}, next: []error{ErrElecting}, did: []string{"lead id-cp2", "lead id-cp2", "remove id-cp1"}, said: ErrElecting.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{members: c.members, next: c.next}
			done := plan.NewValue[bool]("the removal")
			said, err := run(t, f, Remove{Names: c.names, PeerURLs: []string{PeerURL(newcomer)}, Done: done})
			expect(t, f, c.did, said, c.said, err, c.code, c.fails)
			if done.IsSet() != (err == nil) {
				t.Errorf("done: %t", done.IsSet())
			}
		})
	}
}

func expect(t *testing.T, f *fake, did, said []string, words string, err error, code fault.Code, fails string) {
	t.Helper()
	if diff := cmp.Diff(did, f.did); diff != "" {
		t.Error(diff)
	}
	if !strings.Contains(strings.Join(said, "\n"), words) {
		t.Errorf("said %q, not %q", said, words)
	}
	if fault.CodeOf(err) != code || fails != "" && !strings.Contains(err.Error(), fails) {
		t.Errorf("%v (%s), want %s %s", err, fault.CodeOf(err), code, fails)
	}
}
