package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kubewright/kubewright/lab"
)

// squatter takes etcd's port when its unit is about to start: after every check of
// a preflight. It outlives the unit.
const squatter = `[Service]
ExecStartPre=-/usr/bin/systemd-run --quiet --collect --unit=squatter systemd-socket-activate --accept --inetd --listen=127.0.0.1:2379 /bin/true
`

// ailment is a finding as doctor prints it.
type ailment struct {
	Code, Severity, Host, Object, Message, Cause, Remedy string
	Log                                                  []string
}

func (s ailment) String() string {
	return fmt.Sprintf("%s %s %s %s: %s", s.Severity, s.Code, s.Host, s.Object, s.Message)
}

// doctor runs it and returns what it found, and its exit status.
func (e *env) doctor(t testing.TB, hosts ...string) ([]ailment, int) {
	t.Helper()
	r := e.kubewright(t, append([]string{"doctor", "-o", "json"}, hosts...)...)
	var found []ailment
	if err := json.Unmarshal([]byte(r.stdout), &found); err != nil {
		t.Fatalf("doctor: %v\n%s", err, r.output())
	}
	return found, r.exit
}

// healthy waits until doctor has nothing to say.
func (e *env) healthy(t testing.TB) {
	t.Helper()
	eventually(t, 90*time.Second, "doctor finds nothing", func() string {
		found, exit := e.doctor(t)
		if len(found) == 0 && exit == 0 {
			return ""
		}
		// That a component was started anew is told for ten minutes: it was this test.
		others := slices.DeleteFunc(slices.Clone(found), func(s ailment) bool { return s.Code == "unit-restarting" && s.Severity == "warning" })
		if len(others) == 0 && exit == 0 {
			return ""
		}
		return fmt.Sprintf("exit %d: %v", exit, found)
	})
}

// write writes a file on a host.
func (e *env) write(t testing.TB, host, path, content string) {
	t.Helper()
	var stderr bytes.Buffer
	status, err := e.lab.Exec(t.Context(), host, []string{"install", "-D", "-m", "0644", "/dev/stdin", path}, strings.NewReader(content), io.Discard, &stderr)
	if err != nil || status != 0 {
		t.Fatalf("write %s: %d, %v, %s", path, status, err, stderr.String())
	}
}

// TestHealth has a cluster that explains itself: a start that fails, a doctor who
// finds nothing wrong until something is broken, and then that, and a support bundle
// without the secrets that were planted.
func TestHealth(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "health", Hosts: 2})
	cp, worker := e.host(1), e.host(2)

	t.Run("a unit that cannot start says why", func(t *testing.T) {
		e.write(t, cp, "/etc/systemd/system/etcd.service.d/squatter.conf", squatter)
		r := e.kubewright(t, "init", cp, "--name", "health")
		if r.exit != 13 {
			t.Errorf("exit %d", r.exit)
		}
		for _, want := range []string{cp + ": controlplane/start", "probable cause: another program", "| ", "address already in use",
			"remedy: ", "kubewright explain port-in-use", "code: step-failed"} {
			if !strings.Contains(r.stderr, want) {
				t.Errorf("it does not say %q", want)
			}
		}
		if t.Failed() {
			t.Log(r.output())
		}
		if x := e.must(t, "explain", "port-in-use"); !strings.Contains(x.stdout, "What to do:") {
			t.Errorf("explain: %s", x.output())
		}
		e.on(t, cp, "rm", "-r", "/etc/systemd/system/etcd.service.d")
		e.on(t, cp, "systemctl", "daemon-reload")
		e.on(t, cp, "systemctl", "stop", "squatter.service")
	})
	e.must(t, "init", cp, "--name", "health")
	e.must(t, "join", worker)
	e.healthy(t)

	for _, b := range []struct {
		name        string
		do, undo    func(t *testing.T)
		host        string
		code        string
		object      string // a part of it
		named       bool   // the API does not say which hosts there are
		causeAndLog bool
	}{
		{name: "the node agent is stopped", host: worker, code: "unit-failed", object: "kubelet.service", causeAndLog: true,
			do:   func(t *testing.T) { e.on(t, worker, "systemctl", "stop", "kubelet") },
			undo: func(t *testing.T) { e.on(t, worker, "systemctl", "start", "kubelet") }},
		{name: "a configuration is spoiled", host: worker, code: "configuration-refused", object: "kubelet.service", causeAndLog: true,
			do: func(t *testing.T) {
				e.on(t, worker, "cp", "-p", "/var/lib/kubelet/config.yaml", "/root/kept.yaml")
				e.write(t, worker, "/var/lib/kubelet/config.yaml", "kind: Nonsense\n")
				e.on(t, worker, "systemctl", "restart", "--no-block", "kubelet")
			},
			undo: func(t *testing.T) {
				e.on(t, worker, "mv", "/root/kept.yaml", "/var/lib/kubelet/config.yaml")
				e.on(t, worker, "systemctl", "restart", "kubelet")
			}},
		{name: "the pod network's configuration is gone", host: worker, code: "cni-not-ready", object: "/etc/cni/net.d",
			do: func(t *testing.T) { e.on(t, worker, "mv", "/etc/cni/net.d/10-kubewright.conflist", "/root/") },
			// containerd reads it again when it is written, not when it is moved there.
			undo: func(t *testing.T) { e.on(t, worker, "cp", "/root/10-kubewright.conflist", "/etc/cni/net.d/") }},
		{name: "the pod network's image is missing", code: "image-missing", object: "kube-system/overlay-",
			do: func(t *testing.T) {
				e.kubectl(t, "-n", "kube-system", "set", "image", "daemonset/overlay", "overlay=kubewright.dev/absent:v1")
			},
			undo: func(t *testing.T) { e.kubectl(t, "-n", "kube-system", "rollout", "undo", "daemonset/overlay") }},
		{name: "another bundle is in use", host: worker, code: "bundle-mismatch", object: "/opt/kubewright/current",
			do: func(t *testing.T) {
				e.on(t, worker, "cp", "-P", "/opt/kubewright/current", "/root/kept")
				e.on(t, worker, "ln", "-sfn", "v0.0.0", "/opt/kubewright/current")
			},
			undo: func(t *testing.T) { e.on(t, worker, "mv", "-T", "/root/kept", "/opt/kubewright/current") }},
		{name: "a certificate has ended", host: cp, code: "certificate-expired", object: "front-proxy-client.crt",
			do: func(t *testing.T) {
				e.on(t, cp, "cp", "-p", "/etc/kubernetes/pki/front-proxy-client.crt", "/root/kept.crt")
				e.write(t, cp, "/etc/kubernetes/pki/front-proxy-client.crt", expired(t))
			},
			undo: func(t *testing.T) { e.on(t, cp, "mv", "/root/kept.crt", "/etc/kubernetes/pki/front-proxy-client.crt") }},
		{name: "the node does not reach the API", host: worker, code: "api-unreachable-from-node",
			do: func(t *testing.T) {
				e.on(t, worker, "nft", "add", "table", "inet", "blockade")
				e.on(t, worker, "nft", "add", "chain", "inet", "blockade", "out", "{ type filter hook output priority 0; }")
				e.on(t, worker, "nft", "add", "rule", "inet", "blockade", "out", "tcp", "dport", "6443", "reject")
			},
			undo: func(t *testing.T) { e.on(t, worker, "nft", "delete", "table", "inet", "blockade") }},
		{name: "etcd is stopped", host: cp, code: "unit-failed", object: "etcd.service", named: true, causeAndLog: true,
			do:   func(t *testing.T) { e.on(t, cp, "systemctl", "stop", "etcd") },
			undo: func(t *testing.T) { e.on(t, cp, "systemctl", "start", "etcd") }},
	} {
		t.Run(b.name, func(t *testing.T) {
			b.do(t)
			var hosts []string
			if b.named {
				hosts = []string{cp, worker}
			}
			eventually(t, 30*time.Second, b.code, func() string {
				found, exit := e.doctor(t, hosts...)
				i := slices.IndexFunc(found, func(s ailment) bool {
					return s.Code == b.code && s.Host == b.host && strings.Contains(s.Object, b.object)
				})
				if i < 0 || exit != 19 {
					return fmt.Sprintf("exit %d: %v", exit, found)
				}
				if f := found[i]; f.Remedy == "" || f.Cause == "" || b.causeAndLog && len(f.Log) == 0 {
					t.Errorf("it lacks cause, remedy or log: %+v", f)
				}
				return ""
			})
			b.undo(t)
			e.healthy(t)
		})
	}

	t.Run("a support bundle without secrets", func(t *testing.T) { e.supportBundle(t) })
}

// expired is a certificate that ended an hour ago.
func expired(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// planted is the word that every planted secret contains.
const planted = "plAnted7Secret"

// supportBundle plants secrets wherever people leave them, collects, and searches.
func (e *env) supportBundle(t *testing.T) {
	cp, worker := e.host(1), e.host(2)
	key := "-----BEGIN EC PRIVATE KEY-----\n" + planted + "\n-----END EC PRIVATE KEY-----\n"
	e.write(t, worker, "/etc/systemd/system/kubelet.service.d/planted.conf",
		"[Service]\nEnvironment=\"REGISTRY_PASSWORD="+planted+" and "+planted+"\"\nExecStartPre=/bin/echo Authorization: Bearer "+planted+"\n")
	e.on(t, worker, "systemctl", "daemon-reload")
	e.on(t, worker, "systemctl", "restart", "kubelet")
	e.write(t, worker, "/etc/cni/net.d/planted.key", key)
	e.write(t, worker, "/etc/cni/net.d/planted.txt", "config:\n"+key+"\nclient-key-data: "+planted+"\n")
	e.write(t, worker, "/etc/kubernetes/manifests/planted.txt", "env:\n- name: API_TOKEN\n  value: "+planted+"\npassword: |\n  "+planted+"\n")
	objects := filepath.Join(e.dir, "planted.yaml")
	if err := os.WriteFile(objects, []byte(fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: planted, namespace: kube-system}
stringData: {word: %[1]s}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: planted, namespace: kube-system}
data:
  password: %[1]s
  kubeconfig: "users:\n- user:\n    client-key-data: %[1]s\n    token: %[1]s\n"
---
apiVersion: v1
kind: ConfigMap
metadata: {name: my-tokens, namespace: kube-system}
data: {first: %[1]s}
---
apiVersion: v1
kind: Event
metadata: {name: planted, namespace: kube-system}
involvedObject: {kind: Pod, namespace: kube-system, name: planted}
type: Warning
reason: Planted
message: "login with --token=%[1]s failed"
---
apiVersion: v1
kind: Pod
metadata: {name: planted, namespace: kube-system}
spec:
  containers:
  - name: c
    image: kubewright.dev/pause:v1
    imagePullPolicy: Never
    args: [--password, %[1]s]
    env: [{name: DB_PASSWORD, value: %[1]s}]
`, planted)), 0o600); err != nil {
		t.Fatal(err)
	}
	e.kubectl(t, "apply", "-f", objects)

	file := filepath.Join(e.dir, "support.tar.gz")
	e.must(t, "support-bundle", "--file", file)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", info, err)
	}
	all := unpack(t, file)
	for name, content := range all {
		for _, secret := range []string{planted, "PRIVATE KEY"} {
			if at := strings.Index(content, secret); at >= 0 {
				t.Errorf("%s holds a secret: %s", name, content[max(0, at-200):min(len(content), at+100)])
			}
		}
		if strings.Contains(name, "planted.key") || strings.HasSuffix(name, ".key") || strings.Contains(name, "admin.conf") {
			t.Errorf("%s was collected", name)
		}
	}
	for name, word := range map[string]string{
		"cluster/nodes.json":                                      worker,
		"cluster/events.json":                                     "login with",
		"cluster/pods.json":                                       "DB_PASSWORD",
		"cluster/configmaps.json":                                 "kubewright",
		"findings.json":                                           "[",
		"hosts/" + cp + "/journal/etcd.service.log":               "etcd",
		"hosts/" + cp + "/etcd/status.json":                       "dbSize",
		"hosts/" + cp + "/certificates.txt":                       "subject CN=kube",
		"hosts/" + cp + "/units.json":                             "kube-apiserver.service",
		"hosts/" + worker + "/journal/kubelet.service.log":        "[secret]",
		"hosts/" + worker + "/facts.json":                         "Hostname",
		"hosts/" + worker + "/net/nftables.txt":                   "kube-proxy",
		"hosts/" + worker + "/files/var/lib/kubewright/host.json": "clusterID",
		"hosts/" + worker + "/files/etc/systemd/system/kubelet.service.d/planted.conf": "REGISTRY_PASSWORD=[secret]",
		"hosts/" + worker + "/files/etc/kubernetes/manifests/planted.txt":              "API_TOKEN",
	} {
		if !strings.Contains(all["kubewright-support/"+name], word) {
			t.Errorf("%s has no %q: %.300s", name, word, all["kubewright-support/"+name])
		}
	}

	// A host that is away is told, and does not keep the rest.
	if err := e.lab.Kill(t.Context(), worker); err != nil {
		t.Fatal(err)
	}
	r := e.must(t, "support-bundle", "--file", file)
	if !strings.Contains(r.stderr, "not reached: "+worker) {
		t.Errorf("it does not say that a host is missing: %s", r.output())
	}
	if all := unpack(t, file); all["kubewright-support/hosts/"+cp+"/units.json"] == "" || !strings.Contains(all["kubewright-support/findings.json"], "host-unreachable") {
		t.Error("the rest was not collected")
	}
}

// unpack reads a compressed archive: content by name.
func unpack(t *testing.T, name string) map[string]string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // only read from
	zip, err := gzip.NewReader(f)
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
		content, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		all[h.Name] = string(content)
	}
}
