package bootstrap

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	restfake "k8s.io/client-go/rest/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/kubewright/kubewright/bootstrap/bundle"
	"github.com/kubewright/kubewright/bootstrap/certs"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/containerd"
	"github.com/kubewright/kubewright/bootstrap/controlplane"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/kubelet"
	"github.com/kubewright/kubewright/bootstrap/kubeproxy"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// process is a component that runs, with what it read when it started.
type process struct {
	pid        int
	ca         string // the API server's authority, the one of an own certificate of the kubelet's
	token      string // the kubelet's, while it has no certificate
	cert       string
	registered bool // its Node is in the API
	pods       bool // it runs pods
}

// observe notices which components have started and ended since.
func (m *machine) observe() {
	for _, unit := range Units() {
		pid := m.PID(unit)
		if p := m.procs[unit]; pid == 0 {
			delete(m.procs, unit)
		} else if p == nil || p.pid != pid {
			p = &process{pid: pid}
			m.procs[unit] = p
			m.begin(unit, p)
		}
	}
}

// etcdID is the file that makes one cluster's data another than the next one's.
const etcdID = etcd.DataDir + "/member/sim-id"

// begin is what a component does as soon as it starts.
func (m *machine) begin(unit string, p *process) {
	switch unit {
	case etcd.Unit:
		p.ca, _ = m.Get(certs.Dir + "/etcd/ca.crt")
		fenced, member := m.world.guard(m, p)
		if fenced {
			m.CrashUnit(unit)
			delete(m.procs, unit)
			return
		}
		if m.has(forceDropIn) && m.has(forceOnce) {
			if !member {
				m.world.forceNew(m)
			}
			m.Drop(forceOnce)
		}
		m.world.startEtcd(m, p)
	case controlplane.APIServerUnit:
		p.ca, _ = m.Get(certs.Dir + "/ca.crt")
	case containerd.Unit:
		for _, dir := range []string{"/var/lib/containerd/io.containerd.content.v1.content", "/run/containerd", "/run/nri", "/opt/containerd"} {
			m.PutDir(dir, 0o711)
		}
	case kubelet.Unit:
		for _, dir := range []string{
			"/var/lib/kubelet/pods", "/var/lib/kubelet/plugins", "/var/log/pods", "/var/log/containers",
			"/usr/libexec/kubernetes/kubelet-plugins/volume/exec",
		} {
			m.PutDir(dir, 0o750)
		}
		m.identify(p)
	}
}

// identify has a kubelet read who it is: by its certificate, or by a join token.
// One that has neither ends, and is started again a second later: see settle.
func (m *machine) identify(p *process) {
	cert, has := m.Get(kubelet.ClientCert)
	if has && m.has(kubelet.Kubeconfig) {
		p.cert = cert
		return
	}
	if access, ok := m.Get(kubelet.BootstrapKubeconfig); ok {
		p.token = bearer.FindStringSubmatch(access)[1]
		m.Put(kubelet.Kubeconfig, "written by the kubelet\n", 0o600)
	}
}

var bearer = regexp.MustCompile(`token: "?([a-z0-9]+\.[a-z0-9]+)`)

// store is the content of the API, as long as etcd's data stands.
type store struct {
	clienttesting.ObjectTracker
	kinds     map[schema.GroupVersionResource]schema.GroupVersionKind
	available bool // CoreDNS
}

func newStore() *store {
	s := &store{
		ObjectTracker: clienttesting.NewObjectTracker(scheme.Scheme, scheme.Codecs.UniversalDecoder()),
		kinds:         map[schema.GroupVersionResource]schema.GroupVersionKind{},
	}
	for _, name := range []string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic} {
		s.put(&corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	return s
}

// Resources that are looked for by name here.
var (
	nodeResource       = corev1.SchemeGroupVersion.WithResource("nodes")
	secretResource     = corev1.SchemeGroupVersion.WithResource("secrets")
	deploymentResource = appsv1.SchemeGroupVersion.WithResource("deployments")
	configMapResource  = corev1.SchemeGroupVersion.WithResource("configmaps")
	daemonSetResource  = appsv1.SchemeGroupVersion.WithResource("daemonsets")
)

// put creates or replaces an object; its status stays.
func (s *store) put(o runtime.Object) {
	gvk := o.GetObjectKind().GroupVersionKind()
	gvr, _ := meta.UnsafeGuessKindToResource(gvk)
	s.kinds[gvr] = gvk
	m, err := meta.Accessor(o)
	if err != nil {
		panic(err)
	}
	if old, err := s.Get(gvr, m.GetNamespace(), m.GetName()); err == nil {
		if d, ok := old.(*appsv1.Deployment); ok {
			o.(*appsv1.Deployment).Status = d.Status
		}
		err = s.Update(gvr, o, m.GetNamespace())
		if err != nil {
			panic(err)
		}
		return
	}
	if err := s.Create(gvr, o, m.GetNamespace()); err != nil {
		panic(err)
	}
}

func (s *store) node(name string) *corev1.Node {
	o, err := s.Get(nodeResource, "", name)
	if err != nil {
		return nil
	}
	n := o.(*corev1.Node)
	n.APIVersion, n.Kind = "v1", "Node"
	return n
}

// serving are the machines whose API servers serve, and the content. The lock is held.
func (w *world) serving() (*store, []*machine) {
	var s *store
	var all []*machine
	for _, m := range w.machines {
		if of := w.api(m); of != nil {
			s, all = of, append(all, m)
		}
	}
	return s, all
}

// store returns the API's content, nil while the API does not serve. The lock is held.
func (w *world) store() *store {
	s, _ := w.serving()
	return s
}

// settle is a moment in the life of the cluster: each component does the next
// thing that it can do.
func (w *world) settle() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.machines {
		m.observe()
		if p := m.procs[etcd.Unit]; p != nil {
			w.startEtcd(m, p)
		}
	}
	w.replicate()
	s, serving := w.serving()
	if s != nil {
		s.setServing(serving)
	}
	ready := false
	for _, m := range w.machines {
		ready = w.live(m, s, serving) || ready
	}
	if one(serving, controlplane.ControllerManagerUnit) != nil && one(serving, controlplane.SchedulerUnit) != nil && ready {
		s.setAvailable()
	}
}

// one is a machine on which a unit runs, nil if there is none.
func one(machines []*machine, unit string) *machine {
	if i := slices.IndexFunc(machines, func(m *machine) bool { return m.runs(unit) }); i >= 0 {
		return machines[i]
	}
	return nil
}

// live is that moment on a node, and tells whether it runs pods. It gets to the API by its own apilb. The lock is held.
func (w *world) live(m *machine, s *store, serving []*machine) bool {
	p, way, signer := m.procs[kubelet.Unit], w.way(m), one(serving, controlplane.ControllerManagerUnit)
	switch {
	case p == nil:
	case p.cert == "" && p.token == "":
		m.identify(p)
	case way == nil:
	case p.cert == "":
		if signer != nil && w.tokenValid(s, p.token) {
			sign(signer, m, p)
		}
	case !p.registered:
		if signedBy(p.cert, way.procs[controlplane.APIServerUnit].ca) {
			if s.node(m.Name()) == nil && !s.removed(m.Name()) {
				s.put(&corev1.Node{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: m.Name()},
					Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: m.address.String()}}}})
			}
			p.registered = s.node(m.Name()) != nil
		}
	case !p.pods:
		if m.procs[containerd.Unit] != nil && strings.Contains(strings.Join(m.lines(imageFile), " "), bundle.PauseImage) {
			if _, err := s.Get(daemonSetResource, metav1.NamespaceSystem, "overlay"); err == nil {
				m.runPods()
				p.pods = true
			}
		}
	}
	if m.procs[kubeproxy.Unit] != nil && m.has(kubelet.Kubeconfig) {
		m.add(tableFile, "ip kube-proxy")
		m.add(routeFile, "10.96.0.0/16 "+nic+" static")
	}
	if s == nil {
		return false
	}
	up := way != nil && p != nil && p.pods
	if way != nil && p != nil || signer != nil { // the kubelet tells, or it is missed
		s.setReady(m.Name(), up)
	}
	if way != nil && p != nil && p.registered {
		w.learn(m, s)
	}
	return up
}

// removed tells whether addon `removed` keeps a node from registering.
func (s *store) removed(name string) bool {
	o, err := s.Get(configMapResource, metav1.NamespaceSystem, cluster.RemovedNodes)
	if err != nil {
		return false
	}
	_, ok := o.(*corev1.ConfigMap).Data[name]
	return ok
}

// setServing is what API servers tell of themselves.
func (s *store) setServing(serving []*machine) {
	slice := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Namespace: metav1.NamespaceDefault,
			Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
	}
	for _, m := range serving {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{m.address.String()}})
	}
	s.put(slice)
}

// runPods is what a node's pods bring about on it.
func (m *machine) runPods() {
	m.Put(containerd.CNIConfigDir+"/10-kubewright.conflist", "{}", 0o644)
	m.link("flannel.1")
	m.link("cni0")
	m.add(routeFile, "10.244.0.0/24 cni0 kernel")
	m.add(routeFile, "10.244.9.0/24 flannel.1 static")
	m.add(tableFile, "ip kubewright-overlay")
	m.Put("/var/lib/cni/networks/kubewright/10.244.0.2", "a pod", 0o644)
	m.Put("/var/log/pods/overlay/0.log", "", 0o640)
	for _, dir := range []string{"/run/netns/cni-1", "/run/containerd/io.containerd.runtime.v2.task/k8s.io/1/rootfs", "/var/lib/kubelet/pods/1/volumes/token"} {
		m.mount(dir)
	}
}

func (s *store) setReady(name string, ready bool) {
	n := s.node(name)
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	if n == nil || len(n.Status.Conditions) > 0 && n.Status.Conditions[0].Status == status {
		return
	}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status, Message: "the kubelet runs no pods"}}
	s.put(n)
}

func (s *store) setAvailable() {
	if s.available {
		return
	}
	o, err := s.Get(deploymentResource, metav1.NamespaceSystem, "coredns")
	if err != nil {
		return
	}
	d := o.(*appsv1.Deployment)
	d.Status.Conditions = []appsv1.DeploymentCondition{{Type: appsv1.DeploymentAvailable, Status: corev1.ConditionTrue}}
	if err := s.Update(deploymentResource, d, d.Namespace); err != nil {
		panic(err)
	}
	s.available = true
}

// tokens are the join tokens that are in the API.
func (s *store) tokens() []corev1.Secret {
	list, err := s.List(secretResource, corev1.SchemeGroupVersion.WithKind("Secret"), metav1.NamespaceSystem)
	if err != nil {
		panic(err)
	}
	return list.(*corev1.SecretList).Items
}

func (w *world) tokenValid(s *store, bearer string) bool {
	for _, t := range s.tokens() {
		expires, err := time.Parse(time.RFC3339, t.StringData["expiration"])
		if t.StringData["token-id"]+"."+t.StringData["token-secret"] == bearer && err == nil && time.Now().Before(expires) {
			return true
		}
	}
	return false
}

// sign gives a kubelet the certificate that it asks for, by the authority on cp.
func sign(cp, m *machine, p *process) {
	ca, _ := cp.Get(certs.Dir + "/ca.crt")
	caKey, _ := cp.Get(certs.Dir + "/ca.key")
	signer, err := x509.ParsePKCS8PrivateKey(decode(caKey))
	if err != nil {
		panic(err)
	}
	authority, err := x509.ParseCertificate(decode(ca))
	if err != nil {
		panic(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	cert, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "system:node:" + m.Name(), Organization: []string{"system:nodes"}},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().AddDate(1, 0, 0), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, authority, key.Public(), signer)
	if err != nil {
		panic(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(err)
	}
	p.cert = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})) +
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
	const file = "kubelet-client-of-the-kubelet.pem"
	m.Put(path.Join(path.Dir(kubelet.ClientCert), file), p.cert, 0o600)
	m.PutLink(path.Join(path.Dir(kubelet.ClientCert), file), kubelet.ClientCert)
}

func decode(text string) []byte {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil
	}
	return block.Bytes
}

func signedBy(certPEM, caPEM string) bool {
	ca, err := x509.ParseCertificate(decode(caPEM))
	if err != nil {
		return false
	}
	cert, err := x509.ParseCertificate(decode(certPEM))
	return err == nil && cert.CheckSignatureFrom(ca) == nil
}

// client is the API through one run's connection.
type client struct {
	w      *world
	access *plan.Value[cluster.Access]
	dial   cluster.DialFunc
	kube   kubernetes.Interface
}

var _ cluster.Writer = (*client)(nil)

// connect is the Connector of the simulated API.
func (w *world) connect(access *plan.Value[cluster.Access], dial cluster.DialFunc) cluster.Writer {
	c := &client{w: w, access: access, dial: dial}
	typed := &fake.Clientset{}
	typed.AddReactor("*", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		s, err := c.reach(context.Background())
		if err != nil {
			return true, nil, err
		}
		return clienttesting.ObjectReaction(s)(a)
	})
	c.kube = kube{typed, c}
	return c
}

// reach returns the API's content, or the error of a client that does not get there: to the server
// that it asks for, or to another one that it knows.
func (c *client) reach(ctx context.Context) (*store, error) {
	access, err := c.access.Known()
	if err != nil {
		return nil, err
	}
	server, err := url.Parse(access.Server)
	if err != nil {
		return nil, err
	}
	for _, at := range append([]string{server.Host}, access.Others...) {
		var s *store
		if s, err = c.reachAt(ctx, at, string(access.CA)); err == nil {
			return s, nil
		}
	}
	return nil, &url.Error{Op: "Get", URL: server.String(), Err: err}
}

func (c *client) reachAt(ctx context.Context, server, ca string) (*store, error) {
	conn, err := c.dial(ctx, "tcp", server)
	if err != nil {
		return nil, err
	}
	if err := conn.Close(); err != nil {
		return nil, err
	}
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	i := slices.IndexFunc(c.w.machines, func(m *machine) bool { return server == m.api() })
	if i < 0 {
		return nil, syscall.ECONNREFUSED
	}
	m := c.w.machines[i]
	s := c.w.api(m)
	switch {
	case s == nil:
		return nil, syscall.ECONNREFUSED
	case ca != m.procs[controlplane.APIServerUnit].ca:
		return nil, x509.UnknownAuthorityError{}
	}
	c.w.asked = m
	return s, nil
}

func (c *client) Kubernetes(context.Context) (kubernetes.Interface, error) { return c.kube, nil }

// Live returns an object without what only the server says.
func (c *client) Live(ctx context.Context, o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	s, err := c.reach(ctx)
	if err != nil {
		return nil, err
	}
	gvr, _ := meta.UnsafeGuessKindToResource(o.GroupVersionKind())
	have, err := s.Get(gvr, o.GetNamespace(), o.GetName())
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return cluster.Unstructured(have)
}

func (c *client) Wished(ctx context.Context, o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	if _, err := c.reach(ctx); err != nil {
		return nil, err
	}
	object, err := typed(o)
	if err != nil {
		return nil, err
	}
	return cluster.Unstructured(object)
}

func (c *client) Apply(ctx context.Context, o *unstructured.Unstructured) error {
	object, err := typed(o)
	if err != nil {
		return err
	}
	_, err = change(ctx, c, "apply "+cluster.Name(o), func(s *store) (struct{}, error) { s.put(object); return struct{}{}, nil })
	return err
}

func typed(o *unstructured.Unstructured) (runtime.Object, error) {
	object, err := scheme.Scheme.New(o.GroupVersionKind())
	if err != nil {
		return nil, err
	}
	return object, runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, object)
}

// change is an operation on the API.
func change[T any](ctx context.Context, c *client, operation string, f func(*store) (T, error)) (T, error) {
	var result T
	err := c.w.operate(ctx, c.w.via, "api "+operation, true, func() error {
		s, err := c.reach(ctx)
		if err == nil {
			result, err = f(s)
		}
		return err
	})
	return result, err
}

// kube is the typed client: what steps change through it is an operation.
type kube struct {
	kubernetes.Interface
	c *client
}

func (k kube) CoreV1() typedcorev1.CoreV1Interface { return coreV1{k.Interface.CoreV1(), k.c} }

func (k kube) Discovery() discovery.DiscoveryInterfaces { return served{c: k.c} }

type coreV1 struct {
	typedcorev1.CoreV1Interface
	c *client
}

func (v coreV1) Nodes() typedcorev1.NodeInterface { return nodes{v.CoreV1Interface.Nodes(), v.c} }

func (v coreV1) ConfigMaps(namespace string) typedcorev1.ConfigMapInterface {
	return configMaps{v.CoreV1Interface.ConfigMaps(namespace), v.c}
}

func (v coreV1) Secrets(namespace string) typedcorev1.SecretInterface {
	return secrets{v.CoreV1Interface.Secrets(namespace), v.c}
}

type nodes struct {
	typedcorev1.NodeInterface
	c *client
}

func (n nodes) Update(ctx context.Context, o *corev1.Node, opts metav1.UpdateOptions) (*corev1.Node, error) {
	return change(ctx, n.c, "update Node "+o.Name, func(*store) (*corev1.Node, error) { return n.NodeInterface.Update(ctx, o, opts) })
}

func (n nodes) Patch(ctx context.Context, name string, pt types.PatchType, data []byte, opts metav1.PatchOptions, sub ...string) (*corev1.Node, error) {
	return change(ctx, n.c, "patch Node "+name, func(*store) (*corev1.Node, error) {
		return n.NodeInterface.Patch(ctx, name, pt, data, opts, sub...)
	})
}

func (n nodes) Delete(ctx context.Context, name string, opts metav1.DeleteOptions) error {
	_, err := change(ctx, n.c, "delete Node "+name, func(*store) (struct{}, error) {
		return struct{}{}, n.NodeInterface.Delete(ctx, name, opts)
	})
	return err
}

type configMaps struct {
	typedcorev1.ConfigMapInterface
	c *client
}

func (n configMaps) Create(ctx context.Context, o *corev1.ConfigMap, opts metav1.CreateOptions) (*corev1.ConfigMap, error) {
	return change(ctx, n.c, "create ConfigMap "+o.Name, func(*store) (*corev1.ConfigMap, error) {
		return n.ConfigMapInterface.Create(ctx, o, opts)
	})
}

func (n configMaps) Patch(ctx context.Context, name string, pt types.PatchType, data []byte, opts metav1.PatchOptions, sub ...string) (*corev1.ConfigMap, error) {
	return change(ctx, n.c, "patch ConfigMap "+name, func(*store) (*corev1.ConfigMap, error) {
		return n.ConfigMapInterface.Patch(ctx, name, pt, data, opts, sub...)
	})
}

// secrets are the join tokens; their random names are no part of an operation's.
type secrets struct {
	typedcorev1.SecretInterface
	c *client
}

func (n secrets) Create(ctx context.Context, o *corev1.Secret, opts metav1.CreateOptions) (*corev1.Secret, error) {
	return change(ctx, n.c, "create Secret", func(*store) (*corev1.Secret, error) { return n.SecretInterface.Create(ctx, o, opts) })
}

func (n secrets) Delete(ctx context.Context, name string, opts metav1.DeleteOptions) error {
	_, err := change(ctx, n.c, "delete Secret", func(*store) (struct{}, error) {
		return struct{}{}, n.SecretInterface.Delete(ctx, name, opts)
	})
	return err
}

// served answers what is asked of the API server itself: /readyz.
type served struct {
	discovery.DiscoveryInterfaces
	c *client
}

func (d served) RESTClient() rest.Interface {
	return &restfake.RESTClient{
		NegotiatedSerializer: scheme.Codecs, GroupVersion: corev1.SchemeGroupVersion,
		Client: restfake.CreateHTTPClient(func(r *http.Request) (*http.Response, error) {
			if _, err := d.c.reach(r.Context()); err != nil {
				return nil, err
			}
			return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader("ok")), Header: http.Header{}}, nil
		}),
	}
}
