// Package finding is what kubewright sees wrong with a host or a cluster, in one
// form for all who look: preflight before the first change, a wait that fails,
// doctor on a live cluster. Every kind of finding has a stable code, which
// `kubewright explain CODE` knows, and a remedy that can be pasted into a shell.
package finding

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Code names one kind of finding. It is stable across releases, and never reused.
type Code string

// Severity says what a finding means for the work at hand.
type Severity string

// The severities, the gravest first.
const (
	Error   Severity = "error"   // the work cannot succeed, or the cluster is broken
	Warning Severity = "warning" // it works now, and will hurt
	Note    Severity = "note"    // good to know; also what was chosen, and why
)

// Finding is one thing that was seen.
type Finding struct {
	Code     Code     `json:"code"`
	Severity Severity `json:"severity"`
	Host     string   `json:"host,omitempty"`   // as the admin wrote it, "" if it is the cluster's
	Object   string   `json:"object,omitempty"` // unit, pod, path, or the other host of a pair
	Message  string   `json:"message"`          // what was seen, one sentence; never holds a secret
	Cause    string   `json:"cause,omitempty"`  // the probable one
	Remedy   string   `json:"remedy,omitempty"` // a command, or a sentence where none can do it
	Log      []string `json:"log,omitempty"`    // the last lines that matter, without secrets
	Ignored  bool     `json:"ignored,omitempty"`
}

func (f Finding) String() string {
	s := f.Message
	if f.Host != "" {
		s = f.Host + ": " + s
	}
	return s + " [" + string(f.Code) + "]"
}

// Advised is the finding with the likeliest cause and the first remedy that its
// code's explanation has, where it has none of its own. The words in capitals there
// become what the finding is about.
func (f Finding) Advised() Finding {
	e, _ := Explain(f.Code)
	if f.Cause == "" && len(e.Causes) > 0 {
		f.Cause = e.Causes[0]
	}
	if f.Remedy == "" && len(e.Remedy) > 0 {
		f.Remedy = f.about(e.Remedy[0])
	}
	return f
}

func (f Finding) about(remedy string) string {
	var words []string
	if f.Host != "" {
		words = append(words, "on the host:", "on "+f.Host+":", "on the control-plane host:", "on "+f.Host+":", "HOST", f.Host)
	}
	if namespace, pod, ok := strings.Cut(f.Object, "/"); ok {
		words = append(words, "NAMESPACE", namespace, "POD", pod)
	} else if f.Object != "" {
		words = append(words, "UNIT", f.Object, "NODE", f.Object)
	}
	return strings.NewReplacer(words...).Replace(remedy)
}

// Report is all that was seen.
type Report []Finding

// Ignore marks the findings of the codes that the admin wants to go on in spite of.
func (r Report) Ignore(codes ...Code) {
	for i := range r {
		r[i].Ignored = r[i].Ignored || slices.Contains(codes, r[i].Code)
	}
}

// Blocking are the errors that nobody ignores.
func (r Report) Blocking() Report {
	return slices.DeleteFunc(slices.Clone(r), func(f Finding) bool { return f.Severity != Error || f.Ignored })
}

// Sort puts the gravest first, then by host, code and object.
func (r Report) Sort() {
	order := []Severity{Error, Warning, Note}
	slices.SortStableFunc(r, func(a, b Finding) int {
		return cmp.Or(
			cmp.Compare(slices.Index(order, a.Severity), slices.Index(order, b.Severity)),
			cmp.Compare(a.Host, b.Host), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Object, b.Object))
	})
}

// Explanation is what is always true of a code.
type Explanation struct {
	Code    Code     `json:"code"`
	Title   string   `json:"title"`   // a few words
	Meaning string   `json:"meaning"` // what it is, and what happens if nothing is done
	Causes  []string `json:"causes"`  // the likely ones, the likeliest first
	Remedy  []string `json:"remedy"`  // commands, or sentences where none can do it
}

// Explanations are those of all codes, by code.
func Explanations() []Explanation {
	all := slices.Concat(preflightCodes(), healthCodes())
	slices.SortFunc(all, func(a, b Explanation) int { return cmp.Compare(a.Code, b.Code) })
	return all
}

// Explain returns the explanation of a code.
func Explain(c Code) (Explanation, bool) {
	all := Explanations()
	i := slices.IndexFunc(all, func(e Explanation) bool { return e.Code == c })
	if i < 0 {
		return Explanation{}, false
	}
	return all[i], true
}

// String is the explanation as `kubewright explain` prints it.
func (e Explanation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n\n%s\n", e.Code, e.Title, e.Meaning)
	for _, part := range []struct {
		head  string
		lines []string
	}{{"Likely causes", e.Causes}, {"What to do", e.Remedy}} {
		if len(part.lines) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n%s:\n", part.head)
		for _, l := range part.lines {
			fmt.Fprintf(&b, "  - %s\n", l)
		}
	}
	return b.String()
}

// Table is the list of codes as a Markdown page, which docs/findings.md holds.
func Table() string {
	var b strings.Builder
	b.WriteString("# Findings\n\n" +
		"Generated from bootstrap/finding by `go test ./bootstrap/finding -update`.\n\n" +
		"What `preflight`, a wait that fails and `doctor` tell has a stable code; `kubewright explain CODE` says all of this on a terminal.\n" +
		"`--ignore CODE` goes on in spite of one.\n\n" +
		"| code | what | what it means |\n|---|---|---|\n")
	for _, e := range Explanations() {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", e.Code, e.Title, e.Meaning)
	}
	return b.String()
}
