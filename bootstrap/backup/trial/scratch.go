package trial

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// scratchPattern names the folders for plain data.
const scratchPattern = "kubewright-trial-"

// lockName is the file in each that its trial holds locked.
const lockName = "lock"

// scratch makes a folder that only the user may look into, in parent; or, if that is "",
// in a file system that is kept in memory, so that what a backup hides never comes to a
// disk. The folders of trials that were killed are removed first: nobody holds their locks.
func scratch(parent string) (dir string, remove func() error, err error) {
	if parent == "" {
		if parent, err = inMemory(); err != nil {
			return "", nil, err
		}
	}
	sweep(parent)
	if dir, err = os.MkdirTemp(parent, scratchPattern); err != nil { // 0700
		return "", nil, fault.New(fault.Usage, "name a folder that you may write to with --scratch", "%w", err)
	}
	lock, err := os.Create(filepath.Join(dir, lockName))
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	return dir, func() error { return errors.Join(os.RemoveAll(dir), lock.Close()) }, nil
}

// inMemory is a folder of a file system in memory that the user may write to.
func inMemory() (string, error) {
	for _, dir := range []string{os.Getenv("XDG_RUNTIME_DIR"), "/dev/shm", "/run"} {
		var fs unix.Statfs_t
		if dir == "" || unix.Statfs(dir, &fs) != nil || fs.Type != unix.TMPFS_MAGIC || unix.Access(dir, unix.W_OK) != nil {
			continue
		}
		if free := fs.Bavail * uint64(fs.Bsize); free >= minFree {
			return dir, nil
		}
	}
	return "", fault.New(fault.Usage, "name a folder for the decrypted data with --scratch; it is removed afterwards",
		"there is no file system in memory with %d MB of room (XDG_RUNTIME_DIR, /dev/shm)", minFree>>20)
}

// minFree is the room below which a file system is not even tried.
const minFree = 256 << 20

// sweep removes what trials that were killed have left.
func sweep(parent string) {
	left, _ := filepath.Glob(filepath.Join(parent, scratchPattern+"*")) //nolint:errcheck // the pattern is good
	for _, dir := range left {
		if lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDONLY, 0); err == nil { // else another user's
			if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
				os.RemoveAll(dir) //nolint:errcheck // the next trial tries again
			}
			lock.Close() //nolint:errcheck // only locked
		}
	}
}
