package bootstrap

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/kubewright/kubewright/bootstrap/apilb"
	"github.com/kubewright/kubewright/bootstrap/backup"
	"github.com/kubewright/kubewright/bootstrap/certs"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/journal"
	"github.com/kubewright/kubewright/bootstrap/kubeconfig"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// What befalls a cluster, and the commands that are for it.
var (
	initTwo        = verb{name: "init", hosts: []int{1, 4}, controls: 1}
	takeBackup     = verb{name: "backup"}
	reinstallThree = verb{name: "reinstall", hosts: []int{1, 2, 3}}
	reinstallFirst = verb{name: "reinstall", hosts: []int{1}}
	reinstallTwo   = verb{name: "reinstall", hosts: []int{2, 3}}
	loseFirst      = verb{name: "lose", hosts: []int{1}}
	loseTwo        = verb{name: "lose", hosts: []int{2, 3}}
	returnTwo      = verb{name: "return", hosts: []int{2, 3}}
	restoreSame    = verb{name: "restore", hosts: []int{1, 2, 3, 4}, controls: 3}
	restoreOther   = verb{name: "restore", hosts: []int{3, 1, 2, 4}, controls: 3} // in another order
	restoreFirst   = verb{name: "restore", hosts: []int{1, 4}, controls: 1}
	restoreNew     = verb{name: "restore", hosts: []int{2, 3, 4}, controls: 2}
	recoverFirst   = verb{name: "recover", hosts: []int{1}, controls: 1}
	removeLost     = verb{name: "remove", hosts: []int{2, 3}, force: true}
	joinLost       = verb{name: "join", hosts: []int{2, 3}, controls: 2}
)

// event tells what is no command: it befalls the hosts, and nothing of it is broken off.
func (v verb) event() bool {
	return slices.Contains([]string{"backup", "reinstall", "lose", "return"}, v.name)
}

// befall has an event happen, a moment after what came before it and a moment before what follows.
func (w *world) befall(v verb) error {
	w.log = append(w.log, fmt.Sprintf("-- %v", v))
	w.pass()
	defer w.pass()
	switch v.name {
	case "backup":
		if err := w.backUp(); err != nil {
			return err
		}
	case "lose":
		w.lost = append(w.lost, v.hosts...)
	case "reinstall", "return":
		w.lost = slices.DeleteFunc(w.lost, func(n int) bool { return slices.Contains(v.hosts, n) })
		for _, n := range v.hosts {
			if v.name == "reinstall" {
				w.machines[n-1] = w.newMachine(n)
			}
		}
	}
	w.dead = slices.Clone(w.lost)
	w.turnOn()
	return nil
}

// pass lets two seconds pass.
func (w *world) pass() {
	const moment = 20 // pulses
	for range moment {
		time.Sleep(pulse)
		w.settle()
	}
}

// backUp makes a backup as package take does, of the host that leads etcd.
func (w *world) backUp() error {
	name, access, err := kubeconfig.Access(w.kubeconfig, "")
	if err != nil {
		return err
	}
	live, err := w.look(w.t.Context(), verb{hosts: []int{1}}, access)
	if err != nil {
		return err
	}
	w.mu.Lock()
	s, serving := w.serving()
	kept, err := s.clone()
	kinds := s.count()
	w.mu.Unlock()
	if err != nil {
		return err
	}
	snapshot := fmt.Sprintf("snapshot %d of the data of %s, from its first byte to its last one", len(w.snapshots), name)
	w.snapshots[snapshot] = kept
	c := backup.Contents{Spec: []byte(live.Record.Spec), Snapshot: strings.NewReader(snapshot), SnapshotSize: int64(len(snapshot)),
		Manifest: backup.Manifest{Made: time.Now().UTC(), Cluster: live.Record.Name, ClusterID: live.Record.ID, Bundle: live.Record.Bundle,
			Data: backup.Data{Revision: 1, Exact: true}, Kinds: kinds}}
	for _, n := range live.Nodes {
		c.Manifest.Nodes = append(c.Manifest.Nodes, backup.Node{Name: n.Node, Host: n.Host, Address: n.Address.String(), ControlPlane: n.ControlPlane})
	}
	for file, e := range serving[0].Snapshot().Files {
		if strings.HasPrefix(file, certs.Dir+"/") && e.Mode.IsRegular() {
			c.Files = append(c.Files, backup.File{Path: file, Content: []byte(e.Content)})
		}
	}
	c.Files = append(c.Files, backup.File{Path: policyFile, Content: []byte("what the API server reads of the admin's")})
	slices.SortFunc(c.Files, func(a, b backup.File) int { return cmp.Compare(a.Path, b.Path) })
	key, err := age.GenerateX25519Identity()
	if err != nil {
		return err
	}
	var file bytes.Buffer
	if err := backup.Write(&file, c, key.Recipient()); err != nil {
		return err
	}
	w.backup = backupFile{file.Bytes(), key}
	return nil
}

// backupFile is a backup with what opens it.
type backupFile struct {
	sealed []byte
	key    age.Identity
}

var _ etcd.Source = backupFile{}

func (f backupFile) WriteSnapshot(_ context.Context, to io.Writer) error {
	_, err := f.read(to)
	return err
}

func (f backupFile) read(snapshot io.Writer) (*backup.Backup, error) {
	return backup.Read(bytes.NewReader(f.sealed), snapshot, f.key)
}

// clone is another cluster's content, the same as this one's now.
func (s *store) clone() (*store, error) {
	c := newStore()
	c.available = s.available
	err := s.each(func(o runtime.Object) { c.put(o.DeepCopyObject()) })
	return c, err
}

// each calls f with all objects.
func (s *store) each(f func(runtime.Object)) error {
	for gvr, gvk := range s.kinds {
		list, err := s.List(gvr, gvk, metav1.NamespaceAll)
		if err != nil {
			return err
		}
		items, err := meta.ExtractList(list)
		if err != nil {
			return err
		}
		for _, o := range items {
			o.GetObjectKind().SetGroupVersionKind(gvk)
			f(o)
		}
	}
	return nil
}

// count counts the objects of each kind.
func (s *store) count() []backup.Kind {
	var kinds []backup.Kind
	objects := map[string]int{}
	if err := s.each(func(o runtime.Object) { objects[o.GetObjectKind().GroupVersionKind().Kind]++ }); err != nil {
		panic(err)
	}
	for gvr, gvk := range s.kinds {
		kinds = append(kinds, backup.Kind{Group: gvr.Group, Version: gvr.Version, Resource: gvr.Resource, Kind: gvk.Kind, Objects: objects[gvk.Kind]})
	}
	slices.SortFunc(kinds, func(a, b backup.Kind) int { return cmp.Compare(a.Name(), b.Name()) })
	return kinds
}

// restoreLanes plans as `kubewright restore` does.
func (w *world) restoreLanes(ctx context.Context, run journal.Run, hosts []spec.Host, targets []Target) ([]plan.Lane, error) {
	b, err := w.backup.read(io.Discard)
	if err != nil {
		return nil, err
	}
	r := NewRestore(b, w.backup)
	r.Count = w.recount
	if err := r.Complete(); err != nil {
		return nil, err
	}
	var controlPlane, workers []string
	for _, h := range hosts {
		if h.Role == spec.ControlPlaneRole {
			controlPlane = append(controlPlane, h.Name)
		} else {
			workers = append(workers, h.Name)
		}
	}
	wish, err := r.Wish(controlPlane, workers)
	if err != nil {
		return nil, err
	}
	for i := range targets {
		targets[i].Wish = wish.Hosts[i]
		if c := targets[i].Claim; c != nil && (c.ClusterID != b.Manifest.ClusterID || c.Role != string(targets[i].Wish.Role)) {
			return nil, c.Taken(targets[i].Wish.Name)
		}
	}
	if targets, err = r.Resume(ctx, targets); err != nil {
		return nil, err
	}
	w.via, w.restored = w.machines[w.number(targets[0].Wish.Name)-1], r
	lanes, _, err := PlanInit(Init{Cluster: wish, ID: b.Manifest.ClusterID, Targets: targets, Bundle: w.bundle, Run: run, Kubeconfig: w.kubeconfig,
		From: r, Connect: w.connect, Etcd: w.etcd})
	return lanes, err
}

// proven looks that a restore that has come to its end has counted all objects.
func (w *world) proven() {
	if !w.restored.Counted.IsSet() {
		w.broke("a restore has come to its end and has not counted the objects")
	} else if got := w.restored.Counted.Get(); got.Late != "" || !slices.Equal(got.Kinds, w.restored.Backup.Manifest.Kinds) {
		w.broke("what was restored is not what is in the backup: %+v", got)
	}
}

// keptFor is how long etcd has the first revision of data that were restored.
const keptFor = 5 * time.Minute

// recount is the Counter of the simulated cluster.
func (w *world) recount(ctx context.Context, via host.Reader, _ cluster.Access, _ backup.Manifest) (Recount, error) {
	if _, err := via.Stat(ctx, "/"); err != nil {
		return Recount{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.machines[w.number(via.Name())-1]
	s := w.api(m)
	if s == nil {
		return Recount{}, syscall.ECONNREFUSED
	}
	if q, _ := w.member(m); time.Since(q.restored) < keptFor {
		return Recount{Kinds: q.counts}, nil
	}
	return Recount{Kinds: s.count(), Late: "they are counted late"}, nil
}

// recoverLanes plans as `kubewright recover` does.
func (w *world) recoverLanes(ctx context.Context, run journal.Run, t Target) ([]plan.Lane, error) {
	in, err := LookRecover(ctx, Recover{Target: t, Run: run, Connect: w.connect, Etcd: w.etcd, Self: self{w}})
	if err != nil {
		return nil, err
	}
	w.recovered = in
	return PlanRecover(in), nil
}

// advised looks that who has recovered the cluster is told of the hosts that must not come back, whichever run it was.
func (w *world) advised() {
	if len(w.lost) > 0 && len(w.recovered.Advice()) != 3 {
		w.broke("nobody is told of the hosts that are given up: %q", w.recovered.Advice())
	}
}

// self is the etcd.Self of the simulated cluster.
type self struct{ w *world }

func (s self) Look(ctx context.Context, r host.Reader) (etcd.View, error) {
	if _, err := r.Stat(ctx, "/"); err != nil {
		return etcd.View{}, err
	}
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.w.attend()
	q, _ := s.w.member(s.w.machines[s.w.number(r.Name())-1])
	if q == nil {
		return etcd.View{}, etcd.ErrUnreachable
	}
	v := etcd.View{Applied: 4711}
	for _, m := range q.members {
		v.Members = append(v.Members, m.ID)
	}
	if q.agrees() {
		v.Leader = q.leader
	}
	return v, nil
}

const (
	fenceFile = etcd.DataDir + "/FENCED"
	// forceDropIn and forceOnce have etcd go on alone with its data, at its next start: see etcd.Recover.
	forceDropIn = "/run/systemd/system/etcd.service.d/kubewright-recover.conf"
	forceOnce   = "/run/kubewright-recover.env"
)

// guard is etcd-fence: it tells whether the member on a machine must not start, and whether a quorum has it. It asks
// the machines that apilb remembers and those that its data name. The lock is held.
func (w *world) guard(m *machine, p *process) (fenced, member bool) {
	if m.has(fenceFile) {
		return true, false
	}
	content, ok := m.Get(etcdID)
	if !ok {
		return false, false
	}
	id, mine, _ := strings.Cut(content, "/")
	q := w.rafts[id]
	var known struct{ Servers []string }
	remembered, _ := m.Get(apilb.ServersFile)
	json.Unmarshal([]byte(remembered), &known) //nolint:errcheck // one that was cut off names nobody
	for _, other := range w.machines {
		named := slices.Contains(known.Servers, other.api()) ||
			q.find(func(s *seat) bool { return slices.Contains(s.Peers, etcd.PeerURL(other.address)) }) != nil
		theirs, seat := w.member(other)
		if other == m || !named || theirs == nil || seat.Learner || !theirs.agrees() || other.procs[etcd.Unit].ca != p.ca {
			continue
		}
		if theirs == q && q.byID(mine) != nil {
			return false, true
		}
		fenced = true
	}
	if fenced {
		m.Put(fenceFile, "it was taken out of its cluster\n", 0o644)
	}
	return fenced, false
}

// forceNew is an etcd that is told to go on alone with the data that it has: it keeps what it knows, and its seat. The
// lock is held.
func (w *world) forceNew(m *machine) {
	content, ok := m.Get(etcdID)
	id, mine, _ := strings.Cut(content, "/")
	if !ok || len(w.rafts[id].members) == 1 {
		return
	}
	old := w.rafts[id]
	mySeat := old.byID(mine)
	if mySeat == nil { // it was taken out: there is nothing to go on with
		return
	}
	me := *mySeat
	me.Learner, me.behind, me.since = false, 0, time.Time{}
	q := &raft{id: fmt.Sprintf("%s alone %d", m.Name(), len(w.rafts)), members: []*seat{&me}, count: old.count}
	w.rafts[q.id] = q
	if s := w.stores[old.id]; s != nil {
		kept, err := s.clone()
		if err != nil {
			w.t.Error(err)
		}
		w.stores[q.id] = kept
	}
	m.Put(etcdID, q.id+"/"+me.ID, 0o600)
}

// disasters are what programs do that are for them; false: it is another one.
func (m *machine) disasters(argv []string) (hosttest.Answer, bool) {
	option := func(name string) string { return argv[1+slices.Index(argv, name)] }
	switch {
	case path.Base(argv[0]) == "etcdutl" && strings.Join(argv[1:3], " ") == "snapshot restore":
		dir, url := option("--data-dir"), option("--initial-advertise-peer-urls")
		return hosttest.Answer{
			Half: func() { m.Put(dir+"/member/snap/db", "half", 0o600) },
			Do:   func([]byte) ([]byte, error) { return nil, m.world.restoreData(m, argv[3], dir, option("--name"), url) },
		}, true
	case argv[0] == "cp" && argv[1] == "-a":
		from, to := argv[3], argv[4]
		return hosttest.Answer{
			Half: func() { m.PutDir(to, 0o700) },
			Do:   func([]byte) ([]byte, error) { return nil, m.copyTree(from, to) },
		}, true
	case argv[0] == "mv" && argv[1] == "-T":
		return hosttest.Answer{Do: func([]byte) ([]byte, error) {
			err := m.copyTree(argv[2], argv[3])
			m.Drop(argv[2])
			return nil, err
		}}, true
	}
	return hosttest.Answer{}, false
}

// copyTree copies a folder with all that is in it. One that is there must not be.
func (m *machine) copyTree(from, to string) error {
	files := m.Snapshot().Files
	if _, ok := files[to]; ok {
		return fmt.Errorf("%s: %w", to, fs.ErrExist)
	}
	found := false
	for name, e := range files {
		rest, below := strings.CutPrefix(name, from)
		if !below || rest != "" && rest[0] != '/' {
			continue
		}
		found = true
		switch {
		case e.Mode.IsDir():
			m.PutDir(to+rest, e.Mode.Perm())
		case e.Mode.IsRegular():
			m.Put(to+rest, e.Content, e.Mode)
		}
	}
	if !found {
		return fmt.Errorf("%s: %w", from, fs.ErrNotExist)
	}
	return nil
}

// restoreData makes the data of a member that is a cluster by itself, from a snapshot that has to be whole.
func (w *world) restoreData(m *machine, snapshot, dir, name, peerURL string) error {
	content, _ := m.Get(snapshot)
	kept := w.snapshots[content]
	if kept == nil {
		return fmt.Errorf("%s is no snapshot: %q", snapshot, content)
	}
	if m.has(dir + "/member/sim-id") {
		return fmt.Errorf("%s: %w", dir, fs.ErrExist)
	}
	s, err := kept.clone()
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	q := &raft{id: fmt.Sprintf("%s restored %d", m.Name(), len(w.rafts)), counts: kept.count(), restored: time.Now()}
	me := q.admit(peerURL, false)
	me.Name, me.Clients = name, []string{"https://" + m.address.String() + ":" + etcd.ClientPort}
	w.rafts[q.id], w.stores[q.id] = q, s
	m.Put(dir+"/member/sim-id", q.id+"/"+me.ID, 0o600)
	return nil
}

// TestLostMembersComeBack has hosts that were given up come back with what they had: they do not serve beside
// the cluster that goes on without them.
func TestLostMembersComeBack(t *testing.T) {
	b := testBundle(t)
	for name, verbs := range map[string][]verb{
		"after a recovery": {initThree, loseTwo, recoverFirst, returnTwo},
		"after a restore":  {initThree, takeBackup, loseTwo, reinstallFirst, restoreFirst, returnTwo},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, 1, b, t.TempDir(), func(t *testing.T, w *world) {
				if _, err := w.play(stagesOf(verbs)); err != nil {
					t.Fatalf("%v\n%s", err, tail(w.log))
				}
				w.rest()
				w.mu.Lock()
				defer w.mu.Unlock()
				_, serving := w.serving()
				if len(w.broken) > 0 || len(serving) != 1 || serving[0] != w.machines[0] {
					t.Errorf("%d serve; %q", len(serving), w.broken)
				}
				for _, n := range returnTwo.hosts {
					if m := w.machines[n-1]; !m.has(fenceFile) || m.runs(etcd.Unit) {
						t.Errorf("h%d is not fenced", n)
					}
				}
			})
		})
	}
}

// TestRecoveryIsGivenUp breaks a recovery off, and then the others are back after all, and all of etcd is restarted
// for a new setting: whatever was left half-way does not tear a member away from a quorum.
func TestRecoveryIsGivenUp(t *testing.T) {
	b := testBundle(t)
	_, operations := undisturbed(t, b, 1, initThree, loseTwo, recoverFirst)
	var cuts []cut
	for n := 1; n <= operations; n++ {
		for _, m := range []hosttest.Moment{hosttest.Before, hosttest.In, hosttest.After} {
			cuts = append(cuts, cut{operation: n, moment: m, kind: killed})
		}
	}
	cuts = spread(cuts, *pointsFlag)
	perProcessor(t, len(cuts), func(t *testing.T, dir string, i int) {
		bubble(t, 1, b, dir, func(t *testing.T, w *world) {
			stages := append(stagesOf([]verb{initThree, loseTwo}), stage{verb: recoverFirst, cuts: cuts[i : i+1], leave: true}, stage{verb: returnTwo})
			if _, err := w.play(stages); err != nil {
				t.Fatalf("%v: %v\n%s", cuts[i], err, tail(w.log))
			}
			if _, err := w.run(initChanged); err != nil && !w.machines[1].has(fenceFile) {
				t.Errorf("%v: %v\n%s", cuts[i], err, tail(w.log))
			}
			w.rest()
			if len(w.broken) > 0 {
				t.Errorf("%v: %q\n%s", cuts[i], w.broken, tail(w.log))
			}
		})
	})
}
