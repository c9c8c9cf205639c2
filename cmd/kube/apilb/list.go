package apilb

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// serversFile is what the file of servers holds.
type serversFile struct {
	Servers []netip.AddrPort `json:"servers"` // ADDR:PORT each
}

var errNoServers = errors.New("it names no server")

// load reads the file of servers.
func load(path string) ([]netip.AddrPort, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the servers: %w", err)
	}
	var f serversFile
	if err := json.Unmarshal(text, &f); err != nil {
		return nil, fmt.Errorf("read the servers of %s: %w", path, err)
	}
	servers, err := distinct(f.Servers)
	if err != nil {
		return nil, fmt.Errorf("read the servers of %s: %w", path, err)
	}
	return servers, nil
}

// save replaces the file of servers. It is whole after a power cut, the old one or
// the new one.
func save(path string, servers []netip.AddrPort) error {
	text, err := json.Marshal(serversFile{servers})
	next := path + ".new" // what a power cut left of an earlier one is written over
	if err == nil {
		err = writeSynced(next, append(text, '\n'))
	}
	if err == nil {
		err = os.Rename(next, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("remember the servers in %s: %w", path, err)
	}
	return nil
}

func writeSynced(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(0o644) // whatever the umask
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// parseServers reads the value of the ConfigMap, an ADDR:PORT a line. One that
// names none, or anything else, is an error as a whole: half a list would cut
// connections to servers that live.
func parseServers(value string) ([]netip.AddrPort, error) {
	var servers []netip.AddrPort
	for _, line := range strings.Fields(value) {
		server, err := netip.ParseAddrPort(line)
		if err != nil {
			return nil, err
		}
		servers = append(servers, server)
	}
	return distinct(servers)
}

// distinct returns the servers in order, each once.
func distinct(servers []netip.AddrPort) ([]netip.AddrPort, error) {
	servers = slices.Clone(servers)
	slices.SortFunc(servers, netip.AddrPort.Compare)
	servers = slices.Compact(servers)
	for _, s := range servers {
		if !s.IsValid() || s.Port() == 0 {
			return nil, fmt.Errorf("%q is not ADDR:PORT", s)
		}
	}
	if len(servers) == 0 {
		return nil, errNoServers
	}
	return servers, nil
}
