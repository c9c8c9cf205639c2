// Package report makes one page of a run, for people who were not there: how it
// ended, what took the time, who waited for whom, what was changed where, on which
// hosts, with which versions. The page is whole in itself: it needs no script, fetches
// nothing, and holds no secret, because it shows of a change its verb, object and detail only.
package report

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// Run is what a page tells of a run beyond its events. What is empty is not shown.
type Run struct {
	Verb       string // init, join, reset, ...
	Cluster    string // its name
	Server     string // URL of the API server
	By         string // who ran it, and where
	Kubewright string // version of the installer
	Bundle     Bundle
	Network    Network
	Hosts      []Host
	Findings   finding.Report // nil: nobody looked; empty: nothing was found
}

// Bundle is the file that hosts are made from.
type Bundle struct {
	Name       string
	Digest     string // sha256:HEX
	Components []Component
}

// Component is a part of the bundle.
type Component struct{ Name, Version string }

// Network of pods and services.
type Network struct {
	Backend        string
	Pods, Services netip.Prefix
	DNSDomain      string
}

// Host is a machine, and the node that it is.
type Host struct {
	Name       string // as the admin wrote it, and as its lane is called
	Node       string
	Role       string
	Address    netip.Addr   // of the node inside the cluster; invalid: unknown
	Pods       netip.Prefix // the node's share of the pods' range; invalid: unknown
	OS         string
	Kernel     string
	Arch       string
	CPUs       int
	Memory     uint64 // bytes
	Interfaces []Interface
}

// Interface is a network interface with its addresses.
type Interface struct {
	Name  string
	Addrs []netip.Prefix
}

// Recorder keeps what a run does, for its page. Its methods may be called at once.
type Recorder struct {
	mu    sync.Mutex
	run   Run
	began time.Time
	last  time.Time // of the last thing that was told
	lanes []*lane
	ended bool
	err   error
	said  []notice
}

type lane struct {
	name  string
	steps []*step
}

// step is what happened to a step so far.
type step struct {
	name, doc    string
	kind         plan.Kind // of the event that ended it; "" until then
	waits        []wait
	began, ended time.Time // waits not included; zero: not begun
	diff         plan.Diff
	said         []string // its progress, a line each
	err          error
}

// wait is the time from .. to that a step spent waiting for a cell which another sets.
type wait struct {
	cell     string
	by       plan.Ref
	from, to time.Time // to is zero as long as it lasts
	cut      bool      // the run ended before the cell was set
}

// notice is something that is no lane's.
type notice struct {
	at   time.Time
	text string
}

// maxSaid bounds the lines of progress that are kept of a step: the last ones tell most.
const maxSaid = 12

// New returns the recorder of a run that began then.
func New(verb string, began time.Time) *Recorder {
	return &Recorder{run: Run{Verb: verb}, began: began, last: began}
}

// Describe tells what is known of the run. A later call replaces an earlier one.
func (r *Recorder) Describe(run Run) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.run = run
}

// Plan names the lanes and their steps, so that the page also has those which
// never began.
func (r *Recorder) Plan(lanes ...plan.Lane) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range lanes {
		docs := l.Docs()
		for i, name := range l.Steps() {
			r.step(l.Name, name).doc = docs[i]
		}
	}
}

// step finds a step, or adds it at the end of its lane.
func (r *Recorder) step(laneName, name string) *step {
	i := slices.IndexFunc(r.lanes, func(l *lane) bool { return l.name == laneName })
	if i < 0 {
		i = len(r.lanes)
		r.lanes = append(r.lanes, &lane{name: laneName})
	}
	l := r.lanes[i]
	j := slices.IndexFunc(l.steps, func(s *step) bool { return s.name == name })
	if j < 0 {
		j = len(l.steps)
		l.steps = append(l.steps, &step{name: name})
	}
	return l.steps[j]
}

// Event keeps what happened in a lane.
func (r *Recorder) Event(e plan.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = e.Time
	if e.Kind == plan.Done {
		return
	}
	s := r.step(e.Lane, e.Step)
	switch e.Kind {
	case plan.Waiting:
		s.endWait(e.Time)
		s.waits = append(s.waits, wait{cell: e.Text, by: e.For, from: e.Time})
	case plan.Applying:
		s.endWait(e.Time)
		s.began, s.diff = e.Time, e.Diff
	case plan.Progress:
		line, _, _ := strings.Cut(e.Text, "\n")
		if n := len(s.said); n == 0 || s.said[n-1] != line {
			s.said = append(s.said[max(0, n+1-maxSaid):], line)
		}
	default:
		s.began, s.ended = e.Time.Add(-e.Took), e.Time
		s.endWait(s.began)
		s.kind, s.err = e.Kind, e.Err
		if n := len(s.waits); n > 0 && e.Kind == plan.Canceled && e.Took == 0 {
			s.waits[n-1].cut = true
			s.began = time.Time{}
		}
		if e.Diff != nil {
			s.diff = e.Diff
		}
	}
}

// endWait says when the wait that lasts was over. A step tells when it has changed
// something or ended, and how long it took: its beginning is the earliest of what is told.
func (s *step) endWait(at time.Time) {
	if n := len(s.waits); n > 0 && (s.waits[n-1].to.IsZero() || at.Before(s.waits[n-1].to)) {
		s.waits[n-1].to = at
	}
}

// Notice keeps something that is no lane's.
func (r *Recorder) Notice(at time.Time, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = at
	r.said = append(r.said, notice{at, text})
}

// End tells how the run ended. A recorder that was never told so makes the page of
// a run that is under way, or was killed.
func (r *Recorder) End(at time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last, r.ended, r.err = at, true, err
}
