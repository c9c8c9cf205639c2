package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"

	"github.com/kubewright/kubewright/bootstrap"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

func (a *app) planCommand() *cobra.Command {
	p := &planner{app: a}
	c := &cobra.Command{
		Use:   "plan VERB ...",
		Short: "Show exactly what a verb would change, and change nothing",
		Long: "plan takes a verb with its arguments and flags, looks at hosts and cluster, and shows per host the files (as a diff;\n" +
			"secrets as digests), units, settings, API objects and what comes with them. Nothing is changed anywhere.\n" +
			"-o plan.json saves the plan; `kubewright apply plan.json` carries out exactly that, or refuses if something moved since.",
		Example: "  kubewright plan init -f cluster.yaml\n  kubewright plan join w3 -o plan.json && kubewright apply plan.json",
	}
	c.PersistentFlags().BoolVar(&p.brief, "brief", false, "leave out the contents of files and objects")
	c.AddCommand(a.initCommand(p.show), a.joinCommand(p.show), a.removeCommand(p.show), a.resetCommand(p.show), a.undoCommand(p.show), a.convergeCommand(p.show),
		a.restoreCommand(p.show), a.recoverCommand(p.show))
	return c
}

// planner makes plans in the place of runs.
type planner struct {
	*app
	brief bool
}

func (p *planner) show(ctx context.Context, r bootstrap.Request) error {
	saved, err := p.plan(ctx, r)
	if err != nil {
		return err
	}
	switch p.output {
	case "json":
		return saved.Encode(p.stdout)
	case outputAuto, outputPlain:
		return renderPlan(p.stdout, saved, p.brief)
	}
	if !strings.ContainsAny(p.output, "./") {
		return fault.New(fault.Usage, "use auto, plain, json or the name of a file, such as plan.json", "--output %s is not a way to show a plan", p.output)
	}
	if r.Verb == verbRestore {
		return fault.New(fault.Usage, "look at the plan, then run `kubewright restore`", "a plan of restore is not saved: it would need the key of the backup to be carried out")
	}
	if err := savePlan(p.output, saved); err != nil {
		return err
	}
	if err := renderPlan(p.stdout, saved, true); err != nil {
		return err
	}
	_, err = fmt.Fprintf(p.stdout, "\nsaved; carry it out with: kubewright apply %s%s\n", p.output, p.access())
	return err
}

// access are the flags by which hosts and cluster were reached, to be given again.
func (a *app) access() string {
	var b strings.Builder
	if a.sshConfig != "" {
		b.WriteString(" -F " + a.sshConfig)
	}
	if a.kubeconfig != defaultKubeconfig() {
		b.WriteString(" --kubeconfig " + a.kubeconfig)
	}
	if a.askSudo {
		b.WriteString(" --ask-sudo-password")
	}
	return b.String()
}

// plan is what a request would do now.
func (a *app) plan(ctx context.Context, r bootstrap.Request) (*bootstrap.Saved, error) {
	w, err := a.prepare(ctx, r, nil)
	if err != nil {
		return nil, err
	}
	defer w.close()
	tellReplaced(w, a.notice)
	// A plan takes no lock. Where somebody works it only looks: the probe's ports are theirs.
	if busy := others(ctx, w.all()); len(busy) > 0 {
		fmt.Fprintf(a.stderr, "%s\nwhat is planned now may not hold, and preflight was left out\n", strings.Join(busy, "\n"))
		return a.preview(ctx, w)
	}
	if err := a.preflight(ctx, w, func(string) {}); err != nil {
		return nil, err
	}
	return a.preview(ctx, w)
}

// savePlan writes a plan atomically. It has no secrets, but tells much of the hosts.
func savePlan(name string, saved *bootstrap.Saved) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".plan-*") // 0600
	if err != nil {
		return fault.New(fault.Usage, "name a file in a folder that exists", "-o: %w", err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // gone after the rename
	if err := errors.Join(saved.Encode(f), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write plan: %w", err)
	}
	return os.Rename(f.Name(), name)
}

// renderPlan shows a plan to people: per lane the steps that change something.
func renderPlan(w io.Writer, s *bootstrap.Saved, brief bool) error {
	var b strings.Builder
	lane := ""
	for _, step := range s.Steps {
		if len(step.Diff) == 0 {
			continue
		}
		if step.Lane != lane {
			lane = step.Lane
			fmt.Fprintf(&b, "\n%s\n", lane)
		}
		fmt.Fprintf(&b, "  %s: %s", step.Step, step.Doc)
		if step.After != "" {
			fmt.Fprintf(&b, " (foreseen; known after %s)", step.After)
		}
		b.WriteString("\n")
		for _, c := range step.Diff {
			renderChange(&b, c, brief)
		}
	}
	n := s.Changes()
	if n == 0 {
		b.WriteString("\nnothing to change\n")
	} else {
		changes := "1 change"
		if n != 1 {
			changes = fmt.Sprintf("%d changes", n)
		}
		fmt.Fprintf(&b, "\n%s; nothing was changed yet (+ create, ~ change, - remove, > start, x stop, . wait)\n", changes)
	}
	_, err := io.WriteString(w, strings.TrimPrefix(b.String(), "\n"))
	return err
}

// signs are what a change begins with.
func sign(v plan.Verb) string {
	switch v {
	case plan.Create:
		return "+"
	case plan.Delete:
		return "-"
	case plan.Start:
		return ">"
	case plan.Stop:
		return "x"
	case plan.Await:
		return "."
	}
	return "~"
}

func renderChange(b *strings.Builder, c plan.Change, brief bool) {
	fmt.Fprintf(b, "    %s %s %s", sign(c.Verb), c.Kind, c.Object)
	if c.Detail != "" {
		fmt.Fprintf(b, " (%s)", c.Detail)
	}
	if s := c.After; s != nil {
		switch {
		case s.Target != "":
			fmt.Fprintf(b, " -> %s", s.Target)
		case s.Later:
			fmt.Fprintf(b, " %s, made when it is applied", s.Mode)
		case s.Digest != "" && s.Text == "":
			fmt.Fprintf(b, " %s %s", s.Mode, digests(c))
		case c.Kind == plan.ObjectFile && s.Mode != "":
			fmt.Fprintf(b, " %s", s.Mode)
		}
	}
	b.WriteString("\n")
	if brief {
		return
	}
	if len(c.Brings) > 0 {
		fmt.Fprintf(b, "        with %s\n", brought(c.Brings))
	}
	if c.Kind == plan.ObjectSetting {
		return
	}
	before, after := "", ""
	if c.Before != nil {
		before = c.Before.Text
	}
	if c.After != nil {
		after = c.After.Text
	}
	if after == "" && (c.Before == nil || before == "") {
		return
	}
	text := string(diff.Diff("before", []byte(before), "after", []byte(after)))
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "diff ") || strings.HasPrefix(line, "--- ") || strings.HasPrefix(line, "+++ ") {
			continue
		}
		b.WriteString("        " + line)
	}
}

// brought names objects by kind.
func brought(objects []plan.Object) string {
	var words []string
	var last plan.ObjectKind
	for _, o := range objects {
		if o.Kind != last {
			last = o.Kind
			words = append(words, string(o.Kind)+" "+o.Name)
			continue
		}
		words[len(words)-1] += " " + o.Name
	}
	return strings.Join(words, ", ")
}

// digests are those of a content that is not shown.
func digests(c plan.Change) string {
	if c.Before != nil && c.Before.Digest != "" {
		return c.Before.Digest + " -> " + c.After.Digest
	}
	return c.After.Digest
}

// loadPlan reads a saved plan.
func loadPlan(name string) (*bootstrap.Saved, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fault.New(fault.Usage, "name a plan that `kubewright plan ... -o FILE` saved", "apply: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read from
	return bootstrap.DecodePlan(f, name)
}
