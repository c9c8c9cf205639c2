package main

import (
	"fmt"
	"strings"

	"github.com/kubewright/kubewright/bootstrap"
)

// showProofs tells how hosts that were put back compare with what they were
// before: a line each, all that was compared with --verify.
func (a *app) showProofs(notice func(string), proofs []bootstrap.Proof) {
	for _, p := range proofs {
		if !p.Result.IsSet() {
			continue // the host was released by an earlier run
		}
		r := p.Result.Get()
		var b strings.Builder
		switch {
		case r.Missing:
			fmt.Fprintf(&b, "%s: no inventory was taken: nothing but the claim was changed", p.Host)
		case len(r.Ours)+len(r.Others) == 0:
			fmt.Fprintf(&b, "%s: as it was before: %d objects compared, no difference", p.Host, r.Count)
		default:
			fmt.Fprintf(&b, "%s: %d objects compared, %d left of ours, %d changed meanwhile by others", p.Host, r.Count, len(r.Ours), len(r.Others))
		}
		if a.verify && !r.Missing {
			fmt.Fprintf(&b, "\n  inventory before the first change %s\n  inventory now                     %s", r.Before, r.After)
			for _, d := range r.Ours {
				fmt.Fprintf(&b, "\n  left:  %s", d)
			}
			for _, d := range r.Others {
				fmt.Fprintf(&b, "\n  other: %s", d)
			}
		}
		notice(b.String())
	}
}
