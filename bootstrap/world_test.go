package bootstrap

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/kubewright/kubewright/bootstrap/bundle"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/journal"
	"github.com/kubewright/kubewright/bootstrap/kubeconfig"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
	"github.com/kubewright/kubewright/bootstrap/version"
)

// world is a simulated cluster with the admin's workstation: machines, the API, a
// kubeconfig. It lives in a synctest bubble, and everything that changes something in
// it takes a time of its own that follows from the seed. So what happens at once in
// lanes happens in an order that the seed alone decides.
type world struct {
	t          testing.TB
	seed       uint64
	machines   []*machine // the first has the control plane, others may have it, too
	bundle     *bundle.Bundle
	kubeconfig string

	runs int
	via  *machine // through which the run that goes on reaches the API
	plan []cut    // of that run, what is to happen
	dead []int    // machines that have no power until somebody turns them on, from 1
	lost []int    // machines that have no power until they come back, from 1

	snapshots map[string]*store // what is in the snapshots of backups, by the snapshot's text
	backup    backupFile        // that was taken
	restored  *Restore          // of the run that goes on
	recovered Recover           // likewise

	mu       sync.Mutex
	stores   map[string]*store // by the id of etcd's cluster
	rafts    map[string]*raft  // likewise
	asked    *machine          // whose API server, or etcd, answered last
	struck   bool              // the run was broken off: steps that had begun come to their end
	destroys bool              // the run takes the whole control plane down
	broken   []string          // what must always hold and did not
	happened map[string]int    // how often an operation has
	count    int               // operations of the run
	log      []string          // operations of all runs
}

// kind is how a run is broken off.
type kind int

const (
	killed    kind = iota // the program, and so its connections to all hosts
	severed               // the connection to one host
	unplugged             // one host, by its power
)

func (k kind) String() string { return [...]string{"kill", "cut", "power"}[k] }

// cut breaks a run off.
type cut struct {
	operation int // of the run, counted from 1
	moment    hosttest.Moment
	kind      kind
	victim    int // the host that it befalls, from 1; 0: that of the operation
}

func (c cut) String() string {
	s := fmt.Sprintf("%v %v %d", c.kind, c.moment, c.operation)
	if c.victim > 0 {
		s += fmt.Sprintf(" of h%d", c.victim)
	}
	return s
}

// testBundle is one with programs of a few bytes.
func testBundle(t testing.TB) *bundle.Bundle {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{
		"kube", "pause", "probe", "unbundle", "containerd-shim-runc-v2", "runc", "bridge", "host-local", "loopback", "portmap",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("program "+name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	b, err := bundle.Pack(t.Context(), dir, "amd64",
		version.List{{Name: version.KubernetesName, Version: "v1.37.2"}}, filepath.Join(dir, "test.kwb"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

const worldHosts = 4

// newWorld makes bare hosts; dir is for the kubeconfig, which has another cluster in it.
func newWorld(t testing.TB, seed uint64, b *bundle.Bundle, dir string) *world {
	w := &world{
		t: t, seed: seed, bundle: b, kubeconfig: filepath.Join(dir, "config"),
		stores: map[string]*store{}, rafts: map[string]*raft{}, snapshots: map[string]*store{}, happened: map[string]int{},
	}
	const other = "apiVersion: v1\nclusters:\n- cluster:\n    server: https://192.0.2.1:6443\n  name: other\n" +
		"contexts: null\ncurrent-context: \"\"\nkind: Config\nusers: null\n" // as client-go writes it
	if err := os.WriteFile(w.kubeconfig, []byte(other), 0o600); err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= worldHosts; n++ {
		w.machines = append(w.machines, w.newMachine(n))
	}
	w.asked = w.machines[0]
	return w
}

// newMachine is a bare host, which reaches all others.
func (w *world) newMachine(n int) *machine {
	m := newMachine(w.t, n, w.bundle)
	m.world = w
	for other := 1; other <= worldHosts; other++ {
		m.Serve("tcp", apiOf(addressOfMachine(other)), func(c net.Conn) { c.Close() }) //nolint:errcheck // a pipe
	}
	return m
}

// verb is one command line.
type verb struct {
	name     string // init, join, reset, remove, apply, restore, recover, or an event
	hosts    []int  // from 1
	controls int    // of init, join, apply, restore and recover: so many of the hosts are to be control-plane hosts, the first ones
	force    bool   // of remove: the hosts have no power, and never get it back while it runs
	quota    string // of init: an argument of etcd's, which is restarted for it
}

func (v verb) String() string {
	text := fmt.Sprintf("%s %v", v.name, v.hosts)
	if v.controls > 0 {
		text += fmt.Sprintf(" (%d control planes)", v.controls)
	}
	if v.force {
		text += " --force"
	}
	if v.quota != "" {
		text += ", quota " + v.quota
	}
	return text
}

// destroys tells whether the verb puts all hosts back.
func (v verb) destroys() bool { return v.name == "reset" && len(v.hosts) >= len(resetAll.hosts) }

// operations is about how many the verb takes.
func (v verb) operations() int {
	of := map[string]int{"init": 85, "join": 40, "reset": 40, "remove": 110, "restore": 95, "recover": 25}[v.name]
	if v.controls > 1 || v.name == "join" && v.controls > 0 {
		of = 110
	}
	return of * len(v.hosts)
}

// The command lines that are tried.
var (
	initAll     = verb{name: "init", hosts: []int{1, 2, 3}, controls: 1} // init -f
	initThree   = verb{name: "init", hosts: []int{1, 2, 3, 4}, controls: 3}
	initOther   = verb{name: "init", hosts: []int{3, 1, 2, 4}, controls: 3} // in another order
	initChanged = verb{name: "init", hosts: []int{1, 2, 3, 4}, controls: 3, quota: "4294967296"}
	initOne     = verb{name: "init", hosts: []int{1}, controls: 1}
	joinTwo     = verb{name: "join", hosts: []int{2, 3}}
	joinMembers = verb{name: "join", hosts: []int{2, 3}, controls: 2}
	joinWorker  = verb{name: "join", hosts: []int{3}}
	joinFirst   = verb{name: "join", hosts: []int{1}, controls: 1}
	resetWorker = verb{name: "reset", hosts: []int{3}}
	resetSecond = verb{name: "reset", hosts: []int{2}}
	resetAll    = verb{name: "reset", hosts: []int{1, 2, 3}}
	resetThree  = verb{name: "reset", hosts: []int{1, 2, 3, 4}}
	removeFirst = verb{name: "remove", hosts: []int{1}}
	removeOther = verb{name: "remove", hosts: []int{3}}
	removeNode  = verb{name: "remove", hosts: []int{4}}
	removeDead  = verb{name: "remove", hosts: []int{2}, force: true}
)

// run is one run of the program: from connecting to its end, with all hosts
// reachable at first.
func (w *world) run(v verb, cuts ...cut) (n plan.Count, err error) {
	if v.event() {
		return n, w.befall(v)
	}
	w.plan = cuts
	err = w.do(v, func(h host.Host) host.Host { return h }, func(ctx context.Context, lanes []plan.Lane) error {
		n, err = plan.Run(ctx, plan.Options{}, lanes...)
		return err
	})
	switch {
	case err != nil:
	case v.name == "restore":
		w.proven()
	case v.name == "recover":
		w.advised()
	}
	return n, err
}

// do plans a verb on the hosts as see shows them, and does something with the plan while the cluster lives on.
func (w *world) do(v verb, see func(host.Host) host.Host, act func(context.Context, []plan.Lane) error) error {
	w.dead = slices.Clone(w.lost)
	if v.force {
		w.dead = append(w.dead, v.hosts...)
	}
	w.turnOn()
	w.settle()
	w.runs++
	w.count, w.via, w.destroys, w.struck = 0, w.machines[v.hosts[0]-1], false, false
	w.log = append(w.log, fmt.Sprintf("-- %v %v", v, w.plan))
	ctx, cancel := context.WithCancel(w.t.Context())
	var life sync.WaitGroup
	life.Go(func() { w.beat(ctx) })
	defer life.Wait()
	defer cancel()

	var hosts []spec.Host
	for i, n := range v.hosts {
		h := spec.Host{Name: fmt.Sprintf("h%d", n), Role: spec.WorkerRole}
		if i < v.controls {
			h.Role = spec.ControlPlaneRole
		}
		hosts = append(hosts, h)
	}
	var targets []Target
	if !v.force {
		var err error
		if targets, err = Connect(ctx, hosts, w.dial); err != nil {
			return err
		}
	}
	for i := range targets {
		targets[i].Host = see(targets[i].Host)
	}
	lanes, err := w.lanes(ctx, v, hosts, targets)
	if err != nil {
		return err
	}
	return act(ctx, lanes)
}

// pulse is how often the cluster's components do something. It is odd so that
// nothing else happens at the same time.
const pulse = 97*time.Millisecond + 3

func (w *world) beat(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pulse):
			w.settle()
		}
	}
}

// turnOn gives all machines power and a connection, but for those that are dead.
func (w *world) turnOn() {
	for i, m := range w.machines {
		if slices.Contains(w.dead, i+1) {
			m.Kill()
		} else {
			m.turnOn()
		}
	}
}

// rest lets time pass until nothing happens any more. What was dead is back then, unless it was lost.
func (w *world) rest() {
	w.dead = slices.Clone(w.lost)
	w.turnOn()
	const enough = 12 // steps from a kubelet that starts to a pod that runs
	for range enough {
		w.settle()
	}
	time.Sleep(time.Hour) // longer than a join token lives
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.store(); s != nil { // and the token cleaner does its work
		for _, t := range s.tokens() {
			if expires, err := time.Parse(time.RFC3339, t.StringData["expiration"]); err != nil || time.Now().After(expires) {
				if err := s.Delete(secretResource, t.Namespace, t.Name); err != nil {
					w.t.Error(err)
				}
			}
		}
	}
}

// number is that of a machine, from 1.
func (w *world) number(name string) int {
	return 1 + slices.IndexFunc(w.machines, func(m *machine) bool { return m.Name() == name })
}

func (w *world) dial(_ context.Context, h spec.Host) (Connection, error) {
	i := slices.IndexFunc(w.machines, func(m *machine) bool { return m.Name() == h.Name })
	m := w.machines[i]
	return Connection{Host: link{m, w}, Reached: m.address}, nil
}

// lanes plans as the commands do.
func (w *world) lanes(ctx context.Context, v verb, hosts []spec.Host, targets []Target) ([]plan.Lane, error) {
	run := journal.Run{ID: fmt.Sprint(w.runs), Verb: v.String(), By: "an admin", Began: time.Now()}
	switch v.name {
	case "restore":
		return w.restoreLanes(ctx, run, hosts, targets)
	case "recover":
		return w.recoverLanes(ctx, run, targets[0])
	case "init", "apply":
		return w.initLanes(ctx, v, run, hosts, FounderFirst(targets))
	}
	name, access, accessErr := kubeconfig.Access(w.kubeconfig, "")
	var live *Live
	err := accessErr
	if err == nil {
		live, err = w.look(ctx, v, access)
	}
	if v.name == "join" {
		if err != nil {
			return nil, err
		}
		return w.joinLanes(ctx, run, name, live, hosts, targets)
	}
	if err := ReadJournals(ctx, targets); err != nil {
		return nil, err
	}
	in := Reset{Targets: targets, Force: v.force}
	takesControlPlane := slices.ContainsFunc(targets, func(t Target) bool { return t.Claim != nil && controls(t) })
	orphaned, orphansErr := in.Orphaned(ctx)
	if orphansErr != nil {
		return nil, orphansErr
	}
	force := takesControlPlane || orphaned || !slices.ContainsFunc(targets, func(t Target) bool { return t.Member })
	claimed := slices.ContainsFunc(targets, func(t Target) bool { return t.Claim != nil })
	switch {
	case !claimed && !v.force:
		lanes, _, err := PlanReset(in)
		return lanes, err
	case err == nil:
		d := &Departure{Live: live, Nodes: in.Departing(live), By: "an admin", Timeout: DrainTimeout, Force: v.force,
			Kubeconfig: w.kubeconfig, Name: name, Connect: w.connect, Etcd: w.etcd}
		if v.force {
			for _, h := range hosts {
				if m, ok := live.Member(h.Name); ok {
					d.Add(Leaver{Member: m, Lost: true})
				}
			}
			if len(d.Nodes) == 0 {
				return nil, nil // by an earlier run
			}
		}
		if !d.Stays() {
			in.Kubeconfig, in.Name, in.Server = w.kubeconfig, name, access.Server
			break
		}
		if err := w.keeper(ctx, d); err != nil {
			return nil, err
		}
		in.Departure = d
	case !force:
		return nil, err // nothing can be drained
	case accessErr == nil && in.Destroys(name, access.Server):
		in.Kubeconfig, in.Name, in.Server = w.kubeconfig, name, access.Server
	}
	w.destroys = in.Departure == nil
	lanes, _, err := PlanReset(in)
	return lanes, err
}

func (w *world) initLanes(ctx context.Context, v verb, run journal.Run, hosts []spec.Host, targets []Target) ([]plan.Lane, error) {
	wish := &spec.Cluster{Name: "sim", Hosts: hosts}
	wish.Default()
	if v.quota != "" {
		wish.Etcd.ExtraArgs = map[string]string{"quota-backend-bytes": v.quota}
	}
	id := "a-cluster"
	if i := slices.IndexFunc(targets, func(t Target) bool { return t.Claim != nil }); i >= 0 {
		id = targets[i].Claim.ClusterID
	}
	w.via = w.machines[w.number(targets[0].Wish.Name)-1]
	in := Init{Cluster: wish, ID: id, Targets: targets, Bundle: w.bundle, Run: run, Kubeconfig: w.kubeconfig, Connect: w.connect, Etcd: w.etcd}
	var err error
	if in.Live, err = w.find(ctx, targets); err != nil {
		return nil, err
	}
	if v.name == "apply" && in.Live != nil {
		if in.Leaving, err = w.leaving(ctx, in.Live, wish, targets[0]); err != nil {
			return nil, err
		}
	}
	lanes, _, err := PlanInit(in)
	return lanes, err
}

// leaving are the hosts of the live cluster that a wish does not name any more.
func (w *world) leaving(ctx context.Context, live *Live, wish *spec.Cluster, keeper Target) (Reset, error) {
	gone := live.Gone(wish)
	if len(gone) == 0 {
		return Reset{}, nil
	}
	d := &Departure{Live: live, Keeper: keeper, By: "an admin", Timeout: DrainTimeout, Etcd: w.etcd}
	var hosts []spec.Host
	for _, m := range gone {
		d.Add(Leaver{Member: m})
		hosts = append(hosts, spec.Host{Name: m.Host})
	}
	targets, err := Connect(ctx, hosts, w.dial)
	if err != nil {
		return Reset{}, err
	}
	return Reset{Targets: targets, Departure: d}, errors.Join(ReadJournals(ctx, targets), d.Refuse(ctx))
}

// find is Find in the simulated cluster.
func (w *world) find(ctx context.Context, targets []Target) (*Live, error) {
	for _, t := range targets {
		if t.Claim == nil || !controls(t) {
			continue
		}
		content, err := t.Host.ReadFile(ctx, AdminConfig)
		if err != nil {
			continue
		}
		access, err := kubeconfig.Parse(content)
		if err != nil {
			return nil, err
		}
		access.Server = ownURL(access.Server, t.Claim.Address)
		api := w.connect(plan.Of("access", access), t.Host.Dial)
		if record, err := cluster.ReadRecord(ctx, api); err == nil {
			return lookAt(ctx, access, api, record)
		}
	}
	return nil, nil
}

// look looks at the cluster by way of the first machine that leads to it, one of the verb's if it can be.
func (w *world) look(ctx context.Context, v verb, access cluster.Access) (live *Live, err error) {
	ways := []*machine{w.machines[v.hosts[0]-1]}
	for _, m := range w.machines {
		if slices.Contains(w.dead, v.hosts[0]) && !slices.Contains(ways, m) {
			ways = append(ways, m) // with --via
		}
	}
	for _, m := range ways {
		api := w.connect(plan.Of("access", access), m.Dial)
		var record cluster.Record
		if record, err = cluster.ReadRecord(ctx, api); err != nil {
			continue
		}
		if live, err = lookAt(ctx, access, api, record); err == nil { // as the API lists them
			slices.SortFunc(live.Nodes, func(x, y Member) int { return strings.Compare(x.Node, y.Node) })
			return live, nil
		}
	}
	return nil, err
}

func (w *world) joinLanes(ctx context.Context, run journal.Run, name string, live *Live, hosts []spec.Host, targets []Target) ([]plan.Lane, error) {
	known := live.Spec
	known.Hosts = append(slices.DeleteFunc(known.Hosts, func(h spec.Host) bool {
		return slices.ContainsFunc(hosts, func(j spec.Host) bool { return j.Name == h.Name })
	}), hosts...)
	in := Join{Cluster: known, ID: live.Record.ID, Access: live.Access, Servers: live.Servers, Targets: targets, Bundle: w.bundle, Run: run,
		Kubeconfig: w.kubeconfig, Name: name, Connect: w.connect, Etcd: w.etcd}
	if !slices.ContainsFunc(hosts, func(h spec.Host) bool { return h.Role == spec.ControlPlaneRole }) {
		return PlanJoin(in)
	}
	for _, m := range live.Nodes {
		if !m.ControlPlane {
			continue
		}
		if i := slices.IndexFunc(targets, func(t Target) bool { return t.Wish.Name == m.Host }); i >= 0 {
			if targets[i].EtcdData {
				in.Via = &targets[i]
				break
			}
			continue
		}
		via, err := Connect(ctx, []spec.Host{{Name: m.Host, Role: spec.ControlPlaneRole}}, w.dial)
		if err != nil {
			return nil, err
		}
		in.Via = &via[0]
		break
	}
	return PlanJoin(in)
}

// keeper reaches a control-plane host that stays, and asks whether the others may leave.
func (w *world) keeper(ctx context.Context, d *Departure) error {
	keepers, err := Connect(ctx, []spec.Host{{Name: d.Keepers()[0].Host, Role: spec.ControlPlaneRole}}, w.dial)
	if err != nil {
		return err
	}
	d.Keeper, w.via = keepers[0], w.machines[w.number(keepers[0].Wish.Name)-1]
	return d.Refuse(ctx)
}

// operate does one operation of the run, on a machine or through it on the API. It
// takes a while, half of it before and half of it after it happens.
func (w *world) operate(ctx context.Context, m *machine, operation string, api bool, do func() error) error {
	operation = m.Name() + " " + operation
	w.mu.Lock()
	w.happened[operation]++
	half := w.duration(operation, w.happened[operation])
	w.mu.Unlock()
	pause := func() error {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(half):
			return nil
		}
	}
	if err := pause(); err != nil {
		return err
	}
	if m.Gone() { // since it was sent
		return do()
	}

	w.mu.Lock()
	w.count++
	c := w.due()
	line := fmt.Sprintf("%4d %s", w.count, operation)
	if c != nil {
		line += fmt.Sprintf("   <== %v", *c)
	}
	w.log = append(w.log, line)
	w.mu.Unlock()
	var err error
	switch {
	case c == nil:
		w.mu.Lock()
		before := w.quorate()
		w.mu.Unlock()
		err = do()
		w.mu.Lock()
		m.observe()
		w.keep(before, operation)
		w.mu.Unlock()
	case api || c.victim > 0:
		// A request is sent as a whole: within it is after it, without an answer.
		if c.moment == hosttest.Before {
			w.strike(*c, m, api)
			err = do()
		} else {
			err = do()
			w.strike(*c, m, api)
		}
	default:
		next := len(m.Operations()) + 1
		if c.kind == unplugged {
			m.KillAt(next, c.moment)
		} else {
			m.CutAt(next, c.moment)
		}
		err = do()
		w.strike(*c, m, api)
	}
	w.mu.Lock()
	m.observe()
	w.watch()
	w.mu.Unlock()
	if err == nil {
		err = pause()
	}
	if err == nil && m.Gone() {
		err = fault.New(fault.HostUnreachable, "", "%s went away before it answered", m.Name())
	}
	return err
}

// due returns the cut of the operation that is counted last. The lock is held.
func (w *world) due() *cut {
	i := slices.IndexFunc(w.plan, func(c cut) bool { return c.operation == w.count })
	if i < 0 {
		return nil
	}
	return &w.plan[i]
}

// strike breaks the run off, whose operation is one of m's.
func (w *world) strike(c cut, m *machine, api bool) {
	w.mu.Lock()
	w.struck = true
	w.mu.Unlock()
	if c.victim > 0 {
		m = w.machines[c.victim-1]
	} else if api && c.kind == unplugged {
		m = w.asked
	}
	switch c.kind {
	case killed:
		for _, m := range w.machines {
			m.Cut()
		}
	case severed:
		m.Cut()
	case unplugged:
		m.Kill()
	}
}

// duration is half the time that an operation takes when it happens the nth time:
// of up to 20 ms, to the nanosecond.
func (w *world) duration(operation string, n int) time.Duration {
	h := fnv.New64a()
	fmt.Fprint(h, w.seed, operation, n) //nolint:errcheck // a hash
	const most = uint64(20 * time.Millisecond)
	return time.Duration(mixed(h.Sum64()) % most)
}

// mixed spreads a number over all bits (splitmix64's finalizer).
func mixed(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// link is a machine as a run sees it: what changes it is an operation.
type link struct {
	*machine
	w *world
}

var _ host.Host = link{}

func (l link) Run(ctx context.Context, cmd host.Command) (out []byte, err error) {
	err = l.w.operate(ctx, l.machine, "run "+strings.Join(cmd.Argv, " "), false, func() error {
		out, err = l.machine.Run(ctx, cmd)
		return err
	})
	return out, err
}

func (l link) WriteFile(ctx context.Context, path string, content io.Reader, m host.Meta) error {
	return l.w.operate(ctx, l.machine, "write "+path, false, func() error { return l.machine.WriteFile(ctx, path, content, m) })
}

func (l link) Mkdir(ctx context.Context, path string, m host.Meta) error {
	return l.w.operate(ctx, l.machine, "mkdir "+path, false, func() error { return l.machine.Mkdir(ctx, path, m) })
}

func (l link) Symlink(ctx context.Context, target, path string) error {
	return l.w.operate(ctx, l.machine, "symlink "+path, false, func() error { return l.machine.Symlink(ctx, target, path) })
}

func (l link) Remove(ctx context.Context, paths ...string) error {
	return l.w.operate(ctx, l.machine, "remove "+strings.Join(paths, " "), false, func() error { return l.machine.Remove(ctx, paths...) })
}

// Units tells of an etcd that is being restarted: systemd says so until it is back.
func (l link) Units(ctx context.Context, names ...string) ([]host.Unit, error) {
	all, err := l.machine.Units(ctx, names...)
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	for i, u := range all {
		if u.Name == etcd.Unit && u.Active == "active" && time.Since(l.restarted) < restartTime {
			all[i].Active, all[i].Sub = "activating", "start"
		}
	}
	return all, err
}

func (l link) Systemd() host.Systemd { return units{l.machine.Systemd(), l} }

// units is systemd as a run sees it.
type units struct {
	host.Systemd
	l link
}

func (u units) operate(ctx context.Context, operation string, do func() error) error {
	return u.l.w.operate(ctx, u.l.machine, operation, false, do)
}

func (u units) Reload(ctx context.Context) error {
	return u.operate(ctx, "reload", func() error { return u.Systemd.Reload(ctx) })
}

func (u units) Start(ctx context.Context, unit string) error {
	err := u.operate(ctx, "start "+unit, func() error { return u.Systemd.Start(ctx, unit) })
	if err != nil {
		return err
	}
	return u.l.w.await(ctx, u.l.machine, "start", unit)
}

func (u units) Restart(ctx context.Context, unit string) error {
	err := u.operate(ctx, "restart "+unit, func() error {
		before := u.l.PID(unit)
		err := u.Systemd.Restart(ctx, unit)
		u.l.w.mu.Lock()
		defer u.l.w.mu.Unlock()
		if unit == etcd.Unit && before != 0 && u.l.PID(unit) != before {
			u.l.machine.restarted = time.Now()
		}
		return err
	})
	if err != nil {
		return err
	}
	return u.l.w.await(ctx, u.l.machine, "restart", unit)
}

func (u units) Stop(ctx context.Context, unit string) error {
	return u.operate(ctx, "stop "+unit, func() error { return u.Systemd.Stop(ctx, unit) })
}

func (u units) Enable(ctx context.Context, names ...string) error {
	return u.operate(ctx, "enable "+strings.Join(names, " "), func() error { return u.Systemd.Enable(ctx, names...) })
}

func (u units) Disable(ctx context.Context, names ...string) error {
	return u.operate(ctx, "disable "+strings.Join(names, " "), func() error { return u.Systemd.Disable(ctx, names...) })
}

func (u units) ResetFailed(ctx context.Context, unit string) error {
	return u.operate(ctx, "reset-failed "+unit, func() error { return u.Systemd.ResetFailed(ctx, unit) })
}

// recoveryCopy is where `recover` keeps the data as they were: by when, in the end.
var recoveryCopy = regexp.MustCompile(`^(` + etcd.DataDir + `-before-recover)-[^/]*`)

// picture is all that stands in a world at rest, by what it is. Keys and
// certificates are in it by their kind only: that they are the right ones is
// told by a further run that finds nothing to change.
type picture map[string]string

// volatile is what differs between two worlds that are alike: random data, and
// journals, which tell what happened. What they are good for is seen after a reset.
var volatile = regexp.MustCompile(`^h\d+ (` + bootIDFile + `|` + etcdID + `|` + etcdEnvironment + `|` + journal.Dir + `(/.*)?)$`)

func (w *world) picture() picture {
	p := picture{}
	for _, m := range w.machines {
		state := m.Snapshot()
		for name, e := range state.Files {
			key := m.Name() + " " + recoveryCopy.ReplaceAllString(name, "$1")
			if strings.HasPrefix(name, etcd.DataDir+"/member/restored-") { // on whichever host a run has given the data
				key = "the backup's " + name
			}
			if p[key] != "" {
				key += ", and another one"
			}
			if !volatile.MatchString(key) {
				p[key] = fmt.Sprintf("%v %d:%d %s %s", e.Mode, e.UID, e.GID, e.Target, plainly(e.Content))
			}
		}
		for name, u := range state.Units {
			p[m.Name()+" "+name] = fmt.Sprintf("%+v", u)
		}
		for _, name := range state.Leftovers {
			p[m.Name()+" "+name] = "left behind"
		}
	}
	local, err := os.ReadFile(w.kubeconfig)
	if err != nil {
		w.t.Error(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	s, serving := w.serving()
	for _, m := range serving { // which of them people go to is all the same
		local = bytes.ReplaceAll(local, []byte("server: https://"+m.api()), []byte("server: of one that serves"))
	}
	p["kubeconfig"] = plainly(string(local))
	if s == nil {
		return p
	}
	q, _ := w.member(serving[0])
	p["etcd"] = q.membership()
	s.kinds[secretResource] = secretKind
	for gvr, gvk := range s.kinds {
		list, err := s.List(gvr, gvk, metav1.NamespaceAll)
		if err != nil {
			w.t.Error(err)
			continue
		}
		items, err := meta.ExtractList(list)
		if err != nil {
			w.t.Error(err)
		}
		for _, o := range items {
			m, err := meta.Accessor(o)
			if err != nil {
				w.t.Error(err)
				continue
			}
			text, err := json.Marshal(o)
			if err != nil {
				w.t.Error(err)
			}
			p["api "+gvr.Resource+" "+m.GetNamespace()+"/"+m.GetName()] = string(text)
		}
	}
	return p
}

var (
	secretKind = secretResource.GroupVersion().WithKind("Secret")
	pemBlock   = regexp.MustCompile(`(?s)-----BEGIN ([A-Z ]+)-----.*?-----END [A-Z ]+-----`)
	embeddedIn = regexp.MustCompile(`(-data: )"?([A-Za-z0-9+/=]+)"?`)
)

// plainly is a file's content with keys and certificates named only.
func plainly(content string) string {
	content = embeddedIn.ReplaceAllStringFunc(content, func(s string) string {
		parts := embeddedIn.FindStringSubmatch(s)
		data, err := base64.StdEncoding.DecodeString(parts[2])
		if err != nil {
			return s
		}
		return parts[1] + string(data)
	})
	return pemBlock.ReplaceAllString(content, "[$1]")
}

// diff tells how later differs from p.
func (p picture) diff(later picture) []string {
	var lines []string
	for k, v := range p {
		if now, ok := later[k]; !ok {
			lines = append(lines, "- "+k)
		} else if now != v {
			lines = append(lines, fmt.Sprintf("~ %s: %s\n     -> %s", k, v, now))
		}
	}
	for k, v := range later {
		if _, ok := p[k]; !ok {
			lines = append(lines, "+ "+k+": "+v)
		}
	}
	slices.Sort(lines)
	return lines
}

// perProcessor runs f for 0 to n-1, on all processors at once, each time with a folder of its own.
func perProcessor(t *testing.T, n int, f func(t *testing.T, dir string, i int)) {
	workers := runtime.GOMAXPROCS(0)
	for p := range workers {
		t.Run(fmt.Sprint("processor ", p), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for i := p; i < n; i += workers {
				f(t, dir, i)
			}
		})
	}
}

// tail is the last lines of a log.
func tail(log []string) string {
	var b bytes.Buffer
	for _, l := range log {
		fmt.Fprintln(&b, "    "+l)
	}
	return b.String()
}
