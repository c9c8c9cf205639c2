package journal

import (
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

// inline is how large a file may be to be kept in the entry itself, in bytes.
const inline = 256 << 10

// observe describes objects as they are. Of those in subject the content is kept,
// too: the step replaces or removes it.
func (j *Host) observe(ctx context.Context, e Entry, objects []plan.Object, subject map[plan.Object]bool) ([]Before, error) {
	objects, err := withParents(ctx, j.Host, objects)
	if err != nil {
		return nil, err
	}
	all := make([]Before, len(objects))
	for i, o := range objects {
		all[i].Object = o
	}
	looks, bounded := errgroup.WithContext(ctx)
	looks.Go(func() error { return files(bounded, j.Host, all, subject) })
	looks.Go(func() error { return units(bounded, j.Host, all) })
	looks.Go(func() error { return network(bounded, j.Host, all) })
	looks.Go(func() error { return kernel(bounded, j.Host, all) })
	if err := looks.Wait(); err != nil {
		return nil, err
	}
	for i, b := range of(all, plan.ObjectFile) {
		if b.Exists && b.Mode.IsRegular() && b.Content == nil && subject[b.Object] {
			b.Copy = path.Join(e.copies(), fmt.Sprint(i))
			if err := j.keep(ctx, b.Name, b.Copy); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// withParents puts before each file the topmost of its directories that is not
// there: it is made with the file, and has to go with it.
func withParents(ctx context.Context, r host.Reader, objects []plan.Object) ([]plan.Object, error) {
	var parents []string
	for _, o := range objects {
		for _, name := range changes(o) {
			for dir := path.Dir(name); dir != "/"; dir = path.Dir(dir) {
				parents = append(parents, dir)
			}
		}
	}
	slices.Sort(parents)
	parents = slices.Compact(parents)
	found, err := r.Stat(ctx, parents...)
	if err != nil {
		return nil, err
	}
	var missing []string // sorted: a parent is before what is in it
	for _, f := range found {
		if !f.Exists {
			missing = append(missing, f.Path)
		}
	}
	var all []plan.Object
	done := map[plan.Object]bool{}
	add := func(o plan.Object) {
		if !done[o] {
			done[o] = true
			all = append(all, o)
		}
	}
	for _, o := range objects {
		for _, name := range changes(o) {
			if i := slices.IndexFunc(missing, func(dir string) bool { return strings.HasPrefix(name, dir+"/") }); i >= 0 {
				add(file(missing[i]))
			}
		}
		add(o)
	}
	return all, nil
}

// enabledDir is where systemd links the units that start at boot.
const enabledDir = "/etc/systemd/system/multi-user.target.wants"

// changes are the files that come and go with an object.
func changes(o plan.Object) []string {
	switch o.Kind {
	case plan.ObjectFile:
		return []string{o.Name}
	case plan.ObjectUnit:
		return []string{path.Join(enabledDir, o.Name)}
	}
	return nil
}

func of(all []Before, kind plan.ObjectKind) []*Before {
	var found []*Before
	for i := range all {
		if all[i].Kind == kind {
			found = append(found, &all[i])
		}
	}
	return found
}

func names(all []*Before) []string {
	list := make([]string, len(all))
	for i, b := range all {
		list[i] = b.Name
	}
	return list
}

// files describes files, and reads those in subject that are not large.
func files(ctx context.Context, r host.Reader, all []Before, subject map[plan.Object]bool) error {
	list := of(all, plan.ObjectFile)
	found, err := r.Stat(ctx, names(list)...)
	if err != nil {
		return err
	}
	for i, f := range found {
		b := list[i]
		if b.Exists = f.Exists; !f.Exists {
			continue
		}
		b.Mode, b.UID, b.GID, b.Target = f.Mode, f.UID, f.GID, f.Target
		switch {
		case f.Mode.IsDir():
			entries, err := r.ReadDir(ctx, f.Path)
			if err != nil {
				return err
			}
			b.Empty = len(entries) == 0
		case f.Mode.IsRegular() && subject[b.Object] && f.Size <= inline:
			if b.Content, err = r.ReadFile(ctx, f.Path); err != nil {
				return err
			}
			if b.Content == nil { // an empty file has a content, too
				b.Content = []byte{}
			}
		}
	}
	return nil
}

// keep makes a copy of a large file on the host itself.
func (j *Host) keep(ctx context.Context, from, to string) error {
	if err := j.Host.Mkdir(ctx, path.Dir(to), host.Meta{Mode: 0o700}); err != nil {
		return err
	}
	_, err := j.Host.Run(ctx, host.Command{Argv: []string{"cp", "--archive", "--", from, to}})
	return err
}

func units(ctx context.Context, r host.Reader, all []Before) error {
	list := slices.Concat(of(all, plan.ObjectUnit), of(all, plan.ObjectSlice))
	if len(list) == 0 {
		return nil
	}
	states, err := r.Units(ctx, names(list)...)
	if err != nil {
		return err
	}
	for i, u := range states {
		list[i].Exists = u.Active == "active" || u.Active == "activating" || u.Active == "reloading"
		list[i].Enabled = u.File == "enabled"
	}
	for _, b := range of(all, plan.ObjectSlice) {
		if b.Names, err = listGroups(ctx, r, b.Name); err != nil {
			return err
		}
	}
	return nil
}

func kernel(ctx context.Context, r host.Reader, all []Before) error {
	for _, b := range of(all, plan.ObjectSetting) {
		value, err := r.ReadFile(ctx, settingFile(b.Name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // its module is not loaded
		}
		if err != nil {
			return err
		}
		b.Exists, b.Value = true, strings.TrimSpace(string(value))
	}
	modules := of(all, plan.ObjectModule)
	if len(modules) == 0 {
		return nil
	}
	paths := make([]string, len(modules))
	for i, b := range modules {
		paths[i] = moduleDir(b.Name)
	}
	found, err := r.Stat(ctx, paths...)
	if err != nil {
		return err
	}
	for i, f := range found {
		modules[i].Exists = f.Exists
	}
	return nil
}

// settingFile is where the kernel shows a setting.
func settingFile(name string) string {
	return path.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
}

// moduleDir is there if a module is loaded.
func moduleDir(name string) string { return path.Join("/sys/module", name) }

func network(ctx context.Context, r host.Reader, all []Before) error {
	interfaces, tables := of(all, plan.ObjectInterface), of(all, plan.ObjectTable)
	routes, mounts := of(all, plan.ObjectRoutes), of(all, plan.ObjectMounts)
	if len(interfaces) > 0 {
		have, err := listLinks(ctx, r)
		if err != nil {
			return err
		}
		for _, b := range interfaces {
			b.Exists = slices.Contains(have, b.Name)
		}
	}
	if len(tables) > 0 {
		have, err := listTables(ctx, r)
		if err != nil {
			return err
		}
		for _, b := range tables {
			b.Exists = slices.ContainsFunc(have, func(t table) bool { return t.Name == b.Name })
		}
	}
	if addresses := of(all, plan.ObjectAddress); len(addresses) > 0 {
		have, err := listAddresses(ctx, r)
		if err != nil {
			return err
		}
		for _, b := range addresses {
			b.Exists = slices.ContainsFunc(have, func(a address) bool { return a.Local == b.Name })
		}
	}
	for _, b := range routes {
		within, err := netip.ParsePrefix(b.Name)
		if err != nil {
			return err
		}
		if b.Names, err = listRoutes(ctx, r, within); err != nil {
			return err
		}
	}
	for _, b := range mounts {
		var err error
		if b.Names, err = listMounts(ctx, r, b.Name); err != nil {
			return err
		}
	}
	return nil
}
