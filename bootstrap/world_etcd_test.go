package bootstrap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/kubewright/kubewright/bootstrap/apilb"
	"github.com/kubewright/kubewright/bootstrap/backup"
	"github.com/kubewright/kubewright/bootstrap/certs"
	"github.com/kubewright/kubewright/bootstrap/controlplane"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/host"
)

// raft is a cluster of etcd: what its members have agreed on.
type raft struct {
	id      string
	members []*seat
	count   int // of the members that it ever had
	leader  string
	// counts are the objects of the backup that its data come from, and restored is when that was.
	counts   []backup.Kind
	restored time.Time
}

// seat is a member.
type seat struct {
	etcd.Member
	behind int       // pulses until a learner that runs has all data
	since  time.Time // its etcd runs since then, zero: it does not
}

const (
	// catchUp is how many pulses a learner that runs takes to get all data.
	catchUp = 4
	// healthInterval is how long etcd wants its voting members to have been connected before it lets another one in.
	healthInterval = 5 * time.Second
	// restartTime is how long a member that is restarted is away.
	restartTime = time.Second
	// startTimeout is systemd's.
	startTimeout = 90 * time.Second
)

// admit makes a member, which is known by its peer URL only.
func (q *raft) admit(peerURL string, learner bool) *seat {
	q.count++
	s := &seat{Member: etcd.Member{ID: strconv.FormatInt(int64(q.count), 16), Peers: []string{peerURL}, Learner: learner}}
	q.members = append(q.members, s)
	return s
}

// voters are the members that have a vote.
func (q *raft) voters() []*seat {
	return slices.DeleteFunc(slices.Clone(q.members), func(s *seat) bool { return s.Learner })
}

// up counts those voters that run.
func (q *raft) up() (n int) {
	for _, s := range q.voters() {
		if !s.since.IsZero() {
			n++
		}
	}
	return n
}

// agrees tells whether the cluster has a quorum.
func (q *raft) agrees() bool { return q.up() > len(q.voters())/2 }

func (q *raft) find(is func(*seat) bool) *seat {
	if i := slices.IndexFunc(q.members, is); i >= 0 {
		return q.members[i]
	}
	return nil
}

func (q *raft) byID(id string) *seat { return q.find(func(s *seat) bool { return s.ID == id }) }

// etcdEnvironment is the file that tells a member without data how it comes to some.
const etcdEnvironment = "/etc/kubernetes/etcd.env"

// startEtcd is what an etcd without data does: it founds a cluster, or looks for the one that has let it in.
// One that cannot ends, and is started again a moment later: see settle.
func (w *world) startEtcd(m *machine, p *process) {
	if m.has(etcdID) {
		return
	}
	setting := func(name string) string {
		for _, l := range m.lines(etcdEnvironment) {
			if value, ok := strings.CutPrefix(l, name+"="); ok {
				return value
			}
		}
		return ""
	}
	initial := map[string]string{} // name by peer URL
	for _, entry := range strings.Split(setting("ETCD_INITIAL_CLUSTER"), ",") {
		name, url, _ := strings.Cut(entry, "=")
		initial[url] = name
	}
	url := etcd.PeerURL(m.address)
	if initial[url] != m.Name() {
		return // it is not told of itself
	}
	var q *raft
	var me *seat
	switch setting("ETCD_INITIAL_CLUSTER_STATE") {
	case "new":
		if len(initial) != 1 {
			w.broke("%s founds a cluster with others that know nothing of it: %v", m.Name(), initial)
		}
		q = &raft{id: fmt.Sprintf("%s founded %d", m.Name(), len(w.rafts))}
		w.rafts[q.id] = q
		me = q.admit(url, false)
	case "existing":
		if q = w.listed(m, initial); q == nil {
			return
		}
		if me = q.find(func(s *seat) bool { return slices.Contains(s.Peers, url) }); me.Started() {
			return // its data were lost: the others refuse it
		}
		me.behind = catchUp
	default:
		return
	}
	me.Name, me.Clients = m.Name(), []string{"https://" + m.address.String() + ":" + etcd.ClientPort}
	m.PutDir(etcd.DataDir, 0o700)
	m.Put(etcdID, q.id+"/"+me.ID, 0o600)
	w.attend()
}

// listed is the cluster whose members are exactly those that a machine was told of, and agree.
func (w *world) listed(m *machine, initial map[string]string) *raft {
	for _, other := range w.machines {
		q, _ := w.member(other)
		if q == nil || initial[etcd.PeerURL(other.address)] == "" || !q.agrees() || len(q.members) != len(initial) ||
			m.procs[etcd.Unit].ca != other.procs[etcd.Unit].ca {
			continue
		}
		if q.find(func(s *seat) bool { return initial[s.Peers[0]] == "" }) == nil {
			return q
		}
	}
	return nil
}

// member is what the etcd that runs on a machine is a member of, and which; nil if none runs that has data,
// or it was taken out. The lock is held.
func (w *world) member(m *machine) (*raft, *seat) {
	id, ok := m.Get(etcdID)
	if !ok || !m.runs(etcd.Unit) || time.Since(m.restarted) < restartTime {
		return nil, nil
	}
	id, mine, _ := strings.Cut(id, "/")
	q := w.rafts[id]
	if me := q.byID(mine); me != nil {
		return q, me
	}
	return nil, nil
}

// attend notes which members run. The lock is held.
func (w *world) attend() {
	running := map[*seat]bool{}
	for _, m := range w.machines {
		if _, me := w.member(m); me != nil {
			running[me] = true
		}
	}
	for _, q := range w.rafts {
		for _, s := range q.members {
			switch {
			case !running[s]:
				s.since = time.Time{}
			case s.since.IsZero():
				s.since = time.Now()
			}
		}
		if l := q.byID(q.leader); l == nil || l.Learner || l.since.IsZero() {
			q.leader = ""
			if i := slices.IndexFunc(q.voters(), func(s *seat) bool { return !s.since.IsZero() }); i >= 0 {
				q.leader = q.voters()[i].ID
			}
		}
	}
}

// replicate is a pulse of etcd.
func (w *world) replicate() {
	w.attend()
	for _, q := range w.rafts {
		for _, s := range q.members {
			if s.Learner && !s.since.IsZero() && s.behind > 0 && q.agrees() {
				s.behind--
			}
		}
	}
	w.watch()
}

// quorate are the clusters that have a quorum. The lock is held.
func (w *world) quorate() []*raft {
	w.attend()
	var all []*raft
	for _, q := range w.rafts {
		if q.agrees() {
			all = append(all, q)
		}
	}
	return all
}

// watch looks that there are never two clusters in place of one. The lock is held.
func (w *world) watch() {
	if all := w.quorate(); len(all) > 1 {
		w.broke("%d clusters of etcd have a quorum each", len(all))
	}
}

// keep notices a cluster that had a quorum before an operation of ours and has none after it. Fewer than three
// members lose theirs whenever one is restarted. The lock is held.
func (w *world) keep(before []*raft, operation string) {
	now := w.quorate()
	for _, q := range before {
		if !slices.Contains(now, q) && !w.destroys && !w.struck && (len(q.voters()) > 2 || !strings.Contains(operation, " restart ")) {
			w.broke("etcd lost its quorum by %q: %d of %d voters run", operation, q.up(), len(q.voters()))
		}
	}
}

// broke notes that what must always hold does not.
func (w *world) broke(format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	if !slices.Contains(w.broken, what) {
		w.broken = append(w.broken, what)
		w.log = append(w.log, "!!!! "+what)
	}
}

// api is the content of the API as a machine's API server serves it, nil if that serves nothing. The lock is held.
func (w *world) api(m *machine) *store {
	q, me := w.member(m)
	if q == nil || me.Learner || !m.runs(controlplane.APIServerUnit) || !q.agrees() {
		return nil
	}
	if w.stores[q.id] == nil {
		w.stores[q.id] = newStore()
	}
	return w.stores[q.id]
}

// way is the machine whose API server everything on a node gets to by the node's apilb, nil if there is none. The lock is held.
func (w *world) way(m *machine) *machine {
	if !m.runs(apilb.Unit) {
		return nil
	}
	ca, _ := m.Get(certs.Dir + "/ca.crt")
	var known struct{ Servers []string }
	content, _ := m.Get(apilb.ServersFile)
	if json.Unmarshal([]byte(content), &known) != nil {
		return nil
	}
	for _, to := range slices.Concat([]*machine{m}, w.machines) { // it prefers its own
		if slices.Contains(known.Servers, to.api()) && w.api(to) != nil && to.procs[controlplane.APIServerUnit].ca == ca {
			return to
		}
	}
	return nil
}

// learn is what a node's apilb does with the cluster's list of API servers. The lock is held.
func (w *world) learn(m *machine, s *store) {
	o, err := s.Get(configMapResource, apilb.Namespace, apilb.ConfigMap)
	if err != nil {
		return
	}
	servers, err := apilb.Parse(o.(*corev1.ConfigMap).Data[apilb.Key])
	if err != nil {
		w.broke("apilb on %s: %v", m.Name(), err)
		return
	}
	text, err := json.Marshal(map[string][]string{"servers": apilb.Lines(servers)})
	if err != nil {
		w.t.Error(err)
	}
	if have, _ := m.Get(apilb.ServersFile); have != string(text)+"\n" {
		m.PutDir(apilb.Dir, 0o755)
		m.Put(apilb.ServersFile, string(text)+"\n", 0o644)
	}
}

// started tells whether a unit that says itself when it is ready is so. The lock is held.
func (w *world) started(m *machine, unit string) bool {
	switch unit {
	case etcd.Unit:
		q, _ := w.member(m)
		return q != nil && q.agrees()
	case controlplane.APIServerUnit:
		return w.api(m) != nil
	}
	return true
}

// await is the end of a job of systemd's: etcd and the API server say themselves when they are ready.
func (w *world) await(ctx context.Context, m *machine, verb, unit string) error {
	for began := time.Now(); ; {
		w.mu.Lock()
		m.observe()
		done := w.started(m, unit)
		w.mu.Unlock()
		if _, err := m.Stat(ctx, "/"); done || err != nil {
			return err
		}
		if time.Since(began) > startTimeout {
			return &host.UnitError{Unit: unit, Verb: verb, Result: "timeout"}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pulse):
		}
	}
}

// etcd is the EtcdConnector of the simulated cluster.
func (w *world) etcd(via host.Reader) etcd.Writer {
	return &etcdClient{w: w, via: w.machines[w.number(via.Name())-1]}
}

// etcdClient is etcd through one run's connection to a control-plane host.
type etcdClient struct {
	w     *world
	via   *machine
	known *raft // whose members it has listed
}

var _ etcd.Writer = (*etcdClient)(nil)

// reach returns the cluster of the member on the host, or of others that it has heard of. The lock is held.
func (c *etcdClient) reach(ctx context.Context) (*raft, error) {
	if _, err := c.via.Stat(ctx, "/"); err != nil {
		return nil, errors.Join(etcd.ErrUnreachable, err)
	}
	c.w.attend()
	q, me := c.w.member(c.via)
	if q == nil || me.Learner { // one without a vote answers nobody
		q = c.known
	}
	switch {
	case q == nil || q.up() == 0:
		return nil, etcd.ErrUnreachable
	case !q.agrees():
		return nil, etcd.ErrNoQuorum
	}
	c.known = q
	return q, nil
}

// Remembered is what the member on the host knows, or has listed before.
func (c *etcdClient) Remembered(ctx context.Context) ([]etcd.Member, error) {
	if _, err := c.via.Stat(ctx, "/"); err != nil {
		return nil, errors.Join(etcd.ErrUnreachable, err)
	}
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.w.attend()
	q, _ := c.w.member(c.via)
	if q == nil {
		return nil, etcd.ErrUnreachable
	}
	return q.list(), nil
}

func (c *etcdClient) Members(ctx context.Context) ([]etcd.Member, error) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	q, err := c.reach(ctx)
	if err != nil {
		return nil, err
	}
	return q.list(), nil
}

// list are the members, each as it is.
func (q *raft) list() []etcd.Member {
	members := make([]etcd.Member, len(q.members))
	for i, s := range q.members {
		members[i] = s.Member
		members[i].Healthy, members[i].Leader, members[i].Behind = !s.since.IsZero(), s.ID == q.leader, uint64(s.behind)
		if !members[i].Healthy {
			members[i].Trouble = "it does not answer"
		}
	}
	return members
}

// change is an operation on the membership; of one member, if id is not "".
func (c *etcdClient) change(ctx context.Context, operation, id string, do func(*raft, *seat) error) error {
	c.w.mu.Lock()
	c.w.asked = c.via
	c.w.mu.Unlock()
	return c.w.operate(ctx, c.via, "etcd "+operation, true, func() error {
		c.w.mu.Lock()
		defer c.w.mu.Unlock()
		q, err := c.reach(ctx)
		if err != nil {
			return err
		}
		s := q.byID(id)
		if s == nil && id != "" {
			return etcd.ErrMemberNotFound
		}
		return do(q, s)
	})
}

func (c *etcdClient) AddLearner(ctx context.Context, peerURL string) error {
	return c.change(ctx, "add "+peerURL, "", func(q *raft, _ *seat) error {
		unsettled := func(s *seat) bool {
			return s.since.IsZero() || s.ID != q.leader && time.Since(s.since) < healthInterval
		}
		switch {
		case q.find(func(s *seat) bool { return slices.Contains(s.Peers, peerURL) }) != nil:
			return etcd.ErrMemberExists
		case q.find(func(s *seat) bool { return s.Learner }) != nil:
			return etcd.ErrOtherLearner
		case slices.ContainsFunc(q.voters(), unsettled):
			return etcd.ErrUnsettled
		}
		q.admit(peerURL, true)
		return nil
	})
}

func (c *etcdClient) Promote(ctx context.Context, id string) error {
	return c.change(ctx, "promote "+id, id, func(_ *raft, s *seat) error {
		if s.since.IsZero() || s.behind > 0 {
			return etcd.ErrBehind
		}
		s.Learner = false
		return nil
	})
}

// Remove refuses what etcd refuses, too: to take out a member that runs, where a quorum of the others does not.
func (c *etcdClient) Remove(ctx context.Context, id string) error {
	return c.change(ctx, "remove "+id, id, func(q *raft, s *seat) error {
		if left := len(q.voters()) - 1; !s.Learner && !s.since.IsZero() && q.up()-1 <= left/2 {
			c.w.broke("etcd is asked to remove %s, and %d of %d would be left", s.Title(), q.up()-1, left)
			return etcd.ErrUnsettled
		}
		q.members = slices.DeleteFunc(q.members, func(o *seat) bool { return o == s })
		return nil
	})
}

func (c *etcdClient) MoveLeader(ctx context.Context, to string) error {
	return c.change(ctx, "move the lead to "+to, to, func(q *raft, s *seat) error {
		if s.Learner || s.since.IsZero() {
			return etcd.ErrElecting
		}
		q.leader = to
		return nil
	})
}

// membership is what a cluster of etcd consists of.
func (q *raft) membership() string {
	var all []string
	for _, s := range q.members {
		all = append(all, fmt.Sprintf("%s at %s, learner: %v", s.Title(), s.Peers[0], s.Learner))
	}
	slices.Sort(all)
	return strings.Join(all, "; ")
}

// TestNoSecondCluster takes the data, or the power, of control-plane hosts away in turn: what comes back is a
// member of the one cluster, or nothing.
func TestNoSecondCluster(t *testing.T) {
	b := testBundle(t)
	for name, c := range map[string]struct {
		verbs []verb
		lose  []int // machines whose etcd loses its data
		off   []int // machines that have no power meanwhile
		want  bool  // there is a quorum then
	}{
		"the founder's data":                {verbs: []verb{initThree}, lose: []int{1}, want: true},
		"the founder's data, no others":     {verbs: []verb{initThree}, lose: []int{1}, off: []int{2, 3}, want: false},
		"the data of the only one":          {verbs: []verb{initOne}, lose: []int{1}, want: false},
		"another one's data":                {verbs: []verb{initThree}, lose: []int{3}, want: true},
		"most data":                         {verbs: []verb{initThree}, lose: []int{1, 2}, want: false},
		"a removed one, back with its data": {verbs: []verb{initThree, removeDead}, want: true},
		"a removed one, back alone":         {verbs: []verb{initThree, removeDead}, off: []int{1, 3}, want: false},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, 1, b, t.TempDir(), func(t *testing.T, w *world) {
				if _, err := w.play(stagesOf(c.verbs)); err != nil {
					t.Fatal(err)
				}
				for _, n := range c.lose {
					m := w.machines[n-1]
					m.Kill()
					m.Drop(etcd.DataDir)
				}
				w.dead = c.off
				w.turnOn()
				for range 20 {
					w.settle()
				}
				w.mu.Lock()
				defer w.mu.Unlock()
				if got := len(w.quorate()) == 1; got != c.want || len(w.broken) > 0 {
					t.Errorf("a quorum: %v, want %v; %q", got, c.want, w.broken)
				}
			})
		})
	}
}
