package backup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"filippo.io/age"

	"github.com/kubewright/kubewright/bootstrap/backup"
)

var night = time.Date(2026, 11, 25, 2, 30, 0, 0, time.UTC)

func contents(made time.Time) backup.Contents {
	return backup.Contents{Manifest: backup.Manifest{Cluster: "docs", Made: made}, Spec: []byte("x"),
		Snapshot: strings.NewReader("data"), SnapshotSize: 4}
}

func open(t *testing.T) *folder {
	t.Helper()
	f, err := openFolder(filepath.Join(t.TempDir(), "a", "b"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.close)
	return f
}

func names(t *testing.T, f *folder) []string {
	t.Helper()
	all, err := f.named(func(string) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestStoreAndPrune(t *testing.T) {
	f := open(t)
	for _, other := range []string{"notes.txt", "docs-2-20261101T000000.000Z.kwbackup", "docs-before.kwbackup"} {
		if err := os.WriteFile(filepath.Join(f.path, other), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	others := names(t, f)
	classic, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	quantum, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	var newest stored
	for i, c := range []struct {
		to   age.Recipient
		with age.Identity
	}{{classic.Recipient(), classic}, {quantum.Recipient(), quantum}, {classic.Recipient(), classic}, {classic.Recipient(), classic}} {
		at := night.Add(time.Duration(i) * 300 * time.Millisecond) // small clusters are that fast
		made, err := f.store(contents(at), []age.Recipient{c.to})
		if err != nil {
			t.Fatal(err)
		}
		file, err := os.ReadFile(made.path)
		if err != nil || int64(len(file)) != made.size {
			t.Fatalf("%d bytes of %d, %v", len(file), made.size, err)
		}
		if b, err := backup.Read(bytes.NewReader(file), io.Discard, c.with); err != nil || b.Manifest.Cluster != "docs" {
			t.Errorf("%v, %v", b, err)
		}
		if info, err := os.Stat(made.path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
		newest = made
	}
	if info, err := os.Stat(f.path); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder: %v, %v", info.Mode(), err)
	}
	removed, err := f.prune("docs", newest, 2)
	if err != nil || removed != 2 {
		t.Errorf("%d removed, %v", removed, err)
	}
	want := append(others, "docs-20261125T023000.600Z.kwbackup", "docs-20261125T023000.900Z.kwbackup")
	slices.Sort(want)
	if got := names(t, f); !slices.Equal(got, want) {
		t.Errorf("left: %v\nwant: %v", got, want)
	}
}

// A clock that was ahead once costs no backup: neither the one that was just made, nor those kept before it.
func TestPruneAfterClockWasAhead(t *testing.T) {
	f := open(t)
	at := func(days int) string { return backup.FileName("docs", night.AddDate(0, 0, days)) }
	for _, days := range []int{-2, -1, 0, 400, 401, 402} {
		if err := os.WriteFile(filepath.Join(f.path, at(days)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	removed, err := f.prune("docs", stored{path: filepath.Join(f.path, at(0))}, 2)
	if err != nil || removed != 1 {
		t.Errorf("%d removed, %v", removed, err)
	}
	if got, want := names(t, f), []string{at(-1), at(0), at(400), at(401), at(402)}; !slices.Equal(got, want) {
		t.Errorf("left: %v\nwant: %v", got, want)
	}
}

// What cannot be written leaves what is there, and nothing half.
func TestStoreFails(t *testing.T) {
	f := open(t)
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	good, err := f.store(contents(night), []age.Recipient{id.Recipient()})
	if err != nil {
		t.Fatal(err)
	}
	lost := errors.New("connection lost")
	bad := contents(night.AddDate(0, 0, 1))
	bad.Snapshot = iotest.ErrReader(lost)
	if _, err := f.store(bad, []age.Recipient{id.Recipient()}); !errors.Is(err, lost) {
		t.Errorf("%v", err)
	}
	if got := names(t, f); !slices.Equal(got, []string{filepath.Base(good.path)}) {
		t.Errorf("left: %v", got)
	}
}

func TestFolderIsOneProcess(t *testing.T) {
	f := open(t)
	half := filepath.Join(f.path, partial+"123")
	if err := os.WriteFile(half, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openFolder(f.path); err == nil {
		t.Error("two work in one folder")
	}
	f.close()
	again, err := openFolder(f.path)
	if err != nil {
		t.Fatal(err)
	}
	again.close()
	if _, err := os.Stat(half); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was left half: %v", err)
	}
}

func TestParse(t *testing.T) {
	for line, want := range map[string]string{
		"--dir=/b --keep=3 --recipient=age1a --recipient=age1b": "{/b 3 [age1a age1b]}",
		"--dir=/b --keep=0 --recipient=age1a":                   "",
		"--dir=/b --keep=3":                                     "",
		"--keep=3 --recipient=age1a":                            "",
		"--dir=/b --keep=3 --recipient=age1a more":              "",
	} {
		o, err := parse(strings.Fields(line), io.Discard)
		if got := fmt.Sprint(o); err == nil && got != want || (err != nil) != (want == "") {
			t.Errorf("%s: %s, %v", line, got, err)
		}
	}
}
