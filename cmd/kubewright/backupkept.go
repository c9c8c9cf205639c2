package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kubewright/kubewright/bootstrap/backup/kept"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host/sshhost"
)

// shelfKeeper is a control-plane host, and what it keeps of backups.
type shelfKeeper struct {
	name  string
	host  *sshhost.Host // nil: not reached
	shelf *kept.Shelf   // nil: not looked at
	err   error         // why not
}

// keepers looks at the backups of all control-plane hosts at once: those named, or those of
// the cluster in the kubeconfig. One that cannot be looked at hides no other; if none can, that
// is the error. What it returns closes the connections.
func (a *app) keepers(ctx context.Context, names []string, dir string) ([]shelfKeeper, func(), error) {
	if _, err := a.sudo(); err != nil { // once, not once per host
		return nil, nil, err
	}
	if len(names) == 0 {
		var err error
		if names, err = a.controlPlaneHosts(ctx); err != nil {
			return nil, nil, err
		}
	}
	all := make([]shelfKeeper, len(names))
	var looking sync.WaitGroup
	for i, name := range names {
		looking.Go(func() {
			k := &all[i]
			k.name = name
			if k.host, k.err = a.dial(ctx, name); k.err == nil {
				k.shelf, k.err = kept.Look(ctx, k.host, dir)
			}
			k.err = fault.At(name, "look at its backups", k.err)
		})
	}
	looking.Wait()
	closeAll := func() {
		for _, k := range all {
			if k.host != nil {
				k.host.Close() //nolint:errcheck // nothing is left to be written
			}
		}
	}
	var faults []error
	for _, k := range all {
		faults = append(faults, k.err)
	}
	if !slices.Contains(faults, nil) {
		closeAll()
		return nil, nil, errors.Join(faults...)
	}
	return all, closeAll, nil
}

// shelves are those that were looked at.
func shelves(all []shelfKeeper) []*kept.Shelf {
	var there []*kept.Shelf
	for _, k := range all {
		if k.shelf != nil {
			there = append(there, k.shelf)
		}
	}
	return there
}

const dirUsage = "folder of the backups on the hosts (default: the one of their timer, or /var/backups/kubewright)"

func (a *app) backupList() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "list [HOST...]",
		Short: "List the backups that the hosts made by schedule",
		Long: "list looks at all control-plane hosts of the cluster in the kubeconfig at once, or at those named, also when the API is down.\n" +
			"Of several control-plane hosts the one that leads etcd makes a backup, which stays there: fetch them with `kubewright backup fetch`.\n" +
			"It also says when a younger one should be there.",
		Example: "  kubewright backup list\n  kubewright backup list cp1 cp2 cp3 -o json",
		RunE: func(c *cobra.Command, hosts []string) error {
			return untilSignal(c.Context(), func(ctx context.Context) error { return a.listBackups(ctx, hosts, dir) })
		},
	}
	c.Flags().StringVar(&dir, "dir", "", dirUsage)
	return c
}

// listed is what `backup list -o json` prints.
type listed struct {
	Hosts []listedHost `json:"hosts"`
	// Missed is when a backup younger than all these should have been made.
	Missed time.Time `json:"missed,omitzero"`
}

type listedHost struct {
	Host     string      `json:"host"`
	Trouble  string      `json:"trouble,omitempty"` // why it could not be looked at
	Dir      string      `json:"dir,omitempty"`
	Schedule string      `json:"schedule,omitempty"` // as OnCalendar= of its timer has it
	Backups  []kept.File `json:"backups"`            // the oldest first
}

func (a *app) listBackups(ctx context.Context, hosts []string, dir string) error {
	all, done, err := a.keepers(ctx, hosts, dir)
	if err != nil {
		return err
	}
	defer done()
	l := listed{}
	for _, k := range all {
		h := listedHost{Host: k.name, Backups: []kept.File{}}
		if k.err != nil {
			h.Trouble = k.err.Error()
		} else {
			h.Dir, h.Schedule, h.Backups = k.shelf.Dir, k.shelf.Schedule, append(h.Backups, k.shelf.Files...)
		}
		l.Hosts = append(l.Hosts, h)
	}
	missed, err := kept.Overdue(ctx, shelves(all), 1, time.Now())
	if err != nil {
		a.notice("whether a younger backup should be there is not known: " + err.Error())
	}
	l.Missed = missed
	if a.output == "json" {
		return writeJSON(a.stdout, l)
	}
	return renderListed(a.stdout, l)
}

func renderListed(w io.Writer, l listed) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "HOST\tNAME\tCLUSTER\tMADE\tSIZE")
	for _, h := range l.Hosts {
		for _, f := range h.Backups {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%.1f MB\n", h.Host, f.Name, f.Cluster, f.Made.Format(time.RFC3339), float64(f.Size)/1e6)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, h := range l.Hosts {
		switch {
		case h.Trouble != "":
			fmt.Fprintf(w, "\n%s\n", h.Trouble)
		case h.Schedule == "":
			fmt.Fprintf(w, "\n%s makes no backups by schedule: `backup:` of the cluster file has it do so\n", h.Host)
		}
	}
	if l.Missed.IsZero() {
		return nil
	}
	_, err := fmt.Fprintf(w, "\na younger one should have been made at %s: see `kubewright doctor`\n", l.Missed.Format(time.RFC3339))
	return err
}

func (a *app) backupFetch() *cobra.Command {
	var file, dir string
	var latest, force bool
	c := &cobra.Command{
		Use:   "fetch [HOST:]NAME | --latest [HOST...] -o FILE",
		Short: "Copy a backup that a host made by schedule to this machine",
		Long: "fetch copies one of the backups that `kubewright backup list` shows into a file that only you may read, and compares it with\n" +
			"what the host has. Without a HOST all control-plane hosts of the cluster in the kubeconfig are looked at; name one if the API is\n" +
			"down. The file stays encrypted: prove it with `kubewright backup verify`.",
		Example: "  kubewright backup fetch --latest -o prod.kwbackup\n  kubewright backup fetch cp2:prod-20261126T020000.123Z.kwbackup -o prod.kwbackup",
		RunE: func(c *cobra.Command, args []string) error {
			which := wanted{latest: latest, hosts: args}
			switch {
			case file == "":
				return usage(c, errors.New("name the file to write with -o"))
			case !latest && len(args) != 1:
				return usage(c, errors.New("name one backup of `kubewright backup list`, or take the newest one with --latest"))
			case !latest:
				which = wantedName(args[0])
			}
			if _, err := os.Lstat(file); err == nil && !force {
				return exists(file)
			}
			return untilSignal(c.Context(), func(ctx context.Context) error { return a.fetchBackup(ctx, which, dir, file, force) })
		},
	}
	c.Flags().StringVarP(&file, "output", "o", "", "file to write") // in the place of how a result is shown
	c.Flags().BoolVar(&latest, "latest", false, "the newest backup of the cluster, of all hosts or of those named")
	c.Flags().BoolVar(&force, "force", false, "replace a file that is there")
	c.Flags().StringVar(&dir, "dir", "", dirUsage)
	return c
}

// wanted says which backup is meant, and where to look for it.
type wanted struct {
	latest bool
	name   string   // if not latest
	hosts  []string // nil: all
}

// wantedName reads [HOST:]NAME. A host may have colons, a backup has none.
func wantedName(arg string) wanted {
	at := strings.LastIndexByte(arg, ':')
	if at < 0 {
		return wanted{name: arg}
	}
	return wanted{name: arg[at+1:], hosts: []string{arg[:at]}}
}

func (a *app) fetchBackup(ctx context.Context, which wanted, dir, file string, force bool) error {
	began := time.Now()
	all, done, err := a.keepers(ctx, which.hosts, dir)
	if err != nil {
		return err
	}
	defer done()
	for _, k := range all {
		if k.err != nil {
			a.notice(k.err.Error())
		}
	}
	from, backup := which.among(all)
	if backup == nil {
		return fault.New(fault.Usage, "see which there are: kubewright backup list", "no host that was looked at has %s", which)
	}
	var digest string
	if err := writeWhole(file, force, func(w io.Writer) error {
		digest, err = kept.Fetch(ctx, from.host, from.shelf.Dir, *backup, w)
		return err
	}); err != nil {
		return fault.At(from.name, "fetch", err)
	}
	_, err = fmt.Fprintf(a.stdout, "%s  %.1f MB: %s from %s, sha256 %s, in %s\nprove it: kubewright backup verify %s --identity KEY-FILE\n",
		file, float64(backup.Size)/1e6, backup.Name, from.name, digest, time.Since(began).Round(100*time.Millisecond), file)
	return err
}

func (w wanted) String() string {
	if w.latest {
		return "a backup of its cluster"
	}
	return w.name
}

// among finds the backup, and who has it; nil: nobody.
func (w wanted) among(all []shelfKeeper) (*shelfKeeper, *kept.File) {
	on, file := kept.Newest(shelves(all))
	for i := range all {
		k := &all[i]
		switch {
		case k.shelf == nil:
		case w.latest && k.shelf == on:
			return k, file
		case !w.latest:
			if n := slices.IndexFunc(k.shelf.Files, func(f kept.File) bool { return f.Name == w.name }); n >= 0 {
				return k, &k.shelf.Files[n]
			}
		}
	}
	return nil, nil
}
