package bootstrap

import (
	"strings"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// TestRecoverRefusesHost: what has no whole data of a member with a vote is not asked for its members.
func TestRecoverRefusesHost(t *testing.T) {
	controlPlane := &claim.Claim{Cluster: "c", Node: "cp1", Role: string(spec.ControlPlaneRole)}
	for name, c := range map[string]struct {
		target Target
		code   fault.Code
		says   string
	}{
		"a host of no cluster": {Target{}, fault.ClusterMissing, "no data of etcd"},
		"a worker":             {Target{Claim: &claim.Claim{Role: string(spec.WorkerRole)}}, fault.ClusterMissing, "no data of etcd"},
		"data that are lost":   {Target{Claim: controlPlane, HasAPI: true}, fault.ClusterMissing, "no data of etcd"},
		"a member taken out":   {Target{Claim: controlPlane, EtcdData: true, HasAPI: true, Fenced: "it was taken out"}, fault.Quorum, "it was taken out"},
		"a learner":            {Target{Claim: controlPlane, EtcdData: true}, fault.Quorum, "never had a vote"},
	} {
		c.target.Wish, c.target.Host = spec.Host{Name: "cp1"}, hosttest.NewSim(t, "cp1")
		if _, err := LookRecover(t.Context(), Recover{Target: c.target}); fault.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
