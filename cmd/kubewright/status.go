package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kubewright/kubewright/bootstrap"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/kubeconfig"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

func (a *app) statusCommand() *cobra.Command {
	var via string
	c := &cobra.Command{
		Use:   "status",
		Short: "Show hosts, nodes, components, etcd and addons of the cluster in the kubeconfig",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx := c.Context()
			_, access, err := kubeconfig.Access(a.kubeconfig, "")
			if err != nil {
				return err
			}
			var dial cluster.DialFunc
			if via != "" {
				h, err := a.dial(ctx, via)
				if err != nil {
					return fault.At(via, "connect", err)
				}
				defer h.Close() //nolint:errcheck // nothing is left to be written
				dial = h.Dial
			}
			status, err := bootstrap.Observe(ctx, cluster.New(plan.Of("the admin's access", access), dial), access.Server, a.dialHost)
			if err != nil {
				return fault.New(fault.ClusterMissing, "reach the API through another host with --via HOST; see whether etcd has lost its quorum: kubewright etcd health --via HOST; or what is wrong with a host: kubewright doctor HOST",
					"cluster at %s: %w", access.Server, err)
			}
			if a.output == "json" {
				return writeJSON(a.stdout, status)
			}
			return renderStatus(a.stdout, status)
		},
	}
	c.Flags().StringVar(&via, "via", "", "host through whose SSH connection the API is reached (default: directly)")
	return c
}

// renderStatus prints one screen.
func renderStatus(w io.Writer, s *bootstrap.Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "cluster %s\t%s\tKubernetes %s\tbundle %s\n\n", s.Cluster, s.Server, s.Version, s.Bundle)
	fmt.Fprintln(t, "NODE\tHOST\tROLE\tADDRESS\tREADY\tKUBELET\tRUNTIME\tPODS\tCOMPONENTS")
	for _, n := range s.Nodes {
		ready := "yes"
		if !n.Ready {
			ready = "no"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", n.Node, n.Host, n.Role, n.Address, ready, n.Kubelet,
			strings.Replace(n.Runtime, "://", " ", 1), n.Pods, components(n))
	}
	fmt.Fprintln(t)
	if len(s.Etcd) > 0 {
		fmt.Fprintln(t, "ETCD\tID\tVERSION\tROLE\tHEALTHY\tDATA")
		for _, m := range s.Etcd {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", named(m), m.ID, orDash(m.Version), role(m), yesNo(m.Healthy), megabytes(m, m.DBSize))
		}
		fmt.Fprintln(t)
	}
	fmt.Fprintln(t, "ADDON\tREADY")
	for _, d := range s.Addons {
		fmt.Fprintf(t, "%s\t%d of %d\n", d.Name, d.Ready, d.Want)
	}
	if b := s.Backups; b != nil {
		newest := timeOrDash(b.Newest)
		if b.Newest.IsZero() && len(b.Unseen) > 0 {
			newest = "not seen"
		}
		fmt.Fprintf(t, "\nBACKUPS\tNEWEST\tON\n%s\t%s\t%s\n", b.Schedule, newest, orDash(b.Host))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if b := s.Backups; b != nil && !b.Missed.IsZero() {
		fmt.Fprintf(w, "\na younger backup should have been made at %s: see `kubewright doctor`\n", b.Missed.Format(time.RFC3339))
	}
	if b := s.Backups; b != nil && len(b.Unseen) > 0 {
		which := "backups"
		if !b.Newest.IsZero() {
			which = "younger backups"
		}
		fmt.Fprintf(w, "\n%s may be on %s, whose host could not be looked at\n", which, strings.Join(b.Unseen, " or "))
	}
	for _, n := range s.Nodes {
		if !n.Ready {
			fmt.Fprintf(w, "\nnode %s is not ready: %s\n", n.Node, n.Why)
		}
		if n.Trouble != "" {
			fmt.Fprintf(w, "\nhost of %s could not be looked at: %s\n", n.Node, n.Trouble)
		}
	}
	for _, m := range s.Etcd {
		if !m.Healthy {
			fmt.Fprintf(w, "\netcd member %s is not healthy: %s\n", m.Title(), m.Trouble)
		}
	}
	for _, trouble := range s.Trouble {
		fmt.Fprintf(w, "\n%s\n", trouble)
	}
	return nil
}

func timeOrDash(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Format(time.RFC3339)
}

// components says how many units run, and names those that do not.
func components(n bootstrap.NodeStatus) string {
	var down []string
	var oldest time.Time
	for _, c := range n.Components {
		if c.Active != "active" {
			down = append(down, strings.TrimSuffix(c.Unit, ".service")+" "+c.Active)
		} else if oldest.IsZero() || c.Since.Before(oldest) {
			oldest = c.Since
		}
	}
	if len(n.Components) == 0 { // nobody looked
		return "-"
	}
	text := fmt.Sprintf("%d of %d running", len(n.Components)-len(down), len(n.Components))
	if len(down) > 0 {
		text += " (" + strings.Join(down, ", ") + ")"
	}
	return text
}
