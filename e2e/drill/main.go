// Command drill measures what clients see of the death of a control-plane host: on clusters of
// lab hosts with three control planes, it has `kubewright drill` deal every fault, several times,
// and prints the medians. It runs the program and the bundle that `make build` made.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/kubewright/kubewright/bootstrap/drill"
	"github.com/kubewright/kubewright/lab"
)

const (
	controlPlane = 3
	workers      = 2
	labName      = "drills"
	// fullLab is another lab: what is on its last host's disk does not outlive a power cut.
	fullLab = "drillsfull"
)

func main() {
	lab.MaybeInit()
	runs := flag.Int("runs", 3, "how many times each fault is dealt; the power of another host is cut each time")
	program := flag.String("program", "bin/kubewright", "the program to measure")
	faults := flag.String("faults", "", "which, with commas between them (default: all)")
	flag.Parse()
	var kinds []drill.Kind
	for _, name := range strings.Split(*faults, ",") {
		if name != "" {
			kinds = append(kinds, drill.Kind(name))
		}
	}
	if len(kinds) == 0 {
		kinds = drill.Kinds()
	}
	if err := measure(context.Background(), *program, *runs, kinds); err != nil {
		fmt.Fprintln(os.Stderr, "drill:", err)
		os.Exit(1)
	}
}

func measure(ctx context.Context, program string, runs int, kinds []drill.Kind) error {
	program, err := filepath.Abs(program)
	if err != nil {
		return err
	}
	figures := map[drill.Kind][]drill.Result{}
	for _, on := range []ground{
		{lab.Options{Name: labName, Hosts: controlPlane + workers}, []drill.Kind{drill.Killed, drill.Partitioned, drill.PoweredOff}},
		{lab.Options{Name: fullLab, Hosts: controlPlane, Trouble: lab.Trouble{EtcdDisk: 600}}, []drill.Kind{drill.Filled}},
	} {
		on.kinds = slices.DeleteFunc(on.kinds, func(k drill.Kind) bool { return !slices.Contains(kinds, k) })
		if len(on.kinds) == 0 {
			continue
		}
		if err := on.drills(ctx, program, runs, figures); err != nil {
			return err
		}
	}
	return table(figures)
}

// ground is a lab, and the faults that its hosts are dealt.
type ground struct {
	lab   lab.Options
	kinds []drill.Kind
}

func (g ground) drills(ctx context.Context, program string, runs int, figures map[drill.Kind][]drill.Result) (err error) {
	if err := lab.Destroy(ctx, g.lab.Name); err != nil { // of a run that was killed
		return err
	}
	defer func() { err = errors.Join(err, lab.Destroy(ctx, g.lab.Name)) }()
	l, err := lab.Create(ctx, g.lab, func(string) {})
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "drill-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // two files in the temporary folder
	file := filepath.Join(dir, "cluster.yaml")
	if err := os.WriteFile(file, []byte(spec(l)), 0o600); err != nil {
		return err
	}
	kubewright := func(args ...string) ([]byte, error) {
		cmd := exec.CommandContext(ctx, program, append(args, "-F", l.SSHConfig(), "--kubeconfig", filepath.Join(dir, "kubeconfig"))...)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Run(); err != nil {
			return nil, fmt.Errorf("%s: %w\n%s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
		}
		return stdout.Bytes(), nil
	}
	if _, err := kubewright("init", "-f", file); err != nil {
		return err
	}
	for run := range runs {
		for _, kind := range g.kinds {
			out, err := kubewright(append([]string{"drill", "-o", "json", string(kind)}, arguments(kind, program, l, run)...)...)
			if err != nil {
				return err
			}
			var results []drill.Result
			if err := json.Unmarshal(out, &results); err != nil {
				return fmt.Errorf("results of %s: %w", kind, err)
			}
			figures[kind] = append(figures[kind], results...)
			for _, r := range results {
				fmt.Fprintf(os.Stderr, "run %d: %-11s %-12s writes out %5d ms, reads out %5d ms, recovery %5d ms, %d lost\n",
					run+1, r.Fault, r.Host, r.WriteOutageMS, r.ReadOutageMS, r.RecoveryMS, len(r.Lost)+len(r.Stale))
			}
		}
	}
	return nil
}

// arguments are the victim, and how it is dealt the fault.
func arguments(kind drill.Kind, program string, l *lab.Lab, run int) []string {
	switch kind {
	case drill.PoweredOff: // each in turn
		power := func(verb string) string { return strings.Join([]string{program, "lab", verb, l.Name(), "{host}"}, " ") }
		return []string{l.Hosts()[run%controlPlane].Name, "--power-off", power("kill"), "--power-on", power("start")}
	case drill.Filled: // the one with the disk
		return []string{l.Hosts()[controlPlane-1].Name}
	default: // the leader
		return nil
	}
}

func spec(l *lab.Lab) string {
	text := "apiVersion: kubewright.dev/v1alpha1\nkind: Cluster\nname: drill\ntestCluster: true\nhosts:\n"
	for i, h := range l.Hosts() {
		role := "control-plane"
		if i >= controlPlane {
			role = "worker"
		}
		text += fmt.Sprintf("- {name: %s, role: %s}\n", h.Name, role)
	}
	return text
}

// table prints medians and, in brackets, the least and the most.
func table(figures map[drill.Kind][]drill.Result) error {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)
	fmt.Fprintln(t, "| fault\t| runs\t| writes out, s\t| reads out, s\t| recovery, s\t| acknowledged\t| lost\t|")
	fmt.Fprintln(t, "|---\t|---\t|---\t|---\t|---\t|---\t|---\t|")
	for _, kind := range drill.Kinds() {
		results := figures[kind]
		if len(results) == 0 {
			continue
		}
		var writes, reads, recovery []int64
		acknowledged, lost := 0, 0
		for _, r := range results {
			writes, reads, recovery = append(writes, r.WriteOutageMS), append(reads, r.ReadOutageMS), append(recovery, r.RecoveryMS)
			acknowledged, lost = acknowledged+r.Writes, lost+len(r.Lost)+len(r.Stale)
		}
		fmt.Fprintf(t, "| %s\t| %d\t| %s\t| %s\t| %s\t| %d\t| %d\t|\n", kind, len(results), median(writes), median(reads), median(recovery), acknowledged, lost)
	}
	return t.Flush()
}

func median(ms []int64) string {
	slices.Sort(ms)
	s := func(ms int64) float64 { return float64(ms) / 1000 }
	return fmt.Sprintf("%.1f (%.1f - %.1f)", s(ms[len(ms)/2]), s(ms[0]), s(ms[len(ms)-1]))
}
