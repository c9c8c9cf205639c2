package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// Undo puts a host back to where it was before a step. Entries have to be undone
// from the last to the first: each knows the state that the ones before it left.
// It may be broken off anywhere and done again; the entry goes last.
type Undo struct {
	Entry Entry
}

var _ plan.Action[host.Reader, host.Host] = Undo{}

// Check says what differs from the state before the step.
func (u Undo) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	found, err := r.Stat(ctx, u.Entry.file())
	if err != nil || !found[0].Exists {
		return nil, err
	}
	now, err := u.differing(ctx, r)
	if err != nil {
		return nil, err
	}
	var diff plan.Diff
	for _, d := range now {
		diff = append(diff, d.change())
	}
	return append(diff, plan.Change{Verb: plan.Delete, Kind: plan.ObjectFile, Object: u.Entry.file(), Detail: "journal entry of " + u.Entry.Step}), nil
}

// difference is an object that is not as it was.
type difference struct {
	was, is Before
}

// change says what undoing does to it.
func (d difference) change() plan.Change {
	c := plan.Change{Verb: plan.Update, Kind: d.was.Kind, Object: d.was.Name}
	switch d.was.Kind {
	case plan.ObjectFile:
		c.Before, c.After = d.is.state(), d.was.state()
		switch {
		case !d.was.Exists:
			c.Verb = plan.Delete
		case !d.is.Exists:
			c.Verb = plan.Create
		case d.was.Mode.IsDir() && d.was.Empty && !d.is.Empty:
			c.Detail = "empty it"
		}
	case plan.ObjectUnit, plan.ObjectSlice:
		switch {
		case d.is.Exists && !d.was.Exists:
			c.Verb = plan.Stop
		case d.was.Exists:
			c.Verb, c.Detail = plan.Start, "it ran before"
		case d.was.Kind == plan.ObjectSlice:
			c.Verb, c.Detail = plan.Delete, strings.Join(surplus(d.is.Names, d.was.Names), " ")
		default:
			c.Detail = "it was not enabled at boot"
		}
	case plan.ObjectSetting:
		c.Detail = d.is.Value + " -> " + d.was.Value
		c.Before, c.After = &plan.State{Text: d.is.Value}, &plan.State{Text: d.was.Value}
	case plan.ObjectMounts, plan.ObjectRoutes:
		c.Verb, c.Detail = plan.Delete, strings.Join(surplus(d.is.Names, d.was.Names), " ")
	default:
		c.Verb = plan.Delete
	}
	return c
}

// state of a file, nil if it is not there. Of one whose content was not kept there is the mode alone.
func (b Before) state() *plan.State {
	switch {
	case !b.Exists:
		return nil
	case b.Content != nil:
		return plan.FileState(b.Mode, b.Content)
	}
	return &plan.State{Mode: b.Mode.String(), Target: b.Target}
}

// differing compares all objects with what they were.
func (u Undo) differing(ctx context.Context, r host.Reader) ([]difference, error) {
	now := make([]Before, len(u.Entry.Before))
	subject := map[plan.Object]bool{}
	for i, b := range u.Entry.Before {
		now[i].Object = b.Object
		if b.Content != nil {
			subject[b.Object] = true
		}
	}
	looks, bounded := errgroup.WithContext(ctx)
	looks.Go(func() error { return files(bounded, r, now, subject) })
	looks.Go(func() error { return units(bounded, r, now) })
	looks.Go(func() error { return network(bounded, r, now) })
	looks.Go(func() error { return kernel(bounded, r, now) })
	if err := looks.Wait(); err != nil {
		return nil, err
	}
	var all []difference
	for i, was := range u.Entry.Before {
		if d := (difference{was, now[i]}); d.matters() {
			all = append(all, d)
		}
	}
	return all, nil
}

// matters tells whether there is anything to put back. What an admin changed since
// in what was there before is left alone, unless the step changes it, too.
func (d difference) matters() bool {
	was, is := d.was, d.is
	switch was.Kind {
	case plan.ObjectFile:
		switch {
		case was.Exists != is.Exists:
			return true
		case !was.Exists:
			return false
		case was.Mode != is.Mode || was.UID != is.UID || was.GID != is.GID || was.Target != is.Target:
			return true
		case was.Mode.IsDir():
			return was.Empty && !is.Empty
		}
		return was.Copy != "" || was.Content != nil && !bytes.Equal(was.Content, is.Content)
	case plan.ObjectUnit:
		return was.Exists || is.Exists || was.Enabled != is.Enabled
	case plan.ObjectSetting:
		return was.Exists && is.Exists && was.Value != is.Value
	case plan.ObjectMounts, plan.ObjectRoutes:
		return len(surplus(is.Names, was.Names)) > 0
	case plan.ObjectSlice:
		return !was.Exists && (is.Exists || len(surplus(is.Names, was.Names)) > 0)
	default:
		return is.Exists && !was.Exists
	}
}

// surplus are the names that were not there before.
func surplus(is, was []string) []string {
	return slices.DeleteFunc(slices.Clone(is), func(n string) bool { return slices.Contains(was, n) })
}

// Apply goes against the order in which things come to be: what runs, its groups, what it has
// mounted, its network, then files, then what ran before and the kernel.
func (u Undo) Apply(ctx context.Context, h host.Host) error {
	running, err := u.differing(ctx, h)
	if err != nil {
		return err
	}
	if err := stopUnits(ctx, h, running); err != nil {
		return err
	}
	all, err := u.differing(ctx, h) // what ran has gone on until now
	if err != nil {
		return err
	}
	for _, part := range []func(context.Context, host.Host, []difference) error{
		removeGroups, unmount, removeNetwork, restoreFiles, u.restoreUnits, restoreKernel,
	} {
		if err := part(ctx, h, all); err != nil {
			return err
		}
	}
	left, err := leftovers(ctx, h, []Entry{u.Entry})
	if err != nil {
		return err
	}
	if err := h.Remove(ctx, append(left, u.Entry.copies())...); err != nil {
		return err
	}
	return h.Remove(ctx, u.Entry.file())
}

func only(all []difference, kinds ...plan.ObjectKind) []difference {
	return slices.DeleteFunc(slices.Clone(all), func(d difference) bool { return !slices.Contains(kinds, d.was.Kind) })
}

// stopUnits stops what did not run before. A unit's whole control group is killed
// first: container shims outlive their runtime by design.
func stopUnits(ctx context.Context, h host.Host, all []difference) error {
	sd := h.Systemd()
	var disable []string
	units := only(all, plan.ObjectUnit, plan.ObjectSlice)
	for _, d := range units {
		if d.is.Enabled && !d.was.Enabled {
			disable = append(disable, d.was.Name)
		}
	}
	if len(disable) > 0 {
		if err := sd.Disable(ctx, disable...); err != nil {
			return err
		}
		if err := sd.Reload(ctx); err != nil { // systemd remembers what was enabled
			return err
		}
	}
	for _, d := range units { // units come before the slices they bring
		if !d.is.Exists || d.was.Exists {
			continue
		}
		plan.Report(ctx, "stopping "+d.was.Name)
		if path.Ext(d.was.Name) != ".timer" { // which has no processes: systemd refuses
			kill := []string{"systemctl", "kill", "--kill-whom=all", "--signal=KILL", d.was.Name}
			if _, err := h.Run(ctx, host.Command{Argv: kill}); err != nil {
				state, again := h.Units(ctx, d.was.Name)
				if again != nil || state[0].Active == "active" {
					return err
				} // it ended by itself meanwhile
			}
		}
		if err := sd.Stop(ctx, d.was.Name); err != nil {
			return err
		}
	}
	return nil
}

// unmount frees the names at once. What is being ended may hold a mount a moment longer,
// and a runtime that still runs looks into its namespaces: the kernel lets go after them.
func unmount(ctx context.Context, h host.Host, all []difference) error {
	for _, d := range only(all, plan.ObjectMounts) {
		points, err := listMounts(ctx, h, d.was.Name) // those of processes that were stopped are gone
		if err != nil {
			return err
		}
		points = surplus(points, d.was.Names)
		if len(points) == 0 {
			continue
		}
		slices.Reverse(points)
		if _, err := h.Run(ctx, host.Command{Argv: append([]string{"umount", "--lazy", "--"}, points...)}); err != nil {
			return err
		}
	}
	return nil
}

// removeNetwork removes interfaces first: routes through them go with them.
func removeNetwork(ctx context.Context, h host.Host, all []difference) error {
	run := func(argv ...string) error {
		_, err := h.Run(ctx, host.Command{Argv: argv})
		return err
	}
	for _, d := range only(all, plan.ObjectInterface) {
		have, err := listLinks(ctx, h)
		if err != nil {
			return err
		}
		if slices.Contains(have, d.was.Name) {
			if err := run("ip", "link", "delete", "dev", d.was.Name); err != nil {
				return err
			}
		}
	}
	for _, d := range only(all, plan.ObjectTable) {
		have, err := listTables(ctx, h)
		if err != nil {
			return err
		}
		for _, t := range have {
			if t.Name == d.was.Name {
				if err := run("nft", "delete", "table", t.Family, t.Name); err != nil {
					return err
				}
			}
		}
	}
	for _, d := range only(all, plan.ObjectAddress) {
		if err := removeAddress(ctx, h, d.was.Name); err != nil {
			return err
		}
	}
	for _, d := range only(all, plan.ObjectRoutes) {
		within, err := netip.ParsePrefix(d.was.Name)
		if err != nil {
			return err
		}
		have, err := listRoutes(ctx, h, within)
		if err != nil {
			return err
		}
		for _, to := range surplus(have, d.was.Names) {
			if err := run("ip", "-4", "route", "delete", to); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeAddress removes a single address from all interfaces. One with a lifetime may
// end by itself meanwhile.
func removeAddress(ctx context.Context, h host.Host, local string) error {
	have, err := listAddresses(ctx, h)
	if err != nil {
		return err
	}
	for _, a := range have {
		if a.Local != local {
			continue
		}
		if _, err := h.Run(ctx, host.Command{Argv: []string{"ip", "-4", "address", "delete", a.Local + "/32", "dev", a.Device}}); err != nil {
			left, again := listAddresses(ctx, h)
			if again != nil || slices.Contains(left, a) {
				return err
			}
		}
	}
	return nil
}

// restoreFiles goes backwards: what is in a folder before the folder.
func restoreFiles(ctx context.Context, h host.Host, all []difference) error {
	files := only(all, plan.ObjectFile)
	slices.Reverse(files)
	var remove []string
	for _, d := range files {
		if !d.was.Exists {
			remove = append(remove, d.was.Name)
		}
	}
	if len(remove) > 0 {
		if err := h.Remove(ctx, remove...); err != nil {
			return err
		}
	}
	for _, d := range files {
		if err := d.was.restoreFile(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

func (b Before) restoreFile(ctx context.Context, h host.Host) error {
	meta := host.Meta{Mode: b.Mode.Perm(), UID: b.UID, GID: b.GID}
	switch {
	case !b.Exists:
		return nil
	case b.Mode.IsDir():
		if b.Empty {
			names, err := h.ReadDir(ctx, b.Name)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			for i, n := range names {
				names[i] = path.Join(b.Name, n)
			}
			if err := h.Remove(ctx, names...); err != nil {
				return err
			}
		}
		return h.Mkdir(ctx, b.Name, meta)
	case b.Mode&fs.ModeSymlink != 0:
		return h.Symlink(ctx, b.Target, b.Name)
	case b.Content != nil:
		return h.WriteFile(ctx, b.Name, bytes.NewReader(b.Content), meta)
	case b.Copy != "":
		temp := path.Join(path.Dir(b.Name), "."+path.Base(b.Name)+host.TemporaryMark+"copy")
		if _, err := h.Run(ctx, host.Command{Argv: []string{"cp", "--archive", "--", b.Copy, temp}}); err != nil {
			return err
		}
		_, err := h.Run(ctx, host.Command{Argv: []string{"mv", "--no-target-directory", "--", temp, b.Name}})
		return err
	}
	return nil
}

// restoreUnits has systemd forget the units whose files are gone, also those that were
// stopped before this undo was broken off, and starts again what ran before.
func (u Undo) restoreUnits(ctx context.Context, h host.Host, all []difference) error {
	sd := h.Systemd()
	units := slices.DeleteFunc(slices.Clone(u.Entry.Before), func(b Before) bool {
		return b.Kind != plan.ObjectUnit && b.Kind != plan.ObjectSlice
	})
	if len(units) == 0 {
		return nil
	}
	if err := sd.Reload(ctx); err != nil {
		return err
	}
	for _, b := range units {
		if !b.Exists {
			if err := sd.ResetFailed(ctx, b.Name); err != nil {
				return err
			}
		}
	}
	for _, d := range only(all, plan.ObjectUnit) {
		if d.was.Enabled && !d.is.Enabled {
			if err := sd.Enable(ctx, d.was.Name); err != nil {
				return err
			}
		}
		if d.was.Exists {
			if err := sd.Restart(ctx, d.was.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// restoreKernel puts settings back, and takes modules out that nobody uses any more.
func restoreKernel(ctx context.Context, h host.Host, all []difference) error {
	if settings := only(all, plan.ObjectSetting); len(settings) > 0 {
		argv := []string{"sysctl", "-q", "-w"}
		for _, d := range settings {
			argv = append(argv, d.was.Name+"="+d.was.Value)
		}
		if _, err := h.Run(ctx, host.Command{Argv: argv}); err != nil {
			return err
		}
	}
	for _, d := range only(all, plan.ObjectModule) {
		// One that is in use stays: the kernel knows best.
		if _, err := h.Run(ctx, host.Command{Argv: []string{"modprobe", "--remove", d.was.Name}}); err != nil {
			plan.Report(ctx, fmt.Sprintf("module %s stays: %v", d.was.Name, err))
		}
	}
	return nil
}

// Backwards are the actions that put entries back, in their order. An object that
// several entries name is put back once, to the oldest state; and a unit that ran
// before is started again by the last action, when all that it reads is back.
func Backwards(entries []Entry) []Undo {
	all := make([]Undo, len(entries))
	seen := map[plan.Object]bool{} // named by an older entry
	var ran []Before
	for i, e := range entries {
		var own []Before
		for _, b := range e.Before {
			switch {
			case seen[b.Object]:
			case b.Kind == plan.ObjectUnit && b.Exists:
				ran = append(ran, b)
			default:
				own = append(own, b)
			}
			seen[b.Object] = true
		}
		e.Before = own
		all[len(entries)-1-i] = Undo{e}
	}
	if len(all) > 0 {
		last := &all[len(all)-1].Entry
		last.Before = append(last.Before, ran...)
	}
	return all
}

// Objects are those that entries made: what they changed and did not find.
func Objects(entries []Entry) []plan.Object {
	var all []plan.Object
	for _, e := range entries {
		for _, b := range e.Before {
			// A folder that stood there with something in it is others', too.
			if b.Kind != plan.ObjectFile || !b.Mode.IsDir() || b.Empty {
				all = append(all, b.Object)
			}
		}
	}
	return all
}
