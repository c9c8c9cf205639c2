package main

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// exists is the fault of a file that is not to be replaced.
func exists(file string) error {
	return fault.New(fault.Usage, "name another file, or replace it with --force", "%s: %w", file, fs.ErrExist)
}

// renameNew gives a file its name, if no other has it.
func renameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // NFS: then as well as one can look
		if _, err := os.Lstat(to); err == nil {
			return exists(to)
		}
		return os.Rename(from, to)
	}
	if errors.Is(err, fs.ErrExist) {
		return exists(to)
	}
	return err
}
