// Package file is the action on plain files: what stands on the host has to be
// what was wished, in content, mode, owner and kind.
package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// Wish is one file, directory or symbolic link as it should be.
type Wish struct {
	Path    string
	Mode    fs.FileMode   // permission bits
	Content []byte        // of a file
	Dir     bool          // a directory; Content is not used
	Target  string        // a symbolic link to it; Content and Mode are not used
	Brings  []plan.Object // what comes with it by itself
}

// Put makes files as wished. The owner is root.
type Put struct {
	Files []Wish
}

var _ plan.Action[host.Reader, host.Host] = Put{}

// Check compares all files in about two round trips.
func (p Put) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	_, diff, err := p.compare(ctx, r)
	return diff, err
}

// Apply writes the files that differ, in the order given.
func (p Put) Apply(ctx context.Context, h host.Host) error {
	stale, _, err := p.compare(ctx, h)
	if err != nil {
		return err
	}
	for _, w := range stale {
		meta := host.Meta{Mode: w.Mode}
		switch {
		case w.Target != "":
			err = h.Symlink(ctx, w.Target, w.Path)
		case w.Dir:
			err = h.Mkdir(ctx, w.Path, meta)
		default:
			err = h.WriteFile(ctx, w.Path, bytes.NewReader(w.Content), meta)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// compare returns the wishes that do not hold, and what is to be said of them.
func (p Put) compare(ctx context.Context, r host.Reader) ([]Wish, plan.Diff, error) {
	paths := make([]string, len(p.Files))
	for i, w := range p.Files {
		paths[i] = w.Path
	}
	found, err := r.Stat(ctx, paths...)
	if err != nil {
		return nil, nil, err
	}
	var stale []Wish
	var diff plan.Diff
	for i, w := range p.Files {
		why, err := differs(ctx, r, w, found[i])
		if err != nil {
			return nil, nil, err
		}
		if why == "" {
			continue
		}
		verb := plan.Update
		if !found[i].Exists {
			verb, why = plan.Create, ""
		}
		before, err := State(ctx, r, found[i])
		if err != nil {
			return nil, nil, err
		}
		stale = append(stale, w)
		diff = append(diff, plan.Change{Verb: verb, Kind: plan.ObjectFile, Object: w.Path, Detail: why,
			Before: before, After: w.state(), Brings: w.Brings})
	}
	return stale, diff, nil
}

// state is what the wish would leave.
func (w Wish) state() *plan.State {
	switch {
	case w.Target != "":
		return &plan.State{Mode: (fs.ModeSymlink | 0o777).String(), Target: w.Target}
	case w.Dir:
		return &plan.State{Mode: (fs.ModeDir | w.Mode).String()}
	default:
		return plan.FileState(w.Mode, w.Content)
	}
}

// State is what stands at a path now, nil if nothing does.
func State(ctx context.Context, r host.Reader, f host.File) (*plan.State, error) {
	switch {
	case !f.Exists:
		return nil, nil
	case !f.Mode.IsRegular():
		return &plan.State{Mode: f.Mode.String(), Target: f.Target}, nil
	}
	content, err := r.ReadFile(ctx, f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return plan.FileState(f.Mode, content), nil
}

// differs says in a word or two how a file is not as wished, "" if it is.
func differs(ctx context.Context, r host.Reader, w Wish, f host.File) (string, error) {
	switch {
	case !f.Exists:
		return "absent", nil
	case w.Target != "":
		if f.Mode.Type() != fs.ModeSymlink {
			return "is not a link", nil
		}
		if f.Target != w.Target {
			return "links to " + f.Target, nil
		}
		return "", nil
	case w.Dir:
		if !f.Mode.IsDir() {
			return "is not a directory", nil
		}
	case !f.Mode.IsRegular():
		return "is not a regular file", nil
	}
	if f.Mode.Perm() != w.Mode.Perm() {
		return fmt.Sprintf("mode is %04o", f.Mode.Perm()), nil
	}
	if f.UID != 0 || f.GID != 0 {
		return fmt.Sprintf("owner is %d:%d", f.UID, f.GID), nil
	}
	if w.Dir {
		return "", nil
	}
	if f.Size != int64(len(w.Content)) {
		return "content", nil
	}
	have, err := r.ReadFile(ctx, w.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return "absent", nil
	}
	if err != nil {
		return "", err
	}
	if !bytes.Equal(have, w.Content) {
		return "content", nil
	}
	return "", nil
}

// Gone removes paths, with all below them.
type Gone struct {
	Paths []string
}

var _ plan.Action[host.Reader, host.Host] = Gone{}

func (g Gone) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	found, err := r.Stat(ctx, g.Paths...)
	if err != nil {
		return nil, err
	}
	var diff plan.Diff
	for _, f := range found {
		if f.Exists {
			diff = append(diff, plan.Change{Verb: plan.Delete, Kind: plan.ObjectFile, Object: f.Path, Before: &plan.State{Mode: f.Mode.String()}})
		}
	}
	return diff, nil
}

func (g Gone) Apply(ctx context.Context, h host.Host) error { return h.Remove(ctx, g.Paths...) }
