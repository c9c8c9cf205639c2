package support

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/kubewright/kubewright/bootstrap/certs"
	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/containerd"
	"github.com/kubewright/kubewright/bootstrap/doctor"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/journal"
	"github.com/kubewright/kubewright/bootstrap/kubelet"
	"github.com/kubewright/kubewright/bootstrap/systemd"
)

// planted is the word that every secret contains.
const planted = "plAnted7Secret"

// watched tells which files are read.
type watched struct {
	host.Reader
	t *testing.T
}

func (w watched) ReadFile(ctx context.Context, name string) ([]byte, error) {
	if mayHoldKey(name) || strings.Contains(name, "/copies/") || strings.HasSuffix(name, "admin.conf") {
		w.t.Errorf("%s was read", name)
	}
	return w.Reader.ReadFile(ctx, name)
}

func TestNoSecretIsCollected(t *testing.T) {
	key := "-----BEGIN PRIVATE KEY-----\n" + planted + "\n-----END PRIVATE KEY-----\n"
	s := hosttest.NewSim(t, "cp1")
	for name, content := range map[string]string{
		claim.File: `{"clusterID":"id","cluster":"c","role":"worker","node":"cp1"}`,
		journal.Dir + "/000001.json": `{"seq":1,"step":"pki/write","run":{"verb":"init","by":"me@here"},"before":[
			{"kind":"file","name":"/etc/x","exists":true,"content":"` + base64.StdEncoding.EncodeToString([]byte(planted)) + `","copy":"/copies/1"},{"kind":"setting","name":"a","value":"` + planted + `"}]}`,
		journal.Dir + "/copies/1":                    key,
		certs.Dir + "/ca.key":                        key,
		certs.Dir + "/etcd/healthcheck-client.crt":   "no certificate",
		certs.Dir + "/etcd/healthcheck-client.key":   key,
		"/etc/kubernetes/admin.conf":                 "client-key-data: " + planted,
		kubelet.ClientCert:                           key,
		containerd.ConfigFile:                        "[registry.auth]\n  password = \"" + planted + "\"\n",
		containerd.CNIConfigDir + "/10-x.conflist":   `{"token":"` + planted + `","name":"kept"}`,
		containerd.CNIConfigDir + "/x-kubeconfig":    "token: " + planted,
		containerd.CNIConfigDir + "/x.pem":           key,
		"/etc/kubernetes/manifests/web.yaml":         "env:\n- name: DB_PASSWORD\n  value: " + planted + "\ncert: |\n" + key,
		systemd.Dir + "/kubelet.service":             "[Service]\nEnvironment=\"API_KEY=" + planted + " x\"\nExecStart=/x \\\n  --password \\\n  " + planted + "\n",
		systemd.Dir + "/kubelet.service.d/more.conf": "[Service]\nEnvironment=TOKEN=" + planted + "\n",
		"/proc/cmdline":                              "quiet luks.passphrase=" + planted + "\n",
		"/proc/sys/kernel/hostname":                  "cp1\n",
	} {
		s.Put(name, content, 0o600)
	}
	for _, c := range append(commands(), etcdCommands()...) {
		s.Script(hosttest.Answer{Argv: c.argv, Stdout: "said " + c.argv[0] + "\nAuthorization: Bearer " + planted + "\n" + key + "--bootstrap-token=" + planted + "\n"})
	}
	s.Script(hosttest.Answer{Argv: []string{"nft", "list", "ruleset"}, Status: 127, Stderr: "nft: password=" + planted})
	for _, argv := range [][]string{{"uname", "-m"}, {"systemd-detect-virt"}, {"ip", "-json", "address", "show"}, {"ip", "-json", "route", "show"},
		{"date", "+%s.%N"}, {"df", "-P", "-k", "/"}, {"journalctl", "-u", "kubelet.service", "-n", "50", "-o", "cat", "--no-pager"}} {
		s.Script(hosttest.Answer{Argv: argv, Stdout: "[]"})
	}

	var out bytes.Buffer
	items, err := Collect(t.Context(), doctor.Inputs{Hosts: []doctor.Host{
		{Name: "cp1", Reader: watched{s, t}}, {Name: "../w1", Err: errors.New("no answer, token=" + planted)}}}, "v1", &out)
	if err != nil {
		t.Fatal(err)
	}
	all := unpack(t, &out)
	for name, content := range all {
		if strings.Contains(content, planted) || strings.Contains(content, "PRIVATE KEY") ||
			strings.Contains(content, base64.StdEncoding.EncodeToString([]byte(planted))) {
			t.Errorf("%s holds a secret:\n%s", name, content)
		}
		if !strings.HasPrefix(name, root+"/") || strings.Contains(name, "..") {
			t.Errorf("%s is outside", name)
		}
	}
	for name, word := range map[string]string{
		"hosts/cp1/journal/etcd.service.log":                "said journalctl",
		"hosts/cp1/journal.json":                            "me@here",
		"hosts/cp1/files/etc/cni/net.d/10-x.conflist":       "kept",
		"hosts/cp1/files/etc/kubernetes/manifests/web.yaml": "DB_PASSWORD",
		"hosts/cp1/certificates.txt":                        certs.Dir + "/ca.key",
		"hosts/cp1/etcd/status.json":                        "said /opt/kubewright",
		"findings.json":                                     "host-unreachable",
	} {
		if !strings.Contains(all[root+"/"+name], word) {
			t.Errorf("%s has no %q: %s", name, word, all[root+"/"+name])
		}
	}
	troubles := map[string]string{}
	for _, i := range items {
		troubles[i.Path] = i.Trouble
	}
	for _, name := range []string{"hosts/__w1", "hosts/cp1/net/nftables.txt", "cluster"} {
		if troubles[root+"/"+name] == "" {
			t.Errorf("nothing says that %s could not be had", name)
		}
	}
	if !json.Valid([]byte(all[root+"/index.json"])) {
		t.Error("index.json is no JSON")
	}
	if len(s.Operations()) != 0 {
		t.Errorf("the host was changed: %q", s.Operations())
	}
}

func TestObjectsWithoutSecrets(t *testing.T) {
	const ns = metav1.NamespaceSystem
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: ns, Name: name, Annotations: map[string]string{
			corev1.LastAppliedConfigAnnotation: `{"data":"` + planted + `"}`, "kept": "yes"}}
	}
	kube := fake.NewClientset(
		&corev1.Secret{ObjectMeta: meta("s"), StringData: map[string]string{"x": planted}},
		&corev1.ConfigMap{ObjectMeta: meta("config"), Data: map[string]string{"kept": "yes", "password": planted,
			"kubeconfig": "users:\n- user:\n    client-key-data: " + planted + "\n    token: " + planted + "\n"}},
		&corev1.ConfigMap{ObjectMeta: meta("join-token"), Data: map[string]string{"x": planted}},
		&corev1.Event{ObjectMeta: meta("e"), Message: "login with --token " + planted + " failed"},
		&corev1.Pod{ObjectMeta: meta("p"), Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c",
			Args: []string{"--password", planted, "--api-key=" + planted}, Env: []corev1.EnvVar{{Name: "DB_PASSWORD", Value: planted}}}}}},
	)
	a := &archive{tar: tar.NewWriter(io.Discard)}
	var out bytes.Buffer
	a.tar = tar.NewWriter(&out)
	a.objects(t.Context(), kube)
	if err := errors.Join(a.err, a.tar.Close()); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	if strings.Contains(text, planted) {
		at := strings.Index(text, planted)
		t.Errorf("a secret is left: %s", text[max(0, at-300):at+50])
	}
	if !strings.Contains(text, "kept") || !strings.Contains(text, "DB_PASSWORD") || !strings.Contains(text, "login with") {
		t.Error("what is no secret is gone, too")
	}
	for _, action := range kube.Actions() {
		if action.GetResource().Resource == "secrets" {
			t.Error("Secrets were asked for")
		}
	}
}

func unpack(t *testing.T, r io.Reader) map[string]string {
	t.Helper()
	zip, err := gzip.NewReader(r)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for archive := tar.NewReader(zip); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Mode != 0o600 {
			t.Errorf("%s has mode %o", h.Name, h.Mode)
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		all[h.Name] = string(content)
	}
}
