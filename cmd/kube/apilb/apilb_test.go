package apilb

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/kubewright/kubewright/cmd/kube/component"
)

func TestCommandLine(t *testing.T) {
	var o options
	frame := component.Component{Name: "apilb", Options: &o}
	want := options{
		listen: netip.MustParseAddrPort("127.0.0.1:6444"), status: netip.MustParseAddrPort("127.0.0.1:6445"), servers: "/var/lib/apilb/servers.json",
		ca: "/etc/kubernetes/pki/ca.crt", kubeconfig: "/etc/kubernetes/kubelet.conf", prefer: netip.MustParseAddrPort("192.0.2.1:6443"),
	}
	if err := frame.Parse([]string{"--prefer=192.0.2.1:6443"}); err != nil || o != want {
		t.Errorf("%+v, %v", o, err)
	}
	for _, test := range []struct{ wrong, says string }{
		{"--listen=6444", "listen"},
		{"--prefer=localhost:6443", "prefer"},
	} {
		if err := frame.Parse([]string{test.wrong}); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: error %v does not name %s", test.wrong, err, test.says)
		}
	}
	missing := filepath.Join(t.TempDir(), "servers.json")
	var out bytes.Buffer
	if status := Component().Command(t.Context(), []string{"--servers=" + missing}, &out, &out); status != 1 ||
		!strings.Contains(out.String(), "read the servers: open "+missing) {
		t.Errorf("without a list of servers: status %d, %s", status, &out)
	}
}

func TestFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "servers.json")
	// What a power cut left of an earlier write is in nobody's way.
	write(t, file+".new", []byte("half"))
	want := addresses("192.0.2.1:6443", "192.0.2.2:6443")
	if err := save(file, want); err != nil {
		t.Fatal(err)
	}
	if got, err := load(file); err != nil || !cmp.Equal(want, got, cmpopts.EquateComparable(netip.AddrPort{})) {
		t.Errorf("%v, %v", got, err)
	}
	if at, err := os.Stat(file); err != nil || at.Mode() != 0o644 {
		t.Errorf("%v, %v", at.Mode(), err)
	}
	if text, err := os.ReadFile(file); string(text) != `{"servers":["192.0.2.1:6443","192.0.2.2:6443"]}`+"\n" {
		t.Errorf("%s, %v", text, err)
	}
	for _, wrong := range []string{"", "{}", `{"servers":[]}`, `{"servers":["192.0.2.1"]}`, `{"servers":[""]}`} {
		write(t, file, []byte(wrong))
		if got, err := load(file); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%q: %v, %v", wrong, got, err)
		}
	}
}

// node is a host with apilb.
type node struct {
	*testing.T
	options
	log    lockedBuffer
	client *http.Client
}

func newNode(t *testing.T, c *cluster, prefer *apiServer) *node {
	t.Helper()
	component.Log(io.Discard) // the libraries' log, for the whole process
	authority := x509.NewCertPool()
	authority.AddCert(c.ca)
	n := &node{T: t, options: options{
		listen: freePort(t), status: freePort(t), servers: filepath.Join(t.TempDir(), "servers.json"),
		ca: c.caFile, kubeconfig: c.kubeconfig, prefer: prefer.address,
	}}
	// A connection for each request, as if each were a program of its own.
	n.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: authority}, DisableKeepAlives: true}}
	return n
}

func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

// start runs apilb; stop ends it and returns how it ended.
func (n *node) start() (stop func() error) {
	ctx, cancel := context.WithCancel(n.Context())
	done := make(chan error, 1)
	go func() { done <- n.options.Run(ctx, slog.New(slog.NewTextHandler(&n.log, nil))) }()
	n.await("listens", func() bool { _, err := n.get("http://" + n.status.String() + "/"); return err == nil })
	return func() error { cancel(); return <-done }
}

// await looks until apilb is as wished.
func (n *node) await(what string, ok func() bool) {
	n.Helper()
	ctx, cancel := context.WithTimeout(n.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			n.Fatalf("not in time: %s\n%s", what, &n.log)
		case <-tick.C:
		}
	}
}

func (n *node) get(url string) (string, error) {
	answer, err := n.client.Get(url)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	return string(text), err
}

// who answers through apilb.
func (n *node) who() netip.AddrPort {
	n.Helper()
	text, err := n.get("https://" + n.listen.String() + "/who")
	if err != nil {
		n.Fatalf("%v\n%s", err, &n.log)
	}
	return netip.MustParseAddrPort(text)
}

// state is the status: each server, and whether it is ready.
func (n *node) state() (source string, ready map[netip.AddrPort]bool) {
	n.Helper()
	text, err := n.get("http://" + n.status.String() + "/")
	if err != nil {
		n.Fatal(err)
	}
	var s Status
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		n.Fatal(err)
	}
	ready = map[netip.AddrPort]bool{}
	for _, server := range s.Servers {
		ready[server.Address] = server.Healthy
	}
	return s.Source, ready
}

func (n *node) awaitState(source string, ready map[netip.AddrPort]bool) {
	n.Helper()
	n.await(source, func() bool {
		gotSource, got := n.state()
		return gotSource == source && cmp.Equal(ready, got)
	})
}

// TestRun is the life of a node: it joins, learns the cluster's servers, sees its
// own hang and leave, and starts again.
func TestRun(t *testing.T) {
	c := newCluster(t)
	x, y := c.start(t), c.start(t)
	n := newNode(t, c, x)
	if err := save(n.servers, []netip.AddrPort{x.address}); err != nil {
		t.Fatal(err)
	}
	stop := n.start()
	if got := n.who(); got != x.address {
		t.Errorf("%v answers", got)
	}
	n.awaitState("file", map[netip.AddrPort]bool{x.address: true})

	c.list.set(x.address.String() + "\n" + y.address.String() + "\n")
	c.allow(t)
	n.awaitState("cluster", map[netip.AddrPort]bool{x.address: true, y.address: true})
	if text, err := n.get("http://" + n.status.String() + "/healthz"); err != nil || text != "ok\n" {
		t.Errorf("healthz: %q, %v", text, err)
	}
	if text, err := n.get("http://" + n.status.String() + "/metrics"); err != nil ||
		!strings.Contains(text, `kubewright_apilb_server_ready{server="`+y.address.String()+`"} 1`) ||
		!strings.Contains(text, `kubewright_apilb_server_connections{server="`+y.address.String()+`"} 0`) {
		t.Errorf("metrics: %s, %v", text, err)
	}

	watch, err := n.client.Get("https://" + n.listen.String() + "/watch")
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Body.Close()
	stream := bufio.NewReader(watch.Body)
	if line, err := stream.ReadString('\n'); err != nil || strings.TrimSpace(line) != x.address.String() {
		t.Fatalf("%q, %v", line, err)
	}
	x.hang()
	if line, err := stream.ReadString('\n'); err == nil {
		t.Errorf("%q of a server that hangs", line)
	}
	if got := n.who(); got != y.address {
		t.Errorf("%v answers", got)
	}

	c.list.set(y.address.String())
	n.awaitState("cluster", map[netip.AddrPort]bool{y.address: true})
	n.await("the file", func() bool { got, err := load(n.servers); return err == nil && len(got) == 1 && got[0] == y.address })
	if err := stop(); err != nil {
		t.Error(err)
	}

	n.kubeconfig += ".none"
	stop = n.start()
	n.awaitState("file", map[netip.AddrPort]bool{y.address: true})
	if got := n.who(); got != y.address {
		t.Errorf("%v answers after a restart", got)
	}
	y.ready.Store(http.StatusInternalServerError)
	n.awaitState("file", map[netip.AddrPort]bool{y.address: false})
	if text, err := n.get("http://" + n.status.String() + "/healthz"); err != nil || !strings.Contains(text, "etcd failed") {
		t.Errorf("healthz: %q, %v", text, err)
	}
	if got := n.who(); got != y.address {
		t.Errorf("%v answers", got)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestPortTaken has another program on one of the ports.
func TestPortTaken(t *testing.T) {
	c := newCluster(t)
	n := newNode(t, c, c.start(t))
	if err := save(n.servers, []netip.AddrPort{n.prefer}); err != nil {
		t.Fatal(err)
	}
	for _, port := range []netip.AddrPort{n.listen, n.status} {
		other, err := net.Listen("tcp", port.String())
		if err != nil {
			t.Fatal(err)
		}
		if err := n.options.Run(t.Context(), slog.New(slog.NewTextHandler(&n.log, nil))); err == nil || !strings.Contains(err.Error(), port.String()) {
			t.Errorf("%v: %v", port, err)
		}
		_ = other.Close()
	}
}
