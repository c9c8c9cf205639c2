package hosttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
)

const (
	parentMode = fs.FileMode(0o755)
	maxLinks   = 40 // followed on the way to one file, as in Linux
)

// node is a file, directory or link.
type node struct {
	mode     fs.FileMode
	uid, gid int
	modified time.Time
	content  []byte
	target   string
	children map[string]*node // of a directory
}

func (s *Sim) newDir(perm fs.FileMode, uid, gid int) *node {
	return &node{mode: fs.ModeDir | perm, uid: uid, gid: gid, modified: s.now, children: make(map[string]*node)}
}

func sortedNames(dir *node) []string { return slices.Sorted(maps.Keys(dir.children)) }

func (n *node) isDir() bool { return n.mode.IsDir() }

// errNotDir is of a path that goes through what is no directory: over SFTP, too,
// it looks as if nothing was there.
var errNotDir = fmt.Errorf("%w: not a directory on the way", fs.ErrNotExist)

// find returns the node at an absolute path, with links on the way resolved, and
// one at its end if follow is set. The lock is held.
func (s *Sim) find(name string, follow bool) (*node, error) {
	dir, base, err := s.locate(name, follow)
	if err != nil {
		return nil, err
	}
	if base == "" {
		return dir, nil
	}
	if n, ok := dir.children[base]; ok {
		return n, nil
	}
	return nil, fs.ErrNotExist
}

// locate returns the directory that path's last element stands in, or would, and
// that element; "" for the root. With follow, of what a link at the end leads to.
func (s *Sim) locate(name string, follow bool) (*node, string, error) {
	if !path.IsAbs(name) {
		return nil, "", fmt.Errorf("%w: the path is not absolute", fs.ErrInvalid)
	}
	left := strings.Split(strings.Trim(path.Clean(name), "/"), "/")
	trail := []*node{s.root}
	for links := 0; len(left) > 0; {
		word := left[0]
		left = left[1:]
		dir := trail[len(trail)-1]
		switch word {
		case "", ".":
			continue
		case "..":
			trail = trail[:max(1, len(trail)-1)]
			continue
		}
		n, ok := dir.children[word]
		last := len(left) == 0
		if ok && n.mode&fs.ModeSymlink != 0 && (!last || follow) {
			if links++; links > maxLinks {
				return nil, "", syscall.ELOOP
			}
			if path.IsAbs(n.target) {
				trail = trail[:1]
			}
			left = append(strings.Split(n.target, "/"), left...)
			continue
		}
		switch {
		case last:
			return dir, word, nil
		case !ok:
			return nil, "", fs.ErrNotExist
		case !n.isDir():
			return nil, "", errNotDir
		}
		trail = append(trail, n)
	}
	return trail[len(trail)-1], "", nil
}

// mkdirAll makes a directory with its parents, if it is not there. The lock is held.
func (s *Sim) mkdirAll(name string) (*node, error) {
	n, err := s.find(name, true)
	switch {
	case err == nil && n.isDir():
		return n, nil
	case err == nil:
		return nil, syscall.ENOTDIR
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	if parent := path.Dir(path.Clean(name)); parent != path.Clean(name) {
		if _, err := s.mkdirAll(parent); err != nil {
			return nil, err
		}
	}
	dir, base, err := s.locate(name, true)
	if err != nil {
		return nil, err
	}
	n = s.newDir(parentMode, 0, 0)
	dir.children[base], dir.modified = n, s.now
	return n, nil
}

// place puts n at name as a rename does. The lock is held.
func (s *Sim) place(name string, n *node) error {
	dir, base, err := s.locate(name, false)
	if err != nil {
		return err
	}
	if base == "" {
		return syscall.EISDIR
	}
	if there, ok := dir.children[base]; ok && there.isDir() {
		return syscall.EISDIR
	}
	dir.children[base], dir.modified = n, s.now
	return nil
}

// temporary is a name beside name that an operation leaves if it ends half-way.
func (s *Sim) temporary(name string) string {
	return path.Join(path.Dir(name), fmt.Sprintf(".%s%s%d", path.Base(name), host.TemporaryMark, len(s.operations)))
}

func pathError(op, name string, err error) error {
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// ReadFile returns a file's content.
func (s *Sim) ReadFile(ctx context.Context, name string) ([]byte, error) {
	return look(ctx, s, func() ([]byte, error) {
		if content, ok := s.lockFile(name); ok {
			return content, nil
		}
		n, err := s.find(name, true)
		if err == nil && n.isDir() {
			err = syscall.EISDIR
		}
		if err != nil {
			return nil, pathError("read", name, err)
		}
		return bytes.Clone(n.content), nil
	})
}

// Stat describes paths, with times in whole seconds as over SFTP.
func (s *Sim) Stat(ctx context.Context, paths ...string) ([]host.File, error) {
	return look(ctx, s, func() ([]host.File, error) {
		files := make([]host.File, len(paths))
		for i, name := range paths {
			files[i].Path = name
			n, err := s.find(name, false)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, pathError("lstat", name, err)
			}
			files[i] = host.File{
				Path: name, Exists: true, Mode: n.mode, Size: n.size(), ModTime: n.modified.Truncate(time.Second),
				UID: n.uid, GID: n.gid, Target: n.target,
			}
		}
		return files, nil
	})
}

func (n *node) size() int64 { return int64(len(n.content) + len(n.target)) }

// ReadDir lists the names in a directory, sorted.
func (s *Sim) ReadDir(ctx context.Context, name string) ([]string, error) {
	return look(ctx, s, func() ([]string, error) {
		n, err := s.find(name, true)
		if err == nil && !n.isDir() {
			err = syscall.ENOTDIR
		}
		if err != nil {
			return nil, pathError("read directory", name, err)
		}
		return sortedNames(n), nil
	})
}

// WriteFile replaces a file. In the middle of it the old one stands, and a
// temporary file with half of the content beside it.
func (s *Sim) WriteFile(ctx context.Context, name string, content io.Reader, meta host.Meta) error {
	if ctx.Err() != nil {
		return fmt.Errorf("write %s: %w", name, context.Cause(ctx))
	}
	data, err := io.ReadAll(content)
	if err != nil {
		return fmt.Errorf("write %s: read its content: %w", name, err)
	}
	half := func() error {
		if _, err := s.mkdirAll(path.Dir(name)); err != nil {
			return err
		}
		return s.place(s.temporary(name), &node{mode: 0o600, modified: s.now, content: data[:len(data)/2]})
	}
	whole := func() error {
		if _, err := s.mkdirAll(path.Dir(name)); err != nil {
			return err
		}
		if s.room >= 0 && int64(len(data)) > s.room {
			return fault.New(fault.DiskFull, "call FillAfter", "no space left on the simulated host: %w", syscall.ENOSPC)
		}
		if err := s.place(name, &node{mode: meta.Mode.Perm(), uid: meta.UID, gid: meta.GID, modified: s.now, content: data}); err != nil {
			return err
		}
		if s.room >= 0 {
			s.room -= int64(len(data))
		}
		return nil
	}
	return s.change(ctx, "write "+name, half, whole)
}

// Mkdir makes a directory. In the middle of it, it has not got its meta yet.
func (s *Sim) Mkdir(ctx context.Context, name string, meta host.Meta) error {
	made := func() error { _, err := s.mkdirAll(name); return err }
	return s.change(ctx, "mkdir "+name, made, func() error {
		n, err := s.mkdirAll(name)
		if err != nil {
			return err
		}
		n.mode, n.uid, n.gid = fs.ModeDir|meta.Mode.Perm(), meta.UID, meta.GID
		return nil
	})
}

// Symlink makes name a link. In the middle of it, the link has a temporary name.
func (s *Sim) Symlink(ctx context.Context, target, name string) error {
	at := func(name string) error {
		if _, err := s.mkdirAll(path.Dir(name)); err != nil {
			return err
		}
		return s.place(name, &node{mode: fs.ModeSymlink | 0o777, modified: s.now, target: target})
	}
	return s.change(ctx, "symlink "+name, func() error { return at(s.temporary(name)) }, func() error { return at(name) })
}

// Remove removes paths. In the middle of it, half of what stands in the first
// of them that is there is gone.
func (s *Sim) Remove(ctx context.Context, paths ...string) error {
	half := func() error {
		for _, name := range paths {
			n, err := s.find(name, false)
			if err != nil || s.refuse(paths) != nil {
				continue
			}
			names := sortedNames(n)
			for _, child := range names[:len(names)/2] {
				delete(n.children, child)
			}
			return nil
		}
		return nil
	}
	return s.change(ctx, "remove "+strings.Join(paths, " "), half, func() error {
		if err := s.refuse(paths); err != nil {
			return err
		}
		for _, name := range paths {
			dir, base, err := s.locate(name, false)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return pathError("remove", name, err)
			}
			if _, ok := dir.children[base]; ok {
				delete(dir.children, base)
				dir.modified = s.now
			}
		}
		return nil
	})
}

// refuse says why paths must not be removed, nil if they may.
func (s *Sim) refuse(paths []string) error {
	for _, name := range paths {
		if !path.IsAbs(name) || path.Clean(name) == "/" {
			return fmt.Errorf("%q: only absolute paths below / are removed", name)
		}
		for _, point := range s.mounts {
			if clean := path.Clean(name); point == clean || strings.HasPrefix(point, clean+"/") {
				return fmt.Errorf("a file system is mounted at %s", point)
			}
		}
	}
	return nil
}

// Put sets up a file of root's with its parents, not as an operation.
func (s *Sim) Put(name, content string, perm fs.FileMode) {
	s.set(name, &node{mode: perm, content: []byte(content)})
}

// PutLink sets up a link.
func (s *Sim) PutLink(target, name string) {
	s.set(name, &node{mode: fs.ModeSymlink | 0o777, target: target})
}

func (s *Sim) set(name string, n *node) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	n.modified = s.now
	_, err := s.mkdirAll(path.Dir(name))
	if err == nil {
		err = s.place(name, n)
	}
	if err != nil {
		s.t.Fatalf("set up %s: %v", name, err)
	}
}

// Mount makes a directory a mount point.
func (s *Sim) Mount(dir string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.mkdirAll(dir); err != nil {
		s.t.Fatalf("mount at %s: %v", dir, err)
	}
	s.mounts = append(s.mounts, path.Clean(dir))
}

// Unmount undoes Mount.
func (s *Sim) Unmount(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mounts = slices.DeleteFunc(s.mounts, func(point string) bool { return point == path.Clean(dir) })
}
