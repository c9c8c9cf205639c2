package lock

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
)

// Read tells whose lock a host has, nil if nobody's, or one's who has not said yet
// who it is and is alive. One who is not alive has ended without a Release, or
// gives no sign of life.
func Read(ctx context.Context, r host.Reader) (holder *Holder, alive bool, err error) {
	return standard().read(ctx, r)
}

func (m mechanism) read(ctx context.Context, r host.Reader) (*Holder, bool, error) {
	seen, err := m.observe(ctx, r)
	if err != nil {
		return nil, false, err
	}
	return seen.holder(), seen.process.pid != 0 && seen.age() < m.silence, nil
}

// sighting is the lock as it was seen once.
type sighting struct {
	content  string    // of the file, "" if there is none
	modified time.Time // the last sign of life; zero: there is no file
	now      time.Time // by the host's clock
	process  process   // that holds the lock; pid 0: none
}

// observe looks at the lock.
func (m mechanism) observe(ctx context.Context, r host.Reader) (sighting, error) {
	var s sighting
	content, err := r.ReadFile(ctx, m.file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	s.content = string(content)
	found, err := r.Stat(ctx, m.file)
	if err != nil {
		return s, err
	}
	s.modified = found[0].ModTime
	if s.now, err = clock(ctx, r); err != nil {
		return s, err
	}
	id, err := r.Query(ctx, "stat", "--format=%d:%i", m.dir)
	if err != nil {
		return s, err
	}
	locks, err := r.ReadFile(ctx, "/proc/locks")
	if err != nil {
		return s, err
	}
	pid, err := flockOn(string(locks), strings.TrimSpace(string(id)))
	if err != nil || pid == 0 {
		return s, err
	}
	stat, err := r.ReadFile(ctx, fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil // it has ended meanwhile
	}
	if err != nil {
		return s, err
	}
	var ok bool
	if s.process, ok = parseProcess(string(stat)); !ok {
		return s, fmt.Errorf("/proc/%d/stat: unknown form", pid)
	}
	return s, nil
}

// clock is the host's, in seconds.
func clock(ctx context.Context, r host.Reader) (time.Time, error) {
	out, err := r.Query(ctx, "date", "+%s")
	if err != nil {
		return time.Time{}, err
	}
	seconds, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("date +%%s: %w", err)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// flockOn finds the process that holds a flock on a file, given as DEVICE:INODE
// in decimal, in what /proc/locks says; 0: none does.
func flockOn(locks, id string) (int, error) {
	device, inode, _ := strings.Cut(id, ":")
	d, err := strconv.ParseUint(device, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("stat --format=%%d:%%i: %w", err)
	}
	// As the kernel prints it, from how the C library packs major and minor number.
	key := fmt.Sprintf("%02x:%02x:%s", d>>8&0xfff, d&0xff|d>>12&0xfff00, inode)
	for line := range strings.Lines(locks) {
		f := strings.Fields(line) // 1: FLOCK ADVISORY WRITE pid device:inode 0 EOF; "->" after the number: it waits
		if len(f) >= 6 && f[1] == "FLOCK" && f[5] == key {
			return strconv.Atoi(f[4])
		}
	}
	return 0, nil
}

// age is how long ago the last sign of life was. A holder without a file is just beginning.
func (s sighting) age() time.Duration {
	if s.modified.IsZero() {
		return 0
	}
	return s.now.Sub(s.modified)
}

// same tells whether the same process has the lock still and was silent meanwhile.
func (s sighting) same(earlier sighting) bool {
	return s.process.is(earlier.process) && s.content == earlier.content && s.modified.Equal(earlier.modified)
}

// holder is what the holder says of itself, nil if it has not yet.
func (s sighting) holder() *Holder {
	line, _, _ := bytes.Cut([]byte(s.content), []byte("\n"))
	var h Holder
	if len(line) == 0 || json.Unmarshal(line, &h) != nil {
		return nil
	}
	return &h
}

// refusal is the fault of a lock that another has.
func (s sighting) refusal(name string) error {
	who := fmt.Sprintf("process %d there, which has not said yet who it is", s.process.pid)
	if h := s.holder(); h != nil {
		who = fmt.Sprintf("%v; %s so far, last sign of life %s ago", h, s.now.Sub(h.Since), s.age())
	}
	f := fault.New(fault.HostLocked, fmt.Sprintf("wait for that run to end, or end it there; should its machine be gone, run the same command again: "+
		"after %s without a sign of life it is taken over", silence), "another run works on the host: %s", who)
	f.Host = name
	return f
}
