// Package ui shows people and machines how a run goes: one live line per lane on
// a terminal, plain lines in a pipe, JSON lines for programs.
package ui

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// Renderer is told the events of a run, one at a time.
type Renderer interface {
	// Begin names the lanes, in the order in which they are shown.
	Begin(lanes []string)
	Event(plan.Event)
	// Notice says something that is no lane's.
	Notice(text string)
	// Close ends the display with a summary.
	Close(Summary)
}

// Summary is how a run ended.
type Summary struct {
	Hosts int
	Count plan.Count
	Took  time.Duration
	Err   error
}

func (s Summary) String() string {
	hosts := "1 host"
	if s.Hosts != 1 {
		hosts = fmt.Sprintf("%d hosts", s.Hosts)
	}
	took := s.Took.Round(100 * time.Millisecond)
	switch {
	case s.Err != nil:
		return fmt.Sprintf("%s: stopped after %s: %s applied, %d unchanged, %d failed", hosts, took,
			steps(s.Count.Applied), s.Count.Skipped, s.Count.Failed)
	case s.Count.Applied == 0:
		return fmt.Sprintf("%s: nothing to change, %s checked in %s", hosts, steps(s.Count.Skipped), took)
	default:
		return fmt.Sprintf("%s: %s applied, %d unchanged in %s", hosts, steps(s.Count.Applied), s.Count.Skipped, took)
	}
}

func steps(n int) string {
	if n == 1 {
		return "1 step"
	}
	return fmt.Sprintf("%d steps", n)
}

// Styles of text on a terminal.
const (
	reset  = "\x1b[0m"
	bold   = "\x1b[1m"
	dim    = "\x1b[2m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
)

// RenderError prints every fault of a joined error: where, what, and the way out.
func RenderError(w io.Writer, err error, color bool) {
	label, plainText := "error: ", ""
	if color {
		label, plainText = red+bold+"error: "+reset, reset
	}
	for _, e := range fault.Each(err) {
		var why *finding.Diagnosed
		if errors.As(e, &why) { // its log is the finding's, without secrets
			fmt.Fprintf(w, "%s%s%s\n", label, firstLine(e.Error()), plainText)
			renderFinding(w, why.Finding)
		} else {
			fmt.Fprintf(w, "%s%s%s\n", label, e, plainText)
			if remedy := fault.RemedyOf(e); remedy != "" {
				fmt.Fprintf(w, "  remedy: %s\n", remedy)
			}
		}
		fmt.Fprintf(w, "  code: %s (exit %d)\n", fault.CodeOf(e), fault.Exit(e))
	}
}

// size writes bytes as people read them.
func size(n int64) string {
	if n < 1e6 {
		return fmt.Sprintf("%.0f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%.1f MB", float64(n)/1e6)
}

// progressText is what a step is doing now.
func progressText(e plan.Event) string {
	switch {
	case e.Total > 0:
		return fmt.Sprintf("%s %s of %s", e.Text, size(e.Bytes), size(e.Total))
	case e.Bytes > 0:
		return e.Text + " " + size(e.Bytes)
	default:
		return firstLine(e.Text)
	}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1fs", d.Seconds()) }
