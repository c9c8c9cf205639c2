package plan

import (
	"context"
	"time"
)

// pollInterval is how often a wait looks again.
const pollInterval = 100 * time.Millisecond

// WaitUntil looks until see says that nothing is missing, or the run has no future. It
// reports what it waits for, and what it sees instead each time that changes.
func WaitUntil(ctx context.Context, what string, see func(context.Context) (missing string, err error)) error {
	ctx, cancel := WaitContext(ctx)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	said := ""
	for {
		missing, err := see(ctx)
		if err != nil || missing == "" {
			return err
		}
		if missing != said {
			Report(ctx, "waits for "+what+": "+missing)
			said = missing
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx) // the runner adds what was reported last
		case <-tick.C:
		}
	}
}
