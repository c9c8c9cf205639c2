package bootstrap

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubewright/kubewright/bootstrap/cluster"
)

// HostNames are the names by which the admin reached the hosts of the cluster's nodes.
func HostNames(ctx context.Context, client cluster.Reader) ([]string, error) {
	return hostNames(ctx, client, metav1.ListOptions{})
}

// ControlPlaneHosts are those of its control-plane nodes.
func ControlPlaneHosts(ctx context.Context, client cluster.Reader) ([]string, error) {
	return hostNames(ctx, client, metav1.ListOptions{LabelSelector: controlPlaneKey})
}

func hostNames(ctx context.Context, client cluster.Reader, which metav1.ListOptions) ([]string, error) {
	kube, err := client.Kubernetes(ctx)
	if err != nil {
		return nil, err
	}
	nodes, err := kube.CoreV1().Nodes().List(ctx, which)
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var names []string
	for _, n := range nodes.Items {
		if name := n.Annotations[cluster.HostAnnotation]; name != "" {
			names = append(names, name)
		}
	}
	return names, nil
}
