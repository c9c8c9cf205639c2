package ui

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/kubewright/kubewright/bootstrap/finding"
)

// RenderReport prints findings for people: by host, in the order of the report, each
// with its cause, log and remedy, and how many there are of each severity.
func RenderReport(w io.Writer, r finding.Report) error {
	hosts, order := map[string]finding.Report{}, []string(nil)
	count := map[finding.Severity]int{}
	for _, f := range r {
		count[f.Severity]++
		if hosts[f.Host] == nil {
			order = append(order, f.Host)
		}
		hosts[f.Host] = append(hosts[f.Host], f)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, host := range order {
		fmt.Fprintln(t, cmp.Or(host, "the cluster"))
		for _, f := range hosts[host] {
			severity := string(f.Severity)
			if f.Ignored {
				severity = "ignored"
			}
			fmt.Fprintf(t, "  %s\t%s\t%s\n", severity, f.Code, firstLine(f.Message))
			for _, line := range details(f) {
				fmt.Fprintf(t, "  \t\t%s\n", strings.ReplaceAll(line, "\t", " "))
			}
		}
	}
	fmt.Fprintf(t, "%s, %s, %s\n", counted(count[finding.Error], "error"), counted(count[finding.Warning], "warning"), counted(count[finding.Note], "note"))
	if len(r) > 0 {
		fmt.Fprintln(t, "`kubewright explain CODE` says more")
	}
	return t.Flush()
}

// renderFinding prints what there is to know of a finding besides its message.
func renderFinding(w io.Writer, f finding.Finding) {
	for _, line := range details(f) {
		fmt.Fprintf(w, "  %s\n", line)
	}
	fmt.Fprintf(w, "  more: kubewright explain %s\n", f.Code)
}

func details(f finding.Finding) []string {
	var lines []string
	if f.Cause != "" {
		lines = append(lines, "probable cause: "+f.Cause)
	}
	if len(f.Log) > 0 {
		lines = append(lines, "last lines of "+strings.TrimSpace(f.Host+" "+f.Object)+":")
		for _, l := range f.Log {
			lines = append(lines, "  | "+l)
		}
	}
	if f.Remedy != "" {
		lines = append(lines, "remedy: "+f.Remedy)
	}
	return lines
}

func counted(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}
