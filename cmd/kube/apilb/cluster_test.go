package apilb

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// cluster is an authority, and what a node has of it.
type cluster struct {
	ca         *x509.Certificate
	key        *ecdsa.PrivateKey
	caFile     string
	kubeconfig string // not there until allow
	list       list
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	dir := t.TempDir()
	c := &cluster{caFile: filepath.Join(dir, "ca.crt"), kubeconfig: filepath.Join(dir, "kubelet.conf")}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kubernetes"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	var err error
	if c.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, c.key.Public(), c.key)
	if err != nil {
		t.Fatal(err)
	}
	if c.ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	write(t, c.caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return c
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// pair is a certificate of the cluster's and its key, as PEM.
func (c *cluster) pair(t *testing.T, name string) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.ca, private.Public(), c.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

// allow gives the node its credentials, the way a kubelet keeps them.
func (c *cluster) allow(t *testing.T) {
	t.Helper()
	cert, key := c.pair(t, "system:node:a")
	file := filepath.Join(filepath.Dir(c.kubeconfig), "kubelet-client-current.pem")
	write(t, file, append(cert, key...))
	write(t, c.kubeconfig, fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: node
contexts: [{name: node, context: {cluster: c, user: node}}]
clusters: [{name: c, cluster: {server: "https://192.0.2.1:6443", certificate-authority: %q}}]
users: [{name: node, user: {client-certificate: %q, client-key: %q}}]
`, c.caFile, file, file))
}

// apiServer is an API server on loopback.
type apiServer struct {
	*httptest.Server
	address netip.AddrPort
	ready   atomic.Int64 // status of /readyz, or byCertificate
	knew    atomic.Bool  // a client's certificate was shown
	dialed  atomic.Int64
	hung    chan struct{} // closed: no request is answered any more
	release chan struct{}
	hanging sync.Once
}

// byCertificate is a readyz for those alone who show a certificate.
const byCertificate = 0

// start runs one more API server of the cluster until the test ends.
func (c *cluster) start(t *testing.T) *apiServer {
	t.Helper()
	cert, key := c.pair(t, "kube-apiserver")
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	clients.AddCert(c.ca)
	s := &apiServer{hung: make(chan struct{}), release: make(chan struct{})}
	s.ready.Store(http.StatusOK)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.HandleFunc("GET /who", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, s.address) })
	mux.HandleFunc("GET /watch", s.watch)
	mux.HandleFunc("GET /api/v1/namespaces/kube-system/configmaps", c.configMap)
	s.Server = httptest.NewUnstartedServer(mux)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: clients, ClientAuth: tls.VerifyClientCertIfGiven}
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.dialed.Add(1)
		}
	}
	s.StartTLS()
	s.address = netip.MustParseAddrPort(s.Listener.Addr().String())
	t.Cleanup(func() {
		close(s.release)
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// hang has the server accept connections and requests, and answer none.
func (s *apiServer) hang() { s.hanging.Do(func() { close(s.hung) }) }

func (s *apiServer) readyz(w http.ResponseWriter, r *http.Request) {
	select {
	case <-s.hung:
		<-s.release
		return
	default:
	}
	status := int(s.ready.Load())
	if len(r.TLS.PeerCertificates) > 0 {
		s.knew.Store(true)
		if status == byCertificate {
			status = http.StatusOK
		}
	} else if status == byCertificate {
		status = http.StatusUnauthorized
	}
	w.WriteHeader(status)
	if status == http.StatusInternalServerError {
		fmt.Fprint(w, "[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed\n")
	}
}

// watch says who it is and stays, as a kubelet's watch does.
func (s *apiServer) watch(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintln(w, s.address)
	_ = http.NewResponseController(w).Flush()
	select {
	case <-r.Context().Done():
	case <-s.release:
	}
}

// configMap answers a list of one ConfigMap and a watch of it.
func (c *cluster) configMap(w http.ResponseWriter, r *http.Request) {
	value, version, changed := c.list.get()
	switch q := r.URL.Query(); {
	case q.Get("watch") == "":
		send(w, map[string]any{"apiVersion": "v1", "kind": "ConfigMapList", "metadata": map[string]string{"resourceVersion": version},
			"items": []any{object(value, version, nil)}})
		return
	case q.Get("sendInitialEvents") == "true":
		send(w, event("ADDED", object(value, version, nil)))
		send(w, event("BOOKMARK", object(value, version, map[string]string{metav1.InitialEventsAnnotationKey: "true"})))
	case q.Get("resourceVersion") != version: // it changed since the client heard of it
		send(w, event("MODIFIED", object(value, version, nil)))
	}
	for {
		select {
		case <-changed:
			value, version, changed = c.list.get()
			send(w, event("MODIFIED", object(value, version, nil)))
		case <-r.Context().Done():
			return
		}
	}
}

func object(value, version string, annotations map[string]string) map[string]any {
	return map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "data": map[string]string{ConfigMapKey: value}, "metadata": map[string]any{
		"name": ConfigMap, "namespace": metav1.NamespaceSystem, "resourceVersion": version, "annotations": annotations}}
}

func event(kind string, o any) map[string]any { return map[string]any{"type": kind, "object": o} }

func send(w http.ResponseWriter, o any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(o) // the client has gone
	_ = http.NewResponseController(w).Flush()
}

// list is the value of the ConfigMap.
type list struct {
	mu      sync.Mutex
	value   string
	version int
	changed chan struct{} // closed by the next set
}

func (l *list) get() (value, version string, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.value, strconv.Itoa(l.version + 1), l.changed
}

func (l *list) set(value string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.value = value
	l.version++
	if l.changed != nil {
		close(l.changed)
	}
	l.changed = make(chan struct{})
}
