package doctor

import (
	"context"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"

	"github.com/kubewright/kubewright/addons"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/diagnose"
	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/redact"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// meetCluster learns what the checks of hosts compare with, if the API answers.
func (e *examination) meetCluster(ctx context.Context) {
	remedy := "" // the code's own
	if len(e.Hosts) == 0 {
		remedy = "name the control-plane host, so that it is looked at over SSH: kubewright doctor HOST"
	}
	unreachable := func(err error) {
		e.add(finding.Finding{Code: finding.APIUnreachable, Severity: finding.Error, Object: e.Server,
			Message: "the API does not answer: " + redact.Text(err.Error()), Remedy: remedy})
	}
	if e.Client == nil {
		return // the hosts alone are looked at
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	kube, err := e.Client.Kubernetes(ctx)
	if err != nil {
		unreachable(err)
		return
	}
	failing, err := cluster.Readyz(ctx, kube)
	switch {
	case len(failing) > 0:
		e.add(finding.Finding{Code: finding.APIServerNotReady, Severity: finding.Error, Object: e.Server,
			Message: "the API server says that it is not ready: " + strings.Join(failing, ", "), Remedy: remedy})
	case err != nil:
		unreachable(err)
		return
	}
	e.check(ctx, "", "the cluster's record and nodes", func(ctx context.Context) (finding.Report, error) {
		about, err := kube.Discovery().ServerVersion()
		if err != nil {
			return nil, err
		}
		e.version = about.GitVersion
		if e.record, err = cluster.ReadRecord(ctx, e.Client); err != nil {
			return nil, err
		}
		if e.spec, err = spec.Load(strings.NewReader(e.record.Spec), "ConfigMap kube-system/kubewright"); err != nil {
			return nil, err
		}
		nodes, err := kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, err
		}
		e.nodes, e.kube = nodes.Items, kube
		return nil, nil
	})
}

type clusterCheck struct {
	what string
	look func(context.Context, *examination) (finding.Report, error)
}

func clusterChecks() []clusterCheck {
	return []clusterCheck{
		{"nodes", checkNodes},
		{"versions", checkVersions},
		{"addons", checkAddons},
		{"pods", checkPods},
	}
}

func checkNodes(_ context.Context, e *examination) (finding.Report, error) {
	report := diagnose.Nodes(e.nodes)
	for _, n := range e.nodes {
		if n.Annotations[cluster.HostAnnotation] == "" {
			report = append(report, finding.Finding{Code: finding.NodeUnfinished, Severity: finding.Warning, Object: n.Name,
				Message: fmt.Sprintf("node %s: the init or join that is to make it a node has not come to its end", n.Name)})
		}
	}
	return report, nil
}

// maxSkew is how many minor versions a kubelet may be behind the API server.
const maxSkew = 3

func checkVersions(_ context.Context, e *examination) (finding.Report, error) {
	server, err := version.ParseSemantic(e.version)
	if err != nil {
		return nil, err
	}
	var report finding.Report
	for _, n := range e.nodes {
		agent, err := version.ParseSemantic(n.Status.NodeInfo.KubeletVersion)
		if err != nil {
			return report, fmt.Errorf("node %s: %w", n.Name, err)
		}
		if agent.Major() != server.Major() || agent.Minor() > server.Minor() || agent.Minor()+maxSkew < server.Minor() {
			report = append(report, finding.Finding{Code: finding.VersionSkew, Severity: finding.Error, Object: n.Name,
				Message: fmt.Sprintf("node %s runs kubelet %s, the API server is %s", n.Name, n.Status.NodeInfo.KubeletVersion, e.version)})
		}
	}
	return report, nil
}

// checkAddons looks for what init installs: the pod network, unless the cluster
// has another one, and DNS.
func checkAddons(ctx context.Context, e *examination) (finding.Report, error) {
	const ns = metav1.NamespaceSystem
	ours := metav1.ListOptions{LabelSelector: "app.kubernetes.io/managed-by=kubewright"}
	daemons, err := e.kube.AppsV1().DaemonSets(ns).List(ctx, ours)
	if err != nil {
		return nil, err
	}
	deployments, err := e.kube.AppsV1().Deployments(ns).List(ctx, ours)
	if err != nil {
		return nil, err
	}
	expected := map[string]bool{string(addons.CoreDNS): true, string(addons.Overlay): e.spec.Network.Backend != spec.NoNet}
	pods, err := e.kube.CoreV1().Pods(ns).List(ctx, ours)
	if err != nil {
		return nil, err
	}
	var report finding.Report
	seen := map[string]bool{}
	see := func(name string, ready, want int32) {
		seen[name] = true
		if ready >= want {
			return
		}
		f := finding.Finding{Code: finding.AddonNotAvailable, Severity: finding.Warning, Object: name,
			Message: fmt.Sprintf("%s has %d of %d pods ready", name, ready, want)}
		if name == string(addons.Overlay) {
			f.Code, f.Severity = finding.OverlayNotRunning, finding.Error
		}
		if ready == 0 {
			f.Severity = finding.Error
		}
		if justMade(name, pods.Items) {
			f.Severity, f.Cause = finding.Note, "its pods have only just been made"
		}
		report = append(report, f)
	}
	for _, d := range daemons.Items {
		see(d.Name, d.Status.NumberReady, d.Status.DesiredNumberScheduled)
	}
	for _, d := range deployments.Items {
		see(d.Name, d.Status.AvailableReplicas, replicas(d))
	}
	for name, wanted := range expected {
		if wanted && !seen[name] {
			code := finding.AddonNotAvailable
			if name == string(addons.Overlay) {
				code = finding.OverlayNotRunning
			}
			report = append(report, finding.Finding{Code: code, Severity: finding.Error, Object: name,
				Message: name + " is not there", Remedy: "run the same `kubewright init` again: it installs what is missing"})
		}
	}
	return report, nil
}

// starting is how long the pods of an addon may take to be ready.
const starting = 30 * time.Second

// justMade tells that an addon's pods are ready or too young to be.
func justMade(addon string, pods []corev1.Pod) bool {
	young := false
	for _, p := range pods {
		if p.Labels["app.kubernetes.io/name"] != addon || cluster.PodReady(&p) {
			continue
		}
		if young = time.Since(p.CreationTimestamp.Time) < starting; !young {
			return false
		}
	}
	return young
}

func replicas(d appsv1.Deployment) int32 {
	if d.Spec.Replicas == nil {
		return 1
	}
	return *d.Spec.Replicas
}

func checkPods(ctx context.Context, e *examination) (finding.Report, error) {
	list, err := e.kube.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	return diagnose.Pods(ctx, e.kube, list.Items, time.Now()), nil
}
