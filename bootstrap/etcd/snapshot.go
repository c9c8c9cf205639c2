package etcd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
)

// Snapshot is what a file with all data of etcd holds.
type Snapshot struct {
	Size     int64  // bytes of the database
	SHA256   string // hex, of the database
	Revision int64  // of the last change
	Keys     int    // that are there at that revision
}

// Save writes a snapshot into a file and proves it: its hash is that of its data, and the
// database in it is whole. The file is on the disk then.
func Save(ctx context.Context, k Keeper, f *os.File) (Snapshot, error) {
	sum := &trailing{of: sha256.New()}
	if err := k.Snapshot(ctx, io.MultiWriter(f, sum)); err != nil {
		return Snapshot{}, err
	}
	if err := f.Sync(); err != nil {
		return Snapshot{}, err
	}
	if !sum.right() {
		return Snapshot{}, errors.New("the snapshot was damaged on the way: its hash is not that of its data")
	}
	found, err := snapshot.NewV3(zap.NewNop()).Status(f.Name()) // it checks the whole database
	if err != nil {
		return Snapshot{}, fmt.Errorf("look into the snapshot: %w", err)
	}
	return Snapshot{Size: found.TotalSize, SHA256: hex.EncodeToString(sum.tail), Revision: found.Revision, Keys: found.TotalKey}, nil
}

// trailing hashes what is written to it but for the last bytes, which are to be the hash.
type trailing struct {
	of   hash.Hash
	tail []byte
}

func (t *trailing) Write(p []byte) (int, error) {
	t.tail = append(t.tail, p...)
	if over := len(t.tail) - t.of.Size(); over > 0 {
		t.of.Write(t.tail[:over]) //nolint:errcheck // a hash takes all
		t.tail = append(t.tail[:0], t.tail[over:]...)
	}
	return len(p), nil
}

func (t *trailing) right() bool { return bytes.Equal(t.of.Sum(nil), t.tail) }
