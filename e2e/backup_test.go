package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kubewright/kubewright/lab"
)

// verification is what `backup verify -o json` prints.
type verification struct {
	Manifest struct {
		Data struct {
			Revision int64
			Exact    bool
		}
		Kinds []struct{ Resource, Group string }
	}
	Equal, HashEqual bool
	Keys             int64
	Kinds            []struct {
		Name             string
		Backup, Restored int
	}
}

// objects of a kind in the backup.
func (v verification) objects(kind string) int {
	for _, k := range v.Kinds {
		if k.Name == kind {
			return k.Backup
		}
	}
	return 0
}

// listedBackups is what `backup list -o json` prints.
type listedBackups struct {
	Hosts []struct {
		Host    string
		Backups []struct{ Name string }
	}
	Missed string
}

// names are those of the backups, a host a line.
func (l listedBackups) names() string {
	var b strings.Builder
	for _, h := range l.Hosts {
		b.WriteString(h.Host + ":")
		for _, f := range h.Backups {
			b.WriteString(" " + f.Name)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// encryption is an EncryptionConfiguration: without the file no Secret can be read.
const encryption = `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - aescbc: {keys: [{name: one, secret: a3ViZXdyaWdodCBlMmUga2V5IG9mIDMyIGJ5dGVzISE=}]}
  - identity: {}
`

// policy is an audit policy: without the file no API server starts that is told of it.
const policy = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Metadata\n"

const (
	encryptionFile = "/etc/kubernetes/encryption.yaml"
	policyFile     = "/etc/kubernetes/audit/policy.yaml"
)

// writeAdminFiles writes what flags of the API server in backupSpec name.
func (e *env) writeAdminFiles(t testing.TB, host string) {
	t.Helper()
	e.write(t, host, encryptionFile, encryption)
	e.write(t, host, policyFile, policy)
}

// widgets is a kind of the user's own with an object.
const widgets = `{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition",
"metadata":{"name":"widgets.example.com"},"spec":{"group":"example.com","scope":"Namespaced",
"names":{"plural":"widgets","singular":"widget","kind":"Widget"},"versions":[
{"name":"v1","served":true,"storage":false,"schema":{"openAPIV3Schema":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}},
{"name":"v1beta1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}]}}]}`

const widget = `{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"one"},"size":3}`

// backupSpec is the cluster file of the tests here, with hosts control-plane ones and workers.
func (e *env) backupSpec(t testing.TB, controlPlanes, workers []string, rest string) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("apiVersion: kubewright.dev/v1alpha1\nkind: Cluster\nname: kept\nhosts:\n")
	for _, h := range controlPlanes {
		fmt.Fprintf(&b, "- {name: %s, role: control-plane}\n", h)
	}
	for _, h := range workers {
		fmt.Fprintf(&b, "- {name: %s, role: worker}\n", h)
	}
	b.WriteString("apiServer:\n  extraArgs: {encryption-provider-config: " + encryptionFile + ", audit-policy-file: " + policyFile + "}\n" + rest)
	file := filepath.Join(e.dir, "backup.yaml")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// keygen makes a key for backups.
func (e *env) keygen(t testing.TB) (identity, recipient string) {
	t.Helper()
	identity = filepath.Join(e.dir, "backup.key")
	return identity, strings.TrimSpace(e.must(t, "backup", "keygen", identity).stdout)
}

// verified verifies a backup, and fails the test unless it is good.
func (e *env) verified(t testing.TB, file, identity string) verification {
	t.Helper()
	var v verification
	if err := json.Unmarshal([]byte(e.must(t, "backup", "verify", file, "--identity", identity, "-o", "json").stdout), &v); err != nil {
		t.Fatal(err)
	}
	if !v.Equal || !v.HashEqual || v.Keys == 0 {
		t.Fatalf("%+v", v)
	}
	return v
}

// noPlain fails the test if a trial left anything in memory.
func noPlain(t testing.TB) {
	t.Helper()
	left, err := filepath.Glob("/dev/shm/kubewright-trial-*")
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// TestBackup takes backups of a cluster with encrypted Secrets and a kind of its own, while it
// is written to, and proves them; damaged ones are refused.
func TestBackup(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "backup", Hosts: 1})
	cp := e.host(1)
	e.writeAdminFiles(t, cp)
	identity, recipient := e.keygen(t)
	schedule := "backup: {schedule: yearly, keep: 2, recipients: [" + recipient + "]}\n"
	e.must(t, "init", "-f", e.backupSpec(t, []string{cp}, nil, schedule))
	e.apply(t, widgets)
	eventually(t, time.Minute, "the kind is served", func() string { return e.tryApply(t, widget) })
	e.kubectl(t, "create", "secret", "generic", "hidden", "--from-literal=word=sesame-in-the-clear")
	file := filepath.Join(e.dir, "kept.kwbackup")

	t.Run("taken while the cluster is written to, and proven", func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		written := make(chan int)
		go func() {
			n := 0
			for ; ctx.Err() == nil; n++ {
				e.try(t, "create", "configmap", fmt.Sprintf("busy-%d", n))
			}
			written <- n
		}()
		e.must(t, "backup", "-o", file, "--recipient", recipient)
		stop()
		if n := <-written; n == 0 {
			t.Error("nothing was written meanwhile")
		}
		v := e.verified(t, file, identity)
		if v.objects("widgets.example.com") != 1 || v.objects("secrets") == 0 || v.objects("events") == 0 || v.objects("events.events.k8s.io") != 0 {
			t.Errorf("%+v", v.Kinds)
		}
		noPlain(t)
	})
	t.Run("quiet, it is of one revision", func(t *testing.T) {
		e.must(t, "backup", cp, "-o", file, "--force", "--recipient", recipient)
		if v := e.verified(t, file, identity); !v.Manifest.Data.Exact {
			t.Errorf("%+v", v.Manifest)
		}
	})
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("secret, and not overwritten", func(t *testing.T) {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info, err)
		}
		for _, plain := range []string{"sesame", "PRIVATE KEY", "registry"} {
			if bytes.Contains(content, []byte(plain)) {
				t.Errorf("the file shows %q", plain)
			}
		}
		refused{2, []string{"file already exists", "--force"}}.check(t, e.kubewright(t, "backup", "-o", file, "--recipient", recipient))
	})
	t.Run("elsewhere, without root, without the cluster", func(t *testing.T) {
		dir, err := os.MkdirTemp("", "kubewright-elsewhere-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		key, err := os.ReadFile(identity)
		if err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string][]byte{"b": content, "key": key} {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{program(t), "../dist"} { // where a user finds them
			if err := exec.Command("cp", "-r", f, dir).Run(); err != nil {
				t.Fatal(err)
			}
		}
		r := run(t.Context(), t, "", nil, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "-i", "-C", dir, "HOME="+dir,
			"./kubewright", "backup", "verify", "b", "--identity", "key")
		if r.exit != 0 || !strings.Contains(r.stdout, "can be restored") {
			t.Errorf("exit %d\n%s", r.exit, r.output())
		}
		noPlain(t)
	})
	t.Run("damaged, or another's", func(t *testing.T) {
		bad := filepath.Join(e.dir, "bad")
		flipped := bytes.Clone(content)
		flipped[len(flipped)/2] ^= 1
		for _, content := range [][]byte{flipped, content[:len(content)-1]} {
			if err := os.WriteFile(bad, content, 0o600); err != nil {
				t.Fatal(err)
			}
			refused{23, []string{"it is cut short or altered", "copy it again"}}.check(t, e.kubewright(t, "backup", "verify", bad, "--identity", identity))
		}
		other := filepath.Join(e.dir, "other.key")
		e.must(t, "backup", "keygen", other)
		refused{23, []string{"none of the given keys opens it", "--identity"}}.check(t, e.kubewright(t, "backup", "verify", file, "--identity", other))
		noPlain(t)
	})
	t.Run("on the host, by its timer", func(t *testing.T) {
		var files []string
		for range 3 {
			e.on(t, cp, "systemctl", "start", "kubewright-backup.service")
			files = strings.Fields(e.on(t, cp, "ls", "/var/backups/kubewright"))
		}
		if len(files) != 2 {
			t.Errorf("%v are kept", files)
		}
		if log := e.on(t, cp, "journalctl", "-u", "kubewright-backup.service", "-o", "cat"); !strings.Contains(log, "read back and proven: cluster kept") {
			t.Errorf("%s", log)
		}
		if got := e.on(t, cp, "systemctl", "is-enabled", "kubewright-backup.timer"); got != "enabled" {
			t.Errorf("the timer is %s", got)
		}
		var list listedBackups
		if err := json.Unmarshal([]byte(e.must(t, "backup", "list", "-o", "json").stdout), &list); err != nil {
			t.Fatal(err)
		}
		if list.names() != cp+": "+strings.Join(files, " ")+"\n" || list.Missed != "" {
			t.Errorf("listed: %+v, kept: %v", list, files)
		}
		if r := e.must(t, "backup", "list", cp, "127.0.0.1:1"); !strings.Contains(r.stdout, files[0]) || !strings.Contains(r.stdout, "127.0.0.1:1") {
			t.Errorf("with a host that is not there: %s", r.output())
		}
		if r := e.must(t, "status"); !strings.Contains(r.stdout, "yearly") {
			t.Errorf("%s", r.output())
		}

		newest := filepath.Join(e.dir, "newest")
		e.must(t, "backup", "fetch", "--latest", "-o", newest)
		e.verified(t, newest, identity)
		content, err := os.ReadFile(newest)
		if err != nil || string(content) != e.raw(t, cp, "cat", "/var/backups/kubewright/"+slices.Max(files)) {
			t.Errorf("it is not the newest one on the host, %v", err)
		}
		if info, err := os.Stat(newest); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info, err)
		}
		refused{2, []string{"file already exists", "--force"}}.check(t, e.kubewright(t, "backup", "fetch", cp+":"+files[0], "-o", newest))
		refused{2, []string{"has nothing", "backup list"}}.check(t, e.kubewright(t, "backup", "fetch", cp+":nothing", "-o", newest, "--force"))
		e.must(t, "backup", "fetch", cp+":"+files[0], "-o", newest, "--force")
		e.verified(t, newest, identity)
	})
	t.Run("backups that ceased are told", func(t *testing.T) {
		quiet := e.kubewright(t, "doctor")
		if strings.Contains(quiet.output(), "backup-") {
			t.Errorf("%s", quiet.output())
		}
		e.on(t, cp, "sh", "-c", "rm /var/backups/kubewright/*; touch -d '3 years ago' /etc/systemd/system/kubewright-backup.timer")
		refused{19, nil}.check(t, e.kubewright(t, "doctor"))
		if r := e.kubewright(t, "doctor"); !strings.Contains(r.stdout, "backup-old") || !strings.Contains(r.stdout, "no scheduled backup of this cluster is on its hosts") {
			t.Errorf("%s", r.output())
		}
		if r := e.must(t, "backup", "list"); !strings.Contains(r.stdout, "a younger one should have been made at 20") {
			t.Errorf("%s", r.output())
		}
		e.on(t, cp, "systemctl", "start", "kubewright-backup.service")
		if r := e.kubewright(t, "doctor"); strings.Contains(r.output(), "backup-") {
			t.Errorf("%s", r.output())
		}
	})
	t.Run("again, nothing changes", func(t *testing.T) {
		if s := e.counted(t, "apply", "-f", filepath.Join(e.dir, "backup.yaml")); s.Applied != 0 {
			t.Errorf("%+v", s)
		}
	})
	t.Run("the timer goes with the wish, the backups stay", func(t *testing.T) {
		e.must(t, "apply", "-f", e.backupSpec(t, []string{cp}, nil, ""))
		if s := e.exitOn(t, cp, "systemctl", "cat", "kubewright-backup.timer"); s == 0 {
			t.Error("it is there")
		}
		if got := e.on(t, cp, "ls", "/var/backups/kubewright"); got == "" {
			t.Error("the backups are gone")
		}
	})
	t.Run("a reset leaves the host as it was, and the backups", func(t *testing.T) {
		e.must(t, "init", "-f", e.backupSpec(t, []string{cp}, nil, schedule))
		e.must(t, "reset", cp)
		if s := e.exitOn(t, cp, "systemctl", "cat", "kubewright-backup.timer"); s == 0 {
			t.Error("the timer is there")
		}
		if got := e.on(t, cp, "ls", "/var/backups/kubewright"); got == "" {
			t.Error("the backups are gone")
		}
	})
}

// apply has objects applied, as kubectl reads them from standard input.
func (e *env) apply(t testing.TB, objects string) {
	t.Helper()
	if trouble := e.tryApply(t, objects); trouble != "" {
		t.Fatal(trouble)
	}
}

// tryApply returns what kubectl said if it failed.
func (e *env) tryApply(t testing.TB, objects string) string {
	t.Helper()
	r := run(t.Context(), t, objects, []string{"KUBECONFIG=" + e.kubeconfig}, program(t), "kubectl", "apply", "-f", "-")
	if r.exit == 0 {
		return ""
	}
	return r.output()
}

// raw is what a command on a host writes, with its last byte.
func (e *env) raw(t testing.TB, host string, argv ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status, err := e.lab.Exec(t.Context(), host, argv, nil, &stdout, &stderr)
	if err != nil || status != 0 {
		t.Fatalf("%s: %s: %d, %v\n%s", host, strings.Join(argv, " "), status, err, stderr.String())
	}
	return stdout.String()
}

// TestRestore loses a whole control plane and makes it again from a backup, on other hosts, under
// workers that live on; and then loses two of three members of etcd, and goes on with the third.
func TestRestore(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "backupr", Hosts: 7})
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(e.dump())
		}
	})
	old, worker, fresh := []string{e.host(1), e.host(2), e.host(3)}, e.host(4), []string{e.host(5), e.host(6), e.host(7)}
	e.writeAdminFiles(t, old[0]) // the others get them from there
	identity, recipient := e.keygen(t)
	e.must(t, "init", "-f", e.backupSpec(t, old, []string{worker}, ""))
	e.apply(t, pinned("before", worker))
	e.kubectl(t, "wait", "--for=condition=Ready", "pod/before", "--timeout=60s")
	e.apply(t, widgets)
	eventually(t, time.Minute, "the kind is served", func() string { return e.tryApply(t, widget) })
	e.kubectl(t, "create", "secret", "generic", "hidden", "--from-literal=word=sesame")
	started := e.kubectl(t, "get", "pod", "before", "-o", "jsonpath={.metadata.uid} {.status.containerStatuses[0].containerID}")
	file := filepath.Join(e.dir, "kept.kwbackup")
	e.must(t, "backup", "-o", file, "--recipient", recipient)
	e.kubectl(t, "create", "configmap", "too-late")
	restore := []string{"restore", file, "--identity", identity, "--hosts", strings.Join(fresh, ",")}

	ok := true
	step := func(name string, f func(*testing.T)) {
		ok = ok && t.Run(name, f)
		if !ok {
			t.Fatal("later steps need this one")
		}
	}
	step("not while it lives", func(t *testing.T) {
		refused{2, []string{"the cluster is not lost", old[0], "--force"}}.check(t, e.kubewright(t, restore...))
		refused{20, []string{"the quorum still answers", "3 voting members"}}.check(t, e.kubewright(t, "recover", "--from", old[0], "--yes"))
	})
	step("no backup without a file that the API server does not start without", func(t *testing.T) {
		e.on(t, old[0], "mv", policyFile, policyFile+".away")
		refused{23, []string{"no cluster could be made again from the backup", policyFile + " (the API server's --audit-policy-file)"}}.check(t,
			e.kubewright(t, "backup", old[0], "-o", filepath.Join(e.dir, "none.kwbackup"), "--recipient", recipient))
		e.on(t, old[0], "mv", policyFile+".away", policyFile)
	})
	step("on new addresses, all objects", func(t *testing.T) {
		for _, h := range old {
			if err := e.lab.Kill(t.Context(), h); err != nil {
				t.Fatal(err)
			}
		}
		if r := e.must(t, append(restore, "-o", "plain")...); !strings.Contains(r.stdout, "as in the backup") {
			t.Errorf("%s", r.output())
		}
		if got := e.kubectl(t, "get", "secret", "hidden", "-o", "jsonpath={.data.word}"); got != "c2VzYW1l" {
			t.Errorf("the secret is %q", got)
		}
		if r := e.try(t, "get", "configmap", "too-late"); r.exit == 0 {
			t.Error("what was made after the backup is there")
		}
		e.kubectl(t, "get", "widget", "one")
		for _, h := range fresh {
			for file, content := range map[string]string{encryptionFile: encryption, policyFile: policy} {
				if got := e.raw(t, h, "cat", file); got != content {
					t.Errorf("%s on %s: %q", file, h, got)
				}
				if mode := strings.TrimSpace(e.on(t, h, "stat", "-c", "%a %U", file)); mode != "600 root" {
					t.Errorf("%s on %s is %s", file, h, mode)
				}
			}
		}
	})
	step("the old control plane is forgotten, and the worker led to the new one", func(t *testing.T) {
		if got := strings.Fields(e.kubectl(t, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}")); !slices.Equal(got, append([]string{worker}, fresh...)) {
			t.Errorf("nodes: %v", got)
		}
		e.allReady(t, append([]string{worker}, fresh...))
		if got := e.kubectl(t, "get", "pod", "before", "-o", "jsonpath={.metadata.uid} {.status.containerStatuses[0].containerID}"); got != started {
			t.Errorf("the pod was started anew: %q, before %q", got, started)
		}
		if got := e.kubectl(t, "get", "pods", "-A", "-o", "jsonpath={.items[*].spec.nodeName}"); strings.Contains(got, old[0]) || strings.Contains(got, old[1]) || strings.Contains(got, old[2]) {
			t.Errorf("pods are thought to be on %s", got)
		}
		e.apply(t, pinned("after", worker))
		e.kubectl(t, "wait", "--for=condition=Ready", "pod/after", "--timeout=60s")
		e.kubectl(t, "delete", "pod", "after", "--timeout=60s")
	})
	step("again, nothing changes, and what was counted is told", func(t *testing.T) {
		if s := e.counted(t, restore...); s.Applied != 0 {
			t.Errorf("%+v", s)
		}
		if r := e.must(t, append(restore, "-o", "plain")...); !strings.Contains(r.stdout, "as in the backup") {
			t.Errorf("%s", r.output())
		}
	})
	step("a run that was broken off before it had counted is followed by one that does", func(t *testing.T) {
		e.kubectl(t, "create", "configmap", "since")
		e.on(t, fresh[0], "rm", "/var/lib/etcd/member/restored-count.json")
		if r := e.must(t, append(restore, "-o", "plain")...); !strings.Contains(r.stdout, "as in the backup") {
			t.Errorf("%s", r.output())
		}
	})

	left := fresh[0]
	step("two of three members are lost: asked first, then recovered", func(t *testing.T) {
		e.kubectl(t, "create", "configmap", "agreed")
		for _, h := range fresh[1:] {
			if err := e.lab.Kill(t.Context(), h); err != nil {
				t.Fatal(err)
			}
		}
		refused{2, []string{"only member", fresh[1], "--yes"}}.check(t, e.kubewright(t, "recover", "--from", left))
		r := e.must(t, "recover", "--from", left, "--yes", "-o", "plain")
		for _, want := range []string{"/var/lib/etcd-before-recover-", "kubewright remove " + fresh[1], "join --control-plane"} {
			if !strings.Contains(r.stdout, want) {
				t.Errorf("it does not say %q:\n%s", want, r.output())
			}
		}
		e.kubectl(t, "get", "configmap", "agreed")
		if s := e.counted(t, "recover", "--from", left, "--yes"); s.Applied != 0 {
			t.Errorf("again: %+v", s)
		}
		if got := e.on(t, left, "sh", "-c", "ls -d /var/lib/etcd-before-recover-*/member"); got == "" {
			t.Error("there is no copy of the data")
		}
	})
	step("the lost ones are fenced, and take their place again", func(t *testing.T) {
		e.powerOn(t, fresh[1])
		eventually(t, time.Minute, "etcd is fenced", func() string {
			if s := e.exitOn(t, fresh[1], "test", "-e", "/var/lib/etcd/FENCED"); s != 0 {
				return "there is no fence"
			}
			return ""
		})
		e.must(t, "remove", fresh[1], "--force")
		e.must(t, "join", "--control-plane", fresh[1])
		e.allReady(t, []string{left, fresh[1], worker})
	})
	step("a reset takes the copy away", func(t *testing.T) {
		e.must(t, "reset", left, fresh[1], worker, "--force")
		if got := e.on(t, left, "sh", "-c", "ls -d /var/lib/etcd-before-recover-* 2>/dev/null || true"); got != "" {
			t.Errorf("left: %s", got)
		}
	})
}

// pinned is a pod on a node.
func pinned(name, node string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":%q},"spec":{"nodeName":%q,"terminationGracePeriodSeconds":1,
"containers":[{"name":"pause","image":"kubewright.dev/pause:v1","imagePullPolicy":"Never"}]}}`, name, node)
}
