package bootstrap

import (
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/kubewright/kubewright/addons"
	"github.com/kubewright/kubewright/bootstrap/apilb"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/install"
	"github.com/kubewright/kubewright/bootstrap/spec"
	"github.com/kubewright/kubewright/pki"
)

// clusterObjects are the API objects of a new cluster: the addons and its record.
func clusterObjects(c *shared) ([]*unstructured.Unstructured, error) {
	in := addons.Inputs{
		PauseImage: c.bundle.Images()[0].Ref,
		BinDir:     install.BinDir,
		Server:     apilb.Server(),
		PodCIDR:    c.Network.PodCIDR, Backend: string(c.Network.Backend),
		DNSIP: c.Network.DNSIP(), DNSDomain: c.Network.DNSDomain, DNSReplicas: dnsReplicas(len(c.Hosts) + len(c.hosts)), UpstreamDNS: c.upstreamDNS,
		AdminGroup: pki.AdminGroup, KubeletUser: pki.KubeletClientUser, JoiningGroup: cluster.BootstrapGroup,
		RemovedNodes: cluster.RemovedNodes,
	}
	var objects []*unstructured.Unstructured
	for _, a := range addons.All() {
		if a == addons.Overlay && c.Network.Backend == spec.NoNet {
			continue // the admin brings another pod network
		}
		of, err := a.Objects(in)
		if err != nil {
			return nil, err
		}
		objects = append(objects, of...)
	}
	record, err := recordObjects(c)
	return append(objects, record...), err
}

// dnsReplicas are the servers of names in a cluster of some hosts. Each has a host of its own.
func dnsReplicas(hosts int) int { return min(hosts, 2) }

// recordObjects are what the cluster knows about itself: its record for the installer,
// and its control-plane hosts for its nodes.
func recordObjects(c *shared) ([]*unstructured.Unstructured, error) {
	known := *c.Cluster
	known.Hosts = slices.Concat(known.Hosts, c.hosts)
	text, err := spec.Marshal(&known)
	if err != nil {
		return nil, fmt.Errorf("the cluster's record: %w", err)
	}
	record, err := cluster.Record{Name: c.Name, ID: c.id, Spec: string(text), Bundle: c.bundle.Name()}.Object()
	return []*unstructured.Unstructured{record, apilb.Object(c.servers)}, err
}
