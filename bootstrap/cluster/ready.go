package cluster

import (
	"context"
	"strings"

	"k8s.io/client-go/kubernetes"
)

// Readyz asks the API server whether it is ready. If it says no, failing names the
// checks of its own that fail; err is nil only if it is ready.
func Readyz(ctx context.Context, kube kubernetes.Interface) (failing []string, err error) {
	body, err := kube.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
	if err == nil {
		return nil, nil
	}
	for line := range strings.Lines(string(body)) {
		if name, ok := strings.CutPrefix(line, "[-]"); ok {
			name, _, _ = strings.Cut(name, " ")
			failing = append(failing, name)
		}
	}
	return failing, err
}
