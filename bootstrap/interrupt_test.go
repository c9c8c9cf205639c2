package bootstrap

import (
	"context"
	"net/netip"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/containerd"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/file"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/install"
	"github.com/kubewright/kubewright/bootstrap/kubelet"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/systemd"
)

// node is a lane with the steps of a node that need no real program.
func node(h host.Host) plan.Lane {
	agent := kubelet.Inputs{
		NodeName: "w1", Address: netip.MustParseAddr("192.0.2.11"), ClusterDNS: netip.MustParseAddr("10.96.0.10"),
		ClusterDomain: "cluster.local", ResolvConf: "/etc/resolv.conf", ClientCAFile: "/etc/kubernetes/pki/ca.crt",
		Socket: containerd.Socket, Runtime: containerd.Unit, SystemdCgroup: true, CgroupV2: true, MayLowerOOM: true,
		ReadOnlyPort: 10255, ExtraArgs: map[string]string{"v": "2", "odd": `a "b" $c 100%`},
	}
	return plan.NewLane[hostReader, hostWriter](h.Name(), h, h,
		step(claim.Step, "", claim.Take{ClusterID: "id", Cluster: "c", Role: "worker", Node: "w1"}),
		step("bundle/use", "", file.Put{Files: []file.Wish{{Path: install.Current, Target: "v1.37.2-0123456789ab"}}}),
		step("containerd/configure", "", containerd.Config(containerd.Inputs{PauseImage: "pause:v1", SystemdCgroup: true})),
		step("containerd/start", "", systemd.Run{Services: []systemd.Service{containerd.Service()}}),
		step("kubelet/configure", "", kubelet.Config(agent)),
		step("kubelet/start", "", systemd.Run{Services: []systemd.Service{
			kubelet.Service(agent, "/usr/sbin/nft"), etcd.Service(etcd.Inputs{NodeName: "w1", Address: agent.Address, PKI: "/pki"}),
		}}),
		step("old/remove", "", file.Gone{Paths: []string{"/etc/old", "/etc/absent"}}),
	)
}

// TestInterruptedAnywhere breaks a lane off before, in and after each of its
// operations, by a cut connection and by lost power, and runs it again: the end
// is that of a run that nobody disturbed.
func TestInterruptedAnywhere(t *testing.T) {
	hosttest.Interrupt(t, func(t testing.TB) *hosttest.Sim {
		s := hosttest.NewSim(t, "w1")
		s.Put("/etc/old/config", "of yesterday", 0o644)
		s.Put(containerd.ConfigFile, "another configuration", 0o600)
		return s
	}, func(ctx context.Context, h host.Host) error {
		_, err := plan.Run(ctx, plan.Options{}, node(h))
		return err
	})
}

// TestSecondRunChangesNothing counts the operations of a second run.
func TestSecondRunChangesNothing(t *testing.T) {
	s := hosttest.NewSim(t, "w1")
	if _, err := plan.Run(t.Context(), plan.Options{}, node(s)); err != nil {
		t.Fatal(err)
	}
	before := len(s.Operations())
	n, err := plan.Run(t.Context(), plan.Options{}, node(s))
	if err != nil || n.Applied != 0 || n.Skipped == 0 {
		t.Errorf("%+v, %v", n, err)
	}
	if after := s.Operations()[before:]; len(after) != 0 {
		t.Errorf("the second run changed: %q", after)
	}
}
