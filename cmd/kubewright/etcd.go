package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kubewright/kubewright/bootstrap"
	"github.com/kubewright/kubewright/bootstrap/certs"
	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

func (a *app) etcdCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "etcd",
		Short: "Look after the members of etcd and their data",
		Long: "etcd has what the cluster is made of, on every control-plane host. These commands reach it over SSH: through the\n" +
			"control-plane hosts of the cluster in the kubeconfig, or, also when the API is down, through the one named with --via.",
		Example: "  kubewright etcd health\n  kubewright etcd members --via cp1 -o json\n  kubewright etcd defrag --disarm\n  kubewright etcd snapshot -o etcd.db\n" +
			"  kubewright etcd move-leader cp2",
	}
	e := &etcdWay{app: a}
	c.PersistentFlags().StringVar(&e.via, "via", "", "control-plane host through which etcd is reached (default: those of the cluster in the kubeconfig)")
	c.AddCommand(a.prints(e.membersCommand()), a.prints(e.healthCommand()), a.prints(e.defragCommand()), e.snapshotCommand(),
		a.prints(e.moveLeaderCommand()), a.prints(e.forgetCommand()))
	return c
}

// etcdWay is how the commands come to etcd.
type etcdWay struct {
	*app
	via string
}

// etcdHosts are the control-plane hosts that were reached, and etcd as the first of them sees it.
type etcdHosts struct {
	etcd.Keeper
	targets []bootstrap.Target
	close   func()
}

func (e *etcdWay) names(ctx context.Context) ([]string, error) {
	if e.via != "" {
		return []string{e.via}, nil
	}
	names, err := e.controlPlaneHosts(ctx)
	if fault.CodeOf(err) == fault.ClusterMissing {
		return nil, &fault.Fault{Code: fault.ClusterMissing, Err: err, Remedy: "name a control-plane host with --via HOST: etcd is then reached without the API"}
	}
	return names, err
}

// visit reaches the control-plane hosts at once: all, or as soon as one answers no others.
func (e *etcdWay) visit(ctx context.Context, all bool) (*etcdHosts, error) {
	if _, err := e.sudo(); err != nil { // once, not once per host
		return nil, err
	}
	names, err := e.names(ctx)
	if err != nil {
		return nil, err
	}
	type reached struct {
		bootstrap.Target
		err error
	}
	dialing, enough := context.WithCancel(ctx)
	defer enough()
	answers := make(chan reached, len(names))
	for _, name := range names {
		go func() {
			t, err := e.controlPlaneHost(dialing, name)
			answers <- reached{t, fault.At(name, "connect", err)}
		}()
	}
	h := &etcdHosts{}
	var faults []error
	for range names {
		r := <-answers
		switch {
		case r.err == nil:
			h.targets = append(h.targets, r.Target)
			if !all {
				enough()
			}
		case len(h.targets) == 0 || all:
			faults = append(faults, r.err)
		}
	}
	h.close = func() {
		for _, t := range h.targets {
			closeHost(t)
		}
	}
	if len(h.targets) == 0 {
		return nil, errors.Join(faults...)
	}
	for _, err := range faults {
		if all {
			e.notice(err.Error() + ": its lock is not taken")
		}
	}
	client := etcd.NewClient(h.targets[0].Host, path.Join(certs.Dir, "etcd"))
	closeHosts := h.close
	h.Keeper, h.close = client, func() {
		client.Close() //nolint:errcheck // every call has said how it ended
		closeHosts()
	}
	return h, nil
}

// controlPlaneHost reaches a host that has to be one.
func (e *etcdWay) controlPlaneHost(ctx context.Context, name string) (bootstrap.Target, error) {
	h, err := e.dial(ctx, name)
	if err != nil {
		return bootstrap.Target{}, err
	}
	t := bootstrap.Target{Wish: spec.Host{Name: name}, Host: h}
	if t.Claim, err = claim.Read(ctx, h); err == nil && (t.Claim == nil || t.Claim.Role != string(spec.ControlPlaneRole)) {
		err = fault.New(fault.Usage, "name a control-plane host with --via", "%s is no control-plane host of a cluster of kubewright's", name)
	}
	if err != nil {
		closeHost(t)
		return bootstrap.Target{}, err
	}
	return t, nil
}

func closeHost(t bootstrap.Target) {
	if c, ok := t.Host.(io.Closer); ok {
		c.Close() //nolint:errcheck // nothing is left to be written
	}
}

func (a *app) notice(text string) { fmt.Fprintln(a.stderr, text) }

// member is the name of the member on a host, or the name itself if it is a member's.
func (h *etcdHosts) member(name string) string {
	for _, t := range h.targets {
		if t.Wish.Name == name {
			return t.Claim.Node
		}
	}
	return name
}

// look does what changes nothing.
func (e *etcdWay) look(ctx context.Context, do func(context.Context, *etcdHosts) error) error {
	return untilSignal(ctx, func(ctx context.Context) error {
		h, err := e.visit(ctx, false)
		if err != nil {
			return err
		}
		defer h.close()
		return do(ctx, h)
	})
}

// change does what only one run at a time may do, under the locks of all hosts that are reached.
func (e *etcdWay) change(ctx context.Context, verb string, do func(context.Context, <-chan struct{}, *etcdHosts) error) error {
	ctx, stop, done := interruptible(ctx, e.notice)
	defer done()
	h, err := e.visit(ctx, true)
	if err != nil {
		return err
	}
	defer h.close()
	held := newLocks("etcd "+verb, e.notice)
	defer held.release(ctx)
	if err := held.take(ctx, h.targets); err != nil {
		return err
	}
	return errors.Join(do(ctx, held.orLost(stop), h), held.lost())
}

func (e *etcdWay) membersCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "members",
		Short:   "List the members of etcd, each as it says it is",
		Example: "  kubewright etcd members\n  kubewright etcd members --via cp1 -o json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return e.look(c.Context(), func(ctx context.Context, h *etcdHosts) error {
				members, lost := seen(ctx, h)
				if members == nil {
					return lost
				}
				var err error
				if e.output == "json" {
					err = writeJSON(e.stdout, members)
				} else {
					err = renderMembers(e.stdout, members)
				}
				return errors.Join(err, lost)
			})
		},
	}
}

// seen lists the members; without a quorum, as one of them remembers them, with the fault that says so.
func seen(ctx context.Context, k etcd.Keeper) (etcd.Membership, error) {
	members, err := k.Members(ctx)
	if !errors.Is(err, etcd.ErrNoQuorum) {
		return members, err
	}
	remembered, _ := k.Remembered(ctx) // the first error says it all
	return remembered, &fault.Fault{Code: fault.Quorum, Err: err, Remedy: etcd.Recovery}
}

func renderMembers(w io.Writer, members etcd.Membership) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "MEMBER\tID\tROLE\tHEALTHY\tVERSION\tDATA\tIN USE\tQUOTA\tBEHIND\tPEER")
	for _, m := range members {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", named(m), m.ID, role(m), yesNo(m.Healthy), orDash(m.Version),
			megabytes(m, m.DBSize), megabytes(m, m.InUse), megabytes(m, m.Quota), behind(m), strings.Join(m.Peers, ","))
	}
	return t.Flush()
}

func named(m etcd.Member) string { return orDash(m.Name) }

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func yesNo(yes bool) string {
	if yes {
		return "yes"
	}
	return "no"
}

func role(m etcd.Member) string {
	switch {
	case m.Leader:
		return "leader"
	case m.Learner:
		return "learner"
	}
	return "member"
}

// megabytes is a size of a member that has told it.
func megabytes(m etcd.Member, bytes int64) string {
	if m.Version == "" {
		return "-"
	}
	return fmt.Sprintf("%.1f MB", float64(bytes)/1e6)
}

func behind(m etcd.Member) string {
	if m.Version == "" {
		return "-"
	}
	return fmt.Sprint(m.Behind)
}

// health is what `etcd health -o json` prints.
type health struct {
	etcd.Tally
	Quorum  int             `json:"quorum"`
	Spare   int             `json:"mayFail"` // how many more
	Members etcd.Membership `json:"members"`
}

func (e *etcdWay) healthCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "health",
		Short: "Say whether all members of etcd are healthy, and how many more may fail",
		Long: "health asks every member itself, and says what is wrong with one and what to do. The exit status is 19 if one is not\n" +
			"healthy. It works without a quorum, too: what is shown then is what one of the members remembers, and the status is 20.",
		Example: "  kubewright etcd health\n  kubewright etcd health --via cp2 -o json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return e.look(c.Context(), func(ctx context.Context, h *etcdHosts) error {
				members, lost := seen(ctx, h)
				if members == nil {
					return lost
				}
				var err error
				if e.output == "json" {
					t := members.Tally()
					err = writeJSON(e.stdout, health{t, t.Quorum(), t.Spare(), members})
				} else {
					err = renderHealth(e.stdout, members)
				}
				if lost == nil {
					lost = sick(members)
				}
				return errors.Join(err, lost)
			})
		},
	}
}

func renderHealth(w io.Writer, members etcd.Membership) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "MEMBER\tROLE\tHEALTHY\tTROUBLE")
	for _, m := range members {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", m.Title(), role(m), yesNo(m.Healthy), orDash(m.Trouble))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	tally := members.Tally()
	last := "none may fail: join more control-plane hosts, three survive the loss of one"
	switch {
	case tally.Lost():
		last = "the quorum is lost"
	case tally.Spare() == 0 && tally.Voters > 2:
		last = "no other one may fail"
	case tally.Spare() == 1:
		last = "one more may fail"
	case tally.Spare() > 1:
		last = fmt.Sprintf("%d more may fail", tally.Spare())
	}
	_, err := fmt.Fprintf(w, "\n%s: %s\n", tally, last)
	return err
}

// sick is the fault of members that are not healthy, with the remedy of the first.
func sick(members etcd.Membership) error {
	var names []string
	remedy := ""
	for _, m := range members {
		if m.Healthy {
			continue
		}
		names = append(names, m.Title())
		if remedy == "" {
			remedy = remedyOf(m)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fault.New(fault.Unhealthy, remedy, "members of etcd that are not healthy: %s", strings.Join(names, ", "))
}

func remedyOf(m etcd.Member) string {
	switch {
	case slices.Contains(m.Alarms, etcd.Corrupt):
		return fmt.Sprintf("its data cannot be trusted: replace the member, `kubewright remove %s --force`, then `kubewright join HOST --control-plane`", m.Name)
	case slices.Contains(m.Alarms, etcd.NoSpace):
		return "make room, then take the alarm back: `kubewright etcd defrag --disarm` (see `kubewright explain etcd-no-space`)"
	case m.Learner:
		return fmt.Sprintf("run its join again; or, if that was given up: `kubewright etcd forget %s`", m.ID)
	}
	return fmt.Sprintf("bring its host back (`kubewright doctor HOST` looks at it); if it is gone for ever: `kubewright remove %s --force`", m.Title())
}

func (e *etcdWay) defragCommand() *cobra.Command {
	var d etcd.Defrag
	c := &cobra.Command{
		Use:   "defrag",
		Short: "Give the space that etcd's databases do not use back, one member at a time",
		Long: "defrag defragments the members one after the other, the leader last, and waits until each serves again. One that\n" +
			"is defragmented answers nobody meanwhile, so it is refused while another one is not healthy. Space is free to be given\n" +
			"back once old revisions were compacted, which the API server does every five minutes, unless etcd is full: --disarm does it then.",
		Example: "  kubewright etcd defrag\n  kubewright etcd defrag --disarm",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return e.change(c.Context(), "defrag", func(ctx context.Context, stop <-chan struct{}, h *etcdHosts) error {
				done := []etcd.Defragmented{}
				err := d.Run(ctx, h, stop, func(m etcd.Defragmented) {
					done = append(done, m)
					if e.output != "json" {
						fmt.Fprintln(e.stdout, defragLine(m))
					}
				})
				if e.output == "json" {
					err = errors.Join(writeJSON(e.stdout, done), err)
				}
				return err
			})
		},
	}
	c.Flags().BoolVar(&d.Force, "force", false, "go on although a member is not healthy; it is left out")
	c.Flags().BoolVar(&d.Disarm, "disarm", false, "of a database that is full: throw old revisions away first, and take the alarm back after it was defragmented")
	return c
}

func defragLine(m etcd.Defragmented) string {
	if m.Skipped != "" {
		return m.Member + ": left out: " + m.Skipped
	}
	line := fmt.Sprintf("%s: %.1f MB before, %.1f MB after", m.Member, float64(m.Before)/1e6, float64(m.After)/1e6)
	for _, alarm := range m.Disarmed {
		line += ", alarm " + string(alarm) + " taken back"
	}
	return line
}

func (e *etcdWay) snapshotCommand() *cobra.Command {
	var file string
	var force bool
	c := &cobra.Command{
		Use:   "snapshot -o FILE",
		Short: "Write all of etcd's data into one file, in the clear",
		Long: "snapshot streams the data of one member into a file that only you may read, proves it, and says what is in it.\n" +
			"etcdutl restores from it. The file holds all Secrets of the cluster as etcd has them, and neither keys nor certificates:\n" +
			"to rebuild a cluster, use `kubewright backup`, whose file is encrypted and complete.",
		Example: "  kubewright etcd snapshot -o etcd.db\n  kubewright etcd snapshot -o etcd.db --via cp1",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if file == "" {
				return usage(c, errors.New("name the file to write with -o"))
			}
			if _, err := os.Lstat(file); err == nil && !force {
				return exists(file)
			}
			return e.look(c.Context(), func(ctx context.Context, h *etcdHosts) error {
				began := time.Now()
				_, quorum := h.Members(ctx)
				s, err := saveSnapshot(ctx, h, file, force)
				if err != nil {
					return err
				}
				if errors.Is(quorum, etcd.ErrNoQuorum) {
					e.notice("etcd has no quorum: this is what one member has, and the others may have taken more. To go on from it: kubewright recover --from HOST")
				}
				fmt.Fprintf(e.stdout, "%s  %.1f MB: revision %d, %d keys, sha256 %s, in %s\n", file, float64(s.Size)/1e6, s.Revision, s.Keys, s.SHA256,
					time.Since(began).Round(100*time.Millisecond))
				e.notice("the file is not encrypted: whoever has it reads the cluster's Secrets, but those that the API server itself encrypts. For an encrypted and complete one: kubewright backup")
				return nil
			})
		},
	}
	c.Flags().StringVarP(&file, "output", "o", "", "file to write") // in the place of how a result is shown
	c.Flags().BoolVar(&force, "force", false, "replace a file that is there")
	return c
}

// saveSnapshot has a snapshot written that only the user may read: all of it, on the disk
// and found whole, or nothing. Without force, a file that is there stays.
func saveSnapshot(ctx context.Context, k etcd.Keeper, name string, force bool) (etcd.Snapshot, error) {
	dir := filepath.Dir(name)
	f, err := os.CreateTemp(dir, ".kubewright-*") // 0600
	if err != nil {
		return etcd.Snapshot{}, fault.New(fault.Usage, "name a file in a folder that you may write to", "%w", err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // gone after the rename
	saved, err := etcd.Save(ctx, k, f)
	if err := errors.Join(err, f.Close()); err != nil {
		return saved, fmt.Errorf("write %s: %w", name, err)
	}
	if force {
		err = os.Rename(f.Name(), name)
	} else {
		err = renameNew(f.Name(), name)
	}
	if err != nil {
		return saved, err
	}
	parent, err := os.Open(dir)
	if err != nil {
		return saved, err
	}
	return saved, errors.Join(parent.Sync(), parent.Close())
}

func (e *etcdWay) moveLeaderCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "move-leader [HOST|NODE]",
		Short: "Make another member of etcd the leader",
		Long: "move-leader moves the lead to the member on a host, or to the healthiest other one: before work on the leader's host,\n" +
			"it spares the cluster the second without a leader that its loss costs.",
		Example: "  kubewright etcd move-leader\n  kubewright etcd move-leader cp2",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return e.change(c.Context(), "move-leader", func(ctx context.Context, _ <-chan struct{}, h *etcdHosts) error {
				to := ""
				if len(args) > 0 {
					to = h.member(args[0])
				}
				before, now, err := etcd.Lead(ctx, h, to)
				switch {
				case err != nil:
					return err
				case e.output == "json":
					return writeJSON(e.stdout, leads{before.Name, now.Name})
				case before.ID == now.ID:
					fmt.Fprintf(e.stdout, "%s leads already\n", now.Name)
				default:
					fmt.Fprintf(e.stdout, "%s leads, in the place of %s\n", now.Name, before.Name)
				}
				return nil
			})
		},
	}
}

// leads is what `etcd move-leader -o json` prints.
type leads struct {
	Before string `json:"before"`
	Leader string `json:"leader"`
}

func (e *etcdWay) forgetCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "forget ID",
		Short: "Take a member out that a broken-off join has left",
		Long: "forget takes out a member that has no vote yet: the trace of a join that was broken off and is not to be run again.\n" +
			"As long as it is there, etcd lets no other one in. A member with a vote is a node's: see `kubewright remove`.",
		Example: "  kubewright etcd members\n  kubewright etcd forget 8e9e05c52164694d",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return e.change(c.Context(), "forget", func(ctx context.Context, _ <-chan struct{}, h *etcdHosts) error {
				m, err := etcd.Forget(ctx, h, args[0])
				switch {
				case err != nil:
					return err
				case e.output == "json":
					return writeJSON(e.stdout, m)
				}
				_, err = fmt.Fprintf(e.stdout, "%s is no member of etcd any more\n", m.Title())
				return err
			})
		},
	}
}
