package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/kubewright/kubewright/bootstrap/version"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the versions of kubewright and of all that it installs",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			components, err := version.Components()
			if err != nil {
				return err
			}
			if a.output == "json" {
				return writeJSON(a.stdout, components)
			}
			t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
			for _, c := range components {
				fmt.Fprintf(t, "%s\t%s\t%s\n", c.Name, c.Version, c.Module)
			}
			return t.Flush()
		},
	}
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
