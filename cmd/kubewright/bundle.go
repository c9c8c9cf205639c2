package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kubewright/kubewright/bootstrap/bundle"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/version"
)

func (a *app) bundleCommand() *cobra.Command {
	c := &cobra.Command{Use: "bundle", Short: "Build, inspect and verify the bundle that hosts are made from"}
	c.AddCommand(a.bundleBuild(), a.bundleInspect(), a.bundleVerify())
	return c
}

func (a *app) bundleBuild() *cobra.Command {
	var o bundle.Options
	c := &cobra.Command{
		Use:   "build",
		Short: "Build a bundle from kubewright's source tree",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var mu sync.Mutex
			b, err := bundle.Build(c.Context(), o, func(s bundle.Stage) {
				mu.Lock()
				defer mu.Unlock()
				if s.Done && s.Err == nil {
					fmt.Fprintf(a.stderr, "%-40s %s\n", s.Name, s.Took.Round(100*time.Millisecond))
				}
			})
			if err != nil {
				return err
			}
			defer b.Close() //nolint:errcheck // only read from
			fmt.Fprintf(a.stdout, "%s  %s  %.1f MB\n", b.Path(), b.Digest(), float64(b.Size())/1e6)
			return nil
		},
	}
	c.Flags().StringVarP(&o.Dir, "dir", "C", ".", "the module's root")
	c.Flags().StringVar(&o.Out, "out", "", "file to make (default DIR/dist/"+bundle.FileName("VERSION", "ARCH")+")")
	c.Flags().StringVar(&o.Arch, "arch", "", "architecture (default this machine's)")
	return c
}

// inspection is what `bundle inspect -o json` prints.
type inspection struct {
	Path       string          `json:"path"`
	Name       string          `json:"name"`
	Digest     string          `json:"digest"`
	Size       int64           `json:"size"`
	Arch       string          `json:"arch"`
	Components version.List    `json:"components"`
	Layers     []inspectedBlob `json:"layers"`
	Images     []inspectedBlob `json:"images"`
}

type inspectedBlob struct {
	Name         string   `json:"name"`
	Digest       string   `json:"digest,omitempty"`
	Size         int64    `json:"size"`
	UnpackedSize int64    `json:"unpackedSize,omitempty"`
	Files        []string `json:"files,omitempty"`
}

func (a *app) bundleInspect() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect [FILE]",
		Short: "Show what a bundle holds",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			b, err := a.openBundle(args...)
			if err != nil {
				return err
			}
			defer b.Close() //nolint:errcheck // only read from
			i := inspection{Path: b.Path(), Name: b.Name(), Digest: b.Digest(), Size: b.Size(), Arch: b.Arch(), Components: b.Components()}
			for _, l := range b.Layers() {
				i.Layers = append(i.Layers, inspectedBlob{l.Name, l.Digest, l.Size, l.UnpackedSize, l.Paths})
			}
			for _, m := range b.Images() {
				i.Images = append(i.Images, inspectedBlob{Name: m.Ref, Size: m.Size})
			}
			if a.output == "json" {
				return writeJSON(a.stdout, i)
			}
			t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintf(t, "file\t%s\nname\t%s\ndigest\t%s\nsize\t%.1f MB\narchitecture\t%s\n", i.Path, i.Name, i.Digest, float64(i.Size)/1e6, i.Arch)
			for _, c := range i.Components {
				fmt.Fprintf(t, "%s\t%s\n", c.Name, c.Version)
			}
			for _, l := range i.Layers {
				fmt.Fprintf(t, "layer %s\t%.1f MB, %.1f MB unpacked, %d files\n", l.Name, float64(l.Size)/1e6, float64(l.UnpackedSize)/1e6, len(l.Files))
			}
			for _, m := range i.Images {
				fmt.Fprintf(t, "image\t%s  %.1f MB\n", m.Name, float64(m.Size)/1e6)
			}
			return t.Flush()
		},
	}
}

func (a *app) bundleVerify() *cobra.Command {
	return &cobra.Command{
		Use:   "verify [FILE]",
		Short: "Check every byte of a bundle against its digests",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			b, err := a.openBundle(args...)
			if err != nil {
				return err
			}
			defer b.Close() //nolint:errcheck // only read from
			if err := b.Verify(c.Context()); err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "%s is whole: %s\n", b.Path(), b.Digest())
			return nil
		},
	}
}

// openBundle opens the bundle that was named, or the one that stands where
// bundles stand: beside the program, in the folder dist next to the program's (as make
// leaves them), or in ./dist.
func (a *app) openBundle(named ...string) (*bundle.Bundle, error) {
	for _, path := range append(named, a.bundlePath, os.Getenv("KUBEWRIGHT_BUNDLE")) {
		if path != "" {
			return bundle.Open(path)
		}
	}
	components, err := version.Components()
	if err != nil {
		return nil, err
	}
	name := bundle.FileName(components.Of(version.KubernetesName), runtime.GOARCH)
	dirs := []string{"dist", "."}
	if self, err := os.Executable(); err == nil {
		dir := filepath.Dir(self)
		dirs = append([]string{dir, filepath.Join(dir, "..", "dist")}, dirs...)
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return bundle.Open(path)
		}
	}
	return nil, fault.New(fault.BundleRefused, "make one with `kubewright bundle build`, or name it with --bundle",
		"there is no bundle %s beside the program, in ../dist from there, or in ./dist", name)
}

// usableBundle opens a bundle and checks all of it, before any host is touched.
func (a *app) usableBundle(ctx context.Context) (*bundle.Bundle, error) {
	b, err := a.openBundle()
	if err != nil {
		return nil, err
	}
	if err := b.Verify(ctx); err != nil {
		b.Close() //nolint:errcheck // only read from
		return nil, err
	}
	return b, nil
}
