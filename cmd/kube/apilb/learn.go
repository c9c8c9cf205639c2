package apilb

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	informers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	// ConfigMap in kube-system holds the list of servers, and is the only one that
	// nodes may read.
	ConfigMap = "kubewright-control-planes"
	// ConfigMapKey is the key of the list, an ADDR:PORT a line.
	ConfigMapKey = "servers"
)

// credentialsPoll is how often a node without credentials looks for them.
const credentialsPoll = time.Second

// learn keeps the list of servers to the cluster's, until ctx ends.
func learn(ctx context.Context, o options, l *lesson) {
	said := false
	for {
		client, err := connect(o)
		if err == nil {
			follow(ctx, client, l)
			return
		}
		if !said {
			l.log.Info("no credentials yet to ask the cluster for its servers", "reason", err)
			said = true
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(credentialsPoll):
		}
	}
}

// connect returns a client that goes through apilb itself: whichever server is
// ready answers.
func connect(o options) (kubernetes.Interface, error) {
	access, err := clientcmd.BuildConfigFromFlags("https://"+o.listen.String(), o.kubeconfig)
	if err != nil {
		return nil, err
	}
	access.CAFile, access.CAData = o.ca, nil
	access.UserAgent = "kubewright-apilb"
	return kubernetes.NewForConfig(access)
}

// follow watches the ConfigMap until ctx ends.
func follow(ctx context.Context, client kubernetes.Interface, l *lesson) {
	informer := informers.NewFilteredConfigMapInformer(client, metav1.NamespaceSystem, 0, cache.Indexers{}, func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, ConfigMap).String()
	})
	// Neither can fail: the informer has not been started.
	_ = informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) { l.refused(err) })
	_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { l.heard(o) },
		UpdateFunc: func(_, o any) { l.heard(o) },
	})
	informer.RunWithContext(ctx)
}

// lesson takes over what the cluster says of its servers.
type lesson struct {
	file     string
	saved    []netip.AddrPort // what the file holds
	balancer *balancer
	log      *slog.Logger

	mu   sync.Mutex
	said string // the last refusal, told once
}

// refused tells of an API server that answers, but not with the list. One that does
// not answer is told by its questions, and one that is not ready does not know yet
// who may do what.
func (l *lesson) refused(err error) {
	status := apierrors.APIStatus(nil)
	if !errors.As(err, &status) || !l.balancer.works() || !l.tell(err.Error()) {
		return
	}
	l.log.Warn("the cluster does not tell its servers", "configmap", ConfigMap, "reason", err)
}

// tell says whether a refusal is another than the last one.
func (l *lesson) tell(why string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.said
	l.said = why
	return why != was
}

// heard takes the list over. Nothing that is wrong with it empties the one there is.
func (l *lesson) heard(o any) {
	m, ok := o.(*corev1.ConfigMap)
	if !ok || m.Name != ConfigMap {
		return
	}
	servers, err := parseServers(m.Data[ConfigMapKey])
	if err != nil {
		l.log.Warn("the cluster's list of servers is left aside", "configmap", ConfigMap, "key", ConfigMapKey, "reason", err)
		return
	}
	l.tell("")
	if l.balancer.set(servers, fromCluster) {
		l.log.Info("servers learned", "servers", servers)
	}
	if slices.Equal(servers, l.saved) {
		return
	}
	if err := save(l.file, servers); err != nil {
		l.log.Error("a restart will not know the servers", "reason", err)
		return
	}
	l.saved = servers
}
