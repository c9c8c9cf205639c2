package report

import (
	"math"
	"slices"
	"time"

	"github.com/kubewright/kubewright/bootstrap/plan"
)

// layout is the measure of a drawing, in pixels of its own. Every drawing is made
// twice, for wide and for narrow pages, because text does not shrink with a picture.
type layout struct {
	name   string // suffix of ids
	width  float64
	labels float64 // width of the column of lane names; 0: names stand above the lanes
	row    float64 // height of a lane
	track  float64 // where in it the bars begin
	ticks  int     // at most
	cards  int     // hosts side by side
}

func layouts() []layout {
	return []layout{
		{name: "wide", width: 1040, labels: 132, row: 44, track: 12, ticks: 10, cards: 4},
		{name: "narrow", width: 336, row: 52, track: 20, ticks: 4, cards: 1},
	}
}

// Measures of all charts.
const (
	axisHeight = 26
	barHeight  = 22
	charWidth  = 6.4 // of a bar's text
)

// chart is the run as a picture: a lane per row, time from left to right.
type chart struct {
	layout
	Height float64
	Ticks  []tick
	Rows   []chartRow
	Arrows []arrow
}

func (l layout) Name() string   { return l.name }
func (l layout) Width() float64 { return l.width }

type tick struct {
	X    float64
	Text string
}

type chartRow struct {
	Name  string
	Text  float64 // y of its name
	Track float64 // y of its bars
	Bars  []bar
}

// bar is a step at work, a wait, or the look at the hosts.
type bar struct {
	X, W  float64
	Class string
	Label string // "" if it does not fit
	Title string
	Chain bool // it is of the longest chain
}

func (b bar) TextX() float64 { return b.X + 5 }

// Inside is where text stands in a row's bars, Below where the mark of the longest chain lies.
func (r chartRow) Inside() float64 { return r.Track + 15 }
func (r chartRow) Below() float64  { return r.Track + barHeight + 2 }

// arrow leads from the end of a step to those who waited for it.
type arrow struct {
	X, From, To float64
	Down        bool
}

// draw makes the chart of a run.
func draw(l layout, v *view) chart {
	c := chart{layout: l}
	left, right := l.labels, l.width-2
	total := v.end.Sub(v.began)
	x := func(at time.Time) float64 {
		if total <= 0 {
			return left
		}
		return left + (right-left)*float64(at.Sub(v.began))/float64(total)
	}
	every := tickEvery(total, l.ticks)
	for at := time.Duration(0); at <= total && every > 0; at += every {
		t := tick{X: round(x(v.began.Add(at))), Text: elapsed(at)}
		if right-t.X < charWidth*float64(len(t.Text)) && at > 0 {
			break
		}
		c.Ticks = append(c.Ticks, t)
	}
	tracks := map[string]float64{}
	for i, ln := range v.lanes {
		row := chartRow{Name: fit(ln.name, 18), Track: axisHeight + float64(i)*l.row + l.track}
		row.Text = row.Track + barHeight/2 + 4
		if l.labels == 0 {
			row.Text = row.Track - 6
		}
		tracks[ln.name] = row.Track
		for _, s := range ln.steps {
			for _, w := range s.waits {
				row.Bars = append(row.Bars, c.bar(x(w.from), x(v.until(w.to)), "wait", "waits for "+w.cell,
					s.name+" waits for "+w.cell+", "+took(v.until(w.to).Sub(w.from))+by(w.by)))
			}
			if s.began.IsZero() {
				continue
			}
			b := c.bar(x(s.began), x(v.until(s.ended)), s.class(), s.name, s.name+": "+s.outcome()+", "+took(s.took(v.end)))
			b.Chain = v.onChain[plan.Ref{Lane: ln.name, Step: s.name}]
			row.Bars = append(row.Bars, b)
		}
		c.Rows = append(c.Rows, row)
	}
	for _, w := range v.waits() {
		from, ok := tracks[w.by.Lane]
		if to := tracks[w.Lane]; ok && w.Over && w.by.Lane != w.Lane {
			a := arrow{X: round(x(w.to)), From: from + barHeight, To: to, Down: true}
			if to < from {
				a = arrow{X: a.X, From: from, To: to + barHeight}
			}
			c.Arrows = append(c.Arrows, a)
		}
	}
	c.Height = axisHeight + float64(len(c.Rows))*l.row + 8
	return c
}

func (c chart) bar(from, to float64, class, label, title string) bar {
	b := bar{X: round(from), W: round(max(1.5, to-from-1)), Class: class, Title: title}
	if b.W >= charWidth*float64(len(label))+8 {
		b.Label = label
	}
	return b
}

// Tip is the arrow's head.
func (a arrow) Tip() string {
	y := a.To - 6
	if !a.Down {
		y = a.To + 6
	}
	return points(a.X-4, y, a.X+4, y, a.X, a.To)
}

// tickEvery is the distance of ticks that people can count by.
func tickEvery(total time.Duration, most int) time.Duration {
	for _, d := range []time.Duration{
		10 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 500 * time.Millisecond,
		time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 20 * time.Second, 30 * time.Second,
		time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 30 * time.Minute, time.Hour,
	} {
		if int(total/d) < most {
			return d
		}
	}
	return total / time.Duration(most)
}

func round(x float64) float64 { return math.Round(x*10) / 10 }

// chain is the longest chain of a run, the first step first: the last step, before it
// the one that ended its wait, or else the one before it in its lane, and so on. To
// make the run shorter, one of these must take less.
func chain(lanes []*lane, until func(time.Time) time.Time) []link {
	var last link
	for _, l := range lanes {
		for i, s := range l.steps {
			if s.began.IsZero() || s.kind == plan.Canceled {
				continue
			}
			candidate := link{lane: l, at: i, step: s}
			failed := s.kind == plan.Failed
			if last.step == nil || failed && last.step.kind != plan.Failed ||
				failed == (last.step.kind == plan.Failed) && until(s.ended).After(until(last.step.ended)) {
				last = candidate
			}
		}
	}
	var links []link
	seen := map[*step]bool{}
	for l := last; l.step != nil && !seen[l.step]; l = l.before(lanes) {
		seen[l.step] = true
		links = append(links, l)
	}
	slices.Reverse(links)
	return links
}

// link is a step of the longest chain.
type link struct {
	lane *lane
	at   int
	step *step
}

func (l link) before(lanes []*lane) link {
	if n := len(l.step.waits); n > 0 {
		by := l.step.waits[n-1].by
		for _, other := range lanes {
			for i, s := range other.steps {
				if other.name == by.Lane && s.name == by.Step && !s.began.IsZero() {
					return link{lane: other, at: i, step: s}
				}
			}
		}
	}
	if l.at == 0 {
		return link{}
	}
	return link{lane: l.lane, at: l.at - 1, step: l.lane.steps[l.at-1]}
}
