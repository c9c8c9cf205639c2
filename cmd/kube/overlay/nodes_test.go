package overlay

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// node is a Node with a pod range, if pods is not "", and an address.
func node(name, pods, address string) *corev1.Node {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeHostName, Address: name},
			{Type: corev1.NodeInternalIP, Address: address},
		}},
	}
	if pods != "" {
		n.Spec.PodCIDR, n.Spec.PodCIDRs = pods, []string{pods}
	}
	return n
}

func TestPeerOf(t *testing.T) {
	dual := node("dual", "fd00::/64", "2001:db8::1")
	dual.Spec.PodCIDRs = append(dual.Spec.PodCIDRs, "10.244.4.0/24")
	dual.Status.Addresses = append(dual.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: "192.0.2.4"})
	cluster := netip.MustParsePrefix("10.244.0.0/16")
	for _, test := range []struct {
		node *corev1.Node
		want peer
		says string // of the error
	}{
		{node("plain", "10.244.2.0/24", "192.0.2.2"), peer{netip.MustParsePrefix("10.244.2.0/24"), netip.MustParseAddr("192.0.2.2")}, ""},
		{dual, peer{netip.MustParsePrefix("10.244.4.0/24"), netip.MustParseAddr("192.0.2.4")}, ""},
		{node("no-range", "", "192.0.2.2"), peer{}, errPending.Error()},
		{node("no-address", "10.244.2.0/24", ""), peer{}, errPending.Error()},
		{node("everything", "0.0.0.0/0", "192.0.2.2"), peer{}, "not in the cluster's"},
		{node("elsewhere", "192.0.2.0/24", "192.0.2.2"), peer{}, "not in the cluster's"},
		{node("nonsense", "pods", "192.0.2.2"), peer{}, "podCIDRs"},
	} {
		got, err := peerOf(test.node, cluster)
		if got != test.want {
			t.Errorf("%s: %v, want %v", test.node.Name, got, test.want)
		}
		if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: error %v, want %q", test.node.Name, err, test.says)
		}
		if pending := test.says == errPending.Error(); errors.Is(err, errPending) != pending {
			t.Errorf("%s: pending is not %v", test.node.Name, pending)
		}
	}
}

func TestLease(t *testing.T) {
	p := peer{netip.MustParsePrefix("10.244.2.0/24"), netip.MustParseAddr("192.0.2.2")}
	for backend, data := range map[string]string{
		backendVXLAN:  `{"VNI":1,"VtepMAC":"0e:6b:0a:f4:02:00"}`,
		backendHostGW: "",
	} {
		l, err := p.lease(backend)
		if err != nil {
			t.Fatal(err)
		}
		if l.Subnet.String() != "10.244.2.0/24" || l.Attrs.PublicIP.String() != "192.0.2.2" || !l.EnableIPv4 || l.EnableIPv6 ||
			l.Attrs.BackendType != backend || string(l.Attrs.BackendData) != data {
			t.Errorf("%s: %+v", backend, l)
		}
	}
}

func TestChanges(t *testing.T) {
	of := func(pairs ...string) peers {
		p := peers{}
		for _, pair := range pairs {
			pods, address, _ := strings.Cut(pair, " ")
			p[netip.MustParsePrefix(pods)] = netip.MustParseAddr(address)
		}
		return p
	}
	const b, b2, c = "10.244.2.0/24 192.0.2.2", "10.244.2.0/24 192.0.2.22", "10.244.3.0/24 192.0.2.3"
	for _, test := range []struct {
		name         string
		told, wanted peers
		all          bool
		want         []string
	}{
		{"first", of(), of(b, c), false, []string{"+" + b, "+" + c}},
		{"same", of(b, c), of(b, c), false, nil},
		{"same again", of(b, c), of(b, c), true, []string{"+" + b, "+" + c}},
		{"moved", of(b, c), of(b2, c), false, []string{"+" + b2}},
		{"left", of(b, c), of(c), false, []string{"-" + b}},
		{"left, others again", of(b, c), of(c), true, []string{"-" + b, "+" + c}},
		{"range given on", of(c), of("10.244.2.0/24 192.0.2.3"), false, []string{"-" + c, "+10.244.2.0/24 192.0.2.3"}},
	} {
		events, err := changes(test.told, test.wanted, test.all, backendVXLAN)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range events {
			sign := "+"
			if e.Type == lease.EventRemoved {
				sign = "-"
			}
			got = append(got, sign+e.Lease.Subnet.String()+" "+e.Lease.Attrs.PublicIP.String())
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", test.name, diff)
		}
	}
}
