package etcd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kubewright/kubewright/bootstrap/etcd/etcdtest"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// near is the host through which the client goes: its files are below a folder, and what
// would be its own etcd is at first.
type near struct {
	host.Reader
	first string
	known string // the one that its apilb knows as localhost, "" if it knows none

	mu    sync.Mutex
	conns map[string][]net.Conn // by address
	off   map[string]bool
}

func (n *near) ReadFile(_ context.Context, name string) ([]byte, error) {
	switch {
	case name != NeighboursFile:
		return os.ReadFile(name)
	case n.known == "":
		return nil, fs.ErrNotExist
	}
	return []byte(`{"servers":["localhost:6443"]}`), nil
}

func (n *near) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	switch address {
	case "127.0.0.1:" + ClientPort:
		address = n.first
	case "localhost:" + ClientPort:
		address = n.known
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.off[address] {
		return nil, fmt.Errorf("dial %s: %w", address, syscall.ECONNREFUSED)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err == nil {
		n.conns[address] = append(n.conns[address], conn)
	}
	return conn, err
}

// cut ends the connections to an address, and allows no new ones.
func (n *near) cut(address string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.off[address] = true
	for _, c := range n.conns[address] {
		c.Close() //nolint:errcheck // it is to be gone
	}
}

// world is an etcd of real members, and the host through which it is reached.
type world struct {
	*etcdtest.World
	t    *testing.T
	near *near
}

func newWorld(t *testing.T) *world {
	w := &world{etcdtest.New(t), t, &near{conns: map[string][]net.Conn{}, off: map[string]bool{}}}
	w.Cut = w.near.cut
	return w
}

func (w *world) client(first *embed.Etcd) *Client {
	w.near.first = first.Clients[0].Addr().String()
	c := NewClient(w.near, w.Certs)
	w.t.Cleanup(func() { c.Close() }) //nolint:errcheck // nothing is left to be written
	return c
}

// apply runs a step on real members.
func (w *world) apply(c *Client, do plan.Action[Reader, Writer]) {
	w.t.Helper()
	if _, err := plan.Run(w.t.Context(), plan.Options{Emit: func(plan.Event) {}},
		plan.NewLane[Reader, Writer]("cluster", c, c, plan.Step[Reader, Writer]{Name: "etcd/step", Do: do})); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) members(c *Client) Membership {
	w.t.Helper()
	ms, err := c.Members(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return ms
}

func TestClient(t *testing.T) {
	w := newWorld(t)
	peer := w.FreeURL()
	first := w.Start("cp1", peer, "cp1="+peer, "new", nil)
	<-first.Server.ReadyNotify()
	c := w.client(first)
	m := w.members(c)
	if len(m) != 1 || m[0].Name != "cp1" || !m[0].Healthy || !m[0].Leader || m[0].Version == "" || m[0].Quota == 0 || m[0].Index == 0 {
		t.Fatalf("%+v", m)
	}

	for _, name := range []string{"cp2", "cp3"} {
		peer := w.FreeURL()
		cluster, vote := plan.NewValue[string]("the members"), plan.NewValue[bool]("the vote")
		w.apply(c, AddLearner{Name: name, PeerURL: peer, Fresh: true, Cluster: cluster})
		m, _ := w.members(c).At(peer)
		if !m.Learner || m.Healthy || m.Trouble != "it has not started yet" {
			t.Fatalf("%+v", m)
		}
		if name == "cp2" {
			if err := c.Promote(t.Context(), m.ID); !errors.Is(err, ErrBehind) {
				t.Errorf("promoted before it started: %v", err)
			}
			if err := c.AddLearner(t.Context(), peer); !errors.Is(err, ErrMemberExists) {
				t.Errorf("added twice: %v", err)
			}
			if err := c.AddLearner(t.Context(), w.FreeURL()); !errors.Is(err, ErrOtherLearner) {
				t.Errorf("two at a time: %v", err)
			}
		}
		w.Start(name, peer, cluster.Get(), "existing", nil)
		w.apply(c, Promote{Name: name, PeerURL: peer, Done: vote})
	}
	if err := c.Remove(t.Context(), "1234"); !errors.Is(err, ErrMemberNotFound) {
		t.Errorf("removed what is not there: %v", err)
	}

	to, err := c.member(t.Context(), own)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"a", "b", "a"} {
		if _, err := to.Put(t.Context(), key, "x"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := to.Delete(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "etcd.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // it was synced
	s, err := Save(t.Context(), c, f)
	if err != nil || s.Revision != 5 || s.Keys != 1 || s.Size == 0 { // an empty etcd is at revision 1
		t.Errorf("%+v, %v", s, err)
	}
	cp3, _ := w.members(c).Named("cp3")
	if err := c.Defragment(t.Context(), cp3); err != nil {
		t.Error(err)
	}
	if err := c.MoveLeader(t.Context(), cp3.ID); err != nil {
		t.Error(err)
	}
	if cp3, _ = w.members(c).Named("cp3"); !cp3.Leader {
		t.Errorf("it does not lead: %+v", cp3)
	}

	// One that is dead is told, and the lead is found elsewhere.
	w.Stop("cp2")
	ms := w.members(c)
	if cp2, _ := ms.Named("cp2"); cp2.Healthy || !strings.Contains(cp2.Trouble, "connection refused") {
		t.Errorf("%+v", cp2)
	}
	if err := ms.MayRemove("cp3"); err == nil {
		t.Error("cp3 may be removed")
	}
	w.apply(c, Remove{Names: []string{"cp2"}})

	// The client's own member is the leader by then, or not; it goes all the same, and the others are still reached.
	cp1, _ := w.members(c).Named("cp1")
	if err := c.MoveLeader(t.Context(), cp1.ID); err != nil {
		t.Error(err)
	}
	w.apply(c, Remove{Names: []string{"cp1"}})
	if ms := w.members(c); len(ms) != 1 || ms[0].Name != "cp3" || !ms[0].Leader {
		t.Errorf("%+v", ms)
	}
}

func TestNoQuorum(t *testing.T) {
	w := newWorld(t)
	var cluster []string
	peers := map[string]string{}
	for i := range 2 {
		name := fmt.Sprintf("cp%d", i+1)
		peers[name] = w.FreeURL()
		cluster = append(cluster, name+"="+peers[name])
	}
	for name, peer := range peers {
		w.Start(name, peer, strings.Join(cluster, ","), "new", nil)
	}
	<-w.Member("cp1").Server.ReadyNotify()
	c := w.client(w.Member("cp1"))
	c.patience = 300 * time.Millisecond // a member without a quorum says nothing
	w.members(c)
	w.Stop("cp2")
	if err := plan.WaitUntil(t.Context(), "the quorum to be lost", func(ctx context.Context) (string, error) {
		if _, err := c.Members(ctx); err == nil || !errors.Is(err, ErrNoQuorum) {
			return fmt.Sprint(err), nil
		}
		return "", nil
	}); err != nil {
		t.Fatal(err)
	}
	members, err := c.Remembered(t.Context())
	if err != nil || len(members) != 2 {
		t.Fatalf("%+v, %v", members, err)
	}
	cp1, _ := Membership(members).Named("cp1")
	before, err := Own{w.Certs}.Look(t.Context(), w.near)
	if err != nil || before.ID != cp1.ID || before.Cluster == "" || len(before.Members) != 2 || before.Leader != "" {
		t.Errorf("by itself: %+v, %v", before, err)
	}
	if cp1.Healthy || cp1.Trouble != "it knows of no leader" {
		t.Errorf("%+v", cp1)
	}
	// Where the host's own member is dead from the start, its apilb knows another.
	w.Start("cp2", peers["cp2"], strings.Join(cluster, ","), "existing", nil)
	<-w.Member("cp2").Server.ReadyNotify()
	away := &near{first: "127.0.0.1:1", known: w.Member("cp2").Clients[0].Addr().String(), conns: map[string][]net.Conn{}, off: map[string]bool{"127.0.0.1:1": true}}
	other := NewClient(away, w.Certs)
	defer other.Close() //nolint:errcheck // nothing is left to be written
	if members, err := other.Members(t.Context()); err != nil || len(members) != 2 {
		t.Errorf("%+v, %v", members, err)
	}
	w.Cut = func(address string) { w.near.cut(address); away.cut(address) }
	w.Stop("cp2")
	w.Stop("cp1")
	if _, err := c.Members(t.Context()); !errors.Is(err, ErrUnreachable) || errors.Is(err, ErrNoQuorum) {
		t.Errorf("all are dead: %v", err)
	}
	// By what a recovered member and those that it has given up are told apart: not by the cluster's ID.
	alone := w.Start("cp1", peers["cp1"], strings.Join(cluster, ","), "existing", func(c *embed.Config) { c.ForceNewCluster = true })
	<-alone.Server.ReadyNotify()
	w.near.first = alone.Clients[0].Addr().String()
	after, err := Own{w.Certs}.Look(t.Context(), w.near)
	if err != nil || after.Cluster != before.Cluster || after.ID != before.ID || !slices.Equal(after.Members, []string{before.ID}) {
		t.Errorf("recovered: %+v, before %+v, %v", after, before, err)
	}
}

func TestAlarm(t *testing.T) {
	w := newWorld(t)
	peer := w.FreeURL()
	first := w.Start("cp1", peer, "cp1="+peer, "new", func(c *embed.Config) { c.QuotaBackendBytes = 1 << 20 })
	<-first.Server.ReadyNotify()
	c := w.client(first)
	to, err := c.member(t.Context(), own)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; err == nil; i++ {
		_, err = to.Put(t.Context(), fmt.Sprint(i), strings.Repeat("x", 600<<10))
	}
	if !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Fatal(err)
	}
	m := w.members(c)[0]
	if m.Healthy || !m.Full || !slices.Equal(m.Alarms, []Alarm{NoSpace}) || m.Trouble != "it raises alarm NOSPACE: its database is full" {
		t.Errorf("%+v", m)
	}
	if err := c.Disarm(t.Context(), m.ID, NoSpace); err != nil {
		t.Error(err)
	}
	if m := w.members(c)[0]; len(m.Alarms) > 0 || !m.Healthy {
		t.Errorf("%+v", m)
	}
}

// TestFullOfHistory: the API server cannot compact any more once etcd is full, which is a write. All the same there
// is room afterwards, and all that is there now is still there.
func TestFullOfHistory(t *testing.T) {
	w := newWorld(t)
	peer := w.FreeURL()
	first := w.Start("cp1", peer, "cp1="+peer, "new", func(c *embed.Config) { c.QuotaBackendBytes = 4 << 20 })
	<-first.Server.ReadyNotify()
	c := w.client(first)
	to, err := c.member(t.Context(), own)
	if err != nil {
		t.Fatal(err)
	}
	object := strings.Repeat("x", 200<<10)
	for err == nil {
		_, err = to.Put(t.Context(), "one and the same", object)
	}
	if !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Fatal(err)
	}
	var done []Defragmented
	if err := (Defrag{Disarm: true}).Run(t.Context(), c, nil, func(d Defragmented) { done = append(done, d) }); err != nil {
		t.Fatal(err)
	}
	if len(done) != 1 || !slices.Equal(done[0].Disarmed, []Alarm{NoSpace}) || done[0].After > 1<<20 {
		t.Errorf("%+v", done)
	}
	for range 5 {
		if _, err := to.Put(t.Context(), "one more", object); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := to.Get(t.Context(), "one and the same"); err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != object {
		t.Errorf("%v, %v", got, err)
	}
}

// A member that goes while it is asked is one to be asked again, by another way.
func TestTyped(t *testing.T) {
	for _, c := range []struct{ err, want error }{
		{rpctypes.ErrStopped, ErrUnreachable},
		{status.Error(codes.Unavailable, "error reading from server: EOF"), ErrUnreachable},
		{rpctypes.ErrNoLeader, ErrNoQuorum},
		{rpctypes.ErrMemberNotFound, ErrMemberNotFound},
	} {
		if got := typed(c.err); !errors.Is(got, c.want) || !errors.Is(got, c.err) {
			t.Errorf("%v: %v", c.err, got)
		}
	}
}
