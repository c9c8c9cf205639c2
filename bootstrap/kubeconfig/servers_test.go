package kubeconfig

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/pki"
)

const (
	first, second, endpoint = "192.0.2.1:6443", "192.0.2.2:6443", "https://api.example.com:6443"
	other                   = "apiVersion: v1\nkind: Config\nclusters:\n- name: other\n  cluster:\n    server: https://203.0.113.1:6443\n" +
		"    extensions:\n    - name: minikube.sigs.k8s.io\n      extension: {version: v1}\n"
)

// admin is an admin's access to a server of a new cluster.
func admin(t *testing.T) cluster.Access {
	t.Helper()
	b, err := pki.NewBundle(pki.Inputs{Node: "cp1", Address: netip.MustParseAddr("192.0.2.1"), ServiceIP: netip.MustParseAddr("10.96.0.1"),
		DNSDomain: "cluster.local"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair := b.Pairs[pki.Admin]
	return cluster.Access{Server: "https://" + first, CA: b.Authorities[pki.CA].Pair().Cert, Cert: pair.Cert, Key: pair.Key}
}

// apply does the action if there is anything to be done, and tells whether there was.
func apply(t *testing.T, a plan.Action[Local, Local]) bool {
	t.Helper()
	diff, err := a.Check(t.Context(), Local{})
	if err != nil {
		t.Fatal(err)
	}
	if len(diff) == 0 {
		return false
	}
	if err := a.Apply(t.Context(), Local{}); err != nil {
		t.Fatal(err)
	}
	if left, err := a.Check(t.Context(), Local{}); err != nil || len(left) > 0 {
		t.Fatalf("afterwards: %v, %v", left, err)
	}
	return true
}

func file(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestMergeSeveralServers: which of its servers a cluster has in the file is all the same, as long as it is one.
func TestMergeSeveralServers(t *testing.T) {
	access := admin(t)
	both := []string{first, second}
	at := func(server string) cluster.Access { a := access; a.Server = server; return a }
	for name, c := range map[string]struct {
		had        *Merge // nil: the file knows other clusters only
		server     string
		servers    []string
		want       string
		wantOthers []string
		changes    bool
	}{
		"one server":               {server: "https://" + first, want: "https://" + first, changes: true},
		"two":                      {server: "https://" + first, servers: both, want: "https://" + first, wantOthers: both, changes: true},
		"once more":                {had: &Merge{Access: plan.Of("", at("https://"+first)), Servers: both}, server: "https://" + first, servers: both, want: "https://" + first, wantOthers: both},
		"it has the second":        {had: &Merge{Access: plan.Of("", at("https://"+second)), Servers: both}, server: "https://" + first, servers: both, want: "https://" + second, wantOthers: both},
		"it knows the second only": {had: &Merge{Access: plan.Of("", at("https://"+second))}, server: "https://" + first, servers: both, want: "https://" + second, wantOthers: both, changes: true},
		"it has one that is gone":  {had: &Merge{Access: plan.Of("", at("https://192.0.2.9:6443")), Servers: both}, server: "https://" + first, servers: both, want: "https://" + first, wantOthers: both, changes: true},
		"an endpoint is wished":    {had: &Merge{Access: plan.Of("", at("https://"+second)), Servers: both}, server: endpoint, servers: both, want: endpoint, wantOthers: both, changes: true},
		"an endpoint is wished no more": {had: &Merge{Access: plan.Of("", at(endpoint)), Servers: both}, server: "https://" + first, servers: both,
			want: "https://" + first, wantOthers: both, changes: true},
		"one is left": {had: &Merge{Access: plan.Of("", at("https://"+second)), Servers: both}, server: "https://" + first, want: "https://" + first, changes: true},
	} {
		t.Run(name, func(t *testing.T) {
			path := file(t, other)
			if c.had != nil {
				c.had.Path, c.had.Name = path, "mine"
				apply(t, *c.had)
			}
			if got := apply(t, Merge{Path: path, Name: "mine", Access: plan.Of("access", at(c.server)), Servers: c.servers}); got != c.changes {
				t.Errorf("changed: %v, want %v", got, c.changes)
			}
			name, got, err := Access(path, "")
			if err != nil || name != "mine" || got.Server != c.want {
				t.Errorf("%s at %s, want %s: %v", name, got.Server, c.want, err)
			}
			if diff := cmp.Diff(c.wantOthers, got.Others); diff != "" {
				t.Error(diff)
			}
			untouched(t, path)
		})
	}
}

// untouched looks at what is another cluster's in the file.
func untouched(t *testing.T, path string) {
	t.Helper()
	cfg, err := clientcmd.LoadFromFile(path)
	if err != nil {
		t.Fatal(err)
	}
	o := cfg.Clusters["other"]
	if o == nil || o.Server != "https://203.0.113.1:6443" || len(o.Extensions) != 1 {
		t.Errorf("the other cluster: %+v", o)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

// TestServers: a cluster learns of further servers, and forgets them; another one of its name does not.
func TestServers(t *testing.T) {
	access := admin(t)
	both := []string{first, second}
	for name, c := range map[string]struct {
		of      Servers
		before  []string
		want    []string
		changes bool
	}{
		"more":              {of: Servers{Name: "mine", CA: access.CA, Servers: both}, want: both, changes: true},
		"the same":          {of: Servers{Name: "mine", CA: access.CA, Servers: both}, before: both, want: both},
		"fewer":             {of: Servers{Name: "mine", CA: access.CA}, before: both, changes: true},
		"whatever it is":    {of: Servers{Name: "mine", Servers: both}, want: both, changes: true},
		"another cluster's": {of: Servers{Name: "mine", CA: []byte("another"), Servers: both}},
		"none of that name": {of: Servers{Name: "yours", CA: access.CA, Servers: both}},
	} {
		t.Run(name, func(t *testing.T) {
			path := file(t, other)
			apply(t, Merge{Path: path, Name: "mine", Access: plan.Of("access", access), Servers: c.before})
			c.of.Path = path
			if got := apply(t, c.of); got != c.changes {
				t.Errorf("changed: %v, want %v", got, c.changes)
			}
			_, got, err := Access(path, "")
			if err != nil || got.Server != access.Server || !slices.Equal(got.Others, c.want) {
				t.Errorf("%s and %q, want %q: %v", got.Server, got.Others, c.want, err)
			}
			untouched(t, path)
		})
	}
}

// TestServersWithoutFile: a kubeconfig that there is not is no fault, and is not made.
func TestServersWithoutFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	if apply(t, Servers{Path: path, Name: "mine", Servers: []string{first}}) {
		t.Error("there is something to be done")
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Error(err)
	}
}

// TestServersOfOthers: what is not ours to read is no list, and no fault.
func TestServersOfOthers(t *testing.T) {
	const entry = "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c}}]\nclusters:\n- name: c\n  cluster:\n" +
		"    server: https://192.0.2.1:6443\n    extensions:\n    - name: kubewright\n      extension: "
	for _, extension := range []string{"nonsense", "{servers: 7}", "{}", "[]"} {
		name, got, err := Access(file(t, entry+extension+"\n"), "")
		if err != nil || name != "c" || len(got.Others) > 0 {
			t.Errorf("%s: %s, %q, %v", extension, name, got.Others, err)
		}
	}
	_, got, err := Access(file(t, strings.Replace(entry, "name: kubewright", "name: other", 1)+"{servers: ['192.0.2.2:6443']}\n"), "")
	if err != nil || len(got.Others) > 0 {
		t.Errorf("of another program: %q, %v", got.Others, err)
	}
}
