package report

import (
	"cmp"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

var (
	//go:embed page.html.tmpl
	pageText string
	//go:embed page.css
	style string
)

// Render writes the page of what happened until now.
func (r *Recorder) Render(w io.Writer) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	t, err := template.New("page").Funcs(template.FuncMap{
		"took": took, "gigabytes": gigabytes, "number": number,
	}).Parse(pageText)
	if err != nil {
		return fmt.Errorf("the report's template: %w", err)
	}
	if err := t.Execute(w, r.view()); err != nil {
		return fmt.Errorf("render the report: %w", err)
	}
	return nil
}

// view is what the template shows.
type view struct {
	Run
	Style    template.CSS
	Title    string
	Verdict  verdict
	When     string
	Tiles    []tile
	Faults   []faultView
	Notices  []string
	Looked   bool // somebody looked for findings
	Charts   []chart
	Waits    []waitView
	Chain    []chainView
	ChainSum string
	Lanes    []laneView
	Maps     []topology

	began, end time.Time
	lanes      []*lane
	onChain    map[plan.Ref]bool
}

// verdict is how the run stands, as a style and in words.
type verdict struct{ Class, Word, Text string }

type tile struct{ Number, Text string }

type faultView struct {
	Host, Step, Message, More, Code, Remedy string
	Exit                                    int
	Why                                     *finding.Finding // what was found out about it, nil: nothing
}

type waitView struct {
	wait
	Lane, Step string
	Cell       string
	By         plan.Ref
	Took       string
	Over       bool
}

type chainView struct {
	Lane, Step, Doc, Took string
	Class                 string
	Share                 float64 // of 100
}

type laneView struct {
	Name, Summary string
	Steps         []stepView
}

type stepView struct {
	ID                  string
	Name, Doc, Class    string
	Outcome, Took, From string
	Waited              string
	Changes             plan.Diff
	Done                bool // Changes were made
	Said                []string
}

func (r *Recorder) view() *view {
	v := &view{Run: r.run, Style: template.CSS(style), began: r.began, end: r.last, lanes: r.lanes,
		onChain: map[plan.Ref]bool{}, Looked: r.run.Findings != nil}
	v.Findings = slices.Clone(v.Findings)
	v.Findings.Sort()
	v.When = r.began.UTC().Format("2 January 2006, 15:04:05 UTC")
	links := chain(r.lanes, v.until)
	for _, l := range links {
		v.onChain[plan.Ref{Lane: l.lane.name, Step: l.step.name}] = true
	}
	count := r.count()
	v.Verdict = r.verdict(count)
	v.Title = strings.TrimSpace("kubewright "+v.Verb+" "+v.Cluster) + ": " + v.Verdict.Word
	v.Tiles = tiles(r, count)
	for _, e := range fault.Each(r.err) {
		v.Faults = append(v.Faults, newFault(e))
	}
	for _, n := range r.said {
		v.Notices = append(v.Notices, took(n.at.Sub(r.began))+": "+n.text)
	}
	if len(r.lanes) > 0 {
		for _, l := range layouts() {
			v.Charts = append(v.Charts, draw(l, v))
		}
	}
	if len(v.Hosts) > 0 {
		for _, l := range layouts() {
			v.Maps = append(v.Maps, drawHosts(l, v.Run))
		}
	}
	v.Waits = slices.DeleteFunc(v.waits(), func(w waitView) bool { return v.until(w.to).Sub(w.from) < time.Millisecond })
	slices.SortStableFunc(v.Waits, func(a, b waitView) int {
		return cmp.Compare(v.until(b.to).Sub(b.from), v.until(a.to).Sub(a.from))
	})
	v.Chain, v.ChainSum = v.chain(links)
	for i, l := range r.lanes {
		v.Lanes = append(v.Lanes, v.lane(i, l))
	}
	return v
}

// until is a moment, or the run's end if it has not come.
func (v *view) until(t time.Time) time.Time {
	if t.IsZero() {
		return v.end
	}
	return t
}

// count is how many steps there are of each class.
func (r *Recorder) count() map[string]int {
	n := map[string]int{}
	for _, l := range r.lanes {
		for _, s := range l.steps {
			n[s.class()]++
		}
	}
	return n
}

func (r *Recorder) verdict(count map[string]int) verdict {
	total := r.last.Sub(r.began)
	switch {
	case !r.ended:
		return verdict{"stop", "not ended", "The run had not ended when this page was written: it is under way, or was killed. The same command goes on from there."}
	case fault.CodeOf(r.err) == fault.Interrupted:
		return verdict{"stop", "interrupted", "It was stopped after " + took(total) + ". The same command goes on from there."}
	case r.err != nil && len(r.lanes) == 0:
		return verdict{"fail", "refused", "It ended after " + took(total) + ", before the first step: nothing was changed."}
	case r.err != nil:
		return verdict{"fail", "failed", "It ended after " + took(total) + ". The same command goes on from there when the fault is mended."}
	case count["change"] == 0:
		return verdict{"good", "nothing to change", "Everything was as wished already; checked in " + took(total) + "."}
	default:
		return verdict{"good", "done", "All steps came to their end, and what they changed was checked again, in " + took(total) + "."}
	}
}

func tiles(r *Recorder, count map[string]int) []tile {
	var changed int
	var waited time.Duration
	for _, l := range r.lanes {
		for _, s := range l.steps {
			if s.kind == plan.Applied {
				changed += len(s.changes())
			}
			for _, w := range s.waits {
				if !w.to.IsZero() {
					waited += w.to.Sub(w.from)
				}
			}
		}
	}
	all := []tile{{took(r.last.Sub(r.began)), "from start to end"}}
	if n := len(r.run.Hosts); n > 0 {
		all = append(all, tile{fmt.Sprint(n), plural(n, "host", "hosts")})
	}
	for _, t := range []struct {
		n    int
		text string
		show bool
	}{
		{count["change"], plural(count["change"], "step changed something", "steps changed something"), len(r.lanes) > 0},
		{changed, plural(changed, "change", "changes"), changed > 0},
		{count["watch"], plural(count["watch"], "step watched until ready", "steps watched until ready"), count["watch"] > 0},
		{count["same"], plural(count["same"], "step found all as wished", "steps found all as wished"), count["same"] > 0},
		{count["fail"], plural(count["fail"], "step failed", "steps failed"), count["fail"] > 0},
		{count["stop"] + count["none"], plural(count["stop"]+count["none"], "step was not done", "steps were not done"), count["stop"]+count["none"] > 0},
	} {
		if t.show {
			all = append(all, tile{fmt.Sprint(t.n), t.text})
		}
	}
	return all
}

func newFault(err error) faultView {
	f := faultView{Code: string(fault.CodeOf(err)), Exit: fault.Exit(err), Remedy: fault.RemedyOf(err)}
	message := err.Error()
	if at, ok := err.(*fault.Fault); ok {
		f.Host, f.Step, message = at.Host, at.Step, at.Err.Error()
	}
	f.Message, f.More, _ = strings.Cut(message, "\n")
	if why := (*finding.Diagnosed)(nil); errors.As(err, &why) {
		f.Why, f.More = &why.Finding, "" // its log is the finding's, without secrets
		if why.Finding.Remedy != "" {
			f.Remedy = why.Finding.Remedy
		}
	}
	return f
}

// waits are all of them, by lane and step.
func (v *view) waits() []waitView {
	var all []waitView
	for _, l := range v.lanes {
		for _, s := range l.steps {
			for _, w := range s.waits {
				all = append(all, waitView{wait: w, Lane: l.name, Step: s.name, Cell: w.cell, By: w.by,
					Took: took(v.until(w.to).Sub(w.from)), Over: !w.to.IsZero() && !w.cut})
			}
		}
	}
	return all
}

// smallShare is the part of the whole, in percent, below which steps of the longest
// chain are told together.
const smallShare = 1

func (v *view) chain(links []link) ([]chainView, string) {
	if len(links) == 0 {
		return nil, ""
	}
	total := v.end.Sub(v.began)
	var all []chainView
	add := func(c chainView, d time.Duration) {
		c.Took = took(d)
		if total > 0 {
			c.Share = round(100 * float64(d) / float64(total))
		}
		all = append(all, c)
	}
	add(chainView{Lane: "all hosts", Doc: "connect, look at them, make the plan", Class: "same"}, links[0].step.began.Sub(v.began))
	var small time.Duration
	var shorter int
	for _, l := range links {
		d := l.step.took(v.end)
		if total > 0 && 100*float64(d)/float64(total) < smallShare {
			small, shorter = small+d, shorter+1
			continue
		}
		add(chainView{Lane: l.lane.name, Step: l.step.name, Doc: l.step.doc, Class: l.step.class()}, d)
	}
	if shorter > 0 {
		add(chainView{Doc: number(shorter, "shorter step", "shorter steps"), Class: "same"}, small)
	}
	last := links[len(links)-1].step
	return all, took(v.until(last.ended).Sub(v.began))
}

func (v *view) lane(i int, l *lane) laneView {
	lv := laneView{Name: l.name}
	changed, unchanged := 0, 0
	for j, s := range l.steps {
		sv := stepView{ID: fmt.Sprintf("s%d-%d", i, j), Name: s.name, Doc: s.doc, Class: s.class(), Outcome: s.outcome(), Said: s.said, Changes: s.changes(), Done: s.kind == plan.Applied}
		if !s.began.IsZero() {
			sv.From, sv.Took = took(s.began.Sub(v.began)), took(s.took(v.end))
		}
		var waited time.Duration
		var cells []string
		for _, w := range s.waits {
			waited += v.until(w.to).Sub(w.from)
			cells = append(cells, w.cell)
		}
		if len(cells) > 0 {
			sv.Waited = took(waited) + " for " + strings.Join(cells, ", ")
		}
		if s.kind == plan.Applied {
			changed += len(sv.Changes)
		}
		if s.kind == plan.Skipped {
			unchanged++
		}
		lv.Steps = append(lv.Steps, sv)
	}
	lv.Summary = number(len(l.steps), "step", "steps") + ", " + number(changed, "change", "changes")
	if unchanged > 0 {
		lv.Summary += fmt.Sprintf(", %d as wished already", unchanged)
	}
	return lv
}

// class is the style of a step, by what became of it.
func (s *step) class() string {
	switch {
	case s.kind == plan.Failed:
		return "fail"
	case s.kind == plan.Canceled:
		return "stop"
	case s.kind == plan.Skipped:
		return "same"
	case s.kind == plan.Applied && len(s.changes()) == 0:
		return "watch"
	case s.kind == plan.Applied:
		return "change"
	case !s.began.IsZero():
		return "stop"
	default:
		return "none"
	}
}

// outcome says in words what class shows.
func (s *step) outcome() string {
	switch s.class() {
	case "fail":
		return "failed"
	case "same":
		return "as wished"
	case "watch":
		return "came true"
	case "change":
		return "changed"
	case "none":
		return "not begun"
	}
	if s.kind == plan.Canceled {
		return "stopped"
	}
	return "under way"
}

// changes are what was changed, without what was only waited for.
func (s *step) changes() plan.Diff {
	return slices.DeleteFunc(slices.Clone(s.diff), func(c plan.Change) bool { return c.Verb == plan.Await })
}

func (s *step) took(end time.Time) time.Duration {
	switch {
	case s.began.IsZero():
		return 0
	case s.ended.IsZero():
		return end.Sub(s.began)
	default:
		return s.ended.Sub(s.began)
	}
}

func by(r plan.Ref) string {
	if r == (plan.Ref{}) {
		return ""
	}
	return "; " + r.Step + " of " + r.Lane + " sets it"
}

// took writes a duration as people read it.
func took(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	default:
		d = d.Round(time.Second)
		return fmt.Sprintf("%d min %02d s", int(d.Minutes()), int(d.Seconds())%60)
	}
}

// elapsed writes a round time on an axis.
func elapsed(d time.Duration) string {
	switch {
	case d == 0:
		return "0"
	case d < time.Minute:
		return fmt.Sprintf("%g s", d.Seconds())
	default:
		return fmt.Sprintf("%g min", d.Minutes())
	}
}

func gigabytes(n uint64) string { return fmt.Sprintf("%.1f GB", float64(n)/1e9) }

func number(n int, one, many string) string { return fmt.Sprintf("%d %s", n, plural(n, one, many)) }

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// fit cuts a text to at most n characters.
func fit(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

func points(xy ...float64) string {
	var b strings.Builder
	for i := 0; i < len(xy); i += 2 {
		fmt.Fprintf(&b, "%g,%g ", round(xy[i]), round(xy[i+1]))
	}
	return strings.TrimSpace(b.String())
}
