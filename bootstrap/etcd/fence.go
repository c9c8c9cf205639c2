package etcd

import (
	"context"
	"errors"
	"io/fs"
	"strings"

	"github.com/kubewright/kubewright/bootstrap/host"
)

// fenceFile is where etcd-fence writes that the data must not be used any more, and why.
const fenceFile = DataDir + "/FENCED"

// Fenced says why the member on a host must not start any more, "" if it may. It was
// taken out of its cluster while its host was off; a reset of the host takes the fence away with the data.
func Fenced(ctx context.Context, r host.Reader) (reason string, err error) {
	content, err := r.ReadFile(ctx, fenceFile)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	reason, _, _ = strings.Cut(string(content), "\n")
	if err == nil && reason == "" {
		reason = "it was taken out of its cluster"
	}
	return reason, err
}
