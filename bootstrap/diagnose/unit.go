// Package diagnose finds out why something does not work: it reads the logs of
// units and pods, the conditions of nodes and the events of the API, and names the
// probable cause by a code that finding explains. It only looks.
package diagnose

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/redact"
)

const (
	// logLines is how much of a log is read.
	logLines = "50"
	// recently is how long ago a unit or container that ended still matters.
	recently = 10 * time.Minute
)

// Journal returns the last lines of a unit's log, without secrets.
func Journal(ctx context.Context, r host.Reader, unit string) ([]string, error) {
	out, err := r.Query(ctx, "journalctl", "-u", unit, "-n", logLines, "-o", "cat", "--no-pager")
	if err != nil {
		return nil, fmt.Errorf("journal of %s: %w", unit, err)
	}
	text := strings.TrimSpace(redact.Text(string(out)))
	if text == "" {
		return nil, nil
	}
	return strings.Split(text, "\n"), nil
}

// Units looks at a host's units and returns what is wrong, in the order of names:
// name those first on which the others depend. now is the host's clock.
func Units(ctx context.Context, r host.Reader, now time.Time, names ...string) (finding.Report, error) {
	units, err := r.Units(ctx, names...)
	if err != nil {
		return nil, err
	}
	var report finding.Report
	for _, u := range units {
		f, wrong := state(u, now)
		if !wrong {
			continue
		}
		f.Host = r.Name()
		if f.Code == finding.UnitFailed || f.Code == finding.UnitRestarting {
			log, err := Journal(ctx, r, u.Name)
			if err != nil {
				f.Message += "; its journal could not be read"
			}
			explain(&f, component(u.Name), log, u.Active != "inactive" && u.Active != "active")
		}
		report = append(report, f.Advised())
	}
	return report, nil
}

// Saying judges a unit that runs by what its program says of itself.
func Saying(u host.Unit) (finding.Finding, bool) {
	code, line, ok := Recognise(component(u.Name), []string{u.Status})
	return finding.Finding{Code: code, Severity: finding.Error, Object: u.Name, Message: redact.Text(line)}, ok && u.Active == "active"
}

// state is what a unit's state alone tells.
func state(u host.Unit, now time.Time) (finding.Finding, bool) {
	f := finding.Finding{Severity: finding.Error, Object: u.Name}
	switch {
	case u.Load == "not-found":
		f.Code, f.Message = finding.UnitMissing, u.Name+" is not installed"
	case u.Active == "activating":
		f.Code, f.Message = finding.UnitRestarting, fmt.Sprintf("%s does not run: it is %s (%s), started anew %s", u.Name, u.Active, u.Sub, times(u.Restarts))
	case u.Active != "active":
		f.Code, f.Message = finding.UnitFailed, fmt.Sprintf("%s does not run: it is %s", u.Name, u.Active)
	case u.Restarts > 0 && now.Sub(u.Started) < recently:
		f.Code, f.Severity = finding.UnitRestarting, finding.Warning
		f.Message = fmt.Sprintf("%s runs, but was started anew %s, last %s ago", u.Name, times(u.Restarts), now.Sub(u.Started).Round(time.Second))
	case u.File == "disabled":
		f.Code, f.Severity, f.Message = finding.UnitDisabled, finding.Warning, u.Name+" runs, but would not start at boot"
	default:
		return f, false
	}
	return f, true
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// component is what rules call a unit.
func component(unit string) string { return strings.TrimSuffix(unit, ".service") }

// explain adds a log to a finding, and if it says why, the nearer code. What runs,
// or ended in good order, is not judged by what it logged.
func explain(f *finding.Finding, component string, log []string, judge bool) {
	telling := ""
	if judge {
		if code, line, ok := Recognise(component, log); ok {
			f.Code, telling = code, line
		}
	}
	if f.Code == finding.PortInUse { // here it is known whose port it is, and not who has taken it
		f.Cause = "another program listens on a port of " + f.Object
		f.Remedy = "find out who (ss -ltnp) and stop it, then run the same command again"
	}
	f.Log = relevant(log, telling)
}

// Symptoms judges units that run by their logs, for a wait that does not end
// although all of them do.
func Symptoms(ctx context.Context, r host.Reader, names ...string) (finding.Report, error) {
	var report finding.Report
	for _, name := range names {
		log, err := Journal(ctx, r, name)
		if err != nil {
			return report, err
		}
		code, line, ok := Recognise(component(name), log)
		if !ok {
			continue
		}
		f := finding.Finding{Code: code, Severity: finding.Error, Host: r.Name(), Object: name,
			Message: name + " runs, but its log tells of trouble", Log: relevant(log, line)}
		report = append(report, f.Advised())
	}
	return report, nil
}
