package kubelet

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/systemd"
	"github.com/kubewright/kubewright/pki"
)

// Bootstrap starts a kubelet that has no certificate yet: it is given a join
// token for as long as it takes to get one, and loses it then.
type Bootstrap struct {
	CA      *plan.Value[[]byte] // PEM of the authority that has to have signed the certificate
	Server  string              // URL of the API server
	Cluster string              // its name in the kubeconfig
	Token   host.Secret         // the join token
	Service systemd.Service
}

var _ plan.Action[host.Reader, host.Host] = Bootstrap{}

func (b Bootstrap) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	var diff plan.Diff
	why, err := b.certificate(ctx, r)
	if err != nil {
		return nil, err
	}
	if why != "" {
		diff = append(diff, b.certified(why)...)
	}
	left, err := r.Stat(ctx, BootstrapKubeconfig)
	if err != nil {
		return nil, err
	}
	if left[0].Exists {
		diff = append(diff, plan.Change{Verb: plan.Delete, Kind: plan.ObjectFile, Object: BootstrapKubeconfig, Before: &plan.State{Mode: left[0].Mode.String()}})
	}
	return diff, nil
}

// certified are the changes that give the node its certificate: the kubelet is
// started with the token to ask for it.
func (b Bootstrap) certified(why string) plan.Diff {
	return append(plan.Diff{
		{Verb: plan.Create, Kind: plan.ObjectFile, Object: ClientCert, Detail: "TLS bootstrap: " + why, After: &plan.State{Later: true},
			Brings: plan.Objects(plan.ObjectFile, Dir, Kubeconfig, BootstrapKubeconfig)},
	}, b.Service.Changes()...)
}

// Foresee is said of a host whose kubelet has no certificate yet.
func (b Bootstrap) Foresee() plan.Diff { return b.certified("no client certificate") }

// certificate says why the node's client certificate does not serve, "" if it does.
func (b Bootstrap) certificate(ctx context.Context, r host.Reader) (string, error) {
	return CertificateTrouble(ctx, r, b.CA.Get())
}

// CertificateTrouble says why a node has no client certificate of the CA's, "" if it has.
// caPEM is the authority's certificate.
func CertificateTrouble(ctx context.Context, r host.Reader, caPEM []byte) (string, error) {
	ca, err := pki.ParseCertificate(caPEM)
	if err != nil {
		return "", fmt.Errorf("the cluster's authority: %w", err)
	}
	content, err := r.ReadFile(ctx, ClientCert)
	if errors.Is(err, fs.ErrNotExist) {
		return "no client certificate", nil
	}
	if err != nil {
		return "", err
	}
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return err.Error(), nil
		}
		if err := cert.CheckSignatureFrom(ca); err != nil {
			return "the client certificate is another cluster's", nil
		}
		if time.Now().After(cert.NotAfter) {
			return "the client certificate expired on " + cert.NotAfter.Format(time.DateOnly), nil
		}
		return "", nil
	}
	return "the client certificate file holds none", nil
}

// bootstrapPoll is how often the host is asked for the certificate.
const bootstrapPoll = 100 * time.Millisecond

func (b Bootstrap) Apply(ctx context.Context, h host.Host) error {
	why, err := b.certificate(ctx, h)
	if err != nil {
		return err
	}
	if why != "" {
		// A kubelet that runs with a useless certificate, or with an older token, must read anew.
		if err := h.Remove(ctx, ClientCert, Kubeconfig); err != nil {
			return err
		}
		access, err := pki.Kubeconfig{
			Cluster: b.Cluster, User: "bootstrap", Server: b.Server, CA: b.CA.Get(), Token: pki.Secret(b.Token),
		}.Render()
		if err != nil {
			return err
		}
		if err := h.WriteFile(ctx, BootstrapKubeconfig, bytes.NewReader(access), host.Meta{Mode: 0o600}); err != nil {
			return err
		}
		if err := h.Systemd().Stop(ctx, Unit); err != nil {
			return err
		}
		if err := (systemd.Run{Services: []systemd.Service{b.Service}}).Apply(ctx, h); err != nil {
			return err
		}
		if err := b.await(ctx, h); err != nil {
			return err
		}
		// Meanwhile it has tried to register as nobody, and waits longer each
		// time: begun anew, with its certificate, it registers at once.
		if err := h.Systemd().Restart(ctx, Unit); err != nil {
			return err
		}
	}
	return h.Remove(ctx, BootstrapKubeconfig)
}

// await reports what it waits for, and how its kubelet does meanwhile.
func (b Bootstrap) await(ctx context.Context, r host.Reader) error {
	ctx, cancel := plan.WaitContext(ctx)
	defer cancel()
	tick := time.NewTicker(bootstrapPoll)
	defer tick.Stop()
	said := ""
	for {
		why, err := b.certificate(ctx, r)
		if err != nil || why == "" {
			return err
		}
		units, err := r.Units(ctx, Unit)
		if err != nil {
			return err
		}
		if now := fmt.Sprintf("waits for the cluster to sign the node's certificate: %s, %s is %s (%s)", why, Unit, units[0].Active, units[0].Sub); now != said {
			plan.Report(ctx, now)
			said = now
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx) // the runner adds what was reported last
		case <-tick.C:
		}
	}
}
