package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/user"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kubewright/kubewright/bootstrap"
	"github.com/kubewright/kubewright/bootstrap/bundle"
	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/foresee"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/journal"
	"github.com/kubewright/kubewright/bootstrap/kubeconfig"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
	"github.com/kubewright/kubewright/bootstrap/version"
)

// The verbs of requests.
const (
	verbInit    = "init"
	verbJoin    = "join"
	verbRemove  = "remove"
	verbReset   = "reset"
	verbUndo    = "undo"
	verbApply   = "apply"
	verbRestore = "restore"
	verbRecover = "recover"
)

// work is a request with everything that was found out for it: hosts, bundle and
// cluster. Its lanes can be made any number of times, to look and to run.
type work struct {
	bootstrap.Request
	targets  []bootstrap.Target // those that become or stay nodes, or are put back
	leaving  []bootstrap.Target // those that apply takes out of the cluster
	via      *bootstrap.Target  // a control-plane host that joining ones are made like; nil: there are none
	name     string             // of the cluster in the user's kubeconfig; of join only
	bundle   *bundle.Bundle     // nil: nothing is installed
	live     *bootstrap.Live    // the cluster as it is, nil if there is none (yet)
	reset    bootstrap.Reset    // of remove, reset and undo; of apply, for those that leave
	restore  *bootstrap.Restore // of restore
	recover  *bootstrap.Recover // of recover
	findings finding.Report     // of preflight, nil: it did not look
	close    func()
}

// all are the hosts that the work may change.
func (w *work) all() []bootstrap.Target { return slices.Concat(w.targets, w.leaving) }

// prepare reaches the hosts of a request and looks at all that its plan depends
// on. It changes nothing. With locks, it takes those of all hosts before it looks, so that
// what it sees is what the run will find; without, it only looks: for plans. The caller closes
// the work, and releases the locks before that.
func (a *app) prepare(ctx context.Context, r bootstrap.Request, held *locks) (w *work, err error) {
	w = &work{Request: r}
	var closers []func()
	w.close = func() {
		for _, c := range slices.Backward(closers) {
			c()
		}
	}
	defer func() {
		if err != nil {
			if held != nil {
				held.release(ctx) // as long as there are connections
			}
			w.close()
			w = nil
		}
	}()
	if twice, is := namedTwice(r.Hosts); is { // it would wait for its own lock
		return w, fault.New(fault.Usage, "name it once", "%s is named twice", twice)
	}
	installs := r.Verb == verbInit || r.Verb == verbJoin || r.Verb == verbApply || r.Verb == verbRestore
	var access cluster.Access
	if r.Verb == verbJoin {
		if w.name, access, err = kubeconfig.Access(a.kubeconfig, ""); err != nil {
			return w, err
		}
	}
	if installs {
		if w.bundle, err = a.usableBundle(ctx); err != nil {
			return w, err
		}
		closers = append(closers, func() { w.bundle.Close() }) //nolint:errcheck // only read from
	}
	connect := func(hosts []spec.Host) ([]bootstrap.Target, error) {
		targets, closeAll, err := a.connect(ctx, hosts)
		if err != nil {
			return nil, err
		}
		closers = append(closers, closeAll)
		if held == nil {
			return targets, nil
		}
		if err := held.take(ctx, targets); err != nil {
			return nil, err
		}
		return targets, bootstrap.LookAgain(ctx, targets)
	}
	if r.Verb == verbRemove { // not all of its hosts need to answer
		return w, a.findRemoval(ctx, w, connect)
	}
	if w.targets, err = connect(r.Hosts); err != nil {
		if r.Verb == verbApply {
			err = a.unreached(ctx, r.Spec, err)
		}
		return w, err
	}
	switch r.Verb {
	case verbInit, verbApply:
		if err = a.findLive(ctx, w, connect); err == nil {
			err = bootstrap.RefuseFiles(ctx, w.Spec, w.targets[0], w.targets[1:])
		}
	case verbJoin:
		err = w.findCluster(ctx, access, connect)
	case verbRestore:
		w.restore = a.restore
		err = w.findRestored(ctx, a.restore)
	case verbRecover:
		var in bootstrap.Recover
		in, err = bootstrap.LookRecover(ctx, bootstrap.Recover{Target: w.targets[0]})
		w.recover = &in
	default:
		err = a.findJournals(ctx, w, connect)
	}
	return w, err
}

func namedTwice(hosts []spec.Host) (name string, is bool) {
	for i, h := range hosts {
		if slices.ContainsFunc(hosts[:i], func(o spec.Host) bool { return o.Name == h.Name }) {
			return h.Name, true
		}
	}
	return "", false
}

// findLive looks at the cluster that the wish is about, if it is there already,
// and at the hosts that are to leave it.
func (a *app) findLive(ctx context.Context, w *work, connect connector) (err error) {
	w.targets = bootstrap.FounderFirst(w.targets)
	claimed := slices.IndexFunc(w.targets, func(t bootstrap.Target) bool { return t.Claim != nil })
	switch {
	case claimed >= 0:
		w.ID = w.targets[claimed].Claim.ClusterID
	case w.ID == "":
		w.ID = strings.ToLower(rand.Text())
	}
	if err := bootstrap.RefuseSecond(ctx, w.targets); err != nil {
		return err
	}
	if w.live, err = bootstrap.Find(ctx, w.targets); err != nil || w.live == nil {
		return err
	}
	if w.live.Record.Name == w.Spec.Name { // else the claim says it all
		if err := w.live.Changeable(w.Spec); err != nil {
			return err
		}
	}
	if err := sameVersion(w.live.Record, w.bundle); err != nil {
		return err
	}
	if w.Verb != verbApply {
		return nil
	}
	gone := w.live.Gone(w.Spec)
	if len(gone) == 0 {
		return nil
	}
	hosts := make([]spec.Host, len(gone))
	for i, m := range gone {
		hosts[i] = spec.Host{Name: m.Host}
	}
	if w.leaving, err = connect(hosts); err != nil {
		if fault.CodeOf(err) != fault.HostUnreachable {
			return fmt.Errorf("hosts that are nodes of the cluster and not in the file: %w", err)
		}
		return &fault.Fault{Code: fault.HostUnreachable, Err: fmt.Errorf("nodes of the cluster that the file does not name: %w", err),
			Remedy: "bring the host back; or, if it is gone for good, take it out first: kubewright remove " + gone[0].Host + " --force"}
	}
	if err := bootstrap.ReadJournals(ctx, w.leaving); err != nil {
		return err
	}
	w.reset.Targets = w.leaving
	d := a.departure(w, w.Spec.Name)
	d.Keeper = w.targets[0]
	for _, m := range gone {
		d.Add(bootstrap.Leaver{Member: m})
	}
	w.reset.Departure = d
	return d.Refuse(ctx)
}

// sameVersion refuses a bundle of another version than the cluster's.
func sameVersion(record cluster.Record, b *bundle.Bundle) error {
	if strings.HasPrefix(record.Bundle, b.Version()+"-") {
		return nil
	}
	return fault.New(fault.BundleRefused, "use the bundle that the cluster was made with (--bundle)",
		"the cluster runs bundle %s, this one is %s", record.Bundle, b.Name())
}

// findCluster looks at the cluster that hosts are to join, and reaches one of its
// control-plane hosts if some are to be such themselves.
func (w *work) findCluster(ctx context.Context, access cluster.Access, connect connector) error {
	client := cluster.New(plan.Of("the admin's access", access), w.targets[0].Host.Dial)
	record, err := cluster.ReadRecord(ctx, client)
	if err != nil {
		return unanswered(access.Server, err)
	}
	if err := sameVersion(record, w.bundle); err != nil {
		return err
	}
	for _, t := range w.targets {
		switch {
		case t.Claim == nil || t.Claim.Role == string(t.Wish.Role):
		case t.Claim.ClusterID == record.ID:
			name := t.Wish.Name
			return fault.At(name, claim.Step, fault.New(fault.HostTaken, "take it out first, then join it again: kubewright remove "+name,
				"it is a %s of this cluster already, and cannot become a %s while it is", t.Claim.Role, t.Wish.Role))
		default:
			return t.Claim.Taken(t.Wish.Name)
		}
	}
	if w.live, err = bootstrap.Look(ctx, access, w.targets[0].Host); err != nil {
		return err
	}
	if w.live == nil {
		return fault.New(fault.ClusterMissing, "run the same command again", "the cluster at %s went away while it was looked at", access.Server)
	}
	known := w.live.Spec
	for _, joins := range w.Hosts {
		if i := slices.IndexFunc(known.Hosts, func(h spec.Host) bool { return h.Name == joins.Name }); i >= 0 {
			known.Hosts[i] = joins
		} else {
			known.Hosts = append(known.Hosts, joins)
		}
	}
	known.Default()
	if err := known.Validate(); err != nil {
		return err
	}
	if !slices.ContainsFunc(w.Hosts, func(h spec.Host) bool { return h.Role == spec.ControlPlaneRole }) {
		return nil
	}
	if w.via, err = w.reachControlPlane(connect); err != nil {
		return err
	}
	if err := bootstrap.RefuseFiles(ctx, known, *w.via, w.targets); err != nil {
		return err
	}
	return bootstrap.RefuseMembers(ctx, w.via.Host, w.targets)
}

// unanswered is err with a way out, if it has none: of an API that should have told of the cluster.
func unanswered(server string, err error) error {
	if fault.CodeOf(err) != fault.Internal {
		return err
	}
	return fault.New(fault.ClusterMissing, "see why: kubewright doctor HOST...; and, if control-plane hosts are lost, whether etcd has a quorum: kubewright etcd health --via HOST",
		"the API of the cluster at %s: %w", server, err)
}

// reachControlPlane reaches one of the cluster's control-plane hosts: one that joins, too,
// as it is one already, is as good as any other.
func (w *work) reachControlPlane(connect connector) (*bootstrap.Target, error) {
	var faults []error
	for _, m := range w.live.Nodes {
		if !m.ControlPlane || m.Host == "" {
			continue
		}
		if i := slices.IndexFunc(w.targets, func(t bootstrap.Target) bool { return t.Wish.Name == m.Host }); i >= 0 {
			if w.targets[i].EtcdData {
				return &w.targets[i], nil
			}
			continue
		}
		reached, err := connect([]spec.Host{{Name: m.Host, Role: spec.ControlPlaneRole}})
		if err == nil {
			return &reached[0], nil
		}
		if fault.CodeOf(err) != fault.HostUnreachable {
			return nil, err
		}
		faults = append(faults, err)
	}
	return nil, fault.New(fault.HostUnreachable, "bring one of them back, or see that this machine reaches it by SSH",
		"a control-plane host joins by way of another one, and none can be reached: %w", errors.Join(faults...))
}

// findJournals looks at what was changed on hosts, and at the cluster that they belong to.
func (a *app) findJournals(ctx context.Context, w *work, connect connector) error {
	if err := bootstrap.ReadJournals(ctx, w.targets); err != nil {
		return err
	}
	w.reset = bootstrap.Reset{Targets: w.targets, Force: w.Force}
	if w.Verb == verbUndo {
		u := w.Request.Undo
		switch {
		case u.All:
		case u.Steps > 0:
			w.reset.Undo = bootstrap.LastSteps(u.Steps)
		case u.To != "":
			w.reset.Undo = bootstrap.BackTo(u.To)
			if !slices.ContainsFunc(w.targets, func(t bootstrap.Target) bool { return len(w.reset.Undo(t.Journal)) > 0 }) {
				return noSuchStep(u.To)
			}
		default:
			w.reset.Undo = bootstrap.LastRun
		}
	}
	claimed := slices.IndexFunc(w.targets, func(t bootstrap.Target) bool { return t.Claim != nil })
	if claimed < 0 || !w.reset.Releases() {
		return nil
	}
	return a.findResetCluster(ctx, w, w.targets[claimed], connect)
}

// lanes makes the lanes of the work on its hosts as see shows them.
func (w *work) lanes(run journal.Run, see func(host.Host) host.Host, kubeconfig string) ([]plan.Lane, []bootstrap.Proof, error) {
	seen := func(targets []bootstrap.Target) []bootstrap.Target {
		all := slices.Clone(targets)
		for i := range all {
			all[i].Host = see(all[i].Host)
		}
		return all
	}
	switch w.Verb {
	case verbInit, verbApply, verbRestore:
		return bootstrap.PlanInit(bootstrap.Init{
			Live: w.live, Cluster: w.Spec, ID: w.ID, Targets: seen(w.targets), Leaving: bootstrap.Reset{Targets: seen(w.leaving), Departure: w.reset.Departure},
			Bundle: w.bundle, Run: run, Kubeconfig: kubeconfig, From: w.restore,
		})
	case verbJoin:
		lanes, err := bootstrap.PlanJoin(bootstrap.Join{
			Cluster: w.live.Spec, ID: w.live.Record.ID, Access: w.live.Access, Servers: w.live.Servers,
			Targets: seen(w.targets), Via: w.seenVia(see), Bundle: w.bundle, Run: run, Kubeconfig: kubeconfig, Name: w.name,
		})
		return lanes, nil, err
	case verbRecover:
		in := *w.recover
		in.Target, in.Run = seen(w.targets)[0], run
		return bootstrap.PlanRecover(in), nil, nil
	default:
		in := w.reset
		in.Targets = seen(in.Targets)
		return bootstrap.PlanReset(in)
	}
}

// seenVia is via as see shows it.
func (w *work) seenVia(see func(host.Host) host.Host) *bootstrap.Target {
	if w.via == nil {
		return nil
	}
	via := *w.via
	via.Host = see(via.Host)
	return &via
}

// preview is what the work would do now, with what that depends on.
func (a *app) preview(ctx context.Context, w *work) (*bootstrap.Saved, error) {
	lanes, _, err := w.lanes(journal.Run{}, func(h host.Host) host.Host { return foresee.New(h) }, a.kubeconfig)
	if err != nil {
		return nil, err
	}
	saved := &bootstrap.Saved{Made: time.Now().UTC().Truncate(time.Second), By: signature(), Kubewright: version.Kubewright,
		Request: w.Request, Seen: bootstrap.Guards{}}
	if w.bundle != nil {
		saved.Bundle = w.bundle.Digest()
	}
	if w.live != nil {
		maps.Copy(saved.Seen, w.live.Guards())
	}
	for _, t := range w.all() {
		g, err := bootstrap.HostGuards(t)
		if err != nil {
			return nil, err
		}
		maps.Copy(saved.Seen, g)
	}
	saved.Steps, err = plan.Preview(ctx, lanes...)
	return saved, err
}

// operator is who works, and on which machine: for journals, locks and plans.
func operator() (name, from string) {
	name, from = "unknown", "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if h, err := os.Hostname(); err == nil {
		from = h
	}
	return name, from
}

// signature is the operator as name@machine.
func signature() string {
	name, from := operator()
	return name + "@" + from
}

// connect reaches all hosts at once and looks at them. What it returns closes the connections.
func (a *app) connect(ctx context.Context, hosts []spec.Host) ([]bootstrap.Target, func(), error) {
	if _, err := a.sudo(); err != nil { // once, not once per host
		return nil, nil, err
	}
	targets, err := bootstrap.Connect(ctx, hosts, func(ctx context.Context, h spec.Host) (bootstrap.Connection, error) {
		conn, err := a.dial(ctx, h.Name)
		if err != nil {
			return bootstrap.Connection{}, err
		}
		return bootstrap.Connection{Host: conn, Reached: conn.ServerAddr()}, nil
	})
	closeAll := func() {
		var all sync.WaitGroup
		for _, t := range targets {
			if c, ok := t.Host.(io.Closer); ok {
				all.Go(func() { c.Close() }) //nolint:errcheck // nothing is left to be written
			}
		}
		all.Wait()
	}
	if err != nil {
		closeAll()
		return nil, nil, err
	}
	return targets, closeAll, nil
}

// isAborted tells that the user ended the run at once.
func isAborted(ctx context.Context, err error) bool {
	return err != nil && ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded)
}
