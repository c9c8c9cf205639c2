package vip_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/vip"
)

const want = `[Unit]
Description=vip: the virtual IP of the API servers
Documentation=https://kubernetes.io/docs/concepts/architecture/leases/
After=network-online.target kube-apiserver.service
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart=/opt/kubewright/current/bin/vip \
  --address=192.0.2.9 \
  --interface=eth0 \
  --kubeconfig=/etc/kubernetes/scheduler.conf \
  --node=cp1 \
  --server=https://192.0.2.1:6443
Restart=always
RestartSec=1s
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW
NoNewPrivileges=yes
PrivateTmp=yes
ProtectHome=yes
ProtectSystem=strict

[Install]
WantedBy=multi-user.target
`

func TestService(t *testing.T) {
	s := vip.Service(vip.Inputs{
		Address: netip.MustParseAddr("192.0.2.9"), Interface: "eth0", NodeName: "cp1", Own: netip.MustParseAddrPort("192.0.2.1:6443"),
		APIServer: "kube-apiserver.service", Kubeconfig: "/etc/kubernetes/scheduler.conf",
	})
	if diff := cmp.Diff(want, string(s.File())); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(plan.Objects(plan.ObjectAddress, "192.0.2.9"), s.Brings); diff != "" {
		t.Error(diff)
	}
	if !strings.HasSuffix(s.Name, ".service") {
		t.Error(s.Name)
	}
}
