package main

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/finding"
)

func (a *app) explainCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "explain [CODE]",
		Short: "Say what a code of a finding or an error means, and what to do",
		Long: "explain says what the code of a finding (of preflight, doctor, or an error's cause) or of an error means,\n" +
			"the likely causes and what to do. Without a code it lists all of them.",
		Example: "  kubewright explain etcd-no-space\n  kubewright explain host-taken",
		Args:    cobra.MaximumNArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return codes(), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.listCodes()
			}
			return a.explain(args[0])
		},
	}
}

// codes are those of findings and of errors, each once.
func codes() []string {
	var all []string
	for _, e := range finding.Explanations() {
		all = append(all, string(e.Code))
	}
	for _, c := range fault.Codes() {
		all = append(all, string(c))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// explain prints what a code means: as a finding, as the status of an error, or both.
func (a *app) explain(code string) error {
	e, found := finding.Explain(finding.Code(code))
	if found {
		fmt.Fprint(a.stdout, e)
	}
	meaning := fault.Meaning(fault.Code(code))
	if meaning != "" {
		if found {
			fmt.Fprintln(a.stdout)
		}
		fmt.Fprintf(a.stdout, "%s: exit status %d\n\n%s.\n", code, fault.Exit(&fault.Fault{Code: fault.Code(code)}), strings.ToUpper(meaning[:1])+meaning[1:])
	}
	if found || meaning != "" {
		return nil
	}
	remedy := "`kubewright explain` lists all codes"
	if near := nearCodes(code); len(near) > 0 {
		remedy = "did you mean " + strings.Join(near, ", ") + "? " + remedy
	}
	return fault.New(fault.Usage, remedy, "there is no code %q", code)
}

// nearCodes are those that have a word in common with a code that there is not.
func nearCodes(code string) []string {
	words := strings.FieldsFunc(strings.ToLower(code), func(r rune) bool { return r == '-' || r == '_' || r == ' ' })
	var near []string
	for _, c := range codes() {
		if slices.ContainsFunc(strings.Split(c, "-"), func(w string) bool {
			return slices.ContainsFunc(words, func(have string) bool {
				return len(w) > 3 && (strings.HasPrefix(have, w) || len(have) > 3 && strings.HasPrefix(w, have))
			})
		}) {
			near = append(near, c)
		}
	}
	return near
}

func (a *app) listCodes() error {
	if a.output == "json" {
		return writeJSON(a.stdout, finding.Explanations())
	}
	t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "FINDING\tWHAT")
	for _, e := range finding.Explanations() {
		fmt.Fprintf(t, "%s\t%s\n", e.Code, e.Title)
	}
	fmt.Fprintln(t, "\nERROR\tEXIT\tWHAT")
	for _, c := range fault.Codes() {
		fmt.Fprintf(t, "%s\t%d\t%s\n", c, fault.Exit(&fault.Fault{Code: c}), fault.Meaning(c))
	}
	return t.Flush()
}
