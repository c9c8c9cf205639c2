// Package backup is the file that a cluster can be rebuilt from: its data, its keys
// and its wish, encrypted as one age file (age-encryption.org/v1). Inside is a
// zstd-compressed tar whose first entry says what the others are, and whose last one
// proves them. It is written and read as a stream, and knows no hosts.
package backup

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
)

// Format is the version of what is written.
const Format = 1

// Names of the entries, in the order in which they stand in the file.
const (
	manifestName = "manifest.json"  // a Manifest: always first
	specName     = "cluster.yaml"   // the cluster's record, as ConfigMap kube-system/kubewright has it
	filesDir     = "files"          // a host's files below their absolute paths
	snapshotName = "etcd.db"        // etcd's snapshot, as `etcdctl snapshot save` writes it
	sumsName     = "checksums.json" // []Entry of all others: always last
)

// Manifest says what is in a backup, and what a cluster made from it has to have.
type Manifest struct {
	Format     int       `json:"format"`
	Made       time.Time `json:"made"`
	By         string    `json:"by"`         // who@machine
	From       string    `json:"from"`       // node whose etcd member gave the data
	Kubewright string    `json:"kubewright"` // version of what wrote the file
	Cluster    string    `json:"cluster"`    // name
	ClusterID  string    `json:"clusterID"`
	Kubernetes string    `json:"kubernetes"` // version of the API server, v1.37.2
	Etcd       string    `json:"etcd"`       // version of the member, 3.7.3
	Bundle     string    `json:"bundle"`     // name: the Kubernetes version and the first 12 digits of the digest
	// BundleFiles is the SHA-256 of the listing of the bundle's files, manifest.json on the host.
	BundleFiles string  `json:"bundleFiles"`
	Data        Data    `json:"data"`
	Nodes       []Node  `json:"nodes"`
	Kinds       []Kind  `json:"kinds"`
	Entries     []Entry `json:"entries"` // all but etcd.db, whose digest is known only at the end
}

// Data is etcd's content at a revision, which is also the API's resourceVersion.
type Data struct {
	Revision int64 `json:"revision"`
	// Exact tells that the snapshot ends with that revision. Else it holds it, and what was
	// written until the snapshot began.
	Exact bool  `json:"exact"`
	Keys  int64 `json:"keys"` // at that revision
	// Hash is etcd's own (HashKV) of all revisions from Compacted to Revision.
	Hash      uint32 `json:"hash"`
	Compacted int64  `json:"compacted"`
}

// Node is a node of the cluster.
type Node struct {
	Name         string `json:"name"`
	Host         string `json:"host,omitempty"` // as the admin wrote it
	Address      string `json:"address"`
	ControlPlane bool   `json:"controlPlane,omitempty"`
}

// Kind is a resource of the API with the number of its objects at the revision.
type Kind struct {
	Group    string `json:"group,omitempty"`
	Version  string `json:"version"`
	Resource string `json:"resource"` // plural
	Kind     string `json:"kind"`
	Objects  int    `json:"objects"`
}

// Name is the resource as kubectl takes it: deployments.apps.
func (k Kind) Name() string {
	if k.Group == "" {
		return k.Resource
	}
	return k.Resource + "." + k.Group
}

// Count is how many objects there are, and of how many kinds.
func (m Manifest) Count() (kinds, objects int) {
	for _, k := range m.Kinds {
		if k.Objects > 0 {
			kinds++
			objects += k.Objects
		}
	}
	return kinds, objects
}

// Entry is one file in the backup.
type Entry struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"` // bytes
	SHA256 string `json:"sha256"`
}

// File is a host's file. Most are secret.
type File struct {
	Path    string // absolute, on the host
	Content []byte
}

// Format names the file: its content is secret.
func (f File) Format(s fmt.State, _ rune) { io.WriteString(s, f.Path) } //nolint:errcheck // fmt ignores it

// Contents are what a backup is made of.
type Contents struct {
	Manifest     Manifest // Format and Entries are set by Write
	Spec         []byte
	Files        []File
	Snapshot     io.Reader
	SnapshotSize int64 // bytes, exactly what Snapshot gives
}

// Write encrypts a backup to its recipients. What was written is no backup unless it
// returns nil: Read refuses it.
func Write(w io.Writer, c Contents, to ...age.Recipient) error {
	sealed, err := age.Encrypt(w, to...)
	if err != nil {
		return fmt.Errorf("encrypt backup: %w", err)
	}
	packed, err := zstd.NewWriter(sealed, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return fmt.Errorf("compress backup: %w", err)
	}
	archive := &archiver{tar: tar.NewWriter(packed), made: c.Manifest.Made}
	if err := archive.all(c); err != nil {
		packed.Close() //nolint:errcheck // ends its goroutines; the file is given up
		return err
	}
	// Each flushes into the next; only the last Close makes the file readable.
	for _, end := range []io.Closer{archive.tar, packed, sealed} {
		if err := end.Close(); err != nil {
			return fmt.Errorf("write backup: %w", err)
		}
	}
	return nil
}

// archiver writes entries and keeps their digests.
type archiver struct {
	tar  *tar.Writer
	made time.Time
	sums []Entry
}

func (a *archiver) all(c Contents) error {
	known := []namedBytes{{specName, c.Spec}}
	for _, f := range c.Files {
		known = append(known, namedBytes{filesDir + f.Path, f.Content})
	}
	m := c.Manifest
	m.Format, m.Entries = Format, nil
	for _, k := range known {
		m.Entries = append(m.Entries, entryOf(k.name, k.content))
	}
	if err := a.json(manifestName, m); err != nil {
		return err
	}
	for _, k := range known {
		if err := a.add(k.name, int64(len(k.content)), bytes.NewReader(k.content)); err != nil {
			return err
		}
	}
	if err := a.add(snapshotName, c.SnapshotSize, c.Snapshot); err != nil {
		return err
	}
	return a.json(sumsName, a.sums)
}

type namedBytes struct {
	name    string
	content []byte
}

func entryOf(name string, content []byte) Entry {
	sum := sha256.Sum256(content)
	return Entry{Name: name, Size: int64(len(content)), SHA256: hex.EncodeToString(sum[:])}
}

func (a *archiver) json(name string, v any) error {
	content, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return a.add(name, int64(len(content)), bytes.NewReader(content))
}

func (a *archiver) add(name string, size int64, content io.Reader) error {
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: a.made, Format: tar.FormatPAX}
	if err := a.tar.WriteHeader(header); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(a.tar, sum), content)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if n != size {
		return fmt.Errorf("write %s: it ended after %d of %d bytes", name, n, size)
	}
	a.sums = append(a.sums, Entry{Name: name, Size: size, SHA256: hex.EncodeToString(sum.Sum(nil))})
	return nil
}

// hostPath is the absolute path of a host's file that an entry is, "" if it is none.
func hostPath(entry string) string {
	path, ok := strings.CutPrefix(entry, filesDir)
	if !ok || !strings.HasPrefix(path, "/") {
		return ""
	}
	return path
}
