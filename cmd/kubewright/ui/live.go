package ui

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/kubewright/kubewright/bootstrap/plan"
)

// refresh is how often the lines are painted while nothing happens: often enough
// for the elapsed time to run.
const refresh = 100 * time.Millisecond

// Live keeps one line per lane at the bottom of a terminal.
type Live struct {
	w     io.Writer
	width func() int
	color bool
	now   func() time.Time

	mu      sync.Mutex
	lanes   []*lane // in the order of appearance
	painted int     // lines that stand on the screen now
	ticker  *time.Ticker
	closed  chan struct{}
}

// lane is what its line says.
type lane struct {
	name             string
	step             string
	text             string
	since            time.Time // of the step
	began, ended     time.Time
	applied, skipped int
	state            plan.Kind // Done, Failed, Canceled, or what the step is at
}

// NewLive returns a renderer for a terminal, which width gives the columns of.
func NewLive(w io.Writer, width func() int, color bool, now func() time.Time) *Live {
	l := &Live{w: w, width: width, color: color, now: now, ticker: time.NewTicker(refresh), closed: make(chan struct{})}
	go func() {
		for {
			select {
			case <-l.ticker.C:
				l.mu.Lock()
				l.paint()
				l.mu.Unlock()
			case <-l.closed:
				return
			}
		}
	}()
	return l
}

func (l *Live) lane(name string) *lane {
	for _, x := range l.lanes {
		if x.name == name {
			return x
		}
	}
	x := &lane{name: name, began: l.now(), since: l.now()}
	l.lanes = append(l.lanes, x)
	return x
}

// Begin gives every lane its line.
func (l *Live) Begin(lanes []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range lanes {
		l.lane(name)
	}
}

func (l *Live) Event(e plan.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.lane(e.Lane)
	if e.Step != x.step && e.Step != "" {
		x.step, x.since, x.text = e.Step, e.Time, ""
	}
	x.state = e.Kind
	switch e.Kind {
	case plan.Waiting:
		x.text = "waits for " + e.Text
	case plan.Progress:
		x.text = progressText(e)
	case plan.Applied:
		x.applied++
		x.text = ""
	case plan.Skipped:
		x.skipped++
		x.text = ""
	case plan.Done, plan.Failed, plan.Canceled:
		x.ended = e.Time
		if e.Err != nil {
			x.text = firstLine(e.Err.Error())
		}
	}
}

// Notice prints a line above the lanes.
func (l *Live) Notice(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.erase()
	fmt.Fprintln(l.w, text)
	l.paint()
}

// Close leaves the lanes' last lines and the summary.
func (l *Live) Close(s Summary) {
	l.ticker.Stop()
	close(l.closed)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.paint()
	fmt.Fprintln(l.w, s)
}

// erase moves to the first painted line and clears to the end of the screen.
func (l *Live) erase() {
	if l.painted > 0 {
		fmt.Fprintf(l.w, "\r\x1b[%dA\x1b[J", l.painted)
		l.painted = 0
	}
}

// paint writes all lines in one write, so that a terminal shows no half of them.
func (l *Live) paint() {
	var b strings.Builder
	if l.painted > 0 {
		fmt.Fprintf(&b, "\r\x1b[%dA", l.painted)
	}
	width := max(l.width(), 20)
	names := 0
	for _, x := range l.lanes {
		names = max(names, utf8.RuneCountInString(x.name))
	}
	for _, x := range l.lanes {
		mark, style, text := x.describe(l.now())
		line := fmt.Sprintf("%s %-*s  %s", mark, names, x.name, text)
		if utf8.RuneCountInString(line) > width-1 {
			line = string([]rune(line)[:width-2]) + "…"
		}
		if l.color && style != "" {
			rest := strings.TrimPrefix(line, mark)
			line = style + mark + reset + rest
		}
		b.WriteString(line + "\x1b[K\n")
	}
	l.painted = len(l.lanes)
	io.WriteString(l.w, b.String()) //nolint:errcheck // a terminal that is gone
}

// describe returns a lane's mark, its colour, and what it says.
func (x *lane) describe(now time.Time) (mark, style, text string) {
	switch x.state {
	case plan.Done:
		counts := fmt.Sprintf("%d applied, %d unchanged", x.applied, x.skipped)
		if x.applied == 0 {
			counts = "nothing to change"
		}
		return "✓", green, fmt.Sprintf("%s  %s", counts, seconds(x.ended.Sub(x.began)))
	case plan.Failed:
		return "✗", red, x.text
	case plan.Canceled:
		return "-", yellow, "stopped before " + x.step
	case plan.Waiting:
		return "·", dim, fmt.Sprintf("%-26s %6s  %s", x.step, seconds(now.Sub(x.since)), x.text)
	default:
		frames := []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
		frame := frames[int(now.UnixMilli()/refresh.Milliseconds())%len(frames)]
		return string(frame), green, fmt.Sprintf("%-26s %6s  %s", x.step, seconds(now.Sub(x.since)), x.text)
	}
}
