// Command bench measures how long a cluster takes from bare lab hosts to three
// nodes Ready with DNS available, how long it takes to see that nothing is to be
// done, and to put all hosts back. It runs the program and the bundle that `make build` made.
package main

import (
	"bufio"
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
	"text/tabwriter"
	"time"

	"github.com/kubewright/kubewright/cmd/kubewright/ui"
	"github.com/kubewright/kubewright/lab"
)

const (
	labName = "bench"
	hosts   = 3
)

func main() {
	lab.MaybeInit()
	runs := flag.Int("runs", 3, "how many times a cluster is made")
	program := flag.String("program", "bin/kubewright", "the program to measure")
	out := flag.String("json", "dist/bench.json", "where to write the figures")
	flag.Parse()
	if err := bench(context.Background(), *program, *runs, *out); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// Step is one step of a lane, in milliseconds over the runs.
type Step struct {
	Lane string  `json:"lane"`
	Step string  `json:"step"`
	Took []int64 `json:"took_ms"` // a figure per run
	End  []int64 `json:"end_ms"`  // after the start of the command
}

// Report is what is written as JSON.
type Report struct {
	Cluster []int64 `json:"cluster_ms"` // bare hosts to three nodes Ready and DNS available
	Plan    []int64 `json:"plan_ms"`    // of the cluster, on the bare hosts
	Again   []int64 `json:"again_ms"`   // the same command once more
	Apply   []int64 `json:"apply_ms"`   // apply -f with nothing to do
	Diff    []int64 `json:"diff_ms"`    // diff -f with no drift
	Reset   []int64 `json:"reset_ms"`   // all hosts, compared with their inventories
	Steps   []*Step `json:"steps"`
}

func bench(ctx context.Context, program string, runs int, out string) (err error) {
	defer func() { err = errors.Join(err, lab.Destroy(ctx, labName)) }()
	report := &Report{}
	for i := range runs {
		if err := lab.Destroy(ctx, labName); err != nil {
			return err
		}
		l, err := lab.Create(ctx, lab.Options{Name: labName, Hosts: hosts}, func(string) {})
		if err != nil {
			return err
		}
		dir, err := os.MkdirTemp("", "bench-*")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir) //nolint:errcheck // a few files in the temporary folder
		spec := "apiVersion: kubewright.dev/v1alpha1\nkind: Cluster\nname: bench\nhosts:\n"
		for n := range hosts {
			spec += fmt.Sprintf("- name: %s-%d\n", labName, n+1)
		}
		file := filepath.Join(dir, "cluster.yaml")
		if err := os.WriteFile(file, []byte(spec), 0o600); err != nil {
			return err
		}
		for _, m := range []struct {
			args []string
			into *[]int64
		}{
			{[]string{"plan", "init", "-f", file}, &report.Plan},
			{[]string{"init", "-f", file, "-o", "jsonl"}, &report.Cluster},
			{[]string{"init", "-f", file}, &report.Again},
			{[]string{"apply", "-f", file}, &report.Apply},
			{[]string{"diff", "-f", file}, &report.Diff},
			{[]string{"reset", "-f", file}, &report.Reset},
		} {
			took, output, err := run(ctx, program, append(m.args, "-F", l.SSHConfig(), "--kubeconfig", filepath.Join(dir, "kubeconfig")))
			if err != nil {
				return err
			}
			*m.into = append(*m.into, took.Milliseconds())
			if m.into == &report.Cluster {
				if err := report.add(i, output, took); err != nil {
					return err
				}
			}
			fmt.Fprintf(os.Stderr, "run %d: %-5s %6.2f s\n", i+1, m.args[0], took.Seconds())
		}
	}
	if err := report.table(); err != nil {
		return err
	}
	content, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	return os.WriteFile(out, append(content, '\n'), 0o644)
}

// run returns how long the program took as a whole, and what it wrote.
func run(ctx context.Context, program string, args []string) (time.Duration, []byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	if err := cmd.Run(); err != nil {
		return 0, nil, fmt.Errorf("%w\n%s%s", err, stdout.String(), stderr.String())
	}
	return time.Since(began), stdout.Bytes(), nil
}

// add files the steps of a run, from its JSON lines.
func (r *Report) add(i int, output []byte, took time.Duration) error {
	var lines []ui.Line
	for in := bufio.NewScanner(bytes.NewReader(output)); in.Scan(); {
		var l ui.Line
		if err := json.Unmarshal(in.Bytes(), &l); err != nil {
			return fmt.Errorf("line of the run: %w", err)
		}
		lines = append(lines, l)
	}
	if len(lines) == 0 {
		return nil
	}
	began := lines[len(lines)-1].Time.Add(-took)
	for _, l := range lines {
		if l.Kind != "applied" {
			continue
		}
		at := slices.IndexFunc(r.Steps, func(s *Step) bool { return s.Lane == l.Lane && s.Step == l.Step })
		if at < 0 {
			at = len(r.Steps)
			r.Steps = append(r.Steps, &Step{Lane: l.Lane, Step: l.Step})
		}
		r.Steps[at].Took = append(r.Steps[at].Took, l.TookMS)
		r.Steps[at].End = append(r.Steps[at].End, l.Time.Sub(began).Milliseconds())
	}
	return nil
}

func (r *Report) table() error {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "lane\tstep\tmedian s\tends at s\t\n")
	steps := slices.Clone(r.Steps)
	slices.SortStableFunc(steps, func(a, b *Step) int {
		if a.Lane != b.Lane {
			return slices.Compare([]byte(a.Lane), []byte(b.Lane))
		}
		return int(median(a.End) - median(b.End))
	})
	for _, s := range steps {
		fmt.Fprintf(t, "%s\t%s\t%.2f\t%.2f\t\n", s.Lane, s.Step, float64(median(s.Took))/1e3, float64(median(s.End))/1e3)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Printf("\nbare hosts to %d nodes Ready, DNS available: median %.1f s of %d runs (%.1f to %.1f)\n", hosts,
		float64(median(r.Cluster))/1e3, len(r.Cluster), float64(slices.Min(r.Cluster))/1e3, float64(slices.Max(r.Cluster))/1e3)
	for _, m := range []struct {
		what string
		took []int64
	}{
		{"the same command again", r.Again}, {"apply -f with nothing to do", r.Apply}, {"diff -f without drift", r.Diff},
		{"plan of the cluster on bare hosts", r.Plan}, {"reset of all hosts, with the proof", r.Reset},
	} {
		fmt.Printf("%s: median %.2f s (%.2f to %.2f)\n", m.what, float64(median(m.took))/1e3, float64(slices.Min(m.took))/1e3, float64(slices.Max(m.took))/1e3)
	}
	return nil
}

func median(values []int64) int64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
