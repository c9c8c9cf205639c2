package spec

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// Errors is every fault of a cluster, in the order of the file. It comes wrapped
// in a fault.SpecInvalid.
type Errors struct {
	File   string // "" for a cluster that was made in code
	Faults []Fault
}

// Fault is one thing that is wrong.
type Fault struct {
	Line, Column int    // from 1; 0 where there is no file
	Path         string // such as hosts[1].labels.tier; "" for the file as a whole
	Message      string
}

// Error has a line for each fault: file:line:column: path: message.
func (e *Errors) Error() string {
	lines := make([]string, len(e.Faults))
	for i, f := range e.Faults {
		var b strings.Builder
		switch {
		case f.Line > 0:
			fmt.Fprintf(&b, "%s:%d:%d: ", e.File, f.Line, f.Column)
		case e.File != "":
			b.WriteString(e.File + ": ")
		}
		if f.Path != "" {
			b.WriteString(f.Path + ": ")
		}
		lines[i] = b.String() + f.Message
	}
	return strings.Join(lines, "\n")
}

// wrap returns the faults as one error in the order of the file, nil if there
// are none.
func wrap(file string, faults []Fault) error {
	if len(faults) == 0 {
		return nil
	}
	slices.SortStableFunc(faults, func(a, b Fault) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	remedy := "correct what is named above; docs/spec.md describes every field"
	if file != "" {
		remedy = "correct " + file + "; docs/spec.md describes every field"
	}
	return &fault.Fault{Code: fault.SpecInvalid, Err: &Errors{File: file, Faults: faults}, Remedy: remedy}
}
