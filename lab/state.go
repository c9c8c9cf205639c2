package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// stateRoot holds a folder per lab and the cache of root file systems.
	stateRoot = "/var/lib/kubewright-lab"
	stateFile = "state.json"
)

// state is what is written down of a lab. Whatever a create is about to make
// can be derived from it before it is made: the interface and the cgroups from
// the name, the rest from their being below these or in this folder. Processes
// are recorded too, and found by their cgroup if the record came too late.
type state struct {
	Name       string       `json:"name"`
	Options    Options      `json:"options"`
	Subnet     netip.Prefix `json:"subnet"`
	Rootfs     string       `json:"rootfs"`   // folder of the root file system that hosts are clones of
	Complete   bool         `json:"complete"` // every host was ready once: its disk is worth keeping
	Switch     process      `json:"switch"`   // keeps the namespace of the lab's bridge
	Hosts      []hostState  `json:"hosts"`
	Partitions []partition  `json:"partitions,omitempty"`
}

type hostState struct {
	Name    string     `json:"name"`
	Number  int        `json:"number"` // from 1
	Address netip.Addr `json:"address"`
	Init    process    `json:"init"`   // its pid 1, as seen from outside
	Router  process    `json:"router"` // keeps the namespace behind its NAT NIC
}

func (s *state) host(name string) (*hostState, bool) {
	i := slices.IndexFunc(s.Hosts, func(h hostState) bool { return h.Name == name })
	if i < 0 {
		return nil, false
	}
	return &s.Hosts[i], true
}

func (s *state) dir() string { return filepath.Join(stateRoot, s.Name) }

// hostDir holds a host's disk and console.
func (s *state) hostDir(h *hostState) string { return filepath.Join(s.dir(), "hosts", h.Name) }

func (s *state) gateway() netip.Addr { return at(s.Subnet, gatewayAt) }

// readState returns the state of a lab; the error wraps fs.ErrNotExist if there is none.
func readState(name string) (*state, error) {
	b, err := os.ReadFile(filepath.Join(stateRoot, name, stateFile))
	if err != nil {
		return nil, fmt.Errorf("read state of lab %s: %w", name, err)
	}
	s := new(state)
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("read state of lab %s: %w", name, err)
	}
	return s, nil
}

func (s *state) write() error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("write state of lab %s: %w", s.Name, err)
	}
	if err := writeFile(filepath.Join(s.dir(), stateFile), append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write state of lab %s: %w", s.Name, err)
	}
	return nil
}

// writeFile replaces a file atomically.
func writeFile(path string, content []byte, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// lock takes the lock that is a directory, so that nothing is left of it when
// that is removed, and waits for whoever has it. The error wraps fs.ErrNotExist
// if there is no such directory (any more). The lock ends with the process at the latest.
func lock(ctx context.Context, dir string) (unlock func(), err error) {
	for {
		f, err := os.Open(dir)
		if err != nil {
			return nil, err
		}
		for {
			err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
				f.Close()
				return nil, fmt.Errorf("lock %s: %w", dir, err)
			}
			if err := pause(ctx); err != nil {
				f.Close()
				return nil, fmt.Errorf("lock %s, which another kubewright holds: %w", dir, err)
			}
		}
		held, err1 := f.Stat()
		now, err2 := os.Stat(dir)
		if err1 == nil && err2 == nil && os.SameFile(held, now) {
			return func() { f.Close() }, nil
		}
		f.Close() // it was removed, and perhaps made anew, while this waited
	}
}

// lockLab makes the folder of a lab if it is not there and locks it.
func lockLab(ctx context.Context, name string) (unlock func(), err error) {
	for {
		if err := os.MkdirAll(filepath.Join(stateRoot, name), 0o755); err != nil {
			return nil, fmt.Errorf("make folder of lab %s: %w", name, err)
		}
		unlock, err := lock(ctx, filepath.Join(stateRoot, name))
		if !errors.Is(err, fs.ErrNotExist) {
			return unlock, err
		}
	}
}

// labNames lists the labs that there is a state of.
func labNames() ([]string, error) {
	entries, err := os.ReadDir(stateRoot)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list labs: %w", err)
	}
	var all []string
	for _, e := range entries {
		if _, err := os.Stat(filepath.Join(stateRoot, e.Name(), stateFile)); err == nil {
			all = append(all, e.Name())
		}
	}
	return all, nil
}

// takenPrefixes returns what a new lab must not overlap: the subnets of labs,
// running or not, and the addresses of this machine.
func takenPrefixes() ([]netip.Prefix, error) {
	all, err := labNames()
	if err != nil {
		return nil, err
	}
	var taken []netip.Prefix
	for _, name := range all {
		s, err := readState(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		taken = append(taken, s.Subnet)
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list addresses of this machine: %w", err)
	}
	for _, a := range addresses {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			taken = append(taken, p.Masked())
		}
	}
	return taken, nil
}

// newState allocates a network for a lab and writes the lab's first state,
// under a lock on all labs so that two creates cannot take the same.
func newState(ctx context.Context, o Options, rootfs string) (*state, error) {
	unlock, err := lock(ctx, stateRoot)
	if err != nil {
		return nil, err
	}
	defer unlock()
	taken, err := takenPrefixes()
	if err != nil {
		return nil, err
	}
	s := &state{Name: o.Name, Options: o, Rootfs: rootfs}
	if s.Subnet, err = allocate(o.Name, taken); err != nil {
		return nil, err
	}
	for n := 1; n <= o.Hosts; n++ {
		s.Hosts = append(s.Hosts, hostState{Name: hostName(o.Name, n), Number: n, Address: at(s.Subnet, firstHost+n-1)})
	}
	return s, s.write()
}

// timeSince is a duration for people.
func timeSince(start time.Time) time.Duration { return time.Since(start).Round(10 * time.Millisecond) }
