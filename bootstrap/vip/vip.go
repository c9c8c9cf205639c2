// Package vip has the component that gives the cluster's virtual IP to one of the
// control-plane hosts whose API server works.
package vip

import (
	"net"
	"net/netip"
	"strconv"

	"github.com/kubewright/kubewright/bootstrap/install"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/systemd"
)

// Unit is the name of its service.
const Unit = "kubewright-vip.service"

// Inputs are what it depends on.
type Inputs struct {
	Address    netip.Addr     // the virtual IP
	Interface  string         // with the node's address
	NodeName   string         // that the Lease shows as the holder
	Own        netip.AddrPort // the API server on this host
	APIServer  string         // its unit
	Kubeconfig string         // the scheduler's, which may change the Lease (addons/rbac)
}

// Service is its unit. The API server is the host's own, whatever the kubeconfig
// says: a host that lost it, or its etcd, must lose the address.
func Service(in Inputs) systemd.Service {
	flags := map[string]string{
		"address":    in.Address.String(),
		"interface":  in.Interface,
		"kubeconfig": in.Kubeconfig,
		"node":       in.NodeName,
		"server":     "https://" + net.JoinHostPort(in.Own.Addr().String(), strconv.Itoa(int(in.Own.Port()))),
	}
	return systemd.Service{
		Name:        Unit,
		Description: "vip: the virtual IP of the API servers",
		Doc:         "https://kubernetes.io/docs/concepts/architecture/leases/",
		After:       []string{"network-online.target", in.APIServer},
		Type:        "notify",
		Exec:        append([]string{install.Bin("vip")}, systemd.Flags(flags, nil)...),
		Inputs:      []string{in.Kubeconfig, install.Current},
		Options: map[string]string{
			// It needs to change addresses and to send ARP, and nothing else of root's.
			"CapabilityBoundingSet": "CAP_NET_ADMIN CAP_NET_RAW",
			"NoNewPrivileges":       "yes",
			"PrivateTmp":            "yes",
			"ProtectHome":           "yes",
			"ProtectSystem":         "strict",
		},
		Brings: plan.Objects(plan.ObjectAddress, in.Address.String()),
	}
}
