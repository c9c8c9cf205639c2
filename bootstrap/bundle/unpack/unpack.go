package unpack

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// Exit statuses of the unbundle program.
const (
	StatusUsage    = 2
	StatusNoSpace  = 28  // the file system is full, or the quota used up
	StatusRefused  = 65  // the stream is cut short or altered; see StreamError
	StatusFailed   = 74  // anything else: a file could not be written
	StatusSignaled = 130 // stopped by SIGINT, SIGTERM or SIGHUP
)

const (
	// partial and old are beside the directory while it is being made and replaced.
	partialSuffix = ".partial"
	oldSuffix     = ".old"

	// MaxWindow bounds the memory that a layer may make the decoder use.
	MaxWindow = 64 << 20
)

// Unpack makes the directory into from a stream. It fills into+".partial" and
// renames it when every file of the manifest is there, verified and on the disk;
// after any error the partial directory is gone and an older into is untouched.
// An into that exists already is replaced. Errors are a *StreamError if the
// stream is at fault, else they wrap the file system's error.
func Unpack(stream io.Reader, into string) (err error) {
	into, err = filepath.Abs(into)
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	dir, name := filepath.Split(into)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	parent, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	defer parent.Close() //nolint:errcheck // only read from

	partial := name + partialSuffix
	for _, left := range []string{partial, name + oldSuffix} {
		if err := parent.RemoveAll(left); err != nil {
			return fmt.Errorf("unpack: remove what an earlier run left: %w", err)
		}
	}
	if err := parent.Mkdir(partial, 0o755); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	root, err := parent.OpenRoot(partial)
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	u := &unpacker{parent: parent, root: root, partial: partial, in: bufio.NewReaderSize(stream, maxHeader)}
	defer func() {
		if err != nil {
			err = errors.Join(err, u.discard())
		}
		root.Close() //nolint:errcheck // a directory, only read from
	}()

	if err := u.fill(); err != nil {
		return fmt.Errorf("unpack %s: %w", name, err)
	}
	return u.publish(name)
}

type unpacker struct {
	parent  *os.Root // the directory that holds all version directories
	root    *os.Root // the partial directory
	partial string   // its name
	in      *bufio.Reader
	waiting map[string]File // of the manifest, what has not come yet
	dirs    map[string]bool // that were made
}

// fill carries out the stream's frames.
func (u *unpacker) fill() error {
	frame, err := readFrame(u.in)
	if err != nil {
		return err
	}
	if frame.Kind != KindManifest || frame.Size > maxManifest {
		return refuse("it starts with a %s of %d bytes instead of a manifest", frame.Kind, frame.Size)
	}
	listing, err := io.ReadAll(newBody(frame, u.in))
	if err != nil {
		return err
	}
	manifest, err := ParseManifest(listing)
	if err != nil {
		return &StreamError{Err: err}
	}
	u.waiting = make(map[string]File, len(manifest.Files))
	u.dirs = make(map[string]bool)
	for _, f := range manifest.Files {
		u.waiting[f.Path] = f
	}

	for {
		frame, err := readFrame(u.in)
		if err != nil {
			return err
		}
		switch frame.Kind {
		case KindLayer:
			err = u.layer(newBody(frame, u.in))
		case KindReuse:
			err = u.reuse(frame)
		case KindEnd:
			for name := range u.waiting {
				return refuse("it brought %d files too few, among them %s", len(u.waiting), name)
			}
			return u.seal(listing)
		default:
			err = refuse("unknown frame %q", frame.Kind)
		}
		if err != nil {
			return err
		}
	}
}

// layer unpacks one zstd tar.
func (u *unpacker) layer(compressed *body) error {
	// A corrupt layer is a *StreamError, whichever of tar and zstd noticed.
	source := &sourceErr{from: compressed}
	decoder, err := zstd.NewReader(source, zstd.WithDecoderMaxWindow(MaxWindow), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return fmt.Errorf("decompress layer: %w", err)
	}
	defer decoder.Close()
	blame := func(err error) error {
		if source.err != nil {
			return source.err
		}
		return refuse("layer %s: %w", compressed.frame.Digest, err)
	}
	archive := tar.NewReader(decoder)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return blame(err)
		}
		if err := u.entry(header, archive, blame); err != nil {
			return err
		}
	}
	// What follows the archive is nothing; reading to the end proves the digest.
	if n, err := io.Copy(io.Discard, decoder); err != nil {
		return blame(err)
	} else if n > 0 {
		return refuse("layer %s goes on after its archive", compressed.frame.Digest)
	}
	if _, err := io.Copy(io.Discard, source); err != nil {
		return err
	}
	return nil
}

// sourceErr remembers the error that ended a reader, so that it can be told
// from those of the decoders that read through it.
type sourceErr struct {
	from io.Reader
	err  error // nil at io.EOF
}

func (s *sourceErr) Read(p []byte) (int, error) {
	n, err := s.from.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// entry makes what one tar entry says, if the manifest says the same. blame
// turns an error of content into the one to report.
func (u *unpacker) entry(header *tar.Header, content io.Reader, blame func(error) error) error {
	want, ok := u.waiting[header.Name]
	if !ok {
		return refuse("%q is not in the manifest, or came twice", header.Name)
	}
	isLink := header.Typeflag == tar.TypeSymlink
	if isLink != (want.Link != "") || !isLink && header.Typeflag != tar.TypeReg ||
		header.Linkname != want.Link || header.Size != want.Size {
		return refuse("%s is not what the manifest says", want.Path)
	}
	delete(u.waiting, want.Path)
	if err := u.mkdir(path.Dir(want.Path)); err != nil {
		return err
	}
	if isLink {
		return u.root.Symlink(want.Link, want.Path)
	}
	file, err := u.root.OpenFile(want.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // closed below when it matters
	out := &fileErr{to: file}
	if _, err := io.CopyBuffer(out, readerOnly{content}, make([]byte, chunk)); err != nil {
		if out.err != nil {
			return out.err
		}
		return blame(err)
	}
	if err := file.Chmod(want.Mode); err != nil {
		return err
	}
	// One fsync a file and not one syncfs: a syncfs waits for what everyone else
	// writes, too. For three hosts on one disk it is 0.1 s of 0.9 s.
	if err := file.Sync(); err != nil {
		return err
	}
	return file.Close()
}

const chunk = 1 << 20 // is written at a time

// readerOnly hides the other methods of a reader, so that CopyBuffer uses its buffer.
type readerOnly struct{ io.Reader }

// fileErr remembers the error of a writer, so that it can be told from those of
// the reader that it is fed from.
type fileErr struct {
	to  io.Writer
	err error
}

func (f *fileErr) Write(p []byte) (int, error) {
	n, err := f.to.Write(p)
	if err != nil {
		f.err = err
	}
	return n, err
}

// reuse links files from another version's directory, after proving that they
// still hold what the manifest says.
func (u *unpacker) reuse(frame Frame) error {
	if frame.From == "" || strings.ContainsAny(frame.From, `/\`) || frame.From == "." || frame.From == ".." {
		return refuse("%q is no name of a directory to reuse", frame.From)
	}
	for _, name := range frame.Paths {
		want, ok := u.waiting[name]
		if !ok {
			return refuse("%q is not in the manifest, or came twice", name)
		}
		delete(u.waiting, name)
		if err := u.mkdir(path.Dir(name)); err != nil {
			return err
		}
		if want.Link != "" {
			if err := u.root.Symlink(want.Link, name); err != nil {
				return err
			}
			continue
		}
		from := path.Join(frame.From, name)
		if err := u.proveFile(from, want); err != nil {
			return err
		}
		if err := u.parent.Link(from, path.Join(u.partial, name)); err != nil {
			return err
		}
	}
	return nil
}

// proveFile returns an error unless the file at from is the one wanted.
func (u *unpacker) proveFile(from string, want File) error {
	file, err := u.parent.Open(from)
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // only read from
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm() != want.Mode || info.Size() != want.Size {
		return refuse("%s is not what it was: send it anew", from)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return err
	}
	if hex.EncodeToString(sum.Sum(nil)) != want.SHA256 {
		return refuse("%s is not what it was: send it anew", from)
	}
	return nil
}

// mkdir makes a directory with its parents, 0755.
func (u *unpacker) mkdir(name string) error {
	if name == "." || u.dirs[name] {
		return nil
	}
	if err := u.mkdir(path.Dir(name)); err != nil {
		return err
	}
	if err := u.root.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	u.dirs[name] = true
	return u.root.Chmod(name, 0o755) // whatever the umask
}

// seal writes the manifest and brings every name to the disk. The files' bytes
// are there already.
func (u *unpacker) seal(listing []byte) error {
	file, err := u.root.OpenFile(ManifestName, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // closed below when it matters
	if _, err := io.Copy(file, bytes.NewReader(listing)); err != nil {
		return err
	}
	if err := errors.Join(file.Chmod(0o644), file.Sync(), file.Close()); err != nil {
		return err
	}
	for name := range u.dirs {
		if err := syncDir(u.root, name); err != nil {
			return err
		}
	}
	if err := u.root.Chmod(".", 0o755); err != nil {
		return err
	}
	return syncDir(u.root, ".")
}

// publish gives the directory its name.
func (u *unpacker) publish(name string) error {
	if !u.owned() {
		return fmt.Errorf("unpack %s: another run took over", name)
	}
	old := name + oldSuffix
	if err := u.parent.Rename(name, old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unpack %s: put the old one aside: %w", name, err)
	}
	if err := u.parent.Rename(u.partial, name); err != nil {
		restore := u.parent.Rename(old, name)
		if errors.Is(restore, fs.ErrNotExist) {
			restore = nil
		}
		return errors.Join(fmt.Errorf("unpack %s: %w", name, err), restore)
	}
	if err := syncDir(u.parent, "."); err != nil {
		return fmt.Errorf("unpack %s: %w", name, err)
	}
	if err := u.parent.RemoveAll(old); err != nil {
		return fmt.Errorf("unpack %s: remove the old one: %w", name, err)
	}
	return nil
}

// owned tells whether the partial directory is still the one this run made: a
// later run, started when this one's connection hung, begins by removing it.
func (u *unpacker) owned() bool {
	mine, err := u.root.Stat(".")
	if err != nil {
		return false
	}
	there, err := u.parent.Lstat(u.partial)
	return err == nil && os.SameFile(mine, there)
}

// discard removes the partial directory, if it is this run's.
func (u *unpacker) discard() error {
	if !u.owned() {
		return nil
	}
	if err := u.parent.RemoveAll(u.partial); err != nil {
		return fmt.Errorf("remove %s: %w", u.partial, err)
	}
	return nil
}

func syncDir(root *os.Root, name string) error {
	dir, err := root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
