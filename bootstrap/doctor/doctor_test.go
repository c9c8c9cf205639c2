package doctor

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"

	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/install"
	"github.com/kubewright/kubewright/bootstrap/kubelet"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

const (
	bundleName = "v1.37.2-0123456789ab"
	apiAddress = "192.0.2.11:6443"
	df         = "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/vda 1000 %d 1 %d%% /\n"
)

// certificate is a PEM certificate with a life from now.
func certificate(t *testing.T, life time.Duration) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour * 24 * 365), NotAfter: time.Now().Add(life)}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// worker is a host in order, with its clock ahead of ours.
func worker(t *testing.T, name string, ahead time.Duration) *hosttest.Sim {
	t.Helper()
	s := hosttest.NewSim(t, name)
	s.Put(claim.File, `{"clusterID":"id","cluster":"c","role":"worker","node":"`+name+`"}`, 0o600)
	s.Put(kubelet.ClientCert, certificate(t, 300*24*time.Hour), 0o600)
	s.Put("/proc/swaps", "Filename Type Size Used Priority\n", 0o444)
	s.Put("/etc/cni/net.d/10-kubewright.conflist", "{}", 0o644)
	s.PutLink(bundleName, install.Current)
	for _, u := range Units(spec.WorkerRole) {
		s.Put("/etc/systemd/system/"+u, "[Service]\nType=notify\n[Install]\nWantedBy=multi-user.target\n", 0o644)
	}
	s.Boot()
	if err := s.Systemd().Enable(t.Context(), Units(spec.WorkerRole)...); err != nil {
		t.Fatal(err)
	}
	s.Boot()
	at := time.Now().Add(ahead)
	s.Script(
		hosttest.Answer{Argv: []string{"date", "+%s.%N"}, Stdout: fmt.Sprintf("%d.%09d\n", at.Unix(), at.Nanosecond())},
		hosttest.Answer{Argv: []string{"df", "-P", "-k", "/", "/var/lib/kubelet", install.Root}, Stdout: fmt.Sprintf(df, 100, 10)})
	s.Serve("tcp", apiAddress, func(c net.Conn) { c.Close() }) //nolint:errcheck // a test
	s.Serve("tcp", "10.96.0.10:53", answerDNS)
	return s
}

// answerDNS says 10.96.0.1 to all who ask for an IPv4 address, over TCP.
func answerDNS(c net.Conn) {
	defer c.Close() //nolint:errcheck // a test
	for {
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		q := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, q); err != nil {
			return
		}
		end := 12 + slices.Index(q[12:], 0) + 1
		a := append(slices.Clone(q[:2]), 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0)
		a = append(a, q[12:end+4]...)
		if q[end+1] == 1 { // type A
			a[7] = 1
			a = append(a, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 96, 0, 1)
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...)); err != nil {
			return
		}
	}
}

// api serves what the checks ask for, by path; a string as it is, else as JSON.
func api(t *testing.T, change func(map[string]any)) cluster.Reader {
	t.Helper()
	wish := &spec.Cluster{Name: "c", Hosts: []spec.Host{{Name: "cp1", Role: spec.ControlPlaneRole}}}
	wish.Default()
	text, err := spec.Marshal(wish)
	if err != nil {
		t.Fatal(err)
	}
	ready := []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	one := int32(1)
	answers := map[string]any{
		"/readyz":  "ok",
		"/version": version.Info{Major: "1", Minor: "37", GitVersion: "v1.37.2"},
		"/api/v1/namespaces/kube-system/configmaps/kubewright": corev1.ConfigMap{
			Data: map[string]string{"name": "c", "id": "id", "bundle": bundleName, "cluster.yaml": string(text)}},
		"/api/v1/nodes": corev1.NodeList{Items: []corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "w1", Annotations: map[string]string{cluster.HostAnnotation: "w1"}},
			Status: corev1.NodeStatus{Conditions: ready, NodeInfo: corev1.NodeSystemInfo{KubeletVersion: "v1.36.3"}}}}},
		"/api/v1/pods":                        corev1.PodList{},
		"/api/v1/namespaces/kube-system/pods": corev1.PodList{},
		"/apis/apps/v1/namespaces/kube-system/daemonsets": appsv1.DaemonSetList{Items: []appsv1.DaemonSet{
			{ObjectMeta: metav1.ObjectMeta{Name: "overlay"}, Status: appsv1.DaemonSetStatus{NumberReady: 1, DesiredNumberScheduled: 1}}}},
		"/apis/apps/v1/namespaces/kube-system/deployments": appsv1.DeploymentList{Items: []appsv1.Deployment{
			{ObjectMeta: metav1.ObjectMeta{Name: "coredns"}, Spec: appsv1.DeploymentSpec{Replicas: &one}, Status: appsv1.DeploymentStatus{AvailableReplicas: 1}}}},
	}
	if change != nil {
		change(answers)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, ok := answers[r.URL.Path]
		switch text, isText := answer.(string); {
		case !ok:
			http.Error(w, "no "+r.URL.Path, http.StatusNotFound)
		case isText && text != "ok":
			http.Error(w, text, http.StatusInternalServerError)
		case isText:
			io.WriteString(w, text) //nolint:errcheck // a test
		default:
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(answer) //nolint:errcheck // a test
		}
	}))
	t.Cleanup(server.Close)
	return cluster.New(plan.Of("access", cluster.Access{Server: server.URL}), nil)
}

func examine(t *testing.T, client cluster.Reader, hosts ...*hosttest.Sim) finding.Report {
	t.Helper()
	in := Inputs{Server: "https://" + apiAddress, Client: client}
	for _, h := range hosts {
		in.Hosts = append(in.Hosts, Host{Name: h.Name(), Reader: h})
	}
	before := make([]int, len(hosts))
	for i, h := range hosts {
		before[i] = len(h.Operations())
	}
	report := Examine(t.Context(), in)
	for i, h := range hosts {
		if after := h.Operations(); len(after) != before[i] {
			t.Errorf("doctor changed %s: %q", h.Name(), after[before[i]:])
		}
	}
	return report
}

// shown is a report, a line each.
func shown(r finding.Report) []string {
	var all []string
	for _, f := range r {
		all = append(all, strings.Join(strings.Fields(fmt.Sprintf("%s %s %s %s", f.Severity, f.Host, f.Code, f.Object)), " "))
	}
	return all
}

func TestNothingWrong(t *testing.T) {
	if got := examine(t, api(t, nil), worker(t, "w1", 0), worker(t, "w2", 0)); len(got) > 0 {
		t.Errorf("%v", got)
	}
}

func TestHostsInTrouble(t *testing.T) {
	soon := worker(t, "w2", 5*time.Second)
	soon.Put(kubelet.ClientCert, certificate(t, 10*24*time.Hour), 0o600)
	soon.Put("/proc/swaps", "Filename Type Size Used Priority\n/dev/vdb partition 1 0 -2\n", 0o444)
	soon.Script(hosttest.Answer{Argv: []string{"df", "-P", "-k", "/", "/var/lib/kubelet", install.Root}, Stdout: fmt.Sprintf(df, 900, 90)})

	worse := worker(t, "w3", -time.Hour)
	worse.Put(kubelet.ClientCert, certificate(t, -2*time.Hour), 0o600)
	worse.PutLink("v0.0.0", install.Current)
	worse.Script(hosttest.Answer{Argv: []string{"df", "-P", "-k", "/", "/var/lib/kubelet", install.Root}, Status: 1, Stderr: "df: token=hunter2"})
	worse.CrashUnit(kubelet.Unit)
	worse.Script(hosttest.Answer{Argv: []string{"journalctl", "-u", kubelet.Unit, "-n", "50", "-o", "cat", "--no-pager"},
		Stdout: "running with swap on is not supported\n"})
	worse.Serve("tcp", "10.96.0.10:53", func(c net.Conn) { c.Close() }) //nolint:errcheck // a test

	stranger := hosttest.NewSim(t, "w4")
	report := Examine(t.Context(), Inputs{Server: "https://" + apiAddress, Client: api(t, nil), Hosts: []Host{
		{Name: "w1", Reader: worker(t, "w1", 0)}, {Name: "w2", Reader: soon}, {Name: "w3", Reader: worse},
		{Name: "w4", Reader: stranger}, {Name: "w5", Err: errors.New("no route to host")}}})
	want := []string{
		"error w3 bundle-mismatch /opt/kubewright/current",
		"error w3 certificate-expired " + kubelet.ClientCert,
		"error w3 clock-skew w1",
		"error w3 dns-not-available 10.96.0.10:53",
		"error w3 swap-on kubelet.service",
		"error w4 host-unclaimed",
		"error w5 host-unreachable",
		"warning w2 certificate-expiring " + kubelet.ClientCert,
		"warning w2 clock-skew w1",
		"warning w2 disk-filling /",
		"warning w2 swap-on",
		"warning w3 check-failed disk space",
	}
	if diff := cmp.Diff(want, shown(report)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for _, f := range report {
		if f.Cause == "" || f.Remedy == "" || strings.Contains(f.Message, "hunter2") {
			t.Errorf("%+v", f)
		}
	}
}

func TestClusterInTrouble(t *testing.T) {
	client := api(t, func(a map[string]any) {
		a["/api/v1/nodes"] = corev1.NodeList{Items: []corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "w1"}, Status: corev1.NodeStatus{
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown, Message: "Kubelet stopped posting node status."}},
			NodeInfo:   corev1.NodeSystemInfo{KubeletVersion: "v1.38.0"}}}}}
		a["/apis/apps/v1/namespaces/kube-system/daemonsets"] = appsv1.DaemonSetList{}
		a["/apis/apps/v1/namespaces/kube-system/deployments"] = appsv1.DeploymentList{Items: []appsv1.Deployment{{ObjectMeta: metav1.ObjectMeta{Name: "coredns"}}}}
		a["/api/v1/pods"] = corev1.PodList{Items: []corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "coredns-1"},
			Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Reason: "Unschedulable"}}}}}}
	})
	want := []string{"error addon-not-available coredns", "error node-not-ready w1", "error overlay-not-running overlay",
		"error pod-unschedulable kube-system/coredns-1", "error version-skew w1", "warning node-unfinished w1"}
	if diff := cmp.Diff(want, shown(examine(t, client))); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestWithoutTheAPI has the hosts looked at all the same.
func TestWithoutTheAPI(t *testing.T) {
	w := worker(t, "w1", 0)
	w.Serve("tcp", "192.0.2.12:6443", func(net.Conn) {})
	down := cluster.New(plan.Of("access", cluster.Access{Server: "http://127.0.0.1:1"}), func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("connection refused")
	})
	w.CrashUnit(kubelet.Unit)
	w.Script(hosttest.Answer{Argv: []string{"journalctl", "-u", kubelet.Unit, "-n", "50", "-o", "cat", "--no-pager"}})
	if diff := cmp.Diff([]string{"error api-unreachable https://" + apiAddress, "error w1 unit-failed kubelet.service"}, shown(examine(t, down, w))); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	unready := api(t, func(a map[string]any) { a["/readyz"] = "[+]ping ok\n[-]etcd failed: reason withheld\n" })
	report := examine(t, unready)
	if diff := cmp.Diff([]string{"error apiserver-not-ready https://" + apiAddress}, shown(report)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if !strings.Contains(report[0].Message, "etcd") || !strings.Contains(report[0].Remedy, "kubewright doctor HOST") {
		t.Errorf("%+v", report[0])
	}
	if got := shown(Examine(t.Context(), Inputs{Hosts: []Host{{Name: "w1", Reader: w}}})); len(got) != 1 {
		t.Errorf("without any access to the API: %v", got)
	}
}
