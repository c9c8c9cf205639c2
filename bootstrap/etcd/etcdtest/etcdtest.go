// Package etcdtest runs real members of etcd on loopback, for tests.
package etcdtest

import (
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/kubewright/kubewright/pki"
)

// World is members with certificates as a cluster's are.
type World struct {
	Certs string // folder of ca.crt, server.crt, peer.crt, healthcheck-client.crt and keys
	// Cut, if it is set, is told the address of clients of a member that is to be stopped: it would
	// wait for those that are connected.
	Cut func(address string)

	t    testing.TB
	up   map[string]*embed.Etcd
	dirs map[string]string
}

// New makes the certificates.
func New(t testing.TB) *World {
	w := &World{Certs: t.TempDir(), t: t, up: map[string]*embed.Etcd{}, dirs: map[string]string{}}
	b, err := pki.NewBundle(pki.Inputs{Node: "cp1", Address: netip.MustParseAddr("127.0.0.1"),
		ServiceIP: netip.MustParseAddr("10.96.0.1"), DNSDomain: "cluster.local"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range b.Files() {
		if name, ok := strings.CutPrefix(f.Name, "etcd/"); ok {
			if err := os.WriteFile(filepath.Join(w.Certs, name), f.Content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return w
}

// FreeURL is an URL on loopback that nobody serves.
func (w *World) FreeURL() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // nobody came
	return "https://" + l.Addr().String()
}

// Start runs a member with the data of its name: cluster and state are its --initial-cluster and
// --initial-cluster-state. change may be nil.
func (w *World) Start(name, peer, cluster, state string, change func(*embed.Config)) *embed.Etcd {
	w.t.Helper()
	at := func(s string) []url.URL {
		u, err := url.Parse(s)
		if err != nil {
			w.t.Fatal(err)
		}
		return []url.URL{*u}
	}
	cfg := embed.NewConfig()
	client := at(w.FreeURL())
	cfg.Name, cfg.Dir = name, w.Dir(name)
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = client, client
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = at(peer), at(peer)
	cfg.InitialCluster, cfg.ClusterState = cluster, state
	cfg.TickMs, cfg.ElectionMs = 20, 200
	cfg.StrictReconfigCheck = false // it would have tests wait for five seconds
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	cfg.UnsafeNoFsync = true
	tls := func(name string) transport.TLSInfo {
		return transport.TLSInfo{CertFile: filepath.Join(w.Certs, name+".crt"), KeyFile: filepath.Join(w.Certs, name+".key"),
			TrustedCAFile: filepath.Join(w.Certs, "ca.crt"), ClientCertAuth: true}
	}
	cfg.ClientTLSInfo, cfg.PeerTLSInfo = tls("server"), tls("peer")
	if change != nil {
		change(cfg)
	}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.up[name] = e
	w.t.Cleanup(func() { w.Stop(name) })
	return e
}

// Dir is the data folder of a member.
func (w *World) Dir(name string) string {
	if w.dirs[name] == "" {
		w.dirs[name] = w.t.TempDir()
	}
	return w.dirs[name]
}

// Member is a member that runs.
func (w *World) Member(name string) *embed.Etcd { return w.up[name] }

// Stop ends a member, if it runs.
func (w *World) Stop(name string) {
	e := w.up[name]
	if e == nil {
		return
	}
	w.up[name] = nil
	if w.Cut != nil {
		w.Cut(e.Clients[0].Addr().String())
	}
	e.Close()
}
