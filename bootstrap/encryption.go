package bootstrap

import (
	"context"
	"errors"
	"io/fs"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/file"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// encryptionFlag is the API server's, with the file of the keys by which it encrypts what it stores.
const encryptionFlag = "encryption-provider-config"

// encryption is that file on its way from one control-plane host to further ones: an API server does not
// start without it, and reads no Secret by other keys.
type encryption struct {
	path    string
	content *plan.Value[[]byte]
}

// newEncryption is nil for a cluster that encrypts nothing.
func newEncryption(c *spec.Cluster) *encryption {
	path := c.APIServer.ExtraArgs[encryptionFlag]
	if path == "" {
		return nil
	}
	return &encryption{path, plan.NewValue[[]byte]("the keys by which API servers encrypt")}
}

// readSteps are for the host that has the file.
func (e *encryption) readSteps() []hostStep {
	if e == nil {
		return nil
	}
	return []hostStep{{Name: "apiserver/read-encryption", Doc: "the keys by which the API server encrypts, for the further control-plane hosts",
		Sets: []plan.Cell{e.content}, Do: readKeys{e}}}
}

// writeSteps are for a further one.
func (e *encryption) writeSteps() []hostStep {
	if e == nil {
		return nil
	}
	return []hostStep{{Name: "apiserver/write-encryption", Doc: "the keys by which the API server encrypts", Needs: []plan.Cell{e.content}, Do: writeKeys{e}}}
}

// readKeys changes nothing.
type readKeys struct{ *encryption }

func (a readKeys) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	content, err := r.ReadFile(ctx, a.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.HostUnsuitable, "write it there, and run the same command again", "the API server's %s: %w", encryptionFlag, err)
	}
	if err == nil {
		a.content.Set(content)
	}
	return nil, err
}

func (a readKeys) Apply(context.Context, host.Host) error { return nil }

// writeKeys leaves a file that is there as it is: keys are changed by the admin, one host after the other.
type writeKeys struct{ *encryption }

const keysMode fs.FileMode = 0o600

func (a writeKeys) put() file.Put {
	return file.Put{Files: []file.Wish{{Path: a.path, Mode: keysMode, Content: a.content.Get()}}}
}

func (a writeKeys) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	found, err := r.Stat(ctx, a.path)
	if err != nil || found[0].Exists {
		return nil, err
	}
	return a.put().Check(ctx, r)
}

// Foresee is said as long as the keys were not read.
func (a writeKeys) Foresee() plan.Diff {
	return plan.Diff{{Verb: plan.Create, Kind: plan.ObjectFile, Object: a.path, After: &plan.State{Mode: keysMode.String(), Later: true}}}
}

func (a writeKeys) Apply(ctx context.Context, h host.Host) error { return a.put().Apply(ctx, h) }
