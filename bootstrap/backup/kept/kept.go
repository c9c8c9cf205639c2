// Package kept is what control-plane hosts keep of the backups that their timers made:
// which there are, whether there should be a younger one, and how one comes from there.
package kept

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"time"

	"github.com/kubewright/kubewright/bootstrap/backup"
	"github.com/kubewright/kubewright/bootstrap/backup/scheduled"
	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// File is a backup in a host's folder.
type File struct {
	Name    string    `json:"name"`
	Cluster string    `json:"cluster"` // name
	Made    time.Time `json:"made"`
	Size    int64     `json:"size"` // bytes
}

// Shelf is what one host keeps.
type Shelf struct {
	Host     string    // as the admin wrote it
	Node     string    // its name in the cluster, "" if it belongs to none
	Cluster  string    // name of the cluster that it belongs to, "" likewise
	Dir      string    // the folder
	Schedule string    // as OnCalendar= has it; "": the host makes none
	Since    time.Time // when the schedule was written there
	Files    []File    // the oldest first

	reader host.Reader
}

// Look looks at a host's backups: in dir or, if that is "", in the folder that the host's
// timer has. A folder that is not there holds none.
func Look(ctx context.Context, r host.Reader, dir string) (*Shelf, error) {
	s := &Shelf{Host: r.Name(), Dir: spec.DefaultBackupDir, reader: r}
	owner, err := claim.Read(ctx, r)
	if err != nil {
		return nil, err
	}
	if owner != nil {
		s.Node, s.Cluster = owner.Node, owner.Cluster
	}
	habit, err := scheduled.Read(ctx, r)
	if err != nil {
		return nil, err
	}
	if habit != nil {
		s.Schedule, s.Since, s.Dir = habit.Calendar, habit.Since, habit.Dir
	}
	if dir != "" {
		s.Dir = dir
	}
	s.Files, err = list(ctx, r, s.Dir)
	return s, err
}

func list(ctx context.Context, r host.Reader, dir string) ([]File, error) {
	names, err := r.ReadDir(ctx, dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var files []File
	var paths []string
	for _, name := range names {
		if of, made, ok := backup.ParseFileName(name); ok {
			files = append(files, File{Name: name, Cluster: of, Made: made})
			paths = append(paths, path.Join(dir, name))
		}
	}
	found, err := r.Stat(ctx, paths...)
	if err != nil {
		return nil, err
	}
	there := files[:0]
	for i, f := range found {
		if f.Exists && f.Mode.IsRegular() { // the host may have removed one meanwhile
			files[i].Size = f.Size
			there = append(there, files[i])
		}
	}
	slices.SortStableFunc(there, func(a, b File) int { return a.Made.Compare(b.Made) })
	return there, nil
}

// Newest is the youngest backup that the hosts have of the cluster that they belong to, and
// who has it; nil: there is none. Hosts that belong to no cluster count with all they have.
func Newest(shelves []*Shelf) (*Shelf, *File) {
	var on *Shelf
	var newest *File
	for _, s := range shelves {
		for i, f := range s.Files {
			if (s.Cluster == "" || f.Cluster == s.Cluster) && (newest == nil || f.Made.After(newest.Made)) {
				on, newest = s, &s.Files[i]
			}
		}
	}
	return on, newest
}

// making is longer than a backup takes, from its due time to its name.
const making = 10 * time.Minute

// Overdue is when the nth backup after the newest one should have been made, if that time is
// past; zero if it is not, or if no host makes any. Of several control-plane hosts one makes
// the backup of all: shelves are those of all of them.
func Overdue(ctx context.Context, shelves []*Shelf, n int, now time.Time) (time.Time, error) {
	var maker *Shelf
	for _, s := range shelves {
		if s.Schedule != "" && (maker == nil || s.Since.Before(maker.Since)) {
			maker = s
		}
	}
	if maker == nil {
		return time.Time{}, nil
	}
	after := maker.Since
	if _, newest := Newest(shelves); newest != nil && newest.Made.After(after) {
		after = newest.Made
	}
	due, err := scheduled.Due(ctx, maker.reader, maker.Schedule, after, n)
	if err != nil || due.IsZero() || now.Before(due.Add(making)) {
		return time.Time{}, err
	}
	return due, nil
}
