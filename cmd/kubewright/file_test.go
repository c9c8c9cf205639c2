package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// What is written as a whole is there as a whole, for its user alone, or not at all.
func TestWriteWhole(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "file")
	write := func(text string, err error) func(io.Writer) error {
		return func(w io.Writer) error {
			_, failed := io.WriteString(w, text)
			return errors.Join(failed, err)
		}
	}
	want := func(names int, content string) {
		t.Helper()
		found, err := os.ReadDir(dir)
		if err != nil || len(found) != names {
			t.Errorf("%v is there, %v", found, err)
		}
		if names == 0 {
			return
		}
		if got, err := os.ReadFile(name); err != nil || string(got) != content {
			t.Errorf("%q, %v; want %q", got, err, content)
		}
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info, err)
		}
	}
	if err := writeWhole(name, false, write("half", context.Canceled)); !errors.Is(err, context.Canceled) {
		t.Errorf("broken off: %v", err)
	}
	want(0, "")
	if err := writeWhole(name, false, write("one", nil)); err != nil {
		t.Error(err)
	}
	want(1, "one")
	if err := writeWhole(name, false, write("two", nil)); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a file that is there: %v", err)
	}
	if err := writeWhole(name, true, write("half", context.Canceled)); !errors.Is(err, context.Canceled) {
		t.Errorf("broken off: %v", err)
	}
	want(1, "one")
	if err := writeWhole(name, true, write("two", nil)); err != nil {
		t.Error(err)
	}
	want(1, "two")
}
