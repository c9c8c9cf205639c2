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
	proof := NewProof()
	if err := k.Snapshot(ctx, io.MultiWriter(f, proof)); err != nil {
		return Snapshot{}, err
	}
	if err := f.Sync(); err != nil {
		return Snapshot{}, err
	}
	if !proof.Whole() {
		return Snapshot{}, errors.New("the snapshot was damaged on the way: its hash is not that of its data")
	}
	found, err := snapshot.NewV3(zap.NewNop()).Status(f.Name()) // it checks the whole database
	if err != nil {
		return Snapshot{}, fmt.Errorf("look into the snapshot: %w", err)
	}
	return Snapshot{Size: found.TotalSize, SHA256: hex.EncodeToString(proof.tail), Revision: found.Revision, Keys: found.TotalKey}, nil
}

// Proof tells whether a snapshot that is written to it is whole: it ends with the
// SHA-256 of what comes before.
type Proof struct {
	sum  hash.Hash
	tail []byte // what may be the hash
}

// NewProof is one for a snapshot that is still to come.
func NewProof() *Proof { return &Proof{sum: sha256.New()} }

func (p *Proof) Write(b []byte) (int, error) {
	p.tail = append(p.tail, b...)
	if over := len(p.tail) - p.sum.Size(); over > 0 {
		p.sum.Write(p.tail[:over]) //nolint:errcheck // a hash takes all
		p.tail = append(p.tail[:0], p.tail[over:]...)
	}
	return len(b), nil
}

// Whole tells whether all was written, as etcd sent it.
func (p *Proof) Whole() bool { return bytes.Equal(p.sum.Sum(nil), p.tail) }
