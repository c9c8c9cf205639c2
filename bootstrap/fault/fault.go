// Package fault gives every way in which kubewright can refuse or fail a stable
// code, an exit status and a remedy, so that people can look it up and scripts
// can decide by it. Errors are told apart by type and code, never by text.
package fault

import (
	"errors"
	"fmt"
)

// Code names one kind of failure. It is stable across releases.
type Code string

// The codes, with the exit status of each in exits.
const (
	Internal        Code = "internal"         // a defect in kubewright
	Usage           Code = "usage"            // wrong flags or arguments
	SpecInvalid     Code = "spec-invalid"     // the cluster file or its flag equivalent is wrong
	BundleRefused   Code = "bundle-refused"   // truncated, altered, or for another architecture
	HostUnreachable Code = "host-unreachable" // no TCP connection or no SSH answer
	HostKeyUnknown  Code = "host-key-unknown" // first contact without --accept-new-host-keys
	HostKeyChanged  Code = "host-key-changed" // known_hosts has another key for this host
	AuthRefused     Code = "auth-refused"     // sshd accepted none of the keys offered
	SudoRefused     Code = "sudo-refused"     // sudo is missing, or asks for a password
	HostUnsuitable  Code = "host-unsuitable"  // a required tool or kernel feature is missing
	HostTaken       Code = "host-taken"       // the host belongs to another cluster
	DiskFull        Code = "disk-full"        // no space left on the host
	StepFailed      Code = "step-failed"      // a step failed for any other reason
	Timeout         Code = "timeout"          // a wait did not come true in time
	ClusterMissing  Code = "cluster-missing"  // the kubeconfig names no reachable kubewright cluster
	HostLocked      Code = "host-locked"      // another run holds the host's lock
	PlanStale       Code = "plan-stale"       // hosts, bundle or cluster are not as they were when the plan was made
	NotAsBefore     Code = "not-as-before"    // a host that was put back differs from its inventory
	Unhealthy       Code = "unhealthy"        // doctor found errors
	Quorum          Code = "quorum"           // etcd would lose its quorum, or has lost it
	DrainBlocked    Code = "drain-blocked"    // pods of a node that is to leave cannot go
	WritesLost      Code = "writes-lost"      // a drill found acknowledged writes gone
	BackupRefused   Code = "backup-refused"   // cut short, altered, locked for the keys at hand, or no backup
	BackupDiffers   Code = "backup-differs"   // a cluster made from a backup is not what its manifest says
	Interrupted     Code = "interrupted"      // stopped by a signal
)

// exits maps codes to exit statuses. Statuses, like codes, are never reused.
var exits = map[Code]int{
	Internal: 1, Usage: 2, SpecInvalid: 3, BundleRefused: 4,
	HostUnreachable: 5, HostKeyUnknown: 6, HostKeyChanged: 7, AuthRefused: 8, SudoRefused: 9,
	HostUnsuitable: 10, HostTaken: 11, DiskFull: 12, StepFailed: 13, Timeout: 14,
	ClusterMissing: 15, HostLocked: 16, PlanStale: 17, NotAsBefore: 18, Unhealthy: 19, Quorum: 20,
	DrainBlocked: 21, WritesLost: 22, BackupRefused: 23, BackupDiffers: 24,
	Interrupted: 130,
}

// Fault is an error with a code and a way out.
type Fault struct {
	Code   Code
	Host   string // the host it happened on, "" if none
	Step   string // the step it happened in, "" if none; set by the runner
	Err    error  // what happened; never nil
	Remedy string // what to do about it, one sentence or command, "" if there is nothing to advise
}

// New returns a fault whose error is formatted like fmt.Errorf's.
func New(code Code, remedy, format string, args ...any) *Fault {
	return &Fault{Code: code, Err: fmt.Errorf(format, args...), Remedy: remedy}
}

// Error says host, step and what happened, on one line, without the remedy.
func (f *Fault) Error() string {
	s := f.Err.Error()
	if f.Step != "" {
		s = f.Step + ": " + s
	}
	if f.Host != "" {
		s = f.Host + ": " + s
	}
	return s
}

func (f *Fault) Unwrap() error { return f.Err }

// At returns err with the host and step it happened in. A fault keeps its code
// and remedy, and what it already says of host and step; any other error
// becomes a StepFailed.
func At(host, step string, err error) error {
	if err == nil {
		return nil
	}
	var f *Fault
	if !errors.As(err, &f) {
		return &Fault{Code: StepFailed, Host: host, Step: step, Err: err}
	}
	located := Fault{Code: f.Code, Host: f.Host, Step: f.Step, Err: f.Err, Remedy: f.Remedy}
	if err != error(f) { // wrapped on the way: keep the wrapping's words
		located.Err = err
		located.Host, located.Step = "", ""
	}
	if f.Host == "" {
		located.Host = host
	}
	if f.Step == "" {
		located.Step = step
	}
	return &located
}

// Each takes joined errors apart, and leaves out what says the same as an earlier one.
func Each(err error) []error {
	var all []error
	said := map[string]bool{}
	var walk func(error)
	walk = func(err error) {
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			for _, e := range joined.Unwrap() {
				walk(e)
			}
			return
		}
		if err != nil && !said[err.Error()] {
			said[err.Error()] = true
			all = append(all, err)
		}
	}
	walk(err)
	return all
}

// CodeOf returns the code of err: of the first fault in its tree, Internal if
// there is none, "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	var f *Fault
	if errors.As(err, &f) {
		return f.Code
	}
	return Internal
}

// Exit returns the exit status for err, 0 for nil.
func Exit(err error) int {
	if err == nil {
		return 0
	}
	if n, ok := exits[CodeOf(err)]; ok {
		return n
	}
	return exits[Internal]
}

// RemedyOf returns the remedy of the first fault in err's tree, "" if there is none.
func RemedyOf(err error) string {
	var f *Fault
	if errors.As(err, &f) {
		return f.Remedy
	}
	return ""
}
