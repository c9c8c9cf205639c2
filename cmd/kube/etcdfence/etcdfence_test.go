package etcdfence

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/kubewright/kubewright/bootstrap/etcd/etcdtest"
)

func TestParse(t *testing.T) {
	etcd := []string{"--name=cp1", "--data-dir=/var/lib/etcd", "--initial-advertise-peer-urls=https://10.0.0.1:2380",
		"--peer-cert-file=/pki/peer.crt", "--peer-key-file=/pki/peer.key", "--peer-trusted-ca-file=/pki/ca.crt", "--client-cert-auth=true"}
	o, rest, err := parse(append([]string{"--servers=/s.json", "--"}, etcd...), io.Discard)
	if err != nil || !slices.Equal(rest, etcd) {
		t.Fatal(rest, err)
	}
	if want := (options{"/s.json", askTime, "cp1", "/var/lib/etcd", "https://10.0.0.1:2380", "/pki/ca.crt", "/pki/peer.crt", "/pki/peer.key"}); o != want {
		t.Errorf("%+v, want %+v", o, want)
	}
	if _, _, err := parse(append([]string{"--"}, etcd[1:]...), io.Discard); err == nil || !strings.Contains(err.Error(), "--name") {
		t.Error(err)
	}
}

func TestVerdict(t *testing.T) {
	self := identity{member: 7, cluster: 1}
	list := func(cluster uint64, ids ...uint64) *etcdserverpb.MemberListResponse {
		l := &etcdserverpb.MemberListResponse{Header: &etcdserverpb.ResponseHeader{ClusterId: cluster}}
		for _, id := range ids {
			l.Members = append(l.Members, &etcdserverpb.Member{ID: id, Name: "cp"})
		}
		return l
	}
	for _, c := range []struct {
		list *etcdserverpb.MemberListResponse
		says string
	}{
		{list(1, 5, 7), ""},
		{list(1, 5, 6), "this member, 7, was taken out"},
		{list(2, 5, 7), "of etcd cluster 1, and the other control-plane hosts are members of another, 2"},
	} {
		if got := verdictOf(self, "x", c.list); got == "" && c.says != "" || !strings.Contains(got, c.says) || c.says == "" && got != "" {
			t.Errorf("%q, want %q", got, c.says)
		}
	}
}

// fenced is a member's fence.
type fenced struct {
	w    *etcdtest.World
	o    options
	said strings.Builder
	// member tells that a quorum has it.
	member bool
}

func fenceOf(w *etcdtest.World, name, peer string) *fenced {
	return &fenced{w: w, o: options{wait: time.Second, name: name, dataDir: w.Dir(name), peerURL: peer,
		caFile: filepath.Join(w.Certs, "ca.crt"), certFile: filepath.Join(w.Certs, "peer.crt"), keyFile: filepath.Join(w.Certs, "peer.key")}}
}

func (f *fenced) guard(t *testing.T) (err error) {
	t.Helper()
	f.member, err = guard(t.Context(), f.o, slog.New(slog.NewTextHandler(&f.said, nil)))
	return err
}

func TestGuard(t *testing.T) {
	w := etcdtest.New(t)
	one, two := w.FreeURL(), w.FreeURL()
	cluster := "cp1=" + one + ",cp2=" + two
	f := fenceOf(w, "cp2", two)
	if err := f.guard(t); err != nil {
		t.Errorf("a host without data: %v", err)
	}
	w.Start("cp1", one, cluster, "new", nil)
	w.Start("cp2", two, cluster, "new", nil)
	<-w.Member("cp1").Server.ReadyNotify()
	<-w.Member("cp2").Server.ReadyNotify()
	id := w.Member("cp2").Server.MemberID()
	w.Stop("cp2")
	if got, err := identify(w.Dir("cp2")); err != nil || got.member != uint64(id) || got.cluster != uint64(w.Member("cp1").Server.Cluster().ID()) {
		t.Errorf("identity %+v, %v", got, err)
	}
	if err := f.guard(t); err != nil || f.member {
		t.Errorf("without a quorum: %v, %v", f.member, err)
	}
	w.Start("cp2", two, cluster, "existing", nil)
	<-w.Member("cp2").Server.ReadyNotify()
	w.Stop("cp1")
	if err := fenceOf(w, "cp1", one).guard(t); err != nil {
		t.Errorf("the other one answers, and has no quorum: %v", err)
	}
	w.Start("cp1", one, cluster, "existing", nil)
	<-w.Member("cp1").Server.ReadyNotify()

	// A third member makes up the quorum, so that one can be off while it is asked for.
	three := w.FreeURL()
	if _, err := w.Member("cp1").Server.AddMember(t.Context(), *membership.NewMember("", types.MustNewURLs([]string{three}), "", nil)); err != nil {
		t.Fatal(err)
	}
	w.Start("cp3", three, cluster+",cp3="+three, "existing", nil)
	<-w.Member("cp3").Server.ReadyNotify()
	w.Stop("cp2")
	if err := f.guard(t); err != nil || !f.member {
		t.Errorf("a member of a quorum: %v, %v", f.member, err)
	}

	if _, err := w.Member("cp1").Server.RemoveMember(t.Context(), uint64(id)); err != nil {
		t.Fatal(err)
	}
	var out *fencedError
	if err := f.guard(t); !errors.As(err, &out) || !strings.Contains(out.reason, "was taken out of its cluster") {
		t.Fatalf("it was taken out: %v", err)
	}
	// From then on nobody is asked.
	for _, name := range []string{"cp1", "cp3"} {
		w.Stop(name)
	}
	again := f.guard(t)
	if again == nil || again.Error() != out.reason {
		t.Errorf("%v, want %s", again, out.reason)
	}
	mark, err := os.ReadFile(filepath.Join(w.Dir("cp2"), File))
	if err != nil || !strings.Contains(string(mark), "kubewright reset HOST") {
		t.Errorf("%s, %v", mark, err)
	}
	if left, _ := filepath.Glob(filepath.Join(w.Dir("cp2"), "."+File+"*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestNeighbours(t *testing.T) {
	dir := t.TempDir()
	content, err := json.Marshal(map[string][]string{"servers": {"10.0.0.1:6443", "10.0.0.2:6443", "10.0.0.3:6443"}})
	if err != nil {
		t.Fatal(err)
	}
	o := options{servers: filepath.Join(dir, "servers.json"), dataDir: dir, peerURL: "https://10.0.0.2:2380"}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if got := neighbours(o, log); len(got) > 0 {
		t.Errorf("without a file: %v", got)
	}
	if err := os.WriteFile(o.servers, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := neighbours(o, log); !slices.Equal(got, []string{"10.0.0.1:2379", "10.0.0.3:2379"}) {
		t.Error(got)
	}
}

// TestSilence: one that lets the question wait does not keep etcd from starting.
func TestSilence(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // nobody is served
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if member, out := ask(ctx, identity{}, []string{l.Addr().String()}, insecure.NewCredentials(), slog.New(slog.NewTextHandler(io.Discard, nil))); member || out != "" {
		t.Error(member, out)
	}
}
