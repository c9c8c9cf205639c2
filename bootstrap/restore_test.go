package bootstrap

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kubewright/kubewright/bootstrap/backup"
	"github.com/kubewright/kubewright/bootstrap/certs"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/foresee"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/journal"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
	"github.com/kubewright/kubewright/pki"
)

type noSnapshot struct{}

func (noSnapshot) WriteSnapshot(context.Context, io.Writer) error { return nil }

var _ etcd.Source = noSnapshot{}

// lostCluster is a backup of a cluster with control-plane node old and worker h3.
func lostCluster() *backup.Backup {
	b := &backup.Backup{
		Manifest: backup.Manifest{Cluster: "sim", ClusterID: "a-cluster", Nodes: []backup.Node{
			{Name: "old", Host: "old", Address: "192.0.2.9", ControlPlane: true}, {Name: "h3", Host: "h3", Address: "198.18.0.13"}}},
		Spec: []byte("apiVersion: kubewright.dev/v1alpha1\nkind: Cluster\nname: sim\nhosts:\n- {name: old}\n- {name: h3, labels: {disk: ssd}}\n" +
			"apiServer:\n  extraArgs: {encryption-provider-config: /etc/kubernetes/enc.yaml, oidc-ca-file: /etc/kubernetes/pki/own.crt}\n"),
		Files: map[string][]byte{"/etc/kubernetes/enc.yaml": []byte(keys), certs.Dir + "/own.crt": []byte("a certificate of the admin's"),
			certs.Dir + "/apiserver.crt": []byte("of a host that is no more")},
		Snapshot: backup.Entry{Name: "etcd.db", SHA256: "abc"},
	}
	for _, name := range pki.CommonFiles() {
		b.Files[certs.Dir+"/"+name] = []byte(name)
	}
	return b
}

func TestRestoredWish(t *testing.T) {
	r := NewRestore(lostCluster(), noSnapshot{})
	wish, err := r.Wish([]string{"new1", "new2"}, r.Workers())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, h := range wish.Hosts {
		got = append(got, fmt.Sprint(h.Name, h.Role, h.Labels))
	}
	if want := []string{"new1control-planemap[]", "new2control-planemap[]", "h3workermap[disk:ssd]"}; !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	r.Backup.Spec = bytes.Replace(r.Backup.Spec, []byte("{name: old}"), []byte("{name: old, node: cp-a, address: 192.0.2.9, labels: {rack: a}}"), 1)
	again, err := r.Wish([]string{"old", "new2"}, nil)
	if err != nil || again.Hosts[0].Node != "cp-a" || again.Hosts[0].Labels["rack"] != "a" || again.Hosts[0].Address.IsValid() || again.Hosts[1].Node != "" {
		t.Errorf("on a host of before: %+v, %v", again, err)
	}
	other := *wish
	other.Network.DNSDomain = "other.local"
	if err := r.Changeable(&other); fault.CodeOf(err) != fault.SpecInvalid {
		t.Errorf("another domain: %v", err)
	}
	if err := r.Complete(); err != nil {
		t.Error(err)
	}
	delete(r.Backup.Files, certs.Dir+"/sa.key")
	if err := r.Complete(); fault.CodeOf(err) != fault.BackupRefused || !strings.Contains(err.Error(), "sa.key") {
		t.Errorf("without a key: %v", err)
	}
}

// What was a control-plane node in the backup and is a worker now is not taken for one by its label.
func TestRestoredAsWorker(t *testing.T) {
	node := Node{Name: "old", Target: Target{Wish: spec.Host{Name: "old", Role: spec.WorkerRole}}}
	for restored, want := range map[bool]int{true: 1, false: 0} {
		c := &shared{Cluster: &spec.Cluster{}}
		if restored {
			c.from = NewRestore(lostCluster(), noSnapshot{})
		}
		m := c.nodeMeta(node)
		if len(m.WithoutLabels) != want || len(m.Without) != want {
			t.Errorf("restored %v: without %v and %v", restored, m.WithoutLabels, m.Without)
		}
	}
}

// The hosts of the old control plane are told: they would go on with their own etcd.
func TestReplacedHosts(t *testing.T) {
	r := NewRestore(lostCluster(), noSnapshot{})
	r.Backup.Manifest.Nodes = append(r.Backup.Manifest.Nodes, backup.Node{Name: "cp-b", Host: "b", Address: "192.0.2.8", ControlPlane: true},
		backup.Node{Name: "cp-c", Address: "192.0.2.7", ControlPlane: true})
	at := func(address string) host.Facts {
		return host.Facts{Interfaces: []host.Interface{{Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix(address)}}}}
	}
	old, b := Target{Wish: spec.Host{Name: "old"}}, Target{Wish: spec.Host{Name: "b-by-another-name"}, Facts: at("192.0.2.8/24")}
	c := Target{Wish: spec.Host{Name: "c"}, Facts: at("192.0.2.7/24")}
	for name, want := range map[string]struct {
		targets    []Target
		who, reset string
	}{
		"on new hosts":        {[]Target{{Wish: spec.Host{Name: "new"}}}, "plane: old, b, cp-c at 192.0.2.7. Keep", "reset HOST...,"},
		"on one of before":    {[]Target{c}, "plane: old, b. Keep", "reset old b,"},
		"on all but one":      {[]Target{old, c}, "plane: b. Keep", "reset b,"},
		"on the same, by all": {[]Target{old, b, c}, "", ""},
	} {
		lines := r.Advice(want.targets)
		if want.who == "" {
			if len(lines) > 0 {
				t.Errorf("%s: %q", name, lines)
			}
			continue
		}
		if len(lines) != 2 || !strings.Contains(lines[0], want.who) || !strings.Contains(lines[1], want.reset) {
			t.Errorf("%s: %q", name, lines)
		}
	}
}

// Data of any size have the time that a slow way takes.
func TestRestoreHasTime(t *testing.T) {
	b := lostCluster()
	b.Snapshot.Size = 8 << 30
	s := NewRestore(b, noSnapshot{}).dataStep(&shared{Cluster: &spec.Cluster{}}, Node{})
	if at := float64(b.Snapshot.Size) / s.Timeout.Seconds(); s.Timeout <= plan.DefaultTimeout || at > 1e6 {
		t.Errorf("%s: a way of %.0f bytes a second is too slow for it", s.Timeout, at)
	}
}

// A file of the admin's that neither a backup nor a host has is missed before anything is changed: an older backup has
// the keys only, and is restored where the admin has put the others.
func TestRestoreRefusesFiles(t *testing.T) {
	r := NewRestore(lostCluster(), noSnapshot{})
	wish, err := r.Wish([]string{"h1", "h2"}, []string{"h3"})
	if err != nil {
		t.Fatal(err)
	}
	sims := map[string]*hosttest.Sim{}
	var targets []Target
	for _, h := range wish.Hosts {
		sims[h.Name] = hosttest.NewSim(t, h.Name)
		targets = append(targets, Target{Wish: h, Host: sims[h.Name]})
	}
	if err := r.RefuseFiles(t.Context(), wish, targets); err != nil {
		t.Errorf("the backup has all: %v", err)
	}
	wish.APIServer.ExtraArgs["audit-policy-file"] = policyFile
	sims["h1"].Put(policyFile, "a policy", 0o600)
	err = r.RefuseFiles(t.Context(), wish, targets)
	if said := fmt.Sprint(err); fault.CodeOf(err) != fault.HostUnsuitable || strings.Contains(said, "h1") || strings.Contains(said, "h3") ||
		!strings.Contains(said, "h2: preflight: there is no "+policyFile+" (the API server's --audit-policy-file), nor has the backup it") {
		t.Errorf("h2 has no policy: %v", err)
	}
	sims["h2"].Put(policyFile, "a policy", 0o600)
	if err := r.RefuseFiles(t.Context(), wish, targets); err != nil {
		t.Errorf("all have it: %v", err)
	}
}

// The plan of a restore: data and keys before etcd and API servers start, the old nodes gone,
// and no node learns where the API is before the cluster says where it is now.
func TestRestorePlan(t *testing.T) {
	b := testBundle(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, b, t.TempDir())
		r := NewRestore(lostCluster(), noSnapshot{})
		wish, err := r.Wish([]string{"h1", "h2"}, []string{"h3"})
		if err != nil {
			t.Fatal(err)
		}
		targets, err := Connect(t.Context(), wish.Hosts, w.dial)
		if err != nil {
			t.Fatal(err)
		}
		for i := range targets {
			targets[i].Host = foresee.New(targets[i].Host)
		}
		common, err := pki.NewBundle(pki.Inputs{Node: "old", Address: targets[0].Reached, DNSDomain: "cluster.local"}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range common.Files() {
			r.Backup.Files[certs.Dir+"/"+f.Name] = f.Content
		}
		lanes, _, err := PlanInit(Init{Cluster: wish, ID: "a-cluster", Targets: FounderFirst(targets), Bundle: b, Run: journal.Run{},
			Kubeconfig: w.kubeconfig, From: r})
		if err != nil {
			t.Fatal(err)
		}
		steps, err := plan.Preview(t.Context(), lanes...)
		if err != nil {
			t.Fatal(err)
		}
		in := func(lane string, names ...string) {
			t.Helper()
			at := -1
			for _, name := range names {
				i := slices.IndexFunc(steps, func(s plan.Foreseen) bool { return s.Lane == lane && s.Step == name })
				if i < 0 || i < at {
					t.Errorf("%s: %s is missing, or before %v", lane, name, names)
				}
				at = i
			}
		}
		in("h1", "pki/write", "apiserver/write-files", "etcd/restore", "etcd/configure", "controlplane/start", "backup/keep-count", "apilb/seed")
		in("h2", "apiserver/write-files", "etcd/start", "controlplane/start")
		in("cluster", "apiserver/wait-ready", "backup/count", "node/bury-pods", "node/forget", "cluster/apply-objects", "node/wait-ready")
		for _, s := range steps {
			if s.Step == "etcd/restore" && s.Lane != "h1" {
				t.Errorf("%s gets the data, too", s.Lane)
			}
			if s.Step != "apiserver/write-files" {
				continue
			}
			if s.Lane == "h3" {
				t.Error("a worker gets the keys")
			}
			var files []string
			for _, d := range s.Diff {
				files = append(files, d.Object+" "+d.After.Mode)
				if strings.Contains(fmt.Sprintf("%v %+v", d, d.After), keys) {
					t.Errorf("the plan tells the keys: %v", d)
				}
			}
			if want := []string{"/etc/kubernetes/enc.yaml -rw-------", certs.Dir + "/own.crt -rw-------"}; !slices.Equal(files, want) {
				t.Errorf("%s: %v", s.Lane, files)
			}
		}
		if lost := r.lost(nil); !slices.Equal(lost, []string{"old"}) {
			t.Errorf("lost: %v", lost)
		}
	})
}
