// Package plan is the engine: it runs lists of small idempotent steps, one list
// (a lane) per host and one for the cluster, all lanes at once. A step first
// checks, then applies only what differs, then checks again. Lanes meet only
// through write-once cells, and a plan that would wait for ever is refused
// before it starts. The package knows nothing of Kubernetes, nor of SSH.
package plan

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Verb is what happens to the object of a change.
type Verb string

const (
	Create Verb = "create"
	Update Verb = "update"
	Delete Verb = "delete"
	Start  Verb = "start"
	Stop   Verb = "stop"
	Await  Verb = "await" // nothing is changed, only waited for
)

// ObjectKind says what kind of thing a change is about.
type ObjectKind string

// The kinds of object. The first ones are a host's.
const (
	ObjectFile      ObjectKind = "file"      // a file, directory or symbolic link, by its path
	ObjectUnit      ObjectKind = "unit"      // a systemd unit, by its full name
	ObjectSlice     ObjectKind = "slice"     // a systemd slice with all processes in it, and its control groups
	ObjectSetting   ObjectKind = "setting"   // a kernel setting, as sysctl writes it
	ObjectModule    ObjectKind = "module"    // a kernel module
	ObjectMounts    ObjectKind = "mounts"    // all that is mounted below a folder
	ObjectInterface ObjectKind = "interface" // a network interface
	ObjectRoutes    ObjectKind = "routes"    // all routes into a network, by its prefix
	ObjectAddress   ObjectKind = "address"   // an IPv4 address on any interface, as a single one (/32)
	ObjectTable     ObjectKind = "nftables"  // a packet filter table of any family, by its name
	ObjectImage     ObjectKind = "image"     // in the container runtime's store
	ObjectAPI       ObjectKind = "api"       // of the Kubernetes API: Kind namespace/name
	ObjectMember    ObjectKind = "member"    // of etcd, by its name
	ObjectLocal     ObjectKind = "local"     // a file of the workstation
	ObjectWait      ObjectKind = "wait"      // nothing is changed
)

// Object is a thing on a target, by kind and name.
type Object struct {
	Kind ObjectKind `json:"kind"`
	Name string     `json:"name"`
}

// Objects are those of one kind.
func Objects(kind ObjectKind, names ...string) []Object {
	all := make([]Object, len(names))
	for i, n := range names {
		all[i] = Object{kind, n}
	}
	return all
}

// Change is one difference between what is and what is wished.
type Change struct {
	Verb   Verb       `json:"verb"`
	Kind   ObjectKind `json:"kind,omitempty"`
	Object string     `json:"object"`           // a path, a unit, kind namespace/name, ...
	Detail string     `json:"detail,omitempty"` // why, or how it differs; never holds a secret
	// Before and After are the object's two states, as far as they are known: nil is
	// an object that is not there.
	Before *State `json:"before,omitempty"`
	After  *State `json:"after,omitempty"`
	// Brings are the objects that come with it by themselves: what a service makes
	// while it runs, what a command leaves. Whoever undoes the change takes them away too.
	Brings []Object `json:"brings,omitempty"`
}

// State is one side of a change.
type State struct {
	Mode   string `json:"mode,omitempty"`   // as ls shows it: -rw-r--r--
	Text   string `json:"text,omitempty"`   // the content for people, "" of a secret or of what is not text
	Digest string `json:"digest,omitempty"` // sha256:HEX of the content
	Target string `json:"target,omitempty"` // of a symbolic link
	Later  bool   `json:"later,omitempty"`  // it is made when the change is: a new key, a certificate
	// Content is what a change would leave, for those who look at a host as it would
	// be then. It may be secret and is never shown.
	Content []byte `json:"-"`
}

func (c Change) String() string {
	s := string(c.Verb) + " " + c.Object
	if c.Detail != "" {
		s += " (" + c.Detail + ")"
	}
	return s
}

// Diff is all that a step would change; an empty one means that it is done.
type Diff []Change

func (d Diff) String() string {
	lines := make([]string, len(d))
	for i, c := range d {
		lines[i] = c.String()
	}
	return strings.Join(lines, ", ")
}

// Action is the work of a step, as plain data. R is what it may observe, W what
// it may change.
type Action[R, W any] interface {
	// Check says what Apply would change, and changes nothing.
	Check(ctx context.Context, r R) (Diff, error)
	// Apply makes it so. It may be called again after it was interrupted anywhere.
	Apply(ctx context.Context, w W) error
}

// Foreseer is an Action that can say what it would change where nothing of it
// can be looked at yet: on an API server that does not run, with a key that is not made.
type Foreseer interface {
	// Foresee is Check's answer as far as it can be known without a target.
	Foresee() Diff
}

// Step is a named action in a lane.
type Step[R, W any] struct {
	Name    string        // component/verb-object, unique in its lane
	Doc     string        // one line for people
	Needs   []Cell        // set by steps of any lane before this one begins
	Sets    []Cell        // set by this step's Check or Apply at the latest when it is done
	Wait    bool          // only waits: may be cancelled at any time without harm
	Timeout time.Duration // of Apply; 0: DefaultTimeout
	Do      Action[R, W]
}

// DefaultTimeout bounds the Apply of a step that names no other.
const DefaultTimeout = 5 * time.Minute

// Lane is an ordered list of steps on one target.
type Lane struct {
	Name  string
	steps []step
}

// step is a Step bound to its target.
type step struct {
	name, doc string
	needs     []Cell
	sets      []Cell
	wait      bool
	timeout   time.Duration
	check     func(context.Context) (Diff, error)
	apply     func(context.Context) error
	foresee   func() Diff // nil: the action cannot
	learn     func(Diff)  // nil: the target is what it is
}

// NewLane binds steps to the target that they observe through r and change through w.
func NewLane[R, W any](name string, r R, w W, steps ...Step[R, W]) Lane {
	lane := Lane{Name: name, steps: make([]step, len(steps))}
	for i, s := range steps {
		lane.steps[i] = step{
			name: s.Name, doc: s.Doc, needs: s.Needs, sets: s.Sets, wait: s.Wait, timeout: s.Timeout,
			check: func(ctx context.Context) (Diff, error) { return s.Do.Check(ctx, r) },
			apply: func(ctx context.Context) error { return s.Do.Apply(ctx, w) },
		}
		if s.Timeout == 0 {
			lane.steps[i].timeout = DefaultTimeout
		}
		if f, ok := s.Do.(Foreseer); ok {
			lane.steps[i].foresee = f.Foresee
		}
		if l, ok := any(r).(Learner); ok {
			lane.steps[i].learn = l.Learn
		}
	}
	return lane
}

// Steps names the lane's steps in order.
func (l Lane) Steps() []string {
	names := make([]string, len(l.steps))
	for i, s := range l.steps {
		names[i] = s.name
	}
	return names
}

// Docs are the steps' lines for people, in order.
func (l Lane) Docs() []string {
	docs := make([]string, len(l.steps))
	for i, s := range l.steps {
		docs[i] = s.doc
	}
	return docs
}

// Validate refuses lanes that cannot run to their end: a step name twice in a
// lane, a cell that no step sets or two steps set, or steps that wait for each other.
func Validate(lanes ...Lane) error {
	setBy := map[Cell]string{}
	laneNames := map[string]bool{}
	for _, l := range lanes {
		if laneNames[l.Name] {
			return fmt.Errorf("plan: two lanes are named %s", l.Name)
		}
		laneNames[l.Name] = true
		names := map[string]bool{}
		for _, s := range l.steps {
			if names[s.name] {
				return fmt.Errorf("plan: lane %s has two steps %s", l.Name, s.name)
			}
			names[s.name] = true
			for _, c := range s.sets {
				if other, ok := setBy[c]; ok {
					return fmt.Errorf("plan: %s is set by both %s and %s of lane %s", c.Name(), other, s.name, l.Name)
				}
				setBy[c] = s.name
			}
		}
	}
	// Walk all lanes as far as their cells allow: what is left waits for ever.
	set := map[Cell]bool{}
	at := make([]int, len(lanes))
	for moved := true; moved; {
		moved = false
		for i, l := range lanes {
			for at[i] < len(l.steps) && ready(l.steps[at[i]], set) {
				for _, c := range l.steps[at[i]].sets {
					set[c] = true
				}
				at[i]++
				moved = true
			}
		}
	}
	for i, l := range lanes {
		if at[i] == len(l.steps) {
			continue
		}
		s := l.steps[at[i]]
		for _, c := range s.needs {
			if !set[c] && !c.isSet() {
				return fmt.Errorf("plan: lane %s: %s would wait for %s for ever", l.Name, s.name, c.Name())
			}
		}
	}
	return nil
}

func ready(s step, set map[Cell]bool) bool {
	for _, c := range s.needs {
		if !set[c] && !c.isSet() {
			return false
		}
	}
	return true
}
