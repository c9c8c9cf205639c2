package containerd

import (
	"bufio"
	"bytes"
	"context"
	"slices"

	"github.com/kubewright/kubewright/bootstrap/bundle"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/install"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// namespace is containerd's namespace for what belongs to Kubernetes.
const namespace = "k8s.io"

// Import has images in the runtime's store: hosts pull nothing.
type Import struct {
	Images []bundle.Image
}

var _ plan.Action[host.Reader, host.Host] = Import{}

func ctr(args ...string) []string {
	return slices.Concat([]string{install.Bin("ctr"), "--address", Socket, "--namespace", namespace}, args)
}

func (a Import) missing(ctx context.Context, r host.Reader) ([]bundle.Image, error) {
	list, err := r.Query(ctx, ctr("images", "list", "--quiet")...)
	if err != nil {
		return nil, err
	}
	var have []string
	for lines := bufio.NewScanner(bytes.NewReader(list)); lines.Scan(); {
		have = append(have, lines.Text())
	}
	return slices.DeleteFunc(slices.Clone(a.Images), func(i bundle.Image) bool {
		return slices.Contains(have, i.Ref)
	}), nil
}

func (a Import) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	missing, err := a.missing(ctx, r)
	return created(missing), err
}

// Foresee: a runtime that does not run yet has no images.
func (a Import) Foresee() plan.Diff { return created(a.Images) }

func created(images []bundle.Image) plan.Diff {
	var diff plan.Diff
	for _, i := range images {
		diff = append(diff, plan.Change{Verb: plan.Create, Kind: plan.ObjectImage, Object: i.Ref})
	}
	return diff
}

func (a Import) Apply(ctx context.Context, h host.Host) error {
	missing, err := a.missing(ctx, h)
	if err != nil {
		return err
	}
	for _, i := range missing {
		archive, err := i.Archive()
		if err != nil {
			return err
		}
		if _, err := h.Run(ctx, host.Command{Argv: ctr("images", "import", "-"), Stdin: archive}); err != nil {
			return err
		}
	}
	return nil
}
