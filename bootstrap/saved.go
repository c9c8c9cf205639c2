package bootstrap

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// Request is what a verb was asked for. With hosts, bundle and cluster as they are
// it decides the plan.
type Request struct {
	Verb   string        `json:"verb"`             // init, join, remove, reset, undo, apply, restore or recover
	Spec   *spec.Cluster `json:"-"`                // of init, apply and restore
	File   string        `json:"file,omitempty"`   // Spec as YAML
	Hosts  []spec.Host   `json:"hosts"`            // in the order of the lanes
	ID     string        `json:"id,omitempty"`     // of a cluster that is to be made
	Force  bool          `json:"force,omitempty"`  // of remove, reset and restore; of recover: it is confirmed
	Undo   UndoRange     `json:"undo,omitzero"`    // of undo
	Remove []string      `json:"remove,omitempty"` // of apply: hosts that may leave the cluster
	// Timeout of the drain, of remove, reset, undo and apply; 0: DrainTimeout.
	Timeout time.Duration `json:"timeout,omitempty"`
	Via     string        `json:"via,omitempty"` // of remove: another host to reach the API through
}

// UndoRange says how far back undo goes: the last run if it is zero.
type UndoRange struct {
	Steps int    `json:"steps,omitempty"` // the last so many
	To    string `json:"to,omitempty"`    // back to before this step
	All   bool   `json:"all,omitempty"`
}

// String is the request as its command line begins.
func (r Request) String() string {
	words := []string{r.Verb}
	for _, h := range r.Hosts {
		words = append(words, h.Name)
	}
	return strings.Join(words, " ")
}

// savedKind heads a saved plan.
const savedKind = "Plan"

// Saved is a plan that is kept: what was asked, what it was made from, and what
// it would do.
type Saved struct {
	APIVersion string          `json:"apiVersion"`
	Kind       string          `json:"kind"`
	Made       time.Time       `json:"made"`
	By         string          `json:"by"` // user@workstation
	Kubewright string          `json:"kubewright"`
	Request    Request         `json:"request"`
	Bundle     string          `json:"bundle,omitempty"` // digest
	Seen       Guards          `json:"seen"`             // what it depends on
	Steps      []plan.Foreseen `json:"steps"`
}

// Guards are what a plan depends on, by name: facts of hosts, the cluster's state.
type Guards map[string]string

// Changes counts what the plan would change, waits aside.
func (s *Saved) Changes() int {
	n := 0
	for _, step := range s.Steps {
		for _, c := range step.Diff {
			if c.Kind != plan.ObjectWait {
				n++
			}
		}
	}
	return n
}

// Encode writes the plan as JSON.
func (s *Saved) Encode(w io.Writer) error {
	s.APIVersion, s.Kind = spec.APIVersion, savedKind
	if s.Request.Spec != nil {
		text, err := spec.Marshal(s.Request.Spec)
		if err != nil {
			return err
		}
		s.Request.File = string(text)
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(s)
}

// DecodePlan reads what Encode wrote.
func DecodePlan(r io.Reader, name string) (*Saved, error) {
	refuse := func(err error) error {
		return fault.New(fault.Usage, "make one with `kubewright plan ... -o plan.json`", "%s is no saved plan: %w", name, err)
	}
	var s Saved
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return nil, refuse(err)
	}
	if s.APIVersion != spec.APIVersion || s.Kind != savedKind {
		return nil, refuse(fmt.Errorf("it is a %q of %q", s.Kind, s.APIVersion))
	}
	if s.Request.File != "" {
		var err error
		if s.Request.Spec, err = spec.Load(strings.NewReader(s.Request.File), name); err != nil {
			return nil, err
		}
	}
	return &s, nil
}

// Stale tells what moved since the plan was made, as a fault for each host that it
// is about; nil if now would be the same plan.
func (s *Saved) Stale(now *Saved) error {
	moved := map[string][]string{} // what, by host or lane; "" is for all
	add := func(where, format string, args ...any) {
		moved[where] = append(moved[where], fmt.Sprintf(format, args...))
	}
	if s.Kubewright != now.Kubewright {
		add("", "the plan was made by kubewright %s, this is %s", s.Kubewright, now.Kubewright)
	}
	if s.Bundle != now.Bundle {
		add("", "the bundle was %s, and is %s", orAbsent(s.Bundle), orAbsent(now.Bundle))
	}
	both := maps.Clone(s.Seen)
	if both == nil {
		both = Guards{}
	}
	maps.Copy(both, now.Seen)
	for _, name := range slices.Sorted(maps.Keys(both)) {
		if was, is := s.Seen[name], now.Seen[name]; was != is {
			host, what, _ := strings.Cut(name, ": ")
			add(host, "%s was %s, and is %s", what, orAbsent(was), orAbsent(is))
		}
	}
	for _, f := range union(s.Steps, now.Steps) {
		was, is := s.changes(f.Lane, f.Step), now.changes(f.Lane, f.Step)
		for _, c := range is {
			if !slices.Contains(was, c) {
				add(f.Lane, "%s would now %s", f.Step, c)
			}
		}
		for _, c := range was {
			if !slices.Contains(is, c) {
				add(f.Lane, "%s would no longer %s", f.Step, c)
			}
		}
	}
	var faults []error
	for _, where := range slices.Sorted(maps.Keys(moved)) {
		list := moved[where]
		if more := len(list) - maxMoved; more > 0 {
			list = append(slices.Clone(list[:maxMoved]), fmt.Sprintf("and %d more", more))
		}
		f := fault.New(fault.PlanStale, "make a new plan, read it, and apply that one", "%s", strings.Join(list, "; "))
		f.Host, f.Step = where, "apply-plan"
		faults = append(faults, f)
	}
	return errors.Join(faults...)
}

// maxMoved is how much of what moved a message tells of one host.
const maxMoved = 6

func orAbsent(s string) string {
	if s == "" {
		return "absent"
	}
	return s
}

// union are the steps of two plans, those of the first in its order.
func union(was, is []plan.Foreseen) []plan.Foreseen {
	all := slices.Clone(was)
	for _, f := range is {
		if !slices.ContainsFunc(was, func(o plan.Foreseen) bool { return o.Lane == f.Lane && o.Step == f.Step }) {
			all = append(all, f)
		}
	}
	return all
}

// changes are what of a step's diff has to be the same for a plan to hold: not what
// is only waited for.
func (s *Saved) changes(lane, step string) []string {
	i := slices.IndexFunc(s.Steps, func(f plan.Foreseen) bool { return f.Lane == lane && f.Step == step })
	if i < 0 {
		return nil
	}
	var words []string
	for _, c := range s.Steps[i].Diff {
		if c.Kind != plan.ObjectWait {
			words = append(words, essence(c))
		}
	}
	return words
}

// essence is a change with the digests of what it begins and ends with.
func essence(c plan.Change) string {
	w := string(c.Verb) + " " + c.Object
	for _, s := range []*plan.State{c.Before, c.After} {
		if s != nil && s.Digest != "" {
			w += " " + s.Digest[:min(len(s.Digest), len("sha256:")+12)]
		}
	}
	return w
}

// Allow lets a run do what the plan says and nothing else: see plan.Options. A unit
// that fell over meanwhile, as controllers do when their API server is restarted, may
// be started again: nothing else about it is changed.
func (s *Saved) Allow(lane, step string, diff plan.Diff) error {
	planned := map[plan.Object]bool{}
	for _, f := range s.Steps {
		if f.Lane != lane || f.Step != step {
			continue
		}
		for _, c := range f.Diff {
			planned[plan.Object{Kind: c.Kind, Name: c.Object}] = true
		}
	}
	for _, c := range diff {
		again := c.Kind == plan.ObjectUnit && c.Verb == plan.Start
		if c.Kind != plan.ObjectWait && !again && !planned[plan.Object{Kind: c.Kind, Name: c.Object}] {
			return fault.New(fault.PlanStale, "make a new plan: what was applied so far is part of it", "the plan does not have this: %s", c)
		}
	}
	return nil
}

// HostGuards are the facts of a host that a plan depends on: not the boot, nor the
// interfaces and routes that come and go with pods.
func HostGuards(t Target) (Guards, error) {
	g := Guards{}
	guard := func(name, format string, args ...any) { g[t.Wish.Name+": "+name] = fmt.Sprintf(format, args...) }
	facts := t.Facts
	kept := map[string]bool{}
	for _, i := range facts.Interfaces {
		addrs := slices.DeleteFunc(slices.Clone(i.Addrs), func(p netip.Prefix) bool { return p.Addr().IsLinkLocalUnicast() })
		if len(addrs) == 0 || ofPods(i.Name) {
			continue
		}
		kept[i.Name] = true
		guard("interface "+i.Name, "%v with MTU %d", addrs, i.MTU)
	}
	for _, r := range facts.Routes {
		if kept[r.Dev] {
			guard("route to "+r.To.String(), "by %s", strings.TrimSpace(strings.TrimPrefix(r.Gateway.String(), "invalid IP")+" "+r.Dev))
		}
	}
	if t.Claim != nil {
		guard("cluster", "%s %s", t.Claim.Cluster, t.Claim.ClusterID)
	}
	facts.BootID, facts.Interfaces, facts.Routes = "", nil, nil
	text, err := json.Marshal(facts)
	if err != nil {
		return nil, err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(text, &fields); err != nil {
		return nil, err
	}
	for name, value := range fields {
		guard(name, "%s", value)
	}
	return g, nil
}

// ofPods tells the interfaces of the pod network.
func ofPods(name string) bool { return name == vxlanDevice || name == "cni0" }
