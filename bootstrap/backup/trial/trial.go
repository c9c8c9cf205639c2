// Package trial proves a backup: it boots the shipped etcd and API server on this
// machine's loopback with the backup's data and keys, and counts what they serve. It
// needs no root. Nothing of the backup is left behind, whatever comes.
package trial

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"filippo.io/age"
	"go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/kubewright/kubewright/bootstrap/backup"
	"github.com/kubewright/kubewright/bootstrap/backup/census"
	"github.com/kubewright/kubewright/bootstrap/bundle"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/spec"
	"github.com/kubewright/kubewright/pki"
)

// Inputs are what a trial needs.
type Inputs struct {
	File     io.Reader // the backup
	Keys     []age.Identity
	Bundle   *bundle.Bundle
	Scratch  string       // folder for the plain data, "": a file system in memory
	Progress func(string) // is told what is done next
}

// Result is what came of it.
type Result struct {
	Manifest backup.Manifest
	Kinds    []Compared
	Keys     int64 // in the restored etcd, at the manifest's revision
	// HashEqual tells that every byte of the data is the source's, by etcd's own hash.
	HashEqual bool
	Bundle    string // that served
}

// Compared is one kind, in the backup's manifest and in the cluster made from it.
type Compared struct {
	backup.Kind
	Restored int
}

// Equal tells whether the cluster made from the backup is what the manifest says.
func (r *Result) Equal() bool {
	return r.HashEqual && r.Keys == r.Manifest.Data.Keys &&
		!slices.ContainsFunc(r.Kinds, func(c Compared) bool { return c.Objects != c.Restored })
}

// bootTime bounds each of the two servers' start.
const bootTime = 2 * time.Minute

// countTime bounds the count of all objects.
const countTime = time.Hour

// poll is how often a server that starts is asked.
const poll = 100 * time.Millisecond

// nodeName is what the trial's only host is called.
const nodeName = "kubewright-trial"

// Run reads the backup, boots it and counts. Errors are those of a backup that cannot be
// read, a fault.BackupRefused, and of servers that do not run; what they do not serve as
// the manifest says is told in the result.
func Run(ctx context.Context, in Inputs) (_ *Result, err error) {
	dir, remove, err := scratch(in.Scratch)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	in.Progress("decrypting and proving every byte of the file")
	b, err := read(in, filepath.Join(dir, snapshotName))
	if err != nil {
		return nil, err
	}
	in.Progress("taking the programs out of bundle " + in.Bundle.Name())
	kube, err := load(in.Bundle)
	if err != nil {
		return nil, err
	}
	defer kube.Close() //nolint:errcheck // memory
	t := &trial{backup: b, dir: dir, kube: kube}
	defer t.stop()
	if err := t.keys(); err != nil {
		return nil, err
	}
	in.Progress("restoring the snapshot")
	if err := t.restore(ctx); err != nil {
		return nil, err
	}
	in.Progress("starting etcd")
	if err := t.startEtcd(ctx); err != nil {
		return nil, err
	}
	r := &Result{Manifest: b.Manifest, Bundle: in.Bundle.Name()}
	if err := t.compareData(ctx, r); err != nil {
		return nil, err
	}
	in.Progress("starting the API server")
	if err := t.startAPIServer(ctx); err != nil {
		return nil, err
	}
	in.Progress("counting the objects")
	return r, t.compareKinds(ctx, r)
}

const snapshotName = "snapshot.db"

func read(in Inputs, snapshot string) (*backup.Backup, error) {
	f, err := os.OpenFile(snapshot, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	b, err := backup.Read(in.File, f, in.Keys...)
	if errors.Is(err, syscall.ENOSPC) {
		err = fault.New(fault.DiskFull, "name a folder with room for twice the data with --scratch; it is removed afterwards", "%w", err)
	}
	return b, errors.Join(err, f.Close())
}

// trial is one that is under way.
type trial struct {
	backup *backup.Backup
	dir    string
	kube   *program
	procs  []*process

	pki                *pki.Bundle
	etcdURL, serverURL string
	etcd               *clientv3.Client
	api                *rest.Config
}

// stop ends the servers, the one that needs the other first. Their data is thrown away.
func (t *trial) stop() {
	if t.etcd != nil {
		t.etcd.Close() //nolint:errcheck // only read through
	}
	for _, p := range slices.Backward(t.procs) {
		p.kill()
	}
}

func (t *trial) path(name string) string { return filepath.Join(t.dir, name) }

const (
	hostPKI = "/etc/kubernetes/pki"
	// The API server's flag, and where its file is put here.
	encryptionFlag = "encryption-provider-config"
	encryptionFile = "encryption.yaml"
)

// keys has the backup's authorities issue certificates for loopback, and writes what
// the servers read. The authorities' own keys stay in memory.
func (t *trial) keys() error {
	authorities := map[string][]byte{"sa.key": t.backup.Files[hostPKI+"/sa.key"]}
	for _, name := range pki.Authorities() {
		for _, f := range []string{name + ".crt", name + ".key"} {
			authorities[f] = t.backup.Files[path.Join(hostPKI, f)]
		}
	}
	b, err := pki.LoadBundle(authorities)
	if err != nil {
		return fmt.Errorf("the backup's keys: %w", err)
	}
	made, err := b.Complete(pki.Inputs{Node: nodeName, Address: loopback, DNSDomain: "cluster.local"}, time.Now())
	if err != nil {
		return fmt.Errorf("the backup's keys: %w", err)
	}
	if i := slices.IndexFunc(made, func(name string) bool { return slices.Contains(pki.Authorities(), name) || name == "sa.key" }); i >= 0 {
		return fmt.Errorf("the backup's keys: it has no %s", made[i])
	}
	t.pki = b
	for _, f := range b.Files() {
		if strings.HasSuffix(f.Name, "ca.key") {
			continue
		}
		if err := t.write("pki/"+f.Name, f.Content); err != nil {
			return err
		}
	}
	return nil
}

func (t *trial) write(name string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(t.path(name)), 0o700); err != nil {
		return err
	}
	return os.WriteFile(t.path(name), content, 0o600)
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// freePorts are ports of loopback that nobody listens at now.
func freePorts(n int) ([]string, error) {
	var ports []string
	for range n {
		l, err := net.Listen("tcp", netip.AddrPortFrom(loopback, 0).String())
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer l.Close() //nolint:errcheck // all at once, so that no port is found twice
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			return nil, err
		}
		ports = append(ports, port)
	}
	return ports, nil
}

// restore makes etcd's data folder from the snapshot, which etcd proves by the digest
// at its end, and removes the snapshot.
func (t *trial) restore(ctx context.Context) error {
	p, err := t.kube.start(t.dir, "etcdutl", "snapshot", "restore", t.path(snapshotName), "--data-dir", t.path("etcd"),
		"--name", nodeName, "--initial-cluster", nodeName+"=https://127.0.0.1:1", "--initial-advertise-peer-urls", "https://127.0.0.1:1")
	if err != nil {
		return err
	}
	if err := p.wait(ctx); err != nil {
		return fmt.Errorf("restore the snapshot: %w", err)
	}
	return os.Remove(t.path(snapshotName))
}

func (t *trial) startEtcd(ctx context.Context) error {
	ports, err := freePorts(2)
	if err != nil {
		return err
	}
	t.etcdURL = "https://127.0.0.1:" + ports[0]
	peer := "https://127.0.0.1:" + ports[1]
	pkiFile := func(name string) string { return t.path("pki/etcd/" + name) }
	p, err := t.kube.start(t.dir, "etcd", "--name="+nodeName, "--data-dir="+t.path("etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+t.etcdURL, "--advertise-client-urls="+t.etcdURL,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster="+nodeName+"="+peer,
		"--client-cert-auth", "--cert-file="+pkiFile("server.crt"), "--key-file="+pkiFile("server.key"), "--trusted-ca-file="+pkiFile("ca.crt"),
		"--peer-client-cert-auth", "--peer-cert-file="+pkiFile("peer.crt"), "--peer-key-file="+pkiFile("peer.key"), "--peer-trusted-ca-file="+pkiFile("ca.crt"))
	if err != nil {
		return err
	}
	t.procs = append(t.procs, p)
	own := t.pki.Pairs[pki.EtcdHealthcheckClient]
	pair, err := tls.X509KeyPair(own.Cert, own.Key)
	if err != nil {
		return fmt.Errorf("etcd client certificate: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(t.pki.Authorities[pki.EtcdCA].Pair().Cert)
	if t.etcd, err = clientv3.New(clientv3.Config{Context: ctx, Endpoints: []string{t.etcdURL}, Logger: zap.NewNop(),
		TLS: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}}); err != nil {
		return err
	}
	return p.until(ctx, "etcd", bootTime, func(ctx context.Context) error {
		_, err := t.etcd.Get(ctx, registry, clientv3.WithCountOnly())
		return err
	})
}

// registry is where the API server keeps its objects in etcd.
const registry = "/registry/"

// compareData asks etcd alone: the number of keys at the backup's revision, and the hash
// of all that was ever written up to it and not compacted.
func (t *trial) compareData(ctx context.Context, r *Result) error {
	want := t.backup.Manifest.Data
	keys, err := t.etcd.Get(ctx, registry, clientv3.WithPrefix(), clientv3.WithCountOnly(), clientv3.WithRev(want.Revision))
	if err != nil {
		return fmt.Errorf("count etcd's keys at revision %d: %w", want.Revision, err)
	}
	hash, err := t.etcd.HashKV(ctx, t.etcdURL, want.Revision)
	if err != nil {
		return fmt.Errorf("etcd's hash at revision %d: %w", want.Revision, err)
	}
	r.Keys, r.HashEqual = keys.Count, hash.Hash == want.Hash && hash.CompactRevision == want.Compacted
	return nil
}

func (t *trial) startAPIServer(ctx context.Context) error {
	wish, err := spec.Load(bytes.NewReader(t.backup.Spec), "the backup's cluster.yaml")
	if err != nil {
		return err
	}
	ports, err := freePorts(1)
	if err != nil {
		return err
	}
	t.serverURL = "https://127.0.0.1:" + ports[0]
	pkiFile := func(name string) string { return t.path("pki/" + name) }
	issuer := "https://kubernetes.default.svc." + wish.Network.DNSDomain
	args := []string{
		"kube-apiserver", "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port=" + ports[0],
		"--endpoint-reconciler-type=none", "--authorization-mode=RBAC", "--etcd-compaction-interval=0",
		"--service-cluster-ip-range=" + wish.Network.ServiceCIDR.String(),
		"--etcd-servers=" + t.etcdURL, "--etcd-cafile=" + pkiFile("etcd/ca.crt"),
		"--etcd-certfile=" + pkiFile("apiserver-etcd-client.crt"), "--etcd-keyfile=" + pkiFile("apiserver-etcd-client.key"),
		"--client-ca-file=" + pkiFile("ca.crt"), "--tls-cert-file=" + pkiFile("apiserver.crt"), "--tls-private-key-file=" + pkiFile("apiserver.key"),
		"--service-account-issuer=" + issuer, "--service-account-key-file=" + pkiFile("sa.pub"), "--service-account-signing-key-file=" + pkiFile("sa.key"),
	}
	// What else decides which kinds there are, and whether they can be read.
	for _, flag := range []string{"runtime-config", "feature-gates"} {
		if v, ok := wish.APIServer.ExtraArgs[flag]; ok {
			args = append(args, "--"+flag+"="+v)
		}
	}
	if on, ok := wish.APIServer.ExtraArgs[encryptionFlag]; ok {
		content, ok := t.backup.Files[on]
		if !ok {
			return fmt.Errorf("the API server's %s %s is not in the backup", encryptionFlag, on)
		}
		if err := t.write(encryptionFile, content); err != nil {
			return err
		}
		args = append(args, "--"+encryptionFlag+"="+t.path(encryptionFile))
	}
	p, err := t.kube.start(t.dir, args...)
	if err != nil {
		return err
	}
	t.procs = append(t.procs, p)
	admin := t.pki.Pairs[pki.SuperAdmin]
	t.api = &rest.Config{Host: t.serverURL, QPS: -1, UserAgent: "kubewright", TLSClientConfig: rest.TLSClientConfig{
		CAData: t.pki.Authorities[pki.CA].Pair().Cert, CertData: admin.Cert, KeyData: admin.Key}}
	client, err := kubernetes.NewForConfig(t.api)
	if err != nil {
		return err
	}
	return p.until(ctx, "the API server", bootTime, func(ctx context.Context) error {
		return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
}

// compareKinds counts through the API, in the past: at the backup's revision. Custom
// resources are served a moment after the API server is ready.
func (t *trial) compareKinds(ctx context.Context, r *Result) error {
	api := t.procs[len(t.procs)-1]
	var counted []backup.Kind
	err := api.until(ctx, "all kinds", countTime, func(ctx context.Context) (err error) {
		counted, err = census.Count(ctx, t.api, r.Manifest.Kinds, r.Manifest.Data.Revision)
		if err != nil && !apierrors.IsNotFound(err) {
			return &final{err}
		}
		return err
	})
	if err != nil {
		return err
	}
	for i, k := range r.Manifest.Kinds {
		r.Kinds = append(r.Kinds, Compared{k, counted[i].Objects})
	}
	return nil
}

// final is an error that waiting does not mend.
type final struct{ error }

func (f *final) Unwrap() error { return f.error }
