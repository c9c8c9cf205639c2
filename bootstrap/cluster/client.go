// Package cluster is the Kubernetes API as the installer uses it: objects by
// server-side apply, waits that say what they see, and the steps made of them.
// The API is reached through a host's SSH connection, so that port 22 is all
// that a network between admin and cluster must allow.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/kubewright/kubewright/bootstrap/plan"
)

// FieldManager owns the fields that kubewright applies.
const FieldManager = "kubewright"

// Access is who to be at which API server.
type Access struct {
	Server string // https://ADDRESS:PORT
	CA     []byte // PEM, to verify it by
	Cert   []byte // PEM client certificate
	Key    []byte // PEM, secret
	Token  string // instead of Cert and Key; secret
	// Others are further API servers of the cluster, ADDRESS:PORT, for when Server does
	// not answer.
	Others []string
}

// String hides the credentials.
func (a Access) String() string { return a.Server }

// DialFunc connects to an address as seen from a host of the cluster.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Reader observes a cluster.
type Reader interface {
	// Kubernetes is the typed client. A step's Check only reads through it.
	Kubernetes(ctx context.Context) (kubernetes.Interface, error)
	// Live returns an object as it is, nil if there is none.
	Live(ctx context.Context, o *unstructured.Unstructured) (*unstructured.Unstructured, error)
	// Wished returns an object as the server would store it if it were applied now.
	Wished(ctx context.Context, o *unstructured.Unstructured) (*unstructured.Unstructured, error)
}

// Writer changes a cluster.
type Writer interface {
	Reader
	// Apply applies an object on the server's side.
	Apply(ctx context.Context, o *unstructured.Unstructured) error
}

// Client is a connection to the API that is made when it is first used.
type Client struct {
	access *plan.Value[Access]
	dial   DialFunc

	once    sync.Once
	err     error
	kube    kubernetes.Interface
	dynamic dynamic.Interface
}

var _ Writer = (*Client)(nil)

// New returns a client for what access will say once it is set: every step that
// uses the client needs that cell. dial may be nil, for a direct connection.
func New(access *plan.Value[Access], dial DialFunc) *Client {
	return &Client{access: access, dial: dial}
}

// callTime bounds one call: an API server whose etcd is down does not answer for a minute.
const callTime = 15 * time.Second

// Config is the client configuration for access through dial.
func Config(a Access, dial DialFunc) *rest.Config {
	cfg := &rest.Config{
		Host:        a.Server,
		BearerToken: a.Token,
		TLSClientConfig: rest.TLSClientConfig{
			CAData: a.CA, CertData: a.Cert, KeyData: a.Key,
		},
		Dial:      dial,
		QPS:       -1, // a few dozen calls in all
		Timeout:   callTime,
		UserAgent: "kubewright",
	}
	several(cfg, a.Others)
	return cfg
}

func (c *Client) connect() error {
	access, err := c.access.Known()
	if err != nil {
		return err
	}
	c.once.Do(func() {
		cfg := Config(access, c.dial)
		if c.kube, c.err = kubernetes.NewForConfig(cfg); c.err != nil {
			return
		}
		c.dynamic, c.err = dynamic.NewForConfig(cfg)
	})
	return c.err
}

func (c *Client) Kubernetes(context.Context) (kubernetes.Interface, error) {
	if err := c.connect(); err != nil {
		return nil, err
	}
	return c.kube, nil
}

// resource is where objects of o's kind live. Our own manifests hold built-in
// kinds only, whose resource names follow from the kind.
func (c *Client) resource(o *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	if err := c.connect(); err != nil {
		return nil, err
	}
	gvr, _ := meta.UnsafeGuessKindToResource(o.GroupVersionKind())
	if ns := o.GetNamespace(); ns != "" {
		return c.dynamic.Resource(gvr).Namespace(ns), nil
	}
	return c.dynamic.Resource(gvr), nil
}

func (c *Client) Live(ctx context.Context, o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	res, err := c.resource(o)
	if err != nil {
		return nil, err
	}
	live, err := res.Get(ctx, o.GetName(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return live, err
}

func (c *Client) Wished(ctx context.Context, o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	return c.apply(ctx, o, metav1.DryRunAll)
}

func (c *Client) Apply(ctx context.Context, o *unstructured.Unstructured) error {
	_, err := c.apply(ctx, o)
	return err
}

func (c *Client) apply(ctx context.Context, o *unstructured.Unstructured, dryRun ...string) (*unstructured.Unstructured, error) {
	res, err := c.resource(o)
	if err != nil {
		return nil, err
	}
	return res.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: FieldManager, Force: true, DryRun: dryRun})
}

// Name of an object for people: kind namespace/name.
func Name(o *unstructured.Unstructured) string {
	if ns := o.GetNamespace(); ns != "" {
		return fmt.Sprintf("%s %s/%s", o.GetKind(), ns, o.GetName())
	}
	return fmt.Sprintf("%s %s", o.GetKind(), o.GetName())
}

// transient reports whether a server that is still starting may have said err.
func transient(err error) bool {
	var netErr net.Error
	return errors.As(err, &netErr) || apierrors.IsServiceUnavailable(err) || apierrors.IsTooManyRequests(err) ||
		apierrors.IsInternalError(err) || apierrors.IsForbidden(err) || apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err)
}
