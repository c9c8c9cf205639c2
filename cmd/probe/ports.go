package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kubewright/kubewright/bootstrap/probe"
)

// tables are those of the thread's namespace: the process's are its first
// thread's, which may have gone into another one.
const tables = "/proc/thread-self/net"

// Fields of a line of tcp and udp there, and the states that listen.
const (
	fieldLocal = 1
	fieldState = 3
	fieldInode = 9
	tcpListen  = "0A"
	udpBound   = "07"
)

// uses finds who listens on ports, of those asked for.
func uses(ports []probe.Port) ([]probe.Use, error) {
	sockets := map[string]probe.Port{} // by inode
	var all []probe.Use
	for _, table := range []struct{ file, protocol, state string }{
		{"tcp", "tcp", tcpListen}, {"tcp6", "tcp", tcpListen}, {"udp", "udp", udpBound}, {"udp6", "udp", udpBound},
	} {
		file, err := os.Open(filepath.Join(tables, table.file))
		if errors.Is(err, fs.ErrNotExist) { // no IPv6
			continue
		}
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(file)
		for lines.Scan() {
			fields := strings.Fields(lines.Text())
			if len(fields) <= fieldInode || fields[fieldState] != table.state {
				continue
			}
			_, hex, _ := strings.Cut(fields[fieldLocal], ":")
			number, err := strconv.ParseUint(hex, 16, 16)
			if err != nil {
				continue // the header
			}
			port := probe.Port{Protocol: table.protocol, Number: int(number)}
			if !slices.Contains(ports, port) {
				continue
			}
			if inode := fields[fieldInode]; inode == "0" {
				all = append(all, probe.Use{Port: port})
			} else {
				sockets[inode] = port
			}
		}
		file.Close() //nolint:errcheck // only read from
		if err := lines.Err(); err != nil {
			return nil, fmt.Errorf("%s: %w", file.Name(), err)
		}
	}
	if len(sockets) == 0 {
		return all, nil
	}
	owned, err := owners(sockets)
	if err != nil {
		return nil, err
	}
	all = append(all, owned...)
	slices.SortFunc(all, func(a, b probe.Use) int { return a.Number - b.Number })
	return slices.CompactFunc(all, func(a, b probe.Use) bool { return a.Port == b.Port && a.PID == b.PID }), nil
}

// owners finds the processes that have sockets; those that nobody has here are
// of another process namespace. A process that ends meanwhile has none.
func owners(sockets map[string]probe.Port) ([]probe.Use, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*/fd")
	if err != nil {
		return nil, err
	}
	var all []probe.Use
	for _, dir := range dirs {
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			target, err := os.Readlink(filepath.Join(dir, fd.Name()))
			if err != nil {
				continue
			}
			inode := strings.TrimSuffix(strings.TrimPrefix(target, "socket:["), "]")
			port, ok := sockets[inode]
			if !ok || !strings.HasPrefix(target, "socket:[") {
				continue
			}
			delete(sockets, inode)
			all = append(all, process(port, filepath.Dir(dir)))
		}
	}
	for _, port := range sockets {
		all = append(all, probe.Use{Port: port})
	}
	return all, nil
}

func process(port probe.Port, dir string) probe.Use {
	u := probe.Use{Port: port}
	u.PID, _ = strconv.Atoi(filepath.Base(dir))
	if name, err := os.ReadFile(filepath.Join(dir, "comm")); err == nil {
		u.Process = strings.TrimSpace(string(name))
	}
	if program, err := os.Readlink(filepath.Join(dir, "exe")); err == nil {
		u.Program = program
	}
	return u
}
