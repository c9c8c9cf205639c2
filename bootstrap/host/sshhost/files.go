package sshhost

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/pkg/sftp"
	"golang.org/x/sync/errgroup"
)

const (
	statsAtOnce = 64
	parentMode  = fs.FileMode(0o755)
	fullBelow   = 1 << 20 // bytes free under which a failed write is called a full disk
	serverUmask = "077"   // temporary files must not be readable for a moment even
)

// serverPrograms is where distributions put OpenSSH's sftp-server.
func serverPrograms() []string {
	return []string{
		"/usr/lib/openssh/sftp-server",     // Debian
		"/usr/libexec/openssh/sftp-server", // Red Hat
		"/usr/lib/ssh/sftp-server",         // SUSE, Arch, Alpine
		"/usr/libexec/sftp-server",         // BSD's way
	}
}

// sftp returns the SFTP client, root's on every host.
func (h *Host) sftp(ctx context.Context) (*sftp.Client, error) {
	alive := func(*sftp.Client) bool { return true } // it ends with the connection
	return h.files.get(ctx, alive, func() (*sftp.Client, error) {
		c, err := await(ctx, h.openSFTP)
		if err != nil {
			return nil, h.explain(fmt.Errorf("open SFTP: %w", err))
		}
		return c, nil
	})
}

// openSFTP runs the sftp-server program itself, for that can be done as root
// and with a umask of ours; sshd's own subsystem is the last resort, of root alone.
func (h *Host) openSFTP() (*sftp.Client, error) {
	options := []sftp.ClientOption{sftp.UseConcurrentReads(true), sftp.UseConcurrentWrites(true), sftp.UseFstat(true)}
	var failures []error
	for _, program := range serverPrograms() {
		p, err := h.start(program, "-u", serverUmask)
		if err != nil {
			return nil, err
		}
		c, err := sftp.NewClientPipe(p, p, options...)
		if err == nil {
			return c, nil
		}
		p.Close() //nolint:errcheck // it has ended
		failures = append(failures, fmt.Errorf("%s: %w", program, err))
	}
	if len(h.sudo) == 0 {
		c, err := sftp.NewClient(h.client, options...)
		if err == nil {
			return c, nil
		}
		failures = append(failures, fmt.Errorf("subsystem: %w", err))
	}
	return nil, fault.New(fault.HostUnsuitable, "install it on the host (apt-get install openssh-sftp-server)",
		"the host has no SFTP server: %w", errors.Join(failures...))
}

// withFiles calls f with the SFTP client, and does not wait for it longer than ctx.
func withFiles[T any](ctx context.Context, h *Host, op, name string, f func(*sftp.Client) (T, error)) (T, error) {
	var zero T
	c, err := h.sftp(ctx)
	if err != nil {
		return zero, err
	}
	value, err := await(ctx, func() (T, error) { return f(c) })
	if err != nil {
		return zero, h.fileError(ctx, c, op, name, err)
	}
	return value, nil
}

// fileError names operation and path, and tells a full disk.
func (h *Host) fileError(ctx context.Context, c *sftp.Client, op, name string, err error) error {
	if full := h.diskFull(ctx, c, path.Dir(name), err); full != nil {
		return full
	}
	var located *fs.PathError
	if !errors.As(err, &located) {
		err = &fs.PathError{Op: op, Path: name, Err: err}
	}
	return h.explain(err)
}

// diskFull is a fault if an operation in dir failed with err for want of space
// or inodes. SFTP has no status for that but the general failure, so the file
// system is asked how much it has left.
func (h *Host) diskFull(ctx context.Context, c *sftp.Client, dir string, err error) error {
	if told := (*fault.Fault)(nil); errors.As(err, &told) && told.Code == fault.DiskFull {
		return err
	}
	var status *sftp.StatusError
	if !errors.As(err, &status) || status.FxCode() != sftp.ErrSSHFxFailure {
		return nil
	}
	vfs, err := await(ctx, func() (*sftp.StatVFS, error) { return c.StatVFS(dir) })
	if err != nil {
		return nil
	}
	what := "space"
	switch {
	case vfs.Frsize*vfs.Bfree < fullBelow:
	case vfs.Files > 0 && vfs.Ffree == 0:
		what = "inode"
	default:
		return nil
	}
	mount := dir
	if out, err := h.Query(ctx, "stat", "-c", "%m", "--", dir); err == nil {
		mount = strings.TrimSpace(string(out))
	}
	return fault.New(fault.DiskFull, "make room there (df -h "+mount+"), then run the same command again",
		"no %s left on the file system %s of the host, of %d MiB", what, mount, vfs.Frsize*vfs.Blocks>>20)
}

// ReadFile returns a file's content.
func (h *Host) ReadFile(ctx context.Context, name string) ([]byte, error) {
	return withFiles(ctx, h, "read", name, func(c *sftp.Client) ([]byte, error) {
		f, err := c.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close() //nolint:errcheck // it was only read
		var content bytes.Buffer
		_, err = f.WriteTo(&content)
		return content.Bytes(), err
	})
}

// Stat describes paths, all asked at once.
func (h *Host) Stat(ctx context.Context, paths ...string) ([]host.File, error) {
	files := make([]host.File, len(paths))
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(statsAtOnce)
	for i, name := range paths {
		all.Go(func() (err error) {
			files[i], err = h.stat(ctx, name)
			return err
		})
	}
	if err := all.Wait(); err != nil {
		return nil, err
	}
	return files, nil
}

func (h *Host) stat(ctx context.Context, name string) (host.File, error) {
	file, err := withFiles(ctx, h, "lstat", name, func(c *sftp.Client) (host.File, error) {
		info, err := c.Lstat(name)
		if err != nil {
			return host.File{}, err
		}
		f := host.File{Path: name, Exists: true, Mode: info.Mode(), Size: info.Size(), ModTime: info.ModTime()}
		if sys, ok := info.Sys().(*sftp.FileStat); ok {
			f.UID, f.GID = int(sys.UID), int(sys.GID)
		}
		if f.Mode&fs.ModeSymlink != 0 {
			f.Target, err = c.ReadLink(name)
		}
		return f, err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return host.File{Path: name}, nil
	}
	return file, err
}

// ReadDir lists the names in a directory, sorted.
func (h *Host) ReadDir(ctx context.Context, name string) ([]string, error) {
	return withFiles(ctx, h, "read directory", name, func(c *sftp.Client) ([]string, error) {
		entries, err := c.ReadDir(name)
		names := make([]string, len(entries))
		for i, e := range entries {
			names[i] = e.Name()
		}
		slices.Sort(names)
		return names, err
	})
}

// WriteFile replaces a file atomically. When ctx ends, the content is read no
// further and the temporary file is removed before it returns.
func (h *Host) WriteFile(ctx context.Context, name string, content io.Reader, meta host.Meta) error {
	c, err := h.sftp(ctx)
	if err != nil {
		return err
	}
	from := &source{r: &until{ctx: ctx, r: content}}
	if err := h.replace(ctx, c, name, from, meta); err != nil {
		if from.err != nil {
			return fmt.Errorf("write %s: read its content: %w", name, from.err)
		}
		return h.fileError(ctx, c, "write", name, err)
	}
	return nil
}

// replace writes a file beside name and renames it.
func (h *Host) replace(ctx context.Context, c *sftp.Client, name string, content *source, meta host.Meta) (err error) {
	temp := temporary(name)
	create := func() (*sftp.File, error) { return c.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL) }
	f, err := create()
	if errors.Is(err, fs.ErrNotExist) {
		if err = mkdirAll(c, path.Dir(name)); err == nil {
			f, err = create()
		}
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			if full := h.diskFull(ctx, c, path.Dir(name), err); full != nil {
				err = full // to be found out before the room is given back
			}
			f.Close()      //nolint:errcheck // the first error tells more
			c.Remove(temp) //nolint:errcheck // likewise
		}
	}()
	if err := f.Chmod(0o600); err != nil { // sshd's own subsystem has another umask
		return err
	}
	if _, err := f.ReadFromWithConcurrency(content, 0); err != nil {
		return err
	}
	if content.err != nil {
		return content.err
	}
	if err := f.Chown(meta.UID, meta.GID); err != nil {
		return err
	}
	if err := f.Chmod(meta.Mode); err != nil { // after the owner: chown takes set-id bits away
		return err
	}
	if err := flush(f); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := c.PosixRename(temp, name); err != nil {
		return err
	}
	return syncDir(c, path.Dir(name))
}

// temporary is a name beside name that nobody else uses.
func temporary(name string) string {
	return path.Join(path.Dir(name), "."+path.Base(name)+host.TemporaryMark+rand.Text())
}

// flush puts a file on disk, where the server can (fsync@openssh.com).
func flush(f *sftp.File) error {
	err := f.Sync()
	if status := (*sftp.StatusError)(nil); errors.As(err, &status) && status.FxCode() == sftp.ErrSSHFxOpUnsupported {
		return nil
	}
	return err
}

// syncDir makes a rename durable.
func syncDir(c *sftp.Client, dir string) error {
	d, err := c.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // nothing was written through it
	return flush(d)
}

// mkdirAll makes a directory with its missing parents, 0755.
func mkdirAll(c *sftp.Client, dir string) error {
	info, err := c.Stat(dir)
	if err == nil && info.IsDir() {
		return nil
	}
	if err == nil {
		return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if parent := path.Dir(dir); parent != dir {
		if err := mkdirAll(c, parent); err != nil {
			return err
		}
	}
	if err := c.Mkdir(dir); err != nil {
		if info, again := c.Stat(dir); again == nil && info.IsDir() {
			return nil // another call was faster
		}
		return err
	}
	return c.Chmod(dir, parentMode)
}

// none is the result of what only changes things.
type none struct{}

// Mkdir makes a directory with its missing parents and gives it meta.
func (h *Host) Mkdir(ctx context.Context, name string, meta host.Meta) error {
	_, err := withFiles(ctx, h, "mkdir", name, func(c *sftp.Client) (none, error) {
		if err := mkdirAll(c, name); err != nil {
			return none{}, err
		}
		if err := c.Chown(name, meta.UID, meta.GID); err != nil {
			return none{}, err
		}
		return none{}, c.Chmod(name, meta.Mode)
	})
	return err
}

// Symlink makes name a link to target.
func (h *Host) Symlink(ctx context.Context, target, name string) error {
	_, err := withFiles(ctx, h, "symlink", name, func(c *sftp.Client) (none, error) {
		temp := temporary(name)
		err := c.Symlink(target, temp)
		if errors.Is(err, fs.ErrNotExist) {
			if err = mkdirAll(c, path.Dir(name)); err == nil {
				err = c.Symlink(target, temp)
			}
		}
		if err != nil {
			return none{}, err
		}
		if err := c.PosixRename(temp, name); err != nil {
			c.Remove(temp) //nolint:errcheck // the first error tells more
			return none{}, err
		}
		return none{}, syncDir(c, path.Dir(name))
	})
	return err
}

// Remove removes paths and all below them. Nothing is touched if a file system
// is mounted at or below one of them: rm by itself would empty a bind mount of
// the same device.
func (h *Host) Remove(ctx context.Context, paths ...string) error {
	if len(paths) == 0 {
		return nil
	}
	for _, name := range paths {
		if !path.IsAbs(name) || path.Clean(name) == "/" {
			return fmt.Errorf("remove %q: only absolute paths below / are removed", name)
		}
	}
	mounts, err := h.ReadFile(ctx, host.MountTable)
	if err != nil {
		return err
	}
	if at := host.MountBelow(string(mounts), paths); at != "" {
		return fmt.Errorf("remove %s: a file system is mounted at %s", strings.Join(paths, " "), at)
	}
	argv := append([]string{"rm", "-rf", "--one-file-system", "--"}, paths...)
	if _, err := h.Run(ctx, host.Command{Argv: argv}); err != nil {
		return err
	}
	left, err := h.Stat(ctx, paths...)
	if err != nil {
		return err
	}
	for _, file := range left {
		if file.Exists {
			return fmt.Errorf("remove %s: it is still there", file.Path)
		}
	}
	return nil
}

// until is a reader that ends with ctx.
type until struct {
	ctx context.Context
	r   io.Reader
}

func (u *until) Read(p []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.r.Read(p)
}

// CopyFile writes a file's content to w as it comes: at most some MiB of it are under way
// at a time. When ctx ends, w is not written to any more once it returns.
func (h *Host) CopyFile(ctx context.Context, name string, w io.Writer) error {
	to := &gate{ctx: ctx, w: w}
	_, err := withFiles(ctx, h, "read", name, func(c *sftp.Client) (none, error) {
		f, err := c.Open(name)
		if err != nil {
			return none{}, err
		}
		defer f.Close() //nolint:errcheck // it was only read
		_, err = f.WriteTo(to)
		return none{}, err
	})
	if failed := to.shut(); failed != nil {
		return fmt.Errorf("copy %s: %w", name, failed)
	}
	return err
}

// gate is a writer that ends with ctx, or when it is shut.
type gate struct {
	ctx context.Context
	w   io.Writer

	mu     sync.Mutex // held while w is written to
	closed bool
	err    error // w's own
}

func (g *gate) Write(p []byte) (n int, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.closed:
		return 0, io.ErrClosedPipe
	case g.ctx.Err() != nil:
		return 0, context.Cause(g.ctx)
	}
	n, err = g.w.Write(p)
	g.err = err
	return n, err
}

// shut waits for a write that is under way, lets no more through, and returns how w failed.
func (g *gate) shut() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	return g.err
}
