package bootstrap

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/kubewright/kubewright/bootstrap/controlplane"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/host"
)

// quorum is a cluster of etcd: who its members are, as they have agreed.
type quorum struct {
	id      string
	members []etcd.Member
	count   int // of those that it ever had
	leader  string
}

// admit makes a member.
func (q *quorum) admit(name, peerURL string, learner bool) etcd.Member {
	q.count++
	m := etcd.Member{Name: name, ID: fmt.Sprint(q.count), Peers: []string{peerURL}, Learner: learner}
	q.members = append(q.members, m)
	return m
}

// etcdEnvironment is the file that tells a member without data how it comes to some.
const etcdEnvironment = "/etc/kubernetes/etcd.env"

// startEtcd is what etcd does when it starts: without data it founds a cluster, or looks for the one
// that has let it in. One that finds none ends, and is started again: see settle.
func (w *world) startEtcd(m *machine, p *process) {
	if m.has(etcdID) {
		return
	}
	url := etcd.PeerURL(m.address)
	var q *quorum
	var me etcd.Member
	if environment, _ := m.Get(etcdEnvironment); strings.Contains(environment, "ETCD_INITIAL_CLUSTER_STATE=new") {
		q = &quorum{id: fmt.Sprint(m.Name(), p.pid, m.boots)}
		me = q.admit(m.Name(), url, false)
		w.quorums[q.id] = q
	} else {
		for _, other := range w.machines {
			of, _ := w.member(other)
			if of == nil || !w.agrees(of) {
				continue
			}
			for i := range of.members {
				if slices.Contains(of.members[i].Peers, url) {
					of.members[i].Name = m.Name()
					q, me = of, of.members[i]
				}
			}
		}
	}
	if q == nil {
		return
	}
	m.PutDir(etcd.DataDir, 0o700)
	m.Put(etcdID, q.id+"/"+me.ID, 0o600)
}

// member is what the etcd that runs on a machine is a member of, and which; nil if none runs, or it
// was taken out. The lock is held.
func (w *world) member(m *machine) (*quorum, etcd.Member) {
	id, ok := m.Get(etcdID)
	if m.procs[etcd.Unit] == nil || !ok {
		return nil, etcd.Member{}
	}
	id, mine, _ := strings.Cut(id, "/")
	q := w.quorums[id]
	if i := slices.IndexFunc(q.members, func(m etcd.Member) bool { return m.ID == mine }); i >= 0 {
		return q, q.members[i]
	}
	return nil, etcd.Member{}
}

// running are the IDs of the members whose etcd runs. The lock is held.
func (w *world) running(q *quorum) map[string]bool {
	ids := map[string]bool{}
	for _, m := range w.machines {
		if of, me := w.member(m); of == q {
			ids[me.ID] = true
		}
	}
	return ids
}

// agrees tells whether enough members run, and have a leader. The lock is held.
func (w *world) agrees(q *quorum) bool {
	running := w.running(q)
	voters, up := 0, ""
	n := 0
	for _, m := range q.members {
		if m.Learner {
			continue
		}
		voters++
		if running[m.ID] {
			n++
			up = cmp.Or(up, m.ID)
		}
	}
	if !running[q.leader] || slices.ContainsFunc(q.members, func(m etcd.Member) bool { return m.ID == q.leader && m.Learner }) {
		q.leader = up
	}
	return n > voters/2
}

// api is the content of the API as a machine's API server serves it, nil if that serves nothing. The lock is held.
func (w *world) api(m *machine) *store {
	q, me := w.member(m)
	if q == nil || me.Learner || m.procs[controlplane.APIServerUnit] == nil || !w.agrees(q) {
		return nil
	}
	if w.stores[q.id] == nil {
		w.stores[q.id] = newStore()
	}
	return w.stores[q.id]
}

// etcd is the EtcdConnector of the simulated cluster.
func (w *world) etcd(via host.Reader) etcd.Writer {
	return &etcdClient{w, w.machines[slices.IndexFunc(w.machines, func(m *machine) bool { return m.Name() == via.Name() })]}
}

// etcdClient is etcd through one run's connection.
type etcdClient struct {
	w   *world
	via *machine
}

var _ etcd.Writer = (*etcdClient)(nil)

// reach returns the cluster of the member on the machine. The lock is held.
func (c *etcdClient) reach() (*quorum, error) {
	q, _ := c.w.member(c.via)
	switch {
	case c.via.Gone(), q == nil:
		return nil, etcd.ErrUnreachable
	case !c.w.agrees(q):
		return nil, etcd.ErrNoQuorum
	}
	return q, nil
}

func (c *etcdClient) Members(context.Context) ([]etcd.Member, error) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	q, err := c.reach()
	if err != nil {
		return nil, err
	}
	running := c.w.running(q)
	members := slices.Clone(q.members)
	for i := range members {
		members[i].Healthy, members[i].Leader = running[members[i].ID], members[i].ID == q.leader
	}
	return members, nil
}

// change is an operation on the membership.
func (c *etcdClient) change(ctx context.Context, operation, id string, do func(q *quorum, i int) error) error {
	return c.w.operate(ctx, c.via, "etcd "+operation, true, func() error {
		c.w.mu.Lock()
		defer c.w.mu.Unlock()
		q, err := c.reach()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(q.members, func(m etcd.Member) bool { return m.ID == id })
		if i < 0 && id != "" {
			return etcd.ErrMemberNotFound
		}
		return do(q, i)
	})
}

func (c *etcdClient) AddLearner(ctx context.Context, peerURL string) error {
	return c.change(ctx, "add "+peerURL, "", func(q *quorum, _ int) error {
		if slices.ContainsFunc(q.members, func(m etcd.Member) bool { return slices.Contains(m.Peers, peerURL) }) {
			return etcd.ErrMemberExists
		}
		q.admit("", peerURL, true)
		return nil
	})
}

func (c *etcdClient) Promote(ctx context.Context, id string) error {
	return c.change(ctx, "promote "+id, id, func(q *quorum, i int) error {
		if !c.w.running(q)[id] {
			return etcd.ErrBehind
		}
		q.members[i].Learner = false
		return nil
	})
}

func (c *etcdClient) Remove(ctx context.Context, id string) error {
	return c.change(ctx, "remove "+id, id, func(q *quorum, i int) error {
		q.members = slices.Delete(q.members, i, i+1)
		return nil
	})
}

func (c *etcdClient) MoveLeader(ctx context.Context, to string) error {
	return c.change(ctx, "move the lead to "+to, to, func(q *quorum, _ int) error {
		q.leader = to
		return nil
	})
}
