// Package controlplane has the three Kubernetes components of a control-plane
// node: kube-apiserver, kube-controller-manager and kube-scheduler, as units.
package controlplane

import (
	"net/netip"
	"strconv"

	"github.com/kubewright/kubewright/bootstrap/install"
	"github.com/kubewright/kubewright/bootstrap/systemd"
)

// Names of the units.
const (
	APIServerUnit         = "kube-apiserver.service"
	ControllerManagerUnit = "kube-controller-manager.service"
	SchedulerUnit         = "kube-scheduler.service"
)

// Kubeconfigs of the components, and of people on the host itself.
const (
	ControllerManagerKubeconfig = "/etc/kubernetes/controller-manager.conf"
	SchedulerKubeconfig         = "/etc/kubernetes/scheduler.conf"
	AdminKubeconfig             = "/etc/kubernetes/admin.conf"
	SuperAdminKubeconfig        = "/etc/kubernetes/super-admin.conf"
)

// Inputs are what they depend on.
type Inputs struct {
	Address     netip.Addr // of this node
	Port        int        // of the API server
	PodCIDR     netip.Prefix
	ServiceCIDR netip.Prefix
	Domain      string // of services
	PKI         string // folder of the certificates, with kubeadm's file names
	Etcd        string // the unit of etcd
	ClusterName string

	APIServerArgs, ControllerManagerArgs, SchedulerArgs map[string]string
}

// Controllers are the units of the controller manager and the scheduler, which
// need a ready API server.
func Controllers(in Inputs) []systemd.Service {
	return []systemd.Service{controllerManager(in), scheduler(in)}
}

// APIServer is the unit of the API server. It waits for etcd by itself, so that
// the two can be started together.
func APIServer(in Inputs) systemd.Service {
	pki := func(name string) string { return in.PKI + "/" + name }
	flags := map[string]string{
		"advertise-address":                  in.Address.String(),
		"allow-privileged":                   "true",
		"authorization-mode":                 "Node,RBAC",
		"client-ca-file":                     pki("ca.crt"),
		"enable-admission-plugins":           "NodeRestriction",
		"enable-bootstrap-token-auth":        "true",
		"etcd-cafile":                        pki("etcd/ca.crt"),
		"etcd-certfile":                      pki("apiserver-etcd-client.crt"),
		"etcd-keyfile":                       pki("apiserver-etcd-client.key"),
		"etcd-servers":                       "https://127.0.0.1:2379",
		"kubelet-client-certificate":         pki("apiserver-kubelet-client.crt"),
		"kubelet-client-key":                 pki("apiserver-kubelet-client.key"),
		"kubelet-preferred-address-types":    "InternalIP,Hostname",
		"proxy-client-cert-file":             pki("front-proxy-client.crt"),
		"proxy-client-key-file":              pki("front-proxy-client.key"),
		"requestheader-allowed-names":        "front-proxy-client",
		"requestheader-client-ca-file":       pki("front-proxy-ca.crt"),
		"requestheader-extra-headers-prefix": "X-Remote-Extra-",
		"requestheader-group-headers":        "X-Remote-Group",
		"requestheader-username-headers":     "X-Remote-User",
		"secure-port":                        strconv.Itoa(in.Port),
		// Without it watches are not told to end, and it is killed in the end.
		"shutdown-watch-termination-grace-period": "1s",
		"service-account-issuer":                  "https://kubernetes.default.svc." + in.Domain,
		"service-account-key-file":                pki("sa.pub"),
		"service-account-signing-key-file":        pki("sa.key"),
		"service-cluster-ip-range":                in.ServiceCIDR.String(),
		"tls-cert-file":                           pki("apiserver.crt"),
		"tls-private-key-file":                    pki("apiserver.key"),
	}
	return systemd.Service{
		Name:        APIServerUnit,
		Description: "kube-apiserver: the Kubernetes API",
		Doc:         "https://kubernetes.io/docs/reference/command-line-tools-reference/kube-apiserver/",
		After:       []string{"network-online.target"},
		Type:        "notify",
		Exec:        append([]string{install.Bin("kube-apiserver")}, systemd.Flags(flags, in.APIServerArgs)...),
		Inputs: []string{
			pki("ca.crt"), pki("etcd/ca.crt"), pki("sa.key"), pki("front-proxy-ca.crt"), install.Current,
		},
		Options: map[string]string{
			"LimitNOFILE":     "65536",
			"ProtectHome":     "yes",
			"PrivateTmp":      "yes",
			"NoNewPrivileges": "yes",
			// Left to itself it waits up to a minute for watches that never end.
			"TimeoutStopSec": "10s",
		},
	}
}

func controllerManager(in Inputs) systemd.Service {
	pki := func(name string) string { return in.PKI + "/" + name }
	flags := map[string]string{
		"allocate-node-cidrs":       "true",
		"authentication-kubeconfig": ControllerManagerKubeconfig,
		"authorization-kubeconfig":  ControllerManagerKubeconfig,
		"bind-address":              "127.0.0.1",
		"client-ca-file":            pki("ca.crt"),
		"cluster-cidr":              in.PodCIDR.String(),
		"cluster-name":              in.ClusterName,
		"cluster-signing-cert-file": pki("ca.crt"),
		"cluster-signing-key-file":  pki("ca.key"),
		"controllers":               "*,bootstrapsigner,tokencleaner",
		// Each controller asks for a token of its own first: at the default of 20
		// calls a second that alone takes five seconds.
		"kube-api-burst":                   "200",
		"kube-api-qps":                     "100",
		"kubeconfig":                       ControllerManagerKubeconfig,
		"leader-elect":                     "true",
		"requestheader-client-ca-file":     pki("front-proxy-ca.crt"),
		"root-ca-file":                     pki("ca.crt"),
		"service-account-private-key-file": pki("sa.key"),
		"service-cluster-ip-range":         in.ServiceCIDR.String(),
		"use-service-account-credentials":  "true",
	}
	return leaderElected(ControllerManagerUnit, "kube-controller-manager", "the controllers of the Kubernetes API",
		flags, in.ControllerManagerArgs, ControllerManagerKubeconfig, pki("ca.crt"), pki("sa.key"))
}

func scheduler(in Inputs) systemd.Service {
	flags := map[string]string{
		"authentication-kubeconfig": SchedulerKubeconfig,
		"authorization-kubeconfig":  SchedulerKubeconfig,
		"bind-address":              "127.0.0.1",
		"kubeconfig":                SchedulerKubeconfig,
		"leader-elect":              "true",
	}
	return leaderElected(SchedulerUnit, "kube-scheduler", "the choice of nodes for pods",
		flags, in.SchedulerArgs, SchedulerKubeconfig)
}

// leaderElected is a component that needs nothing from its host but files and the API.
func leaderElected(unit, name, does string, flags, extra map[string]string, inputs ...string) systemd.Service {
	return systemd.Service{
		Name:        unit,
		Description: name + ": " + does,
		Doc:         "https://kubernetes.io/docs/reference/command-line-tools-reference/" + name + "/",
		After:       []string{"network-online.target"},
		Type:        "simple",
		Exec:        append([]string{install.Bin(name)}, systemd.Flags(flags, extra)...),
		Inputs:      append(inputs, install.Current),
		Options: map[string]string{
			"ProtectHome":     "yes",
			"PrivateTmp":      "yes",
			"NoNewPrivileges": "yes",
		},
	}
}
