package ui

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// Plain writes a line per step that changed something, waits or fails.
type Plain struct {
	w       io.Writer
	quarter map[string]int64 // by lane, of the last transfer line
}

// NewPlain returns a renderer for pipes and logs.
func NewPlain(w io.Writer) *Plain { return &Plain{w: w, quarter: map[string]int64{}} }

// Begin has nothing to show.
func (p *Plain) Begin([]string) {}

func (p *Plain) line(e plan.Event, what, detail string) {
	line := fmt.Sprintf("%s %-12s %-9s %-26s %s", e.Time.Format(time.TimeOnly), e.Lane, what, e.Step, detail)
	fmt.Fprintln(p.w, strings.TrimRight(line, " "))
}

// Event writes what is worth a line: not steps with nothing to do, and of a
// transfer only every quarter.
func (p *Plain) Event(e plan.Event) {
	switch e.Kind {
	case plan.Waiting:
		p.line(e, "waiting", "for "+e.Text)
	case plan.Progress:
		if e.Total > 0 {
			quarter := e.Bytes * 4 / e.Total
			if p.quarter[e.Lane] == quarter {
				return
			}
			p.quarter[e.Lane] = quarter
		}
		p.line(e, "progress", progressText(e))
	case plan.Applied:
		p.quarter[e.Lane] = 0
		p.line(e, "applied", strings.TrimSpace(seconds(e.Took)+"  "+changes(e.Diff)))
	case plan.Failed:
		p.line(e, "failed", firstLine(e.Err.Error()))
	case plan.Canceled:
		p.line(e, "canceled", "")
	}
}

// changes counts a diff, or shows its only change. What was waited for has been
// told as progress.
func changes(d plan.Diff) string {
	if len(d) == 1 && d[0].Verb == plan.Await {
		return ""
	}
	if len(d) == 1 {
		return d[0].String()
	}
	return fmt.Sprintf("%d changes", len(d))
}

func (p *Plain) Notice(text string) { fmt.Fprintln(p.w, text) }

func (p *Plain) Close(s Summary) { fmt.Fprintln(p.w, s) }

// Line is one JSON line: an event, a notice or the summary, by Kind.
type Line struct {
	Time    time.Time     `json:"time"`
	Kind    string        `json:"kind"` // a plan.Kind, "notice" or "summary"
	Lane    string        `json:"lane,omitempty"`
	Step    string        `json:"step,omitempty"`
	Text    string        `json:"text,omitempty"`
	For     *plan.Ref     `json:"for,omitempty"` // the step that ends a wait
	Changes []plan.Change `json:"changes,omitempty"`
	Bytes   int64         `json:"bytes,omitempty"`
	Total   int64         `json:"total,omitempty"`
	TookMS  int64         `json:"took_ms,omitempty"`
	Error   *Error        `json:"error,omitempty"`
	Summary *Totals       `json:"summary,omitempty"`
}

// Error is a failure as a program reads it.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"`
	Exit    int    `json:"exit"`
	// Finding is the probable cause, if one was found.
	Finding *finding.Finding `json:"finding,omitempty"`
}

// Totals are the counts of a run.
type Totals struct {
	Hosts    int   `json:"hosts"`
	Applied  int   `json:"applied"`
	Skipped  int   `json:"skipped"`
	Failed   int   `json:"failed"`
	Canceled int   `json:"canceled"`
	TookMS   int64 `json:"took_ms"`
}

// JSONLines writes a Line per event.
type JSONLines struct {
	e   *json.Encoder
	now func() time.Time
}

// NewJSONLines returns a renderer for programs; now is the clock.
func NewJSONLines(w io.Writer, now func() time.Time) *JSONLines {
	return &JSONLines{e: json.NewEncoder(w), now: now}
}

func (j *JSONLines) write(l Line) {
	l.Time = l.Time.UTC().Truncate(time.Millisecond)
	j.e.Encode(l) //nolint:errcheck // the reader left: the run goes on
}

// Begin has nothing to say: every line names its lane.
func (j *JSONLines) Begin([]string) {}

func (j *JSONLines) Event(e plan.Event) {
	l := Line{
		Time: e.Time, Kind: string(e.Kind), Lane: e.Lane, Step: e.Step, Text: e.Text, Changes: brief(e.Diff),
		Bytes: e.Bytes, Total: e.Total, TookMS: e.Took.Milliseconds(), Error: jsonError(e.Err),
	}
	if e.Kind == plan.Waiting {
		l.For = &e.For
	}
	j.write(l)
}

// brief leaves out the states: events tell what changes, plans tell into what.
func brief(d plan.Diff) plan.Diff {
	d = slices.Clone(d)
	for i := range d {
		d[i].Before, d[i].After, d[i].Brings = nil, nil, nil
	}
	return d
}

func (j *JSONLines) Notice(text string) { j.write(Line{Time: j.now(), Kind: "notice", Text: text}) }

func (j *JSONLines) Close(s Summary) {
	j.write(Line{Time: j.now(), Kind: "summary", Text: s.String(), Error: jsonError(s.Err), Summary: &Totals{
		Hosts: s.Hosts, Applied: s.Count.Applied, Skipped: s.Count.Skipped, Failed: s.Count.Failed,
		Canceled: s.Count.Canceled, TookMS: s.Took.Milliseconds(),
	}})
}

func jsonError(err error) *Error {
	if err == nil {
		return nil
	}
	e := &Error{Code: string(fault.CodeOf(err)), Message: err.Error(), Remedy: fault.RemedyOf(err), Exit: fault.Exit(err)}
	var why *finding.Diagnosed
	if errors.As(err, &why) {
		e.Message, e.Finding = firstLine(e.Message), &why.Finding
	}
	return e
}
