// Package take gathers what goes into a backup from a control-plane host: etcd's
// snapshot, the objects counted at its revision, the keys, the admin's files that the API
// server reads, and the record. It changes nothing, and works alike through SSH and on the host itself.
package take

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/unit"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kubewright/kubewright/bootstrap/backup"
	"github.com/kubewright/kubewright/bootstrap/backup/census"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/kubeconfig"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
	"github.com/kubewright/kubewright/pki"
)

const (
	pkiDir = "/etc/kubernetes/pki"
	// adminConfig leads to the API server on the host itself, whatever leads others to it.
	adminConfig   = "/etc/kubernetes/super-admin.conf"
	apiServerFile = "/etc/systemd/system/kube-apiserver.service"
	bundleListing = "/opt/kubewright/current/manifest.json"
	// registry is where the API server keeps its objects in etcd.
	registry = "/registry/"

	controlPlaneKey = "node-role.kubernetes.io/control-plane"
)

// Signature says who takes a backup, with what.
type Signature struct {
	By         string // who@machine
	Kubewright string // version
}

// Contents is a backup about to be written. Close it afterwards.
type Contents struct {
	backup.Contents
	close func()
}

// Close ends the connections.
func (c *Contents) Close() { c.close() }

// errCompacted tells that etcd threw old revisions away while a backup was begun.
var errCompacted = errors.New("etcd was compacted meanwhile")

// From gathers a backup from a control-plane host whose etcd member is healthy. The
// snapshot is streamed while the result is written; all else is in memory.
func From(ctx context.Context, h host.Reader, who Signature) (*Contents, error) {
	store, err := etcd.Connect(ctx, h, path.Join(pkiDir, "etcd"))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	end := func() {
		cancel()
		store.Close() //nolint:errcheck // only read through
	}
	c := &Contents{close: end}
	t := &taker{host: h, etcd: store, who: who, into: &c.Contents}
	if err := t.all(ctx); err != nil {
		end()
		return nil, err
	}
	return c, nil
}

type taker struct {
	host host.Reader
	etcd *clientv3.Client
	who  Signature
	into *backup.Contents
}

func (t *taker) all(ctx context.Context) error {
	access, err := t.access(ctx)
	if err != nil {
		return err
	}
	if err := t.files(ctx); err != nil {
		return err
	}
	if err := t.describe(ctx, access); err != nil {
		return err
	}
	return t.data(ctx, access)
}

// Leader is the name of the member that leads etcd, and whether it is the host's own.
func Leader(ctx context.Context, h host.Reader) (name string, here bool, err error) {
	store, err := etcd.Connect(ctx, h, path.Join(pkiDir, "etcd"))
	if err != nil {
		return "", false, err
	}
	defer store.Close() //nolint:errcheck // only read through
	status, err := store.Status(ctx, store.Endpoints()[0])
	if err != nil {
		return "", false, fmt.Errorf("etcd status: %w", err)
	}
	if status.Leader == 0 { // who asks by the member's ID would be told that 0 is none
		return "", false, errors.New("etcd has no leader at the moment: too few of its members answer each other")
	}
	name, err = memberName(ctx, store, status.Leader)
	return name, status.Leader == status.Header.MemberId, err
}

// access is the admin's, as the host has it.
func (t *taker) access(ctx context.Context) (cluster.Access, error) {
	content, err := t.host.ReadFile(ctx, adminConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return cluster.Access{}, fault.New(fault.ClusterMissing, "name a control-plane host of the cluster", "it is no control-plane host: %w", err)
	}
	if err != nil {
		return cluster.Access{}, err
	}
	access, err := kubeconfig.Parse(content)
	if err != nil {
		return cluster.Access{}, fmt.Errorf("%s: %w", adminConfig, err)
	}
	return access, nil
}

// files takes all keys and certificates, and the admin's files that the API server reads.
func (t *taker) files(ctx context.Context) error {
	paths, err := t.below(ctx, pkiDir)
	if err != nil {
		return err
	}
	// No cluster is made again without these, and where an admin keeps them elsewhere they are links.
	for _, name := range pki.CommonFiles() {
		if p := path.Join(pkiDir, name); !slices.Contains(paths, p) {
			paths = append(paths, p)
		}
	}
	for _, p := range paths {
		if err := t.file(ctx, p, p); err != nil {
			return err
		}
	}
	admins, err := t.adminFiles(ctx)
	if err != nil {
		return err
	}
	for _, f := range admins {
		if slices.Contains(paths, f.Path) {
			continue
		}
		if err := t.file(ctx, f.Path, f.String()); err != nil {
			return err
		}
	}
	return nil
}

// file takes one that no cluster is made again without; called is what it is to whoever has to put it back.
func (t *taker) file(ctx context.Context, name, called string) error {
	content, err := t.host.ReadFile(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.BackupRefused, "put it back where it was; the other control-plane hosts have the same",
			"no cluster could be made again from the backup: there is no %s", called)
	}
	if err != nil {
		return err
	}
	t.into.Files = append(t.into.Files, backup.File{Path: name, Content: content})
	return nil
}

// below are the regular files in a folder and all folders in it.
func (t *taker) below(ctx context.Context, dir string) ([]string, error) {
	names, err := t.host.ReadDir(ctx, dir)
	if err != nil {
		return nil, err
	}
	for i, n := range names {
		names[i] = path.Join(dir, n)
	}
	found, err := t.host.Stat(ctx, names...)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, f := range found {
		switch {
		case f.Mode.IsDir():
			more, err := t.below(ctx, f.Path)
			if err != nil {
				return nil, err
			}
			files = append(files, more...)
		case f.Exists && f.Mode.IsRegular():
			files = append(files, f.Path)
		}
	}
	return files, nil
}

// adminFiles are the admin's that flags of the API server name, as it was started with them.
func (t *taker) adminFiles(ctx context.Context) ([]spec.APIServerFile, error) {
	content, err := t.host.ReadFile(ctx, apiServerFile)
	if err != nil {
		return nil, err
	}
	options, err := unit.DeserializeOptions(bytes.NewReader(content))
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", apiServerFile, err)
	}
	for _, o := range options {
		if o.Section == "Service" && o.Name == "ExecStart" {
			words := wordsOf(o.Value)
			return spec.APIServerFiles(func(flag string) string { return flagOf(words, flag) }), nil
		}
	}
	return nil, fmt.Errorf("parse %s: it starts nothing", apiServerFile)
}

// wordsOf splits a unit's command line: one with blanks in it has quotes and a line of its own.
func wordsOf(command string) (words []string) {
	for line := range strings.SplitSeq(command, "\\\n") {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, `"`) {
			words = append(words, line)
		} else {
			words = append(words, strings.Fields(line)...)
		}
	}
	return words
}

// flagOf is a flag's value in a unit's command line, as pflag reads it: the last one counts.
func flagOf(argv []string, name string) (value string) {
	for i, arg := range argv {
		flag, is, ok := strings.Cut(strings.Trim(arg, `"`), "=")
		switch {
		case flag != "--"+name:
		case ok:
			value = is
		case i+1 < len(argv):
			value = strings.Trim(argv[i+1], `"`)
		}
	}
	return value
}

// describe fills in what the cluster says of itself.
func (t *taker) describe(ctx context.Context, access cluster.Access) error {
	client := cluster.New(plan.Of("the admin's access", access), t.host.Dial)
	record, err := cluster.ReadRecord(ctx, client)
	if err != nil {
		return err
	}
	kube, err := client.Kubernetes(ctx)
	if err != nil {
		return err
	}
	version, err := kube.Discovery().ServerVersion()
	if err != nil {
		return fmt.Errorf("API server's version: %w", err)
	}
	listing, err := t.host.ReadFile(ctx, bundleListing)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(listing)
	nodes, err := nodesOf(ctx, kube)
	if err != nil {
		return err
	}
	m := &t.into.Manifest
	m.Made, m.By, m.Kubewright = time.Now().UTC().Truncate(time.Millisecond), t.who.By, t.who.Kubewright
	m.Cluster, m.ClusterID, m.Bundle = record.Name, record.ID, record.Bundle
	m.Kubernetes, m.BundleFiles, m.Nodes = version.GitVersion, hex.EncodeToString(sum[:]), nodes
	t.into.Spec = []byte(record.Spec)
	return nil
}

func nodesOf(ctx context.Context, kube kubernetes.Interface) ([]backup.Node, error) {
	list, err := kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var nodes []backup.Node
	for _, n := range list.Items {
		node := backup.Node{Name: n.Name, Host: n.Annotations[cluster.HostAnnotation]}
		_, node.ControlPlane = n.Labels[controlPlaneKey]
		for _, a := range n.Status.Addresses {
			if a.Type == corev1.NodeInternalIP {
				node.Address = a.Address
			}
		}
		nodes = append(nodes, node)
	}
	return nodes, nil
}

// data opens a snapshot and counts the objects at its revision.
//
// A linearizable read gives a revision that this member has applied; what the snapshot
// holds is settled when it is open; and a second read tells whether anything was written
// in between. If nothing was, the snapshot is of that very revision, and it waits while
// all is counted there. On a cluster that is written to all the time it is of a later
// one, and has the counted one in its history, unless etcd was compacted in between: its
// hash, asked before and after, tells.
func (t *taker) data(ctx context.Context, access cluster.Access) error {
	m := &t.into.Manifest
	snap, data, err := t.still(ctx) // it ends with ctx
	if err != nil {
		return err
	}
	cfg := cluster.Config(access, t.host.Dial)
	kinds, err := census.Kinds(ctx, cfg)
	if err != nil {
		return err
	}
	if m.Kinds, err = census.Count(ctx, cfg, kinds, data.Revision); err != nil {
		return err
	}
	status, err := t.etcd.Status(ctx, t.etcd.Endpoints()[0])
	if err != nil {
		return fmt.Errorf("etcd status: %w", err)
	}
	m.Etcd = status.Version
	if m.From, err = memberName(ctx, t.etcd, status.Header.MemberId); err != nil {
		return err
	}
	m.Data = *data
	t.into.Snapshot, t.into.SnapshotSize = snap, snap.size
	return nil
}

const (
	// stillTries is how often a moment without writes is looked for.
	stillTries = 20
	// compactTries is how often a snapshot is begun anew after a compaction. They are
	// minutes apart.
	compactTries = 3
)

// still opens a snapshot between two writes, if there is such a moment.
func (t *taker) still(ctx context.Context) (*snapshot, *backup.Data, error) {
	for n := 1; ; n++ {
		before, err := t.hash(ctx, 0) // of now
		if err != nil {
			return nil, nil, err
		}
		snap, data, err := t.open(ctx)
		if err != nil {
			return nil, nil, err
		}
		hash, err := t.hash(ctx, data.Revision)
		if err != nil {
			return nil, nil, err
		}
		if hash.Compacted == before.Compacted {
			data.Hash, data.Compacted = hash.Hash, hash.Compacted
			return snap, data, nil
		}
		if n == compactTries {
			return nil, nil, errCompacted
		}
	}
}

func (t *taker) open(ctx context.Context) (*snapshot, *backup.Data, error) {
	for n := 1; ; n++ {
		before, err := t.keys(ctx)
		if err != nil {
			return nil, nil, err
		}
		snap, err := openSnapshot(ctx, t.etcd)
		if err != nil {
			return nil, nil, err
		}
		after, err := t.keys(ctx)
		if err != nil {
			return nil, nil, err
		}
		before.Exact = before.Revision == after.Revision
		if before.Exact || n == stillTries {
			return snap, before, nil
		}
		snap.end()
	}
}

// keys are etcd's revision and number of keys now, by a linearizable read.
func (t *taker) keys(ctx context.Context) (*backup.Data, error) {
	got, err := t.etcd.Get(ctx, registry, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return nil, fmt.Errorf("etcd's revision: %w", err)
	}
	return &backup.Data{Revision: got.Header.Revision, Keys: got.Count}, nil
}

func memberName(ctx context.Context, client *clientv3.Client, id uint64) (string, error) {
	list, err := client.MemberList(ctx)
	if err != nil {
		return "", fmt.Errorf("etcd members: %w", err)
	}
	for _, m := range list.Members {
		if m.ID == id {
			return m.Name, nil
		}
	}
	return "", fmt.Errorf("etcd members: %x is not among them", id)
}

func (t *taker) hash(ctx context.Context, revision int64) (*backup.Data, error) {
	h, err := t.etcd.HashKV(ctx, t.etcd.Endpoints()[0], revision)
	if err != nil {
		return nil, fmt.Errorf("etcd's hash at revision %d: %w", revision, err)
	}
	return &backup.Data{Revision: revision, Hash: h.Hash, Compacted: h.CompactRevision}, nil
}

// snapshot reads etcd's snapshot as it comes, and proves it at its end.
type snapshot struct {
	stream etcdserverpb.Maintenance_SnapshotClient
	end    context.CancelFunc
	size   int64
	rest   []byte
	proof  *etcd.Proof
}

// openSnapshot has etcd begin: when it returns, what the snapshot holds is settled. The
// library's own reader does not tell the size, which the archive needs first.
func openSnapshot(ctx context.Context, client *clientv3.Client) (*snapshot, error) {
	ctx, end := context.WithCancel(ctx)
	stream, err := etcdserverpb.NewMaintenanceClient(client.ActiveConnection()).Snapshot(ctx, &etcdserverpb.SnapshotRequest{})
	if err != nil {
		end()
		return nil, fmt.Errorf("etcd's snapshot: %w", err)
	}
	first, err := stream.Recv()
	if err != nil {
		end()
		return nil, fmt.Errorf("etcd's snapshot: %w", err)
	}
	s := &snapshot{stream: stream, end: end, proof: etcd.NewProof(),
		size: int64(first.RemainingBytes) + int64(len(first.Blob)) + sha256.Size}
	return s, s.came(first.Blob)
}

// came takes what etcd sent.
func (s *snapshot) came(blob []byte) error {
	s.rest = blob
	_, err := s.proof.Write(blob)
	return err
}

func (s *snapshot) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		next, err := s.stream.Recv()
		switch {
		case errors.Is(err, io.EOF) && !s.proof.Whole():
			return 0, errors.New("etcd's snapshot: it is not what its digest says")
		case errors.Is(err, io.EOF):
			return 0, io.EOF
		case err != nil:
			return 0, fmt.Errorf("etcd's snapshot: %w", err)
		}
		if err := s.came(next.Blob); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}
