package kubeconfig

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// extensionName is the entry of a cluster in a kubeconfig that is ours: kubectl knows
// one server of a cluster only, kubewright all of them.
const extensionName = "kubewright"

// extension is its content.
type extension struct {
	Servers []string `json:"servers"` // ADDRESS:PORT
}

// others are the API servers that a cluster in a kubeconfig has besides.
func others(c *api.Cluster) []string {
	raw, ok := c.Extensions[extensionName].(*runtime.Unknown)
	if !ok {
		return nil
	}
	var e extension
	if json.Unmarshal(raw.Raw, &e) != nil {
		return nil
	}
	return e.Servers
}

// Serving is cluster.ServingURL for the API servers that a kubeconfig has of the cluster with
// cfg's server.
func Serving(ctx context.Context, raw *api.Config, cfg *rest.Config) string {
	for _, c := range raw.Clusters {
		if c.Server == cfg.Host {
			return cluster.ServingURL(ctx, cfg, others(c))
		}
	}
	return cfg.Host
}

// Servers has a cluster of the kubeconfig know all its API servers, so that kubewright
// gets to it when one of them is dead. A kubeconfig without that cluster stays as it is.
type Servers struct {
	Path    string
	Name    string   // of the cluster
	CA      []byte   // PEM: of that very cluster, nil: whatever has the name
	Servers []string // ADDRESS:PORT
}

var _ plan.Action[Local, Local] = Servers{}

func (s Servers) find() (*api.Config, *api.Cluster, error) {
	cfg, err := Merge{Path: s.Path}.load()
	if err != nil {
		return nil, nil, err
	}
	c, ok := cfg.Clusters[s.Name]
	if !ok || slices.Equal(others(c), s.Servers) || len(s.CA) > 0 && !bytes.Equal(c.CertificateAuthorityData, s.CA) {
		return nil, nil, nil
	}
	return cfg, c, nil
}

func (s Servers) Check(context.Context, Local) (plan.Diff, error) {
	_, c, err := s.find()
	if err != nil || c == nil {
		return nil, err
	}
	return plan.Diff{{Verb: plan.Update, Kind: plan.ObjectLocal, Object: s.Path, Detail: "the API servers of " + s.Name}}, nil
}

func (s Servers) Apply(context.Context, Local) error {
	cfg, c, err := s.find()
	if err != nil || c == nil {
		return err
	}
	if err := remember(c, s.Servers); err != nil {
		return err
	}
	return write(s.Path, cfg)
}

// remember writes the API servers into a cluster's entry.
func remember(c *api.Cluster, servers []string) error {
	if len(servers) == 0 {
		delete(c.Extensions, extensionName)
		return nil
	}
	content, err := json.Marshal(extension{Servers: servers})
	if err != nil {
		return err
	}
	if c.Extensions == nil {
		c.Extensions = map[string]runtime.Object{}
	}
	c.Extensions[extensionName] = &runtime.Unknown{Raw: content, ContentType: runtime.ContentTypeJSON}
	return nil
}
