package main

import (
	"context"

	"github.com/kubewright/kubewright/bootstrap"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/kubeconfig"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// controlPlaneHosts are those of the cluster in the kubeconfig, by the names that SSH knows them by.
func (a *app) controlPlaneHosts(ctx context.Context) ([]string, error) {
	_, access, err := kubeconfig.Access(a.kubeconfig, "")
	if err != nil {
		return nil, err
	}
	asking, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	hosts, err := bootstrap.ControlPlaneHosts(asking, cluster.New(plan.Of("the admin's access", access), nil))
	if err != nil {
		return nil, fault.New(fault.ClusterMissing, "name a control-plane host: the API is then reached through it", "cluster at %s: %w", access.Server, err)
	}
	if len(hosts) == 0 {
		return nil, fault.New(fault.ClusterMissing, "run the same init again, if it was broken off; or name a control-plane host", "the cluster at %s does not say yet how its control-plane hosts are reached: its init has not come to its end", access.Server)
	}
	return hosts, nil
}
