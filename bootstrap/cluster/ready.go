package cluster

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kubewright/kubewright/bootstrap/plan"
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

// PodReady tells whether services lead to a pod.
func PodReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// Serving waits until API servers are among those that the service "kubernetes" leads
// to: each puts itself there as soon as it serves.
type Serving struct {
	Addresses []netip.Addr
}

var _ plan.Action[Reader, Writer] = Serving{}

func (a Serving) see(ctx context.Context, r Reader) (string, error) {
	kube, err := r.Kubernetes(ctx)
	if err != nil {
		return "", err
	}
	endpoints, err := kube.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=kubernetes"})
	if err != nil {
		return "", err
	}
	there := map[string]bool{}
	for _, s := range endpoints.Items {
		for _, e := range s.Endpoints {
			for _, address := range e.Addresses {
				there[address] = true
			}
		}
	}
	var missing []string
	for _, address := range a.Addresses {
		if !there[address.String()] {
			missing = append(missing, address.String()+" does not serve yet")
		}
	}
	return strings.Join(missing, "; "), nil
}

func (a Serving) Check(ctx context.Context, r Reader) (plan.Diff, error) {
	missing, err := a.see(ctx, r)
	return waitDiff("API servers", missing, err)
}

// Foresee: whatever is not there is waited for.
func (a Serving) Foresee() plan.Diff { return awaited("API servers") }

func (a Serving) Apply(ctx context.Context, w Writer) error {
	return await(ctx, "API servers to serve", func(ctx context.Context) (string, error) { return a.see(ctx, w) })
}
