package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/kubewright/kubewright/cmd/kube/component"
)

func TestCommandLine(t *testing.T) {
	var o options
	frame := component.Component{Name: "overlay", Options: &o}
	good := []string{"--node-name=a", "--node-ip=192.0.2.1", "--pod-cidr=10.244.0.0/16"}
	if err := frame.Parse(good); err != nil || o.backend != backendVXLAN || o.health != "127.0.0.1:10261" {
		t.Errorf("%+v, %v", o, err)
	}
	for _, test := range []struct{ wrong, says string }{
		{"--node-name=", "--node-name"},
		{"--node-ip=2001:db8::1", "--node-ip"},
		{"--pod-cidr=10.244.0.1/16", "--pod-cidr"},
		{"--backend=ipip", "--backend"},
	} {
		if err := frame.Parse(append(good, test.wrong)); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: error %v does not name %s", test.wrong, err, test.says)
		}
	}
	var out bytes.Buffer
	if status := Component().Command(t.Context(), []string{"--version"}, &out, &out); status != 0 || !strings.Contains(out.String(), "(flannel v") {
		t.Errorf("--version: status %d, %s", status, &out)
	}
}

// bench is a network namespace with an external interface, and a cluster.
type bench struct {
	*testing.T
	options
	client *fake.Clientset
	log    *lockedBuffer
}

const externalMTU = 1400

func newBench(t *testing.T, backend string) *bench {
	t.Helper()
	b := &bench{T: t, client: fake.NewClientset(), log: new(lockedBuffer)}
	b.options = options{
		nodeName: "a", nodeIP: netip.MustParseAddr("192.0.2.1"), podCIDR: netip.MustParsePrefix("10.244.0.0/16"),
		backend: backend, cniConf: filepath.Join(t.TempDir(), "10-kubewright.conflist"), health: "127.0.0.1:10261",
	}
	lo, err := netlink.LinkByName("lo")
	b.must(err)
	b.must(netlink.LinkSetUp(lo))
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "ext0", externalMTU
	b.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "ext1"}))
	for _, name := range []string{"ext0", "ext1"} {
		b.must(netlink.LinkSetUp(b.link(name)))
	}
	addr, err := netlink.ParseAddr("192.0.2.1/24")
	b.must(err)
	b.must(netlink.AddrAdd(b.link("ext0"), addr))
	return b
}

func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatalf("%v\n%s", err, b.log)
	}
}

func (b *bench) link(name string) netlink.Link {
	b.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		b.Fatalf("%s: %v\n%s", name, err, b.log)
	}
	return l
}

func (b *bench) setNode(name, pods, address string) {
	b.Helper()
	n := node(name, pods, address)
	_, err := b.client.CoreV1().Nodes().Update(b.Context(), n, metav1.UpdateOptions{})
	if err != nil {
		_, err = b.client.CoreV1().Nodes().Create(b.Context(), n, metav1.CreateOptions{})
	}
	b.must(err)
}

// start runs overlay; stop ends it and returns how it ended.
func (b *bench) start() (stop func() error, ended <-chan error) {
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	log := component.Log(b.log)
	logLibraries(b.log)
	go func() { done <- run(ctx, b.options, b.client, log) }()
	return func() error { cancel(); return <-done }, done
}

// await looks until the kernel or overlay is as wished.
func (b *bench) await(what string, ok func() bool) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			b.Fatalf("not in time: %s\n%s", what, b.log)
		case <-tick.C:
		}
	}
}

// health is what the probe gets: status and text.
func (b *bench) healthz() (int, string) {
	answer, err := http.Get("http://" + b.health + "/healthz")
	if err != nil {
		return 0, err.Error()
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	b.must(err)
	return answer.StatusCode, strings.TrimSpace(string(text))
}

func (b *bench) awaitHealthy() {
	b.Helper()
	b.await("healthy", func() bool { status, _ := b.healthz(); return status == http.StatusOK })
}

// gateway of the route to a range, "" if there is none.
func (b *bench) gateway(pods string) string {
	b.Helper()
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	b.must(err)
	for _, r := range routes {
		if r.Dst.String() == pods {
			l, err := netlink.LinkByIndex(r.LinkIndex)
			b.must(err)
			return fmt.Sprintf("%s %s", r.Gw, l.Attrs().Name)
		}
	}
	return ""
}

// vtep is where packets to the node with these pods are sent: hardware address
// by the neighbour table, node's address by the forwarding table.
func (b *bench) vtep(pods string) string {
	b.Helper()
	gw := netip.MustParsePrefix(pods).Addr().String()
	device := b.link(vxlanDevice).Attrs().Index
	neighbours, err := netlink.NeighList(device, netlink.FAMILY_V4)
	b.must(err)
	forwards, err := netlink.NeighList(device, unix.AF_BRIDGE)
	b.must(err)
	for _, n := range neighbours {
		if n.IP.String() != gw {
			continue
		}
		for _, f := range forwards {
			if f.HardwareAddr.String() == n.HardwareAddr.String() {
				return f.HardwareAddr.String() + " " + f.IP.String()
			}
		}
	}
	return ""
}

func TestVXLAN(t *testing.T) {
	if !inNetns(t) {
		return
	}
	b := newBench(t, backendVXLAN)
	b.setNode("a", "", "192.0.2.1")
	b.setNode("b", "10.244.2.0/24", "192.0.2.2")
	stop, _ := b.start()

	// The node has no pod range yet.
	b.await("waiting", func() bool { _, text := b.healthz(); return strings.Contains(text, "pod range of node a") })
	if _, err := os.Stat(b.cniConf); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("CNI configuration before there is a pod range: %v", err)
	}
	b.setNode("a", "10.244.1.0/24", "192.0.2.1")
	b.awaitHealthy()

	device := b.link(vxlanDevice)
	if got, want := device.Attrs().HardwareAddr.String(), "0e:6b:0a:f4:01:00"; got != want {
		t.Errorf("hardware address %s, want %s", got, want)
	}
	if v := device.(*netlink.Vxlan); v.VxlanId != vni || v.Port != vxlanPort || v.Learning || v.MTU != externalMTU-vxlanOverhead ||
		v.VtepDevIndex != b.link("ext0").Attrs().Index {
		t.Errorf("device %+v", v)
	}
	addrs, err := netlink.AddrList(device, netlink.FAMILY_V4)
	b.must(err)
	if len(addrs) != 1 || addrs[0].IPNet.String() != "10.244.1.0/32" {
		t.Errorf("addresses of the device: %v", addrs)
	}
	want, err := conf(netip.MustParsePrefix("10.244.1.0/24"), externalMTU-vxlanOverhead)
	b.must(err)
	if got, err := os.ReadFile(b.cniConf); err != nil || !bytes.Equal(got, want) {
		t.Errorf("CNI configuration %s, %v", got, err)
	}

	b.await("route to b", func() bool { return b.gateway("10.244.2.0/24") == "10.244.2.0 flannel.1" })
	if got, want := b.vtep("10.244.2.0/24"), "0e:6b:0a:f4:02:00 192.0.2.2"; got != want {
		t.Errorf("packets to b go to %s, want %s", got, want)
	}

	// A node comes, one changes its address, one goes and its range is given to another.
	b.setNode("c", "10.244.3.0/24", "192.0.2.3")
	b.setNode("b", "10.244.2.0/24", "192.0.2.22")
	b.await("routes to b and c", func() bool {
		return b.vtep("10.244.2.0/24") == "0e:6b:0a:f4:02:00 192.0.2.22" && b.gateway("10.244.3.0/24") != ""
	})
	b.must(b.client.CoreV1().Nodes().Delete(t.Context(), "c", metav1.DeleteOptions{}))
	b.setNode("d", "10.244.3.0/24", "192.0.2.4")
	b.await("c's range at d", func() bool {
		return b.vtep("10.244.3.0/24") == "0e:6b:0a:f4:03:00 192.0.2.4" && b.gateway("10.244.3.0/24") != ""
	})

	// A route that something else takes away comes back.
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{LinkIndex: device.Attrs().Index}, netlink.RT_FILTER_OIF)
	b.must(err)
	for _, r := range routes {
		b.must(netlink.RouteDel(&r))
	}
	b.await("routes again", func() bool { return b.gateway("10.244.2.0/24") != "" && b.gateway("10.244.3.0/24") != "" })

	// A stop leaves all as it is, and the next start goes on from there.
	b.must(stop())
	if b.gateway("10.244.2.0/24") == "" || b.link(vxlanDevice).Attrs().Index != device.Attrs().Index {
		t.Error("the data path did not outlive the process")
	}
	b.must(b.client.CoreV1().Nodes().Delete(t.Context(), "d", metav1.DeleteOptions{}))
	stop, ended := b.start()
	b.awaitHealthy()
	b.await("no route to d", func() bool { return b.gateway("10.244.3.0/24") == "" })
	if b.link(vxlanDevice).Attrs().Index != device.Attrs().Index {
		t.Error("a restart made another device")
	}
	tables, err := new(nftables.Conn).ListTables()
	b.must(err)
	if len(tables) != 1 {
		t.Errorf("%d tables", len(tables))
	}

	// Without its device, or with another pod range, it starts again.
	b.must(netlink.LinkSetDown(b.link(vxlanDevice)))
	if err := <-ended; err == nil || !strings.Contains(err.Error(), vxlanDevice) {
		t.Errorf("device down: %v", err)
	}
	_ = stop
	_, ended = b.start()
	b.awaitHealthy()
	b.await("route to b after the device was down", func() bool { return b.gateway("10.244.2.0/24") != "" })
	b.setNode("a", "10.244.9.0/24", "192.0.2.1")
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "10.244.9.0/24") {
		t.Errorf("another pod range: %v", err)
	}
	stop, _ = b.start()
	b.awaitHealthy()
	if got, want := b.link(vxlanDevice).Attrs().HardwareAddr.String(), "0e:6b:0a:f4:09:00"; got != want {
		t.Errorf("hardware address %s, want %s", got, want)
	}
	b.must(stop())
}

func TestHostGW(t *testing.T) {
	if !inNetns(t) {
		return
	}
	b := newBench(t, backendVXLAN)
	b.setNode("a", "10.244.1.0/24", "192.0.2.1")
	b.setNode("b", "10.244.2.0/24", "192.0.2.2")
	stop, _ := b.start()
	b.await("route to b", func() bool { return b.gateway("10.244.2.0/24") == "10.244.2.0 flannel.1" })
	b.must(stop())

	// Another backend takes the place of the first.
	b.backend = backendHostGW
	stop, _ = b.start()
	b.awaitHealthy()
	b.await("direct route to b", func() bool { return b.gateway("10.244.2.0/24") == "192.0.2.2 ext0" })
	if _, err := netlink.LinkByName(vxlanDevice); !errors.As(err, &netlink.LinkNotFoundError{}) {
		t.Errorf("the VXLAN device is still there: %v", err)
	}
	b.setNode("b", "10.244.2.0/24", "192.0.2.22")
	b.await("route to b's other address", func() bool { return b.gateway("10.244.2.0/24") == "192.0.2.22 ext0" })
	b.must(b.client.CoreV1().Nodes().Delete(t.Context(), "b", metav1.DeleteOptions{}))
	b.await("no route to b", func() bool { return b.gateway("10.244.2.0/24") == "" })
	b.must(stop())
}

func TestWrongNode(t *testing.T) {
	if !inNetns(t) {
		return
	}
	b := newBench(t, backendVXLAN)
	b.setNode("a", "10.250.1.0/24", "192.0.2.1")
	_, ended := b.start()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "10.250.1.0/24") {
		t.Errorf("a range outside the cluster's: %v", err)
	}
	b.setNode("a", "10.244.1.0/24", "192.0.2.7")
	_, ended = b.start()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "192.0.2.7") {
		t.Errorf("another address: %v", err)
	}
	b.nodeIP = netip.MustParseAddr("192.0.2.9")
	_, ended = b.start()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "ext0 192.0.2.1/24") {
		t.Errorf("an address that no interface has: %v", err)
	}
}

func TestChecksumOffload(t *testing.T) {
	if !inNetns(t) {
		return
	}
	b := newBench(t, backendVXLAN)
	b.setNode("a", "10.244.1.0/24", "192.0.2.1")
	stop, _ := b.start()
	b.awaitHealthy()
	tool, err := ethtool.NewEthtool()
	b.must(err)
	defer tool.Close()
	const feature = "tx-checksum-ip-generic"
	for _, want := range []bool{true, false} {
		features, err := tool.Features(vxlanDevice)
		b.must(err)
		if features[feature] != want {
			t.Errorf("%s is %v, want %v", feature, features[feature], want)
		}
		b.must(withoutChecksumOffload(tool, vxlanDevice))
	}
	b.must(stop())
}

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
