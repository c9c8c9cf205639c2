package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/kubewright/kubewright/bootstrap/probe"
)

// look observes everything at once.
func look(o probe.Look) (*probe.Seen, error) {
	var s probe.Seen
	var portsErr, roomsErr, diskErr error
	var all sync.WaitGroup
	all.Go(func() { s.Missing = missing() })
	all.Go(func() { s.Firewalls = firewalls() })
	all.Go(func() { s.Uses, portsErr = uses(o.Ports) })
	all.Go(func() { s.Rooms, roomsErr = rooms(o.Paths) })
	if o.Disk != "" {
		all.Go(func() { s.Disk, diskErr = timeDisk(o.Disk) })
	}
	if o.Unused.IsValid() {
		all.Go(func() { s.Owner = whoHas(o.Unused) })
	}
	all.Wait()
	return &s, errors.Join(portsErr, roomsErr, diskErr)
}

// existing is the nearest folder of a path that is there.
func existing(path string) string {
	for path != "/" {
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			break
		}
		path = filepath.Dir(path)
	}
	return path
}

func rooms(paths []string) ([]probe.Room, error) {
	var all []probe.Room
	for _, path := range paths {
		dir := existing(path)
		var info unix.Stat_t
		var system unix.Statfs_t
		if err := errors.Join(unix.Stat(dir, &info), unix.Statfs(dir, &system)); err != nil {
			return nil, fmt.Errorf("room of %s: %w", dir, err)
		}
		all = append(all, probe.Room{Path: path, Device: info.Dev, Free: system.Bavail * uint64(system.Bsize)})
	}
	return all, nil
}

// How a disk is timed: as etcd's log writes to it.
const (
	writes    = 100 // so that the worst one is not the 99th percentile
	writeSize = 2 << 10
	writeTime = time.Second // of all together, where the disk is slow
)

// timeDisk writes to a file that has no name, so that nothing can be left of it;
// where the file system has no such files, to one that is removed at once.
func timeDisk(dir string) (*probe.Disk, error) {
	dir = existing(dir)
	file, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.EISDIR) {
		if file, err = os.CreateTemp(dir, ".kubewright-probe-*"); err == nil {
			err = os.Remove(file.Name())
		}
	}
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.ENOSPC) {
		return nil, nil // what is wrong there has a finding of its own, or a step that says it
	}
	if err != nil {
		return nil, fmt.Errorf("time the disk of %s: %w", dir, err)
	}
	defer file.Close() //nolint:errcheck // it has no name
	// As etcd's log does, so that no write waits for the file to grow. Where that
	// cannot be, the writes are slower, for etcd too.
	unix.Fallocate(int(file.Fd()), 0, 0, writes*writeSize) //nolint:errcheck // see above
	block := make([]byte, writeSize)
	rand.Read(block)
	var took []time.Duration
	for began := time.Now(); len(took) < writes && time.Since(began) < writeTime; {
		start := time.Now()
		if _, err := file.Write(block); err != nil {
			return nil, fmt.Errorf("time the disk of %s: %w", dir, err)
		}
		if err := flush(file); err != nil {
			return nil, fmt.Errorf("time the disk of %s: %w", dir, err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	return &probe.Disk{Dir: dir, Writes: len(took), P99: took[(len(took)*99+99)/100-1]}, nil
}

// flush is fdatasync. On FUSE the signals by which Go's scheduler interrupts
// itself interrupt it, too.
func flush(file *os.File) error {
	for {
		if err := unix.Fdatasync(int(file.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// firewalls lists the chains for packets to the host that drop by default. That
// rules cannot be listed is told by the attempt to make some.
func firewalls() []probe.Firewall {
	conn, err := nftables.New()
	if err != nil {
		return nil
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil
	}
	var all []probe.Firewall
	for _, c := range chains {
		if c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookInput || c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop ||
			c.Type != nftables.ChainTypeFilter {
			continue
		}
		all = append(all, probe.Firewall{
			Owner: owner(c, chains), Table: family(c.Table.Family) + " " + c.Table.Name, Chain: c.Name,
		})
	}
	return all
}

// owner tells a firewall by the names that it gives.
func owner(c *nftables.Chain, all []*nftables.Chain) string {
	switch {
	case c.Table.Name == "firewalld":
		return "firewalld"
	case slices.ContainsFunc(all, func(o *nftables.Chain) bool { return o.Table.Name == c.Table.Name && o.Name == "ufw-user-input" }):
		return "ufw"
	default:
		return ""
	}
}

func family(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	default:
		return "inet"
	}
}
