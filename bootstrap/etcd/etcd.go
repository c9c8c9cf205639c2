// Package etcd has the cluster's one source of truth: its unit on a control-plane node.
package etcd

import (
	"net/netip"

	"github.com/kubewright/kubewright/bootstrap/install"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/systemd"
)

const (
	// Unit is the name of its service.
	Unit = "etcd.service"
	// DataDir holds the cluster's data.
	DataDir = "/var/lib/etcd"
	// environmentFile tells a member that has no data yet how it comes to some.
	environmentFile = "/etc/kubernetes/etcd.env"
	// ClientPort and PeerPort are where it serves.
	ClientPort = "2379"
	PeerPort   = "2380"
	// NeighboursFile has the control-plane hosts as {"servers":["ADDRESS:PORT"]}, of their API servers:
	// apilb remembers them there.
	NeighboursFile = "/var/lib/apilb/servers.json"
	// fencedStatus is with which etcd-fence ends if the member was taken out of its cluster.
	fencedStatus = "78"
)

// Inputs are what it depends on.
type Inputs struct {
	NodeName  string
	Address   netip.Addr
	PKI       string // folder of its certificates: ca.crt, server.crt, peer.crt and keys
	ExtraArgs map[string]string
}

// PeerURL is where the member on a node serves the other members.
func PeerURL(node netip.Addr) string { return url(node.String(), PeerPort) }

func url(host, port string) string { return "https://" + host + ":" + port }

// Service is its unit.
func Service(in Inputs) systemd.Service {
	self := in.Address.String()
	flags := map[string]string{
		"name":                           in.NodeName,
		"data-dir":                       DataDir,
		"listen-client-urls":             url("127.0.0.1", ClientPort) + "," + url(self, ClientPort),
		"advertise-client-urls":          url(self, ClientPort),
		"listen-peer-urls":               url(self, PeerPort),
		"initial-advertise-peer-urls":    url(self, PeerPort),
		"listen-metrics-urls":            "http://127.0.0.1:2381",
		"client-cert-auth":               "true",
		"cert-file":                      in.PKI + "/server.crt",
		"key-file":                       in.PKI + "/server.key",
		"trusted-ca-file":                in.PKI + "/ca.crt",
		"peer-client-cert-auth":          "true",
		"peer-cert-file":                 in.PKI + "/peer.crt",
		"peer-key-file":                  in.PKI + "/peer.key",
		"peer-trusted-ca-file":           in.PKI + "/ca.crt",
		"snapshot-count":                 "10000",
		"watch-progress-notify-interval": "5s",
	}
	return systemd.Service{
		Name:        Unit,
		Description: "etcd: the cluster's data",
		Doc:         "https://etcd.io/docs/",
		After:       []string{"network-online.target"},
		Type:        "notify",
		Exec:        append([]string{install.Bin("etcd-fence"), "--servers=" + NeighboursFile, "--"}, systemd.Flags(flags, in.ExtraArgs)...),
		Inputs:      []string{in.PKI + "/ca.crt", in.PKI + "/server.crt", in.PKI + "/peer.crt", install.Current},
		Options: map[string]string{
			"EnvironmentFile": environmentFile,
			"LimitNOFILE":     "65536",
			"ProtectHome":     "yes",
			"PrivateTmp":      "yes",
			"NoNewPrivileges": "yes",
			// Nothing but a reset makes it a member again.
			"RestartPreventExitStatus": fencedStatus,
			// It says that it has started when it has the data of the others. Ended before that, it would
			// begin anew, and never get large ones.
			"TimeoutStartSec": "10min",
			// The program that starts it is etcd-fence, and logs would be called after that.
			"SyslogIdentifier": "etcd",
		},
		Brings: plan.Objects(plan.ObjectFile, DataDir),
	}
}
