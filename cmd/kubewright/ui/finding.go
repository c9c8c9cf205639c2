package ui

import (
	"fmt"
	"io"
	"strings"

	"github.com/kubewright/kubewright/bootstrap/finding"
)

// RenderReport prints findings for people, in the order of the report, and how many
// there are of each severity.
func RenderReport(w io.Writer, r finding.Report, color bool) {
	count := map[finding.Severity]int{}
	for _, f := range r {
		count[f.Severity]++
		label := string(f.Severity)
		if f.Ignored {
			label += ", ignored"
		}
		if color {
			label = severityColor(f.Severity) + bold + label + reset
		}
		where := ""
		if f.Host != "" {
			where = f.Host + ": "
		}
		fmt.Fprintf(w, "%s: %s%s\n", label, where, firstLine(f.Message))
		renderFinding(w, f)
	}
	fmt.Fprintf(w, "%s, %s, %s\n", counted(count[finding.Error], "error"), counted(count[finding.Warning], "warning"), counted(count[finding.Note], "note"))
}

// renderFinding prints what there is to know of a finding besides its message.
func renderFinding(w io.Writer, f finding.Finding) {
	if f.Cause != "" {
		fmt.Fprintf(w, "  probable cause: %s\n", f.Cause)
	}
	if len(f.Log) > 0 {
		fmt.Fprintf(w, "  last lines of %s:\n", strings.TrimSpace(f.Host+" "+f.Object))
		for _, l := range f.Log {
			fmt.Fprintf(w, "    | %s\n", l)
		}
	}
	if f.Remedy != "" {
		fmt.Fprintf(w, "  remedy: %s\n", f.Remedy)
	}
	fmt.Fprintf(w, "  more: kubewright explain %s\n", f.Code)
}

func severityColor(s finding.Severity) string {
	switch s {
	case finding.Error:
		return red
	case finding.Warning:
		return yellow
	default:
		return dim
	}
}

func counted(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}
