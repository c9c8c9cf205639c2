package pki

import (
	"crypto/x509"
	"net/netip"
	"slices"
	"strings"
)

// The authorities. Each name is also that of its files below the PKI folder,
// without .crt and .key.
const (
	CA           = "ca"             // signs what API server, kubelets and clients show each other
	EtcdCA       = "etcd/ca"        // signs etcd's servers and clients: nobody else can read the data
	FrontProxyCA = "front-proxy-ca" // signs the API server as client of extension API servers
)

// authorityCommonName returns what the authority calls itself, "" for an unknown one.
func authorityCommonName(name string) string {
	switch name {
	case CA:
		return "kubernetes"
	case EtcdCA:
		return "etcd-ca"
	case FrontProxyCA:
		return "front-proxy-ca"
	}
	return ""
}

// Authorities returns the names of the authorities, in the order of making.
func Authorities() []string { return []string{CA, EtcdCA, FrontProxyCA} }

// The certificates, by Cert.Name.
const (
	APIServer              = "apiserver"
	APIServerKubeletClient = "apiserver-kubelet-client"
	APIServerEtcdClient    = "apiserver-etcd-client"
	FrontProxyClient       = "front-proxy-client"
	EtcdServer             = "etcd/server"
	EtcdPeer               = "etcd/peer"
	EtcdHealthcheckClient  = "etcd/healthcheck-client"
	Admin                  = "admin"
	SuperAdmin             = "super-admin"
	ControllerManager      = "controller-manager"
	Scheduler              = "scheduler"
	Kubelet                = "kubelet"
)

const (
	// AdminGroup is the admins' group. An RBAC object of the cluster binds it to
	// cluster-admin, so that it can be taken away again.
	AdminGroup = "kubewright:cluster-admins"
	// SuperAdminGroup is above RBAC and cannot be taken away: only super-admin has
	// it, which stays on control-plane nodes.
	SuperAdminGroup = "system:masters"
	// KubeletClientUser is the API server towards kubelets (logs, exec). An RBAC
	// object of the cluster binds it to system:kubelet-api-admin and to no more.
	KubeletClientUser = "kube-apiserver-kubelet-client"
)

// Cert says what a certificate must state: all but key, times and number.
type Cert struct {
	Name         string
	File         string // below the PKI folder, without .crt and .key; "" if a kubeconfig holds it
	Kubeconfig   string // file name below /etc/kubernetes of the kubeconfig that holds it, or ""
	CA           string // the authority that signs it
	CommonName   string
	Organization []string
	Usages       []x509.ExtKeyUsage
	DNSNames     []string     // sorted, each once
	IPs          []netip.Addr // sorted, each once
}

// Inputs is what the certificates of a control-plane node depend on.
type Inputs struct {
	Node      string     // the node's name
	Address   netip.Addr // the node's address
	ServiceIP netip.Addr // ClusterIP of the service "kubernetes"
	DNSDomain string     // of services, e.g. cluster.local
	ExtraSANs []string   // further names and addresses of the API server
}

// Table returns every certificate of a control-plane node.
func Table(in Inputs) []Cert {
	var (
		server = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		client = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		// etcd's members call each other, and etcd's own gateway calls its server.
		both = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	)
	loopback := []string{"localhost", "127.0.0.1", "::1"}
	// localhost is among the API server's names for those who come through an SSH tunnel.
	apiNames, apiIPs := subjects(append([]string{
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + in.DNSDomain,
		"localhost", "127.0.0.1", in.Node,
	}, in.ExtraSANs...), in.Address, in.ServiceIP)
	etcdNames, etcdIPs := subjects(append(loopback, in.Node), in.Address)

	return []Cert{
		{Name: APIServer, File: APIServer, CA: CA, CommonName: "kube-apiserver", Usages: server, DNSNames: apiNames, IPs: apiIPs},
		{Name: APIServerKubeletClient, File: APIServerKubeletClient, CA: CA, CommonName: KubeletClientUser, Usages: client},
		{Name: APIServerEtcdClient, File: APIServerEtcdClient, CA: EtcdCA, CommonName: "kube-apiserver-etcd-client", Usages: client},
		{Name: FrontProxyClient, File: FrontProxyClient, CA: FrontProxyCA, CommonName: "front-proxy-client", Usages: client},
		{Name: EtcdServer, File: EtcdServer, CA: EtcdCA, CommonName: in.Node, Usages: both, DNSNames: etcdNames, IPs: etcdIPs},
		{Name: EtcdPeer, File: EtcdPeer, CA: EtcdCA, CommonName: in.Node, Usages: both, DNSNames: etcdNames, IPs: etcdIPs},
		{Name: EtcdHealthcheckClient, File: EtcdHealthcheckClient, CA: EtcdCA, CommonName: "kube-etcd-healthcheck-client", Usages: client},
		{Name: Admin, Kubeconfig: "admin.conf", CA: CA, CommonName: "kubernetes-admin", Organization: []string{AdminGroup}, Usages: client},
		{Name: SuperAdmin, Kubeconfig: "super-admin.conf", CA: CA, CommonName: "kubernetes-super-admin", Organization: []string{SuperAdminGroup}, Usages: client},
		{Name: ControllerManager, Kubeconfig: "controller-manager.conf", CA: CA, CommonName: "system:kube-controller-manager", Usages: client},
		{Name: Scheduler, Kubeconfig: "scheduler.conf", CA: CA, CommonName: "system:kube-scheduler", Usages: client},
		{Name: Kubelet, Kubeconfig: "kubelet.conf", CA: CA, CommonName: "system:node:" + in.Node, Organization: []string{"system:nodes"}, Usages: client},
	}
}

// subjects sorts alternative names into DNS names and addresses, each once. DNS
// names are compared without regard to case, so they are kept in lower case.
func subjects(names []string, addrs ...netip.Addr) ([]string, []netip.Addr) {
	var dns []string
	for _, name := range names {
		if addr, err := netip.ParseAddr(name); err == nil {
			addrs = append(addrs, addr)
		} else if name != "" {
			dns = append(dns, strings.ToLower(name))
		}
	}
	ips := make([]netip.Addr, 0, len(addrs))
	for _, addr := range addrs {
		if addr.IsValid() {
			ips = append(ips, addr.Unmap())
		}
	}
	slices.Sort(dns)
	slices.SortFunc(ips, netip.Addr.Compare)
	return slices.Compact(dns), slices.Compact(ips)
}
