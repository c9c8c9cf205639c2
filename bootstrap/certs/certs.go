// Package certs keeps a control-plane node's certificates and kubeconfigs as the
// table of package pki says. Keys are made in the admin's memory and written
// to the one host that needs them, nowhere else. What all control-plane hosts have in
// common, the authorities, goes from one to the next through that memory, too.
package certs

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/pki"
)

const (
	// Dir is kubeadm's folder for the certificates.
	Dir = "/etc/kubernetes/pki"
	// kubeconfigDir holds the kubeconfigs.
	kubeconfigDir = "/etc/kubernetes"
)

// Material is what the rest of a run needs of the certificates.
type Material struct {
	CA         []byte // PEM of the cluster's authority
	Authority  *x509.Certificate
	Admin      pki.Pair // of the admin's kubeconfig
	SuperAdmin pki.Pair // for what must be done before RBAC knows the admin
	Common     Common
}

// String hides the keys.
func (Material) String() string { return "certificates" }

// Common is what every control-plane host of a cluster has: the authorities with
// their keys, and the key of service accounts. By name below Dir; secret.
type Common map[string][]byte

// String hides the keys.
func (Common) String() string { return "authorities" }

// ReadCommon reads it from a control-plane host. It is an error if a part is missing.
func ReadCommon(ctx context.Context, r host.Reader) (Common, error) {
	names := pki.CommonFiles()
	contents := make([][]byte, len(names))
	reads, ctx := errgroup.WithContext(ctx)
	for i, name := range names {
		reads.Go(func() (err error) {
			contents[i], err = r.ReadFile(ctx, path.Join(Dir, name))
			return err
		})
	}
	if err := reads.Wait(); err != nil {
		return nil, fmt.Errorf("the cluster's authorities: %w", err)
	}
	c := Common{}
	for i, name := range names {
		c[name] = contents[i]
	}
	return c, nil
}

// Servers are the URLs of the API server in kubeconfigs, by who uses them.
type Servers struct {
	People string // admins, from anywhere
	Local  string // on this very host: what must go with its own API server
	Agents string // the kubelet
}

// of is the server in a certificate's kubeconfig.
func (s Servers) of(name string) string {
	switch name {
	case pki.Admin:
		return s.People
	case pki.Kubelet:
		return s.Agents
	default:
		return s.Local
	}
}

// Ensure has every authority, certificate and kubeconfig in place. What is
// there and good stays, whatever its bytes are; an authority is never replaced.
type Ensure struct {
	Inputs  pki.Inputs
	Servers Servers
	Cluster string // name in the kubeconfigs
	// Common is what other control-plane hosts have already, nil where it is to be made.
	Common *plan.Value[Common]
	// KubeletCert is where the kubelet keeps its certificate and renews it by itself.
	KubeletCert string
	// KubeletDir is the kubelet's folder, in which that is.
	KubeletDir string
	Result     *plan.Value[Material]
}

var _ plan.Action[host.Reader, host.Host] = Ensure{}

// output is a file or link to be written.
type output struct {
	path    string
	content []byte
	mode    fs.FileMode
	target  string // of a link, which is only wished when it has to change
}

func (o output) standsIn(found map[string][]byte) bool {
	have, ok := found[o.path]
	return ok && o.target == "" && bytes.Equal(have, o.content)
}

// state is what is left of it. Keys are made anew each time that somebody only
// looks, so their digests would tell nothing.
func (o output) state() *plan.State {
	if o.target != "" {
		return &plan.State{Target: o.target}
	}
	return &plan.State{Mode: o.mode.String(), Later: true}
}

func (e Ensure) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	found, err := e.read(ctx, r)
	if err != nil {
		return nil, err
	}
	outputs, made, err := e.complete(found)
	if err != nil {
		return nil, err
	}
	var diff plan.Diff
	for _, o := range outputs {
		if _, ok := found[o.path]; !ok {
			c := plan.Change{Verb: plan.Create, Kind: plan.ObjectFile, Object: o.path, After: o.state()}
			if o.path == e.KubeletCert {
				c.Brings = plan.Objects(plan.ObjectFile, e.KubeletDir)
			}
			diff = append(diff, c)
		} else if !o.standsIn(found) {
			diff = append(diff, plan.Change{Verb: plan.Update, Kind: plan.ObjectFile, Object: o.path, Detail: "for " + strings.Join(made, ", "),
				Before: plan.FileState(o.mode, found[o.path]), After: o.state()})
		}
	}
	return diff, nil
}

// Foresee is said of a host whose authorities are another's, and not made yet.
func (e Ensure) Foresee() plan.Diff {
	var diff plan.Diff
	add := func(p string, private bool) {
		mode := fs.FileMode(0o644)
		if private {
			mode = 0o600
		}
		c := plan.Change{Verb: plan.Create, Kind: plan.ObjectFile, Object: p, After: &plan.State{Mode: mode.String(), Later: true}}
		if p == e.KubeletCert {
			c.Brings = plan.Objects(plan.ObjectFile, e.KubeletDir)
		}
		diff = append(diff, c)
	}
	for _, name := range pki.FileNames() {
		add(path.Join(Dir, name), strings.HasSuffix(name, ".key"))
	}
	add(path.Join(path.Dir(e.KubeletCert), firstKubeletCert), true)
	add(e.KubeletCert, true)
	for _, c := range pki.Table(e.Inputs) {
		if c.Kubeconfig != "" {
			add(path.Join(kubeconfigDir, c.Kubeconfig), true)
		}
	}
	return diff
}

// firstKubeletCert is the file that the kubelet's first certificate is in.
const firstKubeletCert = "kubelet-client-kubewright.pem"

func (e Ensure) Apply(ctx context.Context, h host.Host) error {
	found, err := e.read(ctx, h)
	if err != nil {
		return err
	}
	outputs, _, err := e.complete(found)
	if err != nil {
		return err
	}
	for _, o := range outputs {
		if o.standsIn(found) {
			continue
		}
		if o.target != "" {
			err = h.Symlink(ctx, o.target, o.path)
		} else {
			err = h.WriteFile(ctx, o.path, bytes.NewReader(o.content), host.Meta{Mode: o.mode})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// read returns the content of every file that is there, by path.
func (e Ensure) read(ctx context.Context, r host.Reader) (map[string][]byte, error) {
	paths := []string{e.KubeletCert}
	for _, name := range pki.FileNames() {
		paths = append(paths, path.Join(Dir, name))
	}
	for _, c := range pki.Table(e.Inputs) {
		if c.Kubeconfig != "" {
			paths = append(paths, path.Join(kubeconfigDir, c.Kubeconfig))
		}
	}
	contents := make([][]byte, len(paths))
	reads, ctx := errgroup.WithContext(ctx)
	for i, p := range paths {
		reads.Go(func() error {
			content, err := r.ReadFile(ctx, p)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			contents[i] = content
			return err
		})
	}
	if err := reads.Wait(); err != nil {
		return nil, err
	}
	found := map[string][]byte{}
	for i, p := range paths {
		if contents[i] != nil {
			found[p] = contents[i]
		}
	}
	return found, nil
}

// complete makes what is missing, and returns everything as it should stand on
// the host with the names of what was made. If nothing was, the result is set.
func (e Ensure) complete(found map[string][]byte) ([]output, []string, error) {
	files := map[string][]byte{}
	for p, content := range found {
		if name, ok := strings.CutPrefix(p, Dir+"/"); ok {
			files[name] = content
		}
	}
	if e.Common != nil {
		common, err := e.Common.Known()
		if err != nil {
			return nil, nil, err
		}
		maps.Copy(files, common)
	}
	bundle, err := pki.LoadBundle(files)
	if err != nil {
		return nil, nil, err
	}
	for _, c := range pki.Table(e.Inputs) {
		switch {
		case c.Name == pki.Kubelet:
			if joined, ok := found[e.KubeletCert]; ok {
				bundle.Pairs[c.Name] = pki.Pair{Cert: joined, Key: joined}
			}
		case c.Kubeconfig != "":
			if content, ok := found[path.Join(kubeconfigDir, c.Kubeconfig)]; ok {
				bundle.Pairs[c.Name] = embedded(content)
			}
		}
	}
	made, err := bundle.Complete(e.Inputs, time.Now())
	if err != nil {
		return nil, nil, err
	}
	outputs, err := e.outputs(bundle, slices.Contains(made, pki.Kubelet))
	if err != nil {
		return nil, nil, err
	}
	// What others need of it is known as soon as it is not among what was made.
	if !slices.ContainsFunc(made, func(name string) bool {
		return name == pki.Admin || name == pki.SuperAdmin || slices.Contains(pki.Authorities(), name) || slices.Contains(pki.CommonFiles(), name)
	}) {
		ca := bundle.Authorities[pki.CA]
		e.Result.Set(Material{
			CA: ca.Pair().Cert, Authority: ca.Cert,
			Admin: bundle.Pairs[pki.Admin], SuperAdmin: bundle.Pairs[pki.SuperAdmin],
			Common: common(bundle),
		})
	}
	return outputs, made, nil
}

// common picks what all control-plane hosts have from a complete bundle.
func common(b *pki.Bundle) Common {
	c := Common{}
	for _, f := range b.Files() {
		if slices.Contains(pki.CommonFiles(), f.Name) {
			c[f.Name] = f.Content
		}
	}
	return c
}

func (e Ensure) outputs(bundle *pki.Bundle, newKubelet bool) ([]output, error) {
	var all []output
	for _, f := range bundle.Files() {
		mode := fs.FileMode(0o644)
		if f.Private {
			mode = 0o600
		}
		all = append(all, output{path: path.Join(Dir, f.Name), content: f.Content, mode: mode})
	}
	if newKubelet {
		// The kubelet wants its current certificate to be a link, which it points
		// to a new file when it renews.
		first := path.Join(path.Dir(e.KubeletCert), firstKubeletCert)
		all = append(all,
			output{path: first, content: bundle.Pairs[pki.Kubelet].Joined(), mode: 0o600},
			output{path: e.KubeletCert, target: path.Base(first)})
	}
	ca := bundle.Authorities[pki.CA].Pair().Cert
	for _, c := range pki.Table(e.Inputs) {
		if c.Kubeconfig == "" {
			continue
		}
		k := pki.Kubeconfig{Cluster: e.Cluster, User: c.CommonName, Server: e.Servers.of(c.Name), CA: ca}
		if c.Name == pki.Kubelet {
			k.ClientFile = e.KubeletCert
		} else {
			k.Client = bundle.Pairs[c.Name]
		}
		content, err := k.Render()
		if err != nil {
			return nil, err
		}
		all = append(all, output{path: path.Join(kubeconfigDir, c.Kubeconfig), content: content, mode: 0o600})
	}
	return all, nil
}

// embedded returns the credentials in a kubeconfig that has one user, an empty
// pair if it cannot be read: then it is made anew.
func embedded(content []byte) pki.Pair {
	cfg, err := clientcmd.Load(content)
	if err != nil || len(cfg.AuthInfos) != 1 {
		return pki.Pair{}
	}
	user := slices.Collect(maps.Values(cfg.AuthInfos))[0]
	return pki.Pair{Cert: user.ClientCertificateData, Key: pki.Secret(user.ClientKeyData)}
}
