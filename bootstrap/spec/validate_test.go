package spec_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metavalidation "k8s.io/apimachinery/pkg/util/validation"
	kubeletapis "k8s.io/kubelet/pkg/apis"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// cluster is a valid one, as the flags of init make it.
func cluster() *spec.Cluster {
	c := &spec.Cluster{Hosts: []spec.Host{{Name: "root@198.18.0.11"}, {Name: "w1"}}}
	c.Default()
	return c
}

func TestDefault(t *testing.T) {
	c := cluster()
	want := &spec.Cluster{
		APIVersion: spec.APIVersion, Kind: spec.Kind, Name: "kubewright",
		Hosts: []spec.Host{{Name: "root@198.18.0.11", Role: spec.ControlPlaneRole}, {Name: "w1", Role: spec.WorkerRole}},
		Network: spec.Network{
			Backend: spec.VXLAN, DNSDomain: "cluster.local",
			PodCIDR: netip.MustParsePrefix("10.244.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16"),
		},
		APIServer: spec.APIServer{Port: 6443},
	}
	if diff := cmp.Diff(want, c, sameAddresses); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	c.Default()
	if diff := cmp.Diff(want, c, sameAddresses); diff != "" {
		t.Errorf("Default is not idempotent:\n%s", diff)
	}
}

// A cluster made in code has faults with paths and without lines, all at once.
func TestValidateWithoutFile(t *testing.T) {
	c := cluster()
	c.Network.Backend = "calico"
	c.APIServer.Port = 2379
	c.Hosts[1].Taints = []spec.Taint{{Key: "x"}}
	err := c.Validate()
	var faults *spec.Errors
	if fault.CodeOf(err) != fault.SpecInvalid || !errors.As(err, &faults) {
		t.Fatalf("got %v", err)
	}
	want := strings.Join([]string{
		`hosts[1].taints[0]: taint effect "" must be NoSchedule, PreferNoSchedule or NoExecute`,
		`network.backend: "calico" must be vxlan, host-gw or none`,
		`apiServer.port: 2379 is taken: it is the port of etcd's clients`,
	}, "\n")
	if diff := cmp.Diff(want, err.Error()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// The zero cluster is refused, not a reason to panic.
func TestValidateZero(t *testing.T) {
	if err := new(spec.Cluster).Validate(); fault.CodeOf(err) != fault.SpecInvalid {
		t.Errorf("got %v", err)
	}
}

// The limits themselves, and the first value behind each.
func TestValidateLimits(t *testing.T) {
	pods := func(text string) func(*spec.Cluster) {
		return func(c *spec.Cluster) { c.Network.PodCIDR = netip.MustParsePrefix(text) }
	}
	services := func(text string) func(*spec.Cluster) {
		return func(c *spec.Cluster) { c.Network.ServiceCIDR = netip.MustParsePrefix(text) }
	}
	port := func(p int) func(*spec.Cluster) { return func(c *spec.Cluster) { c.APIServer.Port = p } }
	readOnly := func(p int) func(*spec.Cluster) { return func(c *spec.Cluster) { c.Kubelet.ReadOnlyPort = p } }
	address := func(text string) func(*spec.Cluster) {
		return func(c *spec.Cluster) { c.Hosts[1].Address = netip.MustParseAddr(text) }
	}
	name := func(n string) func(*spec.Cluster) { return func(c *spec.Cluster) { c.Name = n } }
	domain := func(d string) func(*spec.Cluster) { return func(c *spec.Cluster) { c.Network.DNSDomain = d } }

	for _, test := range []struct {
		what   string
		change func(*spec.Cluster)
		path   string // of the only fault; "": valid
	}{
		{"pods /8", pods("11.0.0.0/8"), ""},
		{"pods /7", pods("12.0.0.0/7"), "network.podCIDR"},
		{"pods for two hosts", pods("10.244.0.0/23"), ""},
		{"pods for one host", pods("10.244.0.0/24"), "network.podCIDR"},
		{"pods for none", pods("10.244.0.0/32"), "network.podCIDR"},
		{"services /12", services("10.96.0.0/12"), ""},
		{"services /11", services("10.96.0.0/11"), "network.serviceCIDR"},
		{"services /28", services("10.96.0.16/28"), ""},
		{"services /29", services("10.96.0.16/29"), "network.serviceCIDR"},
		{"services beside pods", services("10.245.0.0/16"), ""},
		{"services in pods", services("10.244.7.0/24"), "network.serviceCIDR"},
		{"services around a host", services("198.18.0.0/24"), "hosts[0].name"},
		{"IPv4 in IPv6", func(c *spec.Cluster) { c.Network.PodCIDR = netip.MustParsePrefix("::ffff:10.244.0.0/112") }, "network.podCIDR"},
		{"port 443", port(443), ""},
		{"port 1", port(1), ""},
		{"port 65535", port(65535), ""},
		{"port 65536", port(65536), "apiServer.port"},
		{"port -1", port(-1), "apiServer.port"},
		{"port of ssh", port(22), "apiServer.port"},
		{"port before NodePorts", port(29999), ""},
		{"first NodePort", port(30000), "apiServer.port"},
		{"last NodePort", port(32767), "apiServer.port"},
		{"port behind NodePorts", port(32768), ""},
		{"read-only 10255", readOnly(10255), ""},
		{"read-only as the kubelet", readOnly(10250), "kubelet.readOnlyPort"},
		{"read-only as the API", readOnly(6443), "kubelet.readOnlyPort"},
		{"address", address("198.18.0.12"), ""},
		{"address of broadcast", address("255.255.255.255"), "hosts[1].address"},
		{"address of nobody", address("0.0.0.0"), "hosts[1].address"},
		{"address among pods", address("10.244.3.3"), "hosts[1].address"},
		{"name of 63", name(strings.Repeat("a", 63)), ""},
		{"name of 64", name(strings.Repeat("a", 64)), "name"},
		{"domain of 63", domain(strings.Repeat("a", 63) + ".local"), ""},
		{"domain of 64", domain(strings.Repeat("a", 64) + ".local"), "network.dnsDomain"},
		{"domain with a final dot", domain("cluster.local."), "network.dnsDomain"},
		{"same host, other port", func(c *spec.Cluster) { c.Hosts[1].Name = "198.18.0.11:2222" }, ""},
		{"flag of another component", func(c *spec.Cluster) { c.Scheduler = args("secure-port", "10259") }, ""},
	} {
		t.Run(test.what, func(t *testing.T) {
			c := cluster()
			test.change(c)
			err := c.Validate()
			if test.path == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var faults *spec.Errors
			if !errors.As(err, &faults) {
				t.Fatalf("got %v, want a fault of %s", err, test.path)
			}
			for _, f := range faults.Faults {
				if f.Path != test.path {
					t.Errorf("a fault of %s: %s", f.Path, f.Message)
				}
			}
		})
	}
}

// A cluster has as many hosts as its pods' range has parts.
func TestValidateManyHosts(t *testing.T) {
	c := cluster()
	c.Hosts = nil
	for i := range 257 {
		c.Hosts = append(c.Hosts, spec.Host{Name: fmt.Sprintf("h%d", i)})
	}
	c.Default()
	err := c.Validate()
	if err == nil || !strings.Contains(err.Error(), "257 hosts need a /15 at least") {
		t.Errorf("got %v", err)
	}
	c.Hosts = c.Hosts[:256]
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

// The syntax of names, judged by Kubernetes' own checks and by ours.
func TestSyntaxIsKubernetes(t *testing.T) {
	long := func(n int) string { return strings.Repeat("a", n) }
	values := []string{"", "a", "A", "a-b", "-a", "a-", "a.b", "a..b", ".a", "a.", "a_b", "_a", "a b", "1", "ä", "a/b", "A.b/c", "a/", "/a", "a/b/c",
		"example.com/disk", "exa_mple/x", long(63), long(64), long(63) + "/a", long(253) + "/a", long(254) + "/a", "a/" + long(63), "a/" + long(64), "a\n", "*"}
	for _, s := range values {
		c := cluster()
		c.Hosts[1].Labels = map[string]string{s: ""}
		if got, want := c.Validate() == nil, len(metavalidation.IsQualifiedName(s)) == 0; got != want {
			t.Errorf("label key %q: valid %v, Kubernetes says %v", s, got, want)
		}
		c = cluster()
		c.Hosts[1].Labels = map[string]string{"k": s}
		if got, want := c.Validate() == nil, len(metavalidation.IsValidLabelValue(s)) == 0; got != want {
			t.Errorf("label value %q: valid %v, Kubernetes says %v", s, got, want)
		}
		_, err := spec.ParseTaint(s + ":NoSchedule")
		if got, want := err == nil, len(metavalidation.IsQualifiedName(s)) == 0; got != want {
			t.Errorf("taint key %q: valid %v, Kubernetes says %v", s, got, want)
		}
	}
}

// The label keys that Validate lets pass are those that the kubelet does.
func TestKubeletLabels(t *testing.T) {
	keys := append(kubeletapis.KubeletLabels(), "node-role.kubernetes.io/worker", "kubernetes.io/x", "a.kubernetes.io/x", "k8s.io/x", "a.k8s.io/x",
		"node.kubernetes.io/x", "a.node.kubernetes.io/x", "kubelet.kubernetes.io/x", "notkubernetes.io/x", "example.com/x", "x")
	for _, key := range keys {
		prefix, _, _ := strings.Cut(key, "/")
		reserved := prefix == "kubernetes.io" || strings.HasSuffix(prefix, ".kubernetes.io") || prefix == "k8s.io" || strings.HasSuffix(prefix, ".k8s.io")
		c := cluster()
		c.Hosts[1].Labels = map[string]string{key: ""}
		if got, want := c.Validate() == nil, !reserved || kubeletapis.IsKubeletLabel(key); got != want {
			t.Errorf("%s: valid %v, the kubelet says %v", key, got, want)
		}
	}
}
