package fault

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// meanings says what each code means, in a line for people.
var meanings = map[Code]string{
	Internal:        "a defect in kubewright: please report it",
	Usage:           "wrong flags or arguments",
	SpecInvalid:     "the cluster file, or what the flags say in its place, is wrong; every fault is told at once",
	BundleRefused:   "the bundle is missing, truncated, altered, for another architecture or of another version than the cluster",
	HostUnreachable: "a host does not answer, or the connection to it was lost",
	HostKeyUnknown:  "a host is met for the first time: its key is in no known_hosts file",
	HostKeyChanged:  "a host shows another key than known_hosts has for it",
	AuthRefused:     "a host accepts none of the keys that were offered",
	SudoRefused:     "sudo on a host is missing, asks for a password, or does not take the one that was given",
	HostUnsuitable:  "preflight found what a node cannot run with, or a host has no address that the others reach",
	HostTaken:       "a host belongs to another cluster, or to another installer's",
	DiskFull:        "no space is left on a host",
	StepFailed:      "a step failed for any other reason; the message has what the host said",
	Timeout:         "a step did not end in time; the message has what it waited for last",
	ClusterMissing:  "the kubeconfig leads to no cluster of kubewright's, or that one does not answer",
	HostLocked:      "another run works on a host; the message says whose, since when, and on what",
	PlanStale:       "a saved plan no longer fits: facts of a host, the bundle or the cluster moved; the message names what",
	NotAsBefore:     "a host that was put back is not what it was before the first change; the message has the differences",
	Unhealthy:       "doctor found errors in the cluster, `etcd health` a member that is not healthy while there is a quorum, or a cluster is not well before a drill, such as one with a host that neither this machine nor the other hosts reach",
	Quorum:          "etcd would lose its quorum, or has lost it; the message has the arithmetic",
	DrainBlocked:    "pods of a node that is to leave cannot go: the message names the disruption budgets that keep them, or the pods that nothing would make anew",
	WritesLost:      "a drill found that writes which the API had acknowledged are gone, or were not seen by a later read",
	BackupRefused:   "a backup file is cut short, altered, locked for the keys that were given, or no backup; or none is taken, as a host lacks a file that no cluster is made again without",
	BackupDiffers:   "a cluster made from a backup is not what the backup's manifest says; the table has the differences",
	Interrupted:     "stopped by Ctrl-C or SIGTERM, between two steps; the same command goes on from there",
}

// Codes are all codes, by their exit status.
func Codes() []Code {
	return slices.SortedFunc(maps.Keys(exits), func(x, y Code) int { return exits[x] - exits[y] })
}

// Meaning says what a code means, in a line for people; "" of an unknown one.
func Meaning(c Code) string { return meanings[c] }

// Table is the list of codes as a Markdown page, which docs/exit-codes.md holds.
func Table() string {
	var b strings.Builder
	b.WriteString("# Exit codes\n\n" +
		"Generated from bootstrap/fault by `go test ./bootstrap/fault -update`.\n\n" +
		"Every way to fail has a code, which `error:` output and `-o jsonl` name, and an exit status. Neither is ever reused.\n" +
		"0 is success, also when there was nothing to do. If several hosts fail, the status is that of the first message.\n\n" +
		"| status | code | meaning |\n|---|---|---|\n")
	for _, c := range Codes() {
		fmt.Fprintf(&b, "| %d | `%s` | %s |\n", exits[c], c, meanings[c])
	}
	b.WriteString("\n`kubewright diff` ends with 2 where there is drift.\n")
	b.WriteString("\n`kubewright lab ssh`, `lab exec` and `kubectl` end with the status of what they ran.\n")
	return b.String()
}
