// Package kubeconfig merges a cluster's admin access into the user's kubeconfig,
// which may hold any number of other clusters.
package kubeconfig

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// Local is the admin's workstation as a lane's target: the steps on it use its files directly.
type Local struct{}

// Merge adds a cluster, a user and a context to a kubeconfig and makes the
// context the current one. Other entries stay as they are.
type Merge struct {
	Path   string // of the kubeconfig; made when missing, 0600
	Name   string // of the cluster; the context is NAME, the user NAME-admin
	Access *plan.Value[cluster.Access]
	// Servers are all API servers, ADDRESS:PORT, of a cluster that has several: see Servers. Which of
	// them is the cluster's server in the file is all the same: one that is there stays.
	Servers []string
}

var _ plan.Action[Local, Local] = Merge{}

// renewBefore is the remaining life below which the client certificate is replaced.
const renewBefore = 30 * 24 * time.Hour

func (m Merge) Check(context.Context, Local) (plan.Diff, error) {
	cfg, err := m.load()
	if err != nil {
		return nil, err
	}
	why := m.differs(cfg)
	if why == "" {
		return nil, nil
	}
	return plan.Diff{{Verb: plan.Update, Kind: plan.ObjectLocal, Object: m.Path, Detail: why}}, nil
}

func (m Merge) differs(cfg *api.Config) string {
	want := m.Access.Get()
	have, ok := cfg.Clusters[m.Name]
	switch {
	case !ok:
		return "add context " + m.Name
	case have.Server != m.server(have):
		return "server of " + m.Name
	case !bytes.Equal(have.CertificateAuthorityData, want.CA):
		return "certificate authority of " + m.Name
	case !slices.Equal(others(have), m.Servers):
		return "the API servers of " + m.Name
	case cfg.CurrentContext != m.Name:
		return "current context"
	}
	user, ok := cfg.AuthInfos[m.user()]
	if !ok || !usable(user.ClientCertificateData, want.CA) {
		return "credentials of " + m.user()
	}
	if c, ok := cfg.Contexts[m.Name]; !ok || c.Cluster != m.Name || c.AuthInfo != m.user() {
		return "context " + m.Name
	}
	return ""
}

// server is the one that a cluster's entry is to have, nil: there is none yet.
func (m Merge) server(have *api.Cluster) string {
	want := m.Access.Get().Server
	if have != nil && m.lists(want) && m.lists(have.Server) {
		return have.Server
	}
	return want
}

func (m Merge) lists(server string) bool {
	u, err := url.Parse(server)
	return err == nil && slices.Contains(m.Servers, u.Host)
}

// usable reports whether a client certificate is the CA's and lives on for a while.
func usable(certPEM, caPEM []byte) bool {
	block, _ := pem.Decode(certPEM)
	if block == nil {
		return false
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return false
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(caPEM)
	_, err = cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: time.Now().Add(renewBefore),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err == nil
}

// Foresee is said of a cluster whose certificates are not made yet.
func (m Merge) Foresee() plan.Diff {
	return plan.Diff{{Verb: plan.Update, Kind: plan.ObjectLocal, Object: m.Path, Detail: "context " + m.Name}}
}

func (m Merge) user() string { return m.Name + "-admin" }

func (m Merge) load() (*api.Config, error) {
	cfg, err := clientcmd.LoadFromFile(m.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return api.NewConfig(), nil
	}
	if err != nil {
		return nil, fault.New(fault.Usage, "repair the file or name another one with --kubeconfig", "kubeconfig %s: %w", m.Path, err)
	}
	return cfg, nil
}

// Apply writes the file atomically: a kubeconfig is many clusters' only key.
func (m Merge) Apply(context.Context, Local) error {
	cfg, err := m.load()
	if err != nil {
		return err
	}
	a := m.Access.Get()
	entry := &api.Cluster{Server: m.server(cfg.Clusters[m.Name]), CertificateAuthorityData: a.CA}
	if err := remember(entry, m.Servers); err != nil {
		return err
	}
	cfg.Clusters[m.Name] = entry
	cfg.AuthInfos[m.user()] = &api.AuthInfo{ClientCertificateData: a.Cert, ClientKeyData: a.Key}
	cfg.Contexts[m.Name] = &api.Context{Cluster: m.Name, AuthInfo: m.user()}
	cfg.CurrentContext = m.Name
	return write(m.Path, cfg)
}

func write(path string, cfg *api.Config) error {
	content, err := clientcmd.Write(*cfg)
	if err != nil {
		return fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target // a link stays a link
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".kubeconfig-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // gone after the rename
	_, err = tmp.Write(content)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return os.Rename(tmp.Name(), path)
}

// Access returns the current context's credentials, and the cluster's name. A
// kubeconfig that has none is a fault.ClusterMissing.
func Access(path, context string) (string, cluster.Access, error) {
	rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: path}
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: context})
	raw, err := loader.RawConfig()
	if err != nil {
		return "", cluster.Access{}, missing(path, err)
	}
	cfg, err := loader.ClientConfig()
	if err != nil {
		return "", cluster.Access{}, missing(path, err)
	}
	if context == "" {
		context = raw.CurrentContext
	}
	name := context
	if c, ok := raw.Contexts[context]; ok {
		name = c.Cluster
	}
	if err := errors.Join(load(&cfg.CAData, cfg.CAFile), load(&cfg.CertData, cfg.CertFile), load(&cfg.KeyData, cfg.KeyFile)); err != nil {
		return "", cluster.Access{}, missing(path, err)
	}
	access := cluster.Access{Server: cfg.Host, CA: cfg.CAData, Cert: cfg.CertData, Key: cfg.KeyData, Token: cfg.BearerToken}
	if c, ok := raw.Clusters[name]; ok {
		access.Others = others(c)
	}
	return name, access, nil
}

// Parse returns the credentials of a kubeconfig that holds one cluster and all data inline.
func Parse(content []byte) (cluster.Access, error) {
	cfg, err := clientcmd.RESTConfigFromKubeConfig(content)
	if err != nil {
		return cluster.Access{}, err
	}
	return cluster.Access{Server: cfg.Host, CA: cfg.CAData, Cert: cfg.CertData, Key: cfg.KeyData, Token: cfg.BearerToken}, nil
}

// load reads a file that stands in for inline data.
func load(data *[]byte, path string) error {
	if len(*data) > 0 || path == "" {
		return nil
	}
	var err error
	*data, err = os.ReadFile(path)
	return err
}

func missing(path string, err error) error {
	return fault.New(fault.ClusterMissing, "run `kubewright init` first, or name the cluster's kubeconfig with --kubeconfig",
		"kubeconfig %s: %w", path, err)
}

// Remove takes a cluster, its user and its context out of a kubeconfig, if the
// cluster there is the one meant. Other entries stay as they are.
type Remove struct {
	Path   string
	Name   string
	Server string
}

var _ plan.Action[Local, Local] = Remove{}

func (r Remove) Check(context.Context, Local) (plan.Diff, error) {
	cfg, err := Merge{Path: r.Path}.load()
	if err != nil {
		return nil, err
	}
	if c, ok := cfg.Clusters[r.Name]; !ok || c.Server != r.Server {
		return nil, nil
	}
	return plan.Diff{{Verb: plan.Update, Kind: plan.ObjectLocal, Object: r.Path, Detail: "remove context " + r.Name}}, nil
}

func (r Remove) Apply(context.Context, Local) error {
	cfg, err := Merge{Path: r.Path}.load()
	if err != nil {
		return err
	}
	delete(cfg.Clusters, r.Name)
	delete(cfg.Contexts, r.Name)
	delete(cfg.AuthInfos, Merge{Name: r.Name}.user())
	if cfg.CurrentContext == r.Name {
		cfg.CurrentContext = ""
	}
	return write(r.Path, cfg)
}
