// Package journal writes down on a host what a step is about to change, with the
// state before it, and puts it back. An entry is on the host's disk before the
// first operation of its step, so whatever ends a run, where it went can be told,
// and undone, from any workstation.
package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

const (
	// Root holds what kubewright knows about the host; nothing below it is journaled.
	Root = "/var/lib/kubewright"
	// Dir holds an entry a file. Entries may hold secrets: they are root's alone.
	Dir = Root + "/journal"
)

// Run is one call of kubewright that changed the host.
type Run struct {
	ID      string    `json:"id"` // random
	Verb    string    `json:"verb"`
	By      string    `json:"by"` // user@workstation
	Began   time.Time `json:"began"`
	Version string    `json:"version"` // kubewright's own
}

// Entry is what a step was about to change, and how that stood before.
type Entry struct {
	Seq    int       `json:"seq"` // from 1, in the order in which steps changed the host
	Run    Run       `json:"run"`
	Step   string    `json:"step"`
	Time   time.Time `json:"time"`
	Before []Before  `json:"before"` // in the order in which the step changes them
}

// Before is an object as it was.
type Before struct {
	plan.Object
	// Exists: the file is there, the unit or slice is active, the module is loaded, the
	// interface or table is there, the setting has a value.
	Exists bool `json:"exists,omitempty"`

	Mode    fs.FileMode `json:"mode,omitempty"` // of a file, with its type
	UID     int         `json:"uid,omitempty"`
	GID     int         `json:"gid,omitempty"`
	Content []byte      `json:"content"`          // of a regular file that the step writes
	Copy    string      `json:"copy,omitempty"`   // where a copy of it stands instead, if it is large or a directory to be removed
	Target  string      `json:"target,omitempty"` // of a symbolic link
	Empty   bool        `json:"empty,omitempty"`  // a directory with nothing in it

	Enabled bool     `json:"enabled,omitempty"` // a unit that starts at boot
	Value   string   `json:"value,omitempty"`   // of a setting
	Names   []string `json:"names,omitempty"`   // mount points, routes or a slice's control groups that were there
}

// String hides contents.
func (b Before) String() string { return string(b.Kind) + " " + b.Name }

// file is where the entry stands.
func (e Entry) file() string { return path.Join(Dir, fmt.Sprintf("%06d.json", e.Seq)) }

// copies is where the entry's copies stand.
func (e Entry) copies() string { return path.Join(Dir, fmt.Sprintf("%06d", e.Seq)) }

// Read returns a host's entries, the oldest first.
func Read(ctx context.Context, r host.Reader) ([]Entry, error) {
	names, err := entryFiles(ctx, r)
	if err != nil {
		return nil, err
	}
	entries := make([]Entry, len(names))
	reads, ctx := errgroup.WithContext(ctx)
	for i, name := range names {
		reads.Go(func() error {
			content, err := r.ReadFile(ctx, path.Join(Dir, name))
			if err != nil {
				return err
			}
			if err := json.Unmarshal(content, &entries[i]); err != nil {
				return fmt.Errorf("%s: %w", path.Join(Dir, name), err)
			}
			return nil
		})
	}
	if err := reads.Wait(); err != nil {
		return nil, err
	}
	slices.SortFunc(entries, func(a, b Entry) int { return a.Seq - b.Seq })
	return entries, nil
}

// entryFiles lists the entries' names. One that is still being written is no entry:
// its step had not begun.
func entryFiles(ctx context.Context, r host.Reader) ([]string, error) {
	names, err := r.ReadDir(ctx, Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(names, func(n string) bool {
		_, ok := seqOf(n)
		return !ok
	}), nil
}

func seqOf(name string) (int, bool) {
	number, ok := strings.CutSuffix(name, ".json")
	if !ok {
		return 0, false
	}
	seq, err := strconv.Atoi(number)
	return seq, err == nil
}
