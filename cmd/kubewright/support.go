package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/kubewright/kubewright/bootstrap/support"
	"github.com/kubewright/kubewright/bootstrap/version"
)

func (a *app) supportCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "support-bundle [HOST...]",
		Short: "Collect logs, states and events of all hosts into one file, without secrets",
		Long: "support-bundle collects what helps others to find out what is wrong: journals, units, versions, facts,\n" +
			"configuration, network and disks of every host, objects and events of kube-system, doctor's findings. Private\n" +
			"keys and Secrets are not read, and what looks like a secret is taken out of everything else. Hosts that are not\n" +
			"reached are told, and the rest is collected. The file is readable for you alone: look into it before you pass it on.\n" +
			"(-o is how this command shows its result; the file is named with --file.)",
		Example: "  kubewright support-bundle\n  kubewright support-bundle cp1 w1 --file /tmp/case-42.tar.gz",
		RunE: func(c *cobra.Command, args []string) error {
			in, done, err := a.patients(c.Context(), args)
			if err != nil {
				return err
			}
			defer done()
			components, err := version.Components()
			if err != nil {
				return err
			}
			if file == "" {
				file = "kubewright-support-" + time.Now().UTC().Format("20060102T150405Z") + ".tar.gz"
			}
			var items []support.Item
			if err := writePrivate(file, func(f *os.File) (err error) {
				items, err = support.Collect(c.Context(), in, fmt.Sprintf("Kubernetes %s", components.Of(version.KubernetesName)), f)
				return err
			}); err != nil {
				return err
			}
			if a.output == "json" {
				return writeJSON(a.stdout, collected{file, items})
			}
			got := 0
			for _, i := range items {
				if i.Trouble == "" {
					got++
				}
			}
			for _, h := range in.Hosts {
				if h.Err != nil {
					fmt.Fprintf(a.stderr, "not reached: %s: %v\n", h.Name, h.Err)
				}
			}
			fmt.Fprintf(a.stdout, "%s  %d items collected, %d could not be had (index.json in it says why)\n", file, got, len(items)-got)
			return nil
		},
	}
	c.Flags().StringVar(&file, "file", "", "file to write (default kubewright-support-TIME.tar.gz in the current folder)")
	return c
}

// collected is what `support-bundle -o json` prints.
type collected struct {
	File  string         `json:"file"`
	Items []support.Item `json:"items"`
}

// writePrivate has a file written that only the user may read, all of it or nothing.
func writePrivate(name string, write func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".kubewright-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // gone after the rename
	if err := errors.Join(write(f), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return os.Rename(f.Name(), name)
}
