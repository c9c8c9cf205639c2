package etcdfence

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"google.golang.org/protobuf/proto"
)

// identity is which member of which cluster has written the data.
type identity struct{ member, cluster uint64 }

// identify reads it from the head of the last segment of the write-ahead log: every segment
// begins with it.
func identify(dataDir string) (identity, error) {
	segments, err := filepath.Glob(filepath.Join(dataDir, "member", "wal", "*.wal"))
	if err != nil {
		return identity{}, err
	}
	if len(segments) == 0 {
		return identity{}, errors.New("there is no write-ahead log")
	}
	f, err := os.Open(slices.Max(segments)) // named by their number, in hex of one length
	if err != nil {
		return identity{}, err
	}
	defer f.Close() //nolint:errcheck // only read from
	records := wal.NewDecoder(fileutil.NewFileReader(f))
	for {
		var r walpb.Record
		if err := records.Decode(&r); err != nil {
			return identity{}, fmt.Errorf("%s: %w", f.Name(), err)
		}
		switch r.GetType() {
		case wal.CrcType:
			records.UpdateCRC(r.GetCrc())
		case wal.MetadataType:
			var m etcdserverpb.Metadata
			if err := proto.Unmarshal(r.Data, &m); err != nil {
				return identity{}, fmt.Errorf("%s: %w", f.Name(), err)
			}
			return identity{member: m.GetNodeID(), cluster: m.GetClusterID()}, nil
		}
	}
}

// clientPort is where members serve, as the installer has them.
const clientPort = "2379"

// neighbours are the client addresses of the other control-plane hosts: those that apilb
// remembers, which are the newest, and those that etcd's own data name.
func neighbours(o options, log *slog.Logger) []string {
	own := ""
	if u, err := url.Parse(o.peerURL); err == nil {
		own = u.Hostname()
	}
	var all []string
	servers, err := remembered(o.servers)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		log.Warn("the control-plane hosts that apilb remembers: " + err.Error())
	}
	for _, server := range servers {
		if host, _, err := net.SplitHostPort(server); err == nil && host != own {
			all = append(all, net.JoinHostPort(host, clientPort))
		}
	}
	members, err := recorded(filepath.Join(o.dataDir, "member", "snap", "db"))
	if err != nil {
		log.Warn("the members that etcd's data name: " + err.Error())
	}
	for _, m := range members {
		if slices.Contains(m.PeerURLs, o.peerURL) {
			continue
		}
		for _, client := range m.ClientURLs {
			if u, err := url.Parse(client); err == nil {
				all = append(all, u.Host)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// remembered reads the file in which apilb keeps the API servers.
func remembered(file string) ([]string, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var list struct {
		Servers []string `json:"servers"` // ADDRESS:PORT
	}
	if err := json.Unmarshal(content, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return list.Servers, nil
}

// record is a member as etcd's database has it.
type record struct {
	PeerURLs   []string `json:"peerURLs"`
	ClientURLs []string `json:"clientURLs"`
}

// databaseTime bounds the wait for the database's lock, which nobody should hold.
const databaseTime = 500 * time.Millisecond

// recorded are the members that etcd's database knows. It may be behind the write-ahead log.
func recorded(file string) ([]record, error) {
	if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	db, err := bbolt.Open(file, 0o600, &bbolt.Options{ReadOnly: true, Timeout: databaseTime})
	if err != nil {
		return nil, err
	}
	defer db.Close() //nolint:errcheck // only read from
	var all []record
	err = db.View(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket([]byte("members"))
		if bucket == nil {
			return nil
		}
		return bucket.ForEach(func(id, value []byte) error {
			var r record
			if err := json.Unmarshal(value, &r); err != nil {
				return fmt.Errorf("member %s: %w", id, err)
			}
			all = append(all, r)
			return nil
		})
	})
	return all, err
}
