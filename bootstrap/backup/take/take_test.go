package take

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/kubewright/kubewright/bootstrap/backup"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/systemd"
	"github.com/kubewright/kubewright/pki"
)

func TestAdminFiles(t *testing.T) {
	for name, c := range map[string]struct {
		flags []string
		want  string
	}{
		"none":        {[]string{"--etcd-servers=x"}, "[]"},
		"one":         {[]string{"--a=b", "--encryption-provider-config=/etc/kubernetes/enc.yaml", "--z=y"}, "[/etc/kubernetes/enc.yaml (the API server's --encryption-provider-config)]"},
		"two words":   {[]string{"--encryption-provider-config", "/etc/enc.yaml"}, "[/etc/enc.yaml (the API server's --encryption-provider-config)]"},
		"another one": {[]string{"--encryption-provider-config-automatic-reload=true"}, "[]"},
		"two": {[]string{"--audit-policy-file=/etc/audit.yaml", "--audit-log-path=/var/log/audit.log", "--oidc-ca-file=/etc/own ca.crt"},
			"[/etc/audit.yaml (the API server's --audit-policy-file) /etc/own ca.crt (the API server's --oidc-ca-file)]"},
	} {
		s := hosttest.NewSim(t, "cp1")
		service := systemd.Service{Name: "kube-apiserver.service", Type: "notify", Exec: append([]string{"/opt/kube-apiserver"}, c.flags...)}
		s.Put(apiServerFile, string(service.File()), 0o644)
		tk := &taker{host: s}
		if got, err := tk.adminFiles(t.Context()); err != nil || fmt.Sprint(got) != c.want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestFilesBelow(t *testing.T) {
	s := hosttest.NewSim(t, "cp1")
	for _, p := range []string{"/ca.crt", "/etcd/ca.key", "/etcd/deep/er"} {
		s.Put(pkiDir+p, "x", 0o600)
	}
	s.PutLink("ca.crt", pkiDir+"/link")
	tk := &taker{host: s}
	got, err := tk.below(t.Context(), pkiDir)
	if err != nil || strings.Join(got, " ") != pkiDir+"/ca.crt "+pkiDir+"/etcd/ca.key "+pkiDir+"/etcd/deep/er" {
		t.Errorf("%v, %v", got, err)
	}
}

// TestFiles: what a cluster cannot be made again without is in a backup, also where it is a link; or there is no backup.
func TestFiles(t *testing.T) {
	const policy = "/etc/kubernetes/audit.yaml"
	for _, lost := range append([]string{"", policy + " (the API server's --audit-policy-file)"}, pki.CommonFiles()...) {
		s := hosttest.NewSim(t, "cp1")
		s.Put(apiServerFile, string(systemd.Service{Name: "kube-apiserver.service", Exec: []string{
			"/opt/kube-apiserver", "--audit-policy-file=" + policy, "--oidc-ca-file=" + pkiDir + "/own.crt", "--token-auth-file=" + pkiDir + "/linked.csv"}}.File()), 0o644)
		s.Put(pkiDir+"/own.crt", "in the folder of the cluster's", 0o644)
		s.Put("/srv/tokens.csv", "tokens", 0o600)
		s.PutLink("/srv/tokens.csv", pkiDir+"/linked.csv")
		if !strings.HasPrefix(lost, policy) {
			s.Put(policy, "a policy", 0o600)
		}
		s.Put("/srv/keys/ca.key", "the authority's", 0o600)
		s.Put(pkiDir+"/apiserver.crt", "x", 0o644)
		for _, name := range pki.CommonFiles() {
			if name == lost {
				continue
			}
			if name == "ca.key" {
				s.PutLink("/srv/keys/ca.key", pkiDir+"/ca.key")
				continue
			}
			s.Put(pkiDir+"/"+name, name, 0o600)
		}
		tk := &taker{host: s, into: &backup.Contents{}}
		err := tk.files(t.Context())
		if lost != "" {
			if fault.CodeOf(err) != fault.BackupRefused || !strings.Contains(err.Error(), lost) {
				t.Errorf("without %s: %v", lost, err)
			}
			continue
		}
		got := map[string]string{}
		for _, f := range tk.into.Files {
			got[f.Path] = string(f.Content)
		}
		if got[policy] != "a policy" || got[pkiDir+"/own.crt"] == "" || got[pkiDir+"/linked.csv"] != "tokens" {
			t.Errorf("the admin's files: %v", slices.Sorted(maps.Keys(got)))
		}
		if err != nil || len(got) != len(pki.CommonFiles())+4 || len(got) != len(tk.into.Files) || got[pkiDir+"/ca.key"] != "the authority's" {
			t.Errorf("%d files, ca.key is %q, %v", len(got), got[pkiDir+"/ca.key"], err)
		}
	}
}

// sent is an etcd that sends blobs.
type sent struct {
	grpc.ClientStream
	blobs [][]byte
}

func (s *sent) Recv() (*etcdserverpb.SnapshotResponse, error) {
	if len(s.blobs) == 0 {
		return nil, io.EOF
	}
	blob := s.blobs[0]
	s.blobs = s.blobs[1:]
	return &etcdserverpb.SnapshotResponse{Blob: blob}, nil
}

func TestSnapshotIsProven(t *testing.T) {
	data := bytes.Repeat([]byte("page"), 1000)
	sum := sha256.Sum256(data)
	for name, c := range map[string]struct {
		blobs [][]byte
		good  bool
	}{
		"whole":              {[][]byte{data[:10], data[10:3000], data[3000:], sum[:]}, true},
		"digest in pieces":   {[][]byte{data, sum[:5], sum[5:]}, true},
		"a piece is lost":    {[][]byte{data[:10], data[3000:], sum[:]}, false},
		"another digest":     {[][]byte{data, data[:sha256.Size]}, false},
		"without its end":    {[][]byte{data}, false},
		"less than a digest": {[][]byte{data[:3]}, false},
	} {
		s := &snapshot{stream: &sent{blobs: c.blobs}, proof: etcd.NewProof()}
		got, err := io.ReadAll(s)
		if (err == nil) != c.good || c.good && !bytes.Equal(got, append(bytes.Clone(data), sum[:]...)) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}
