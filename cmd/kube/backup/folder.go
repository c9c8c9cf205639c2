package backup

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"github.com/kubewright/kubewright/bootstrap/backup"
)

// partial begins the name of a backup that is not finished, or was not.
const partial = ".partial-"

// folder is where backups are kept. Only one process works in it.
type folder struct {
	path string
	lock *os.File
}

// openFolder makes the folder, for root alone, and removes what a run that was killed left.
func openFolder(path string) (*folder, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	f := &folder{path, dir}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.close()
		return nil, fmt.Errorf("%s: another backup is under way: %w", path, err)
	}
	left, err := f.named(func(name string) bool { return strings.HasPrefix(name, partial) })
	for _, name := range left {
		err = errors.Join(err, os.Remove(filepath.Join(path, name)))
	}
	if err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

func (f *folder) close() { f.lock.Close() } //nolint:errcheck // only locked

// named are the names of the files that are meant, sorted.
func (f *folder) named(meant func(string) bool) ([]string, error) {
	entries, err := os.ReadDir(f.path)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() && meant(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// stored is a backup in the folder.
type stored struct {
	path string
	size int64
}

// store writes a backup, reads it back from the disk and proves every byte of it. Only
// then it gets its name.
func (f *folder) store(c backup.Contents, to []age.Recipient) (_ stored, err error) {
	key, eye, err := witness(to)
	if err != nil {
		return stored{}, err
	}
	file, err := os.CreateTemp(f.path, partial) // 0600
	if err != nil {
		return stored{}, err
	}
	defer func() {
		if err != nil {
			os.Remove(file.Name()) //nolint:errcheck // the next run removes it
		}
	}()
	defer file.Close() //nolint:errcheck // it was synced, and is only read after that
	if err := errors.Join(backup.Write(file, c, append(slices.Clone(to), key)...), file.Sync()); err != nil {
		return stored{}, fmt.Errorf("write the backup: %w", err)
	}
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return stored{}, err
	}
	// What the kernel still has in memory would prove nothing about the disk.
	if err := unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return stored{}, fmt.Errorf("read the backup back: %w", err)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return stored{}, err
	}
	if _, err := backup.Read(file, io.Discard, eye); err != nil {
		return stored{}, fmt.Errorf("read the backup back: %w", err)
	}
	name := filepath.Join(f.path, backup.FileName(c.Manifest.Cluster, c.Manifest.Made))
	if err := os.Rename(file.Name(), name); err != nil {
		return stored{}, err
	}
	return stored{name, size}, f.lock.Sync()
}

// prune removes the oldest backups of a cluster until so many are left, the one that was just made
// among them. What has a later time than that was made while the clock was wrong: it
// stays, and does not count, or good ones would have to go for it.
func (f *folder) prune(cluster string, made stored, keep int) (removed int, err error) {
	newest := filepath.Base(made.path)
	all, err := f.named(func(name string) bool {
		of, _, ok := backup.ParseFileName(name)
		return ok && of == cluster && name <= newest
	})
	if err != nil {
		return 0, err
	}
	for _, name := range all[:max(0, len(all)-keep)] {
		if err := os.Remove(filepath.Join(f.path, name)); err != nil {
			return removed, err
		}
		removed++
	}
	return removed, nil
}
