// Package localhost is the machine that kubewright itself runs on, as a host:
// its files, commands and sockets, not its units. Like every host it wants to be root.
package localhost

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
)

// Host is this machine. Its methods may be called concurrently.
type Host struct{ name string }

var _ host.Host = Host{}

// New returns this machine under the name that messages are to call it.
func New(name string) Host { return Host{name: name} }

// Name is the host as the admin wrote it.
func (h Host) Name() string { return h.name }

// absent makes a path that leads through something that is no directory one that
// does not exist, as the other hosts have it.
func absent(err error) error {
	if errors.Is(err, syscall.ENOTDIR) {
		return fmt.Errorf("%w: %w", err, fs.ErrNotExist)
	}
	return err
}

// ReadFile returns a file's content.
func (h Host) ReadFile(ctx context.Context, name string) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, fmt.Errorf("read %s: %w", name, context.Cause(ctx))
	}
	content, err := os.ReadFile(name)
	return content, absent(err)
}

// Stat describes paths.
func (h Host) Stat(ctx context.Context, paths ...string) ([]host.File, error) {
	files := make([]host.File, len(paths))
	for i, name := range paths {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("lstat %s: %w", name, context.Cause(ctx))
		}
		var err error
		if files[i], err = stat(name); err != nil {
			return nil, err
		}
	}
	return files, nil
}

func stat(name string) (host.File, error) {
	info, err := os.Lstat(name)
	if errors.Is(absent(err), fs.ErrNotExist) {
		return host.File{Path: name}, nil
	}
	if err != nil {
		return host.File{}, err
	}
	f := host.File{Path: name, Exists: true, Mode: info.Mode(), Size: info.Size(), ModTime: info.ModTime()}
	if sys, ok := info.Sys().(*syscall.Stat_t); ok {
		f.UID, f.GID = int(sys.Uid), int(sys.Gid)
	}
	if f.Mode&fs.ModeSymlink != 0 {
		f.Target, err = os.Readlink(name)
	}
	return f, err
}

// ReadDir lists the names in a directory, sorted.
func (h Host) ReadDir(ctx context.Context, name string) ([]string, error) {
	if ctx.Err() != nil {
		return nil, fmt.Errorf("read directory %s: %w", name, context.Cause(ctx))
	}
	entries, err := os.ReadDir(name)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, absent(err)
}

const parentMode = fs.FileMode(0o755)

// mkdirAll makes a directory with its missing parents, 0755 whatever the umask is.
func mkdirAll(name string) error {
	info, err := os.Stat(name)
	switch {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return &fs.PathError{Op: "mkdir", Path: name, Err: syscall.ENOTDIR}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if parent := filepath.Dir(name); parent != name {
		if err := mkdirAll(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(name, parentMode); errors.Is(err, fs.ErrExist) {
		return nil // another call was faster
	} else if err != nil {
		return err
	}
	return os.Chmod(name, parentMode)
}

// temporary is a name beside name that nobody else uses.
func temporary(name string) string {
	return filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+host.TemporaryMark+rand.Text())
}

// WriteFile replaces a file atomically.
func (h Host) WriteFile(ctx context.Context, name string, content io.Reader, meta host.Meta) error {
	err := replace(name, until{ctx, content}, meta)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		dir := filepath.Dir(name)
		return fault.New(fault.DiskFull, "make room there (df -h "+dir+"), then run the same command again", "write %s: %w", name, err)
	default:
		return fmt.Errorf("write %s: %w", name, err)
	}
}

func replace(name string, content io.Reader, meta host.Meta) (err error) {
	if err := mkdirAll(filepath.Dir(name)); err != nil {
		return err
	}
	temp := temporary(name)
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()       //nolint:errcheck // the first error tells more
			os.Remove(temp) //nolint:errcheck // likewise
		}
	}()
	if _, err := io.Copy(f, content); err != nil {
		return err
	}
	if err := f.Chown(meta.UID, meta.GID); err != nil {
		return err
	}
	if err := f.Chmod(meta.Mode); err != nil { // after the owner: chown takes set-id bits away
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(temp, name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

// syncDir makes a rename durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // nothing was written through it
	return d.Sync()
}

// Mkdir makes a directory with its missing parents and gives it meta.
func (h Host) Mkdir(ctx context.Context, name string, meta host.Meta) error {
	if ctx.Err() != nil {
		return fmt.Errorf("mkdir %s: %w", name, context.Cause(ctx))
	}
	if err := mkdirAll(name); err != nil {
		return err
	}
	if err := os.Chown(name, meta.UID, meta.GID); err != nil {
		return err
	}
	return os.Chmod(name, meta.Mode)
}

// Symlink makes name a link to target.
func (h Host) Symlink(ctx context.Context, target, name string) error {
	if ctx.Err() != nil {
		return fmt.Errorf("symlink %s: %w", name, context.Cause(ctx))
	}
	if err := mkdirAll(filepath.Dir(name)); err != nil {
		return err
	}
	temp := temporary(name)
	if err := os.Symlink(target, temp); err != nil {
		return err
	}
	if err := os.Rename(temp, name); err != nil {
		os.Remove(temp) //nolint:errcheck // the first error tells more
		return err
	}
	return syncDir(filepath.Dir(name))
}

// Remove removes paths and all below them.
func (h Host) Remove(ctx context.Context, paths ...string) error {
	for _, name := range paths {
		if !filepath.IsAbs(name) || filepath.Clean(name) == "/" {
			return fmt.Errorf("remove %q: only absolute paths below / are removed", name)
		}
	}
	mounts, err := os.ReadFile(host.MountTable)
	if err != nil {
		return err
	}
	if at := host.MountBelow(string(mounts), paths); at != "" {
		return fmt.Errorf("remove %s: a file system is mounted at %s", strings.Join(paths, " "), at)
	}
	for _, name := range paths {
		if ctx.Err() != nil {
			return fmt.Errorf("remove %s: %w", name, context.Cause(ctx))
		}
		if err := os.RemoveAll(name); err != nil && !errors.Is(absent(err), fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// searchPath is where commands are looked for, the same on all hosts.
const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

const (
	stderrKept = 4 << 10
	killGrace  = time.Second // for a command to end by itself once it was told to
)

// Query runs a command that changes nothing.
func (h Host) Query(ctx context.Context, argv ...string) ([]byte, error) {
	return h.Run(ctx, host.Command{Argv: argv})
}

// Run runs a command. When ctx ends, it is sent SIGTERM, and SIGKILL if it heeds that not.
func (h Host) Run(ctx context.Context, cmd host.Command) ([]byte, error) {
	if len(cmd.Argv) == 0 {
		return nil, errors.New("run: no command")
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// env looks the program up in the PATH that it is given, unlike package exec.
	c := exec.CommandContext(ctx, "/usr/bin/env", append([]string{searchPath, "LC_ALL=C"}, cmd.Argv...)...)
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = killGrace
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	if cmd.Stdout != nil {
		c.Stdout = cmd.Stdout
	}
	err := run(c, cmd.Stdin, cancel)
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil: // also if the command ended well on half of its input
		return nil, fmt.Errorf("%s: %w", cmd.Argv[0], context.Cause(ctx))
	case errors.As(err, &exit):
		status := exit.ExitCode()
		if by, ok := exit.Sys().(syscall.WaitStatus); ok && by.Signaled() {
			status = signalled + int(by.Signal())
		}
		kept := stderr.Bytes()
		return stdout.Bytes(), &host.ExitError{Argv: cmd.Argv, Status: status, Stderr: string(kept[max(0, len(kept)-stderrKept):])}
	case err != nil:
		return nil, fmt.Errorf("%s: %w", cmd.Argv[0], err)
	}
	return stdout.Bytes(), nil
}

// run runs c on what stdin gives. Unlike c.Stdin this does not wait, once the
// command has ended, for a reader that has nothing to give yet.
func run(c *exec.Cmd, stdin io.Reader, failed context.CancelCauseFunc) error {
	if stdin == nil {
		return c.Run()
	}
	input, err := c.StdinPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	go func() {
		defer input.Close()                               //nolint:errcheck // the command sees its end, or is gone
		io.Copy(input, &source{r: stdin, failed: failed}) //nolint:errcheck // a command may end without reading all
	}()
	return c.Wait()
}

const signalled = 128 // what a shell adds to the number of the signal that ended a command

// source ends the command whose input cannot be read.
type source struct {
	r      io.Reader
	failed context.CancelCauseFunc
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // io.Reader returns EOF itself
		s.failed(fmt.Errorf("read what it is to be given: %w", err))
	}
	return n, err
}

// until is a reader that ends with ctx.
type until struct {
	ctx context.Context
	r   io.Reader
}

func (u until) Read(p []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.r.Read(p)
}

// Dial connects to an address.
func (h Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if network != "tcp" && network != "unix" {
		return nil, fmt.Errorf("dial %s %s: %w", network, address, net.UnknownNetworkError(network))
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}

// errNoUnits is of all that concerns units.
var errNoUnits = fmt.Errorf("units of this machine itself: %w", errors.ErrUnsupported)

// Units is not supported.
func (h Host) Units(context.Context, ...string) ([]host.Unit, error) { return nil, errNoUnits }

// Systemd returns what supports nothing.
func (h Host) Systemd() host.Systemd { return noSystemd{} }

type noSystemd struct{}

func (noSystemd) Reload(context.Context) error              { return errNoUnits }
func (noSystemd) Start(context.Context, string) error       { return errNoUnits }
func (noSystemd) Restart(context.Context, string) error     { return errNoUnits }
func (noSystemd) Stop(context.Context, string) error        { return errNoUnits }
func (noSystemd) Enable(context.Context, ...string) error   { return errNoUnits }
func (noSystemd) Disable(context.Context, ...string) error  { return errNoUnits }
func (noSystemd) ResetFailed(context.Context, string) error { return errNoUnits }
