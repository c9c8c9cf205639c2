// Package host says what kubewright can see of and do to a machine. A step
// checks through a Reader and applies through a Host; what carries them (SSH,
// this machine, a simulation) is in the packages below this one, and all of
// them pass the conformance suite of hosttest.
package host

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"time"
)

// Reader observes a host and never changes it.
type Reader interface {
	// Name is the host as the admin wrote it.
	Name() string
	// ReadFile returns a file's content; errors wrap fs.ErrNotExist as os's do.
	ReadFile(ctx context.Context, path string) ([]byte, error)
	// Stat describes each path, without following a link, in the order asked;
	// a path that does not exist, also for want of a directory on the way, has
	// Exists == false and is no error. All are asked at once: it costs about one
	// round trip, however many they are.
	Stat(ctx context.Context, paths ...string) ([]File, error)
	// ReadDir lists the names in a directory, sorted.
	ReadDir(ctx context.Context, path string) ([]string, error)
	// Query runs a command that changes nothing and returns its standard output.
	// A non-zero exit is an *ExitError, also that of a program the host lacks.
	Query(ctx context.Context, argv ...string) ([]byte, error)
	// Dial connects to an address as seen from the host: "tcp" or "unix".
	Dial(ctx context.Context, network, address string) (net.Conn, error)
	// Units returns the state of systemd units by full name (etcd.service), in
	// the order asked; one that does not exist has Load "not-found".
	Units(ctx context.Context, names ...string) ([]Unit, error)
}

// Host is a Reader that may also change the machine, as root.
type Host interface {
	Reader
	// Run runs a command as Query does. When ctx ends it is told to end (SIGTERM),
	// and the error wraps ctx's cause; one from reading Stdin is wrapped likewise.
	// What it wrote to a Stdout of the caller's is not returned again.
	Run(ctx context.Context, cmd Command) ([]byte, error)
	// WriteFile replaces a file atomically: temporary file beside it, mode and
	// owner, fsync, rename, fsync of the directory. Missing parent directories
	// are made, 0755 root. A full disk is a fault.DiskFull, the old file intact.
	WriteFile(ctx context.Context, path string, content io.Reader, meta Meta) error
	// Mkdir makes a directory with its missing parents (0755 root) and gives it
	// meta, also one that is there.
	Mkdir(ctx context.Context, path string, meta Meta) error
	// Symlink makes path a link to target, atomically replacing a link or file that
	// is there; a directory there is an error. Missing parents are made, 0755 root.
	Symlink(ctx context.Context, target, path string) error
	// Remove removes absolute paths and all below them; one that is absent is no
	// error. If a file system is mounted at or below one, nothing is removed.
	Remove(ctx context.Context, paths ...string) error
	// Systemd changes the host's units.
	Systemd() Systemd
}

// Systemd changes units. Every call returns when the change has taken place.
type Systemd interface {
	// Reload makes systemd read unit files again.
	Reload(ctx context.Context) error
	// Start, Restart and Stop wait for systemd's job to end; one that did not end
	// as "done" is a *UnitError with the unit's last log lines.
	Start(ctx context.Context, unit string) error
	Restart(ctx context.Context, unit string) error
	Stop(ctx context.Context, unit string) error
	// Enable and Disable change what is started at boot, without starting or stopping it.
	Enable(ctx context.Context, units ...string) error
	Disable(ctx context.Context, units ...string) error
	// ResetFailed forgets that a unit failed; a unit that is not loaded is no error.
	ResetFailed(ctx context.Context, unit string) error
}

// File is what Stat saw.
type File struct {
	Path    string
	Exists  bool
	Mode    fs.FileMode // type and permission bits
	Size    int64
	ModTime time.Time // one-second resolution over SFTP
	UID     int
	GID     int
	Target  string // of a symbolic link
}

// TemporaryMark stands between "." NAME and a random word in the name under which
// WriteFile and Symlink make NAME before they rename it: what a write that was
// broken off has left can be told by it, and removed.
const TemporaryMark = ".kw-"

// Meta is the mode and owner of a file to be written.
type Meta struct {
	Mode fs.FileMode // permission bits
	UID  int
	GID  int
}

// Command is a command line with its standard input.
type Command struct {
	Argv  []string
	Stdin io.Reader // nil: empty
	// Stdout is given the output as it comes, nil: Run returns it. Together with
	// Stdin it lets the caller talk with a command. A Write that fails ends it.
	Stdout io.Writer
}

// Unit is the state of a systemd unit.
type Unit struct {
	Name     string
	Load     string    // loaded, not-found, ...
	Active   string    // active, activating, inactive, failed, ...
	Sub      string    // running, dead, auto-restart, ...
	File     string    // UnitFileState: enabled, disabled, static, ""
	Fragment string    // the file it was loaded from
	Stale    bool      // its file changed since systemd read it (NeedDaemonReload)
	MainPID  int       // 0: none
	Restarts int       // by systemd, because it ended, since somebody started it
	Started  time.Time // when it became active last; zero: never
	Status   string    // what its program says of itself (StatusText), "" for most; kept when it ends
}

// ExitError is a command that ran and ended with a non-zero status.
type ExitError struct {
	Argv   []string // never holds a secret: those go to standard input or files
	Status int
	Stderr string // the last 4 KiB
}

// NoProgram is the exit status of a command whose program the host lacks.
const NoProgram = 127

func (e *ExitError) Error() string {
	msg := fmt.Sprintf("%s: exit status %d", strings.Join(e.Argv, " "), e.Status)
	if lines := strings.TrimSpace(e.Stderr); lines != "" {
		msg += ": " + lines[strings.LastIndexByte(lines, '\n')+1:]
	}
	return msg
}

// UnitError is a unit that did not do what it was asked.
type UnitError struct {
	Unit   string
	Verb   string // start, restart, stop
	Result string // systemd's job result: failed, timeout, canceled, dependency
	Log    string // the unit's last journal lines, may be empty
}

func (e *UnitError) Error() string {
	msg := fmt.Sprintf("%s %s: %s", e.Verb, e.Unit, e.Result)
	if e.Log != "" {
		msg += "\n" + e.Log
	}
	return msg
}

// Secret is bytes that must not be printed. Its String, Format and JSON forms
// are all a placeholder.
type Secret []byte

const redacted = "[secret]"

func (Secret) String() string               { return redacted }
func (Secret) GoString() string             { return redacted }
func (Secret) Format(f fmt.State, _ rune)   { io.WriteString(f, redacted) } //nolint:errcheck // fmt ignores it
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Directories are those of the paths that are directories; a link, as /usr merges make them, is none.
func Directories(ctx context.Context, r Reader, paths []string) ([]string, error) {
	found, err := r.Stat(ctx, paths...)
	if err != nil {
		return nil, err
	}
	var there []string
	for _, f := range found {
		if f.Exists && f.Mode.IsDir() {
			there = append(there, f.Path)
		}
	}
	return there, nil
}
