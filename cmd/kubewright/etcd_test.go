package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/fault"
)

func threeMembers() etcd.Membership {
	member := func(name string) etcd.Member {
		return etcd.Member{Name: name, ID: "a" + name, Peers: []string{"https://" + name + ":2380"}, Clients: []string{"https://" + name + ":2379"},
			Healthy: true, Version: "3.7.3", DBSize: 20_400_000, InUse: 5_000_000, Quota: 2_147_000_000, Index: 90}
	}
	ms := etcd.Membership{member("cp1"), member("cp2"), member("cp3")}
	ms[1].Leader = true
	return ms
}

func TestRenderMembers(t *testing.T) {
	ms := threeMembers()
	ms[2].Healthy, ms[2].Version, ms[2].Trouble = false, "", "it cannot be reached: connection refused"
	ms = append(ms, etcd.Member{ID: "f0", Learner: true, Peers: []string{"https://10.0.0.4:2380"}})
	var out bytes.Buffer
	if err := renderMembers(&out, ms); err != nil {
		t.Fatal(err)
	}
	want := `MEMBER  ID    ROLE     HEALTHY  VERSION  DATA     IN USE  QUOTA      BEHIND  PEER
cp1     acp1  member   yes      3.7.3    20.4 MB  5.0 MB  2147.0 MB  0       https://cp1:2380
cp2     acp2  leader   yes      3.7.3    20.4 MB  5.0 MB  2147.0 MB  0       https://cp2:2380
cp3     acp3  member   no       -        -        -       -          -       https://cp3:2380
-       f0    learner  no       -        -        -       -          -       https://10.0.0.4:2380
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestHealth(t *testing.T) {
	for name, c := range map[string]struct {
		change func(etcd.Membership) etcd.Membership
		says   string
		remedy string // "": all are healthy
	}{
		"all": {func(ms etcd.Membership) etcd.Membership { return ms },
			"etcd has 3 voting members, a quorum is 2, and 3 are healthy (cp1, cp2, cp3): one more may fail", ""},
		"one alone": {func(ms etcd.Membership) etcd.Membership { return ms[:1] }, "1 is healthy (cp1): none may fail", ""},
		"one dead": {func(ms etcd.Membership) etcd.Membership {
			ms[2].Healthy, ms[2].Trouble = false, "it did not answer in time"
			return ms
		}, "2 are healthy (cp1, cp2): no other one may fail", "kubewright remove cp3 --force"},
		"full": {func(ms etcd.Membership) etcd.Membership {
			ms[0].Healthy, ms[0].Full, ms[0].Alarms = false, true, []etcd.Alarm{etcd.NoSpace}
			return ms
		}, "3 are healthy", "kubewright etcd defrag --disarm"},
		"damaged": {func(ms etcd.Membership) etcd.Membership {
			ms[0].Healthy, ms[0].Alarms = false, []etcd.Alarm{etcd.Corrupt}
			return ms
		}, "2 are healthy (cp2, cp3)", "replace the member"},
		"left over": {func(ms etcd.Membership) etcd.Membership {
			return append(ms, etcd.Member{ID: "f0", Learner: true, Peers: []string{"https://x:2380"}})
		}, "https://x:2380  learner", "kubewright etcd forget f0"},
		"lost": {func(ms etcd.Membership) etcd.Membership {
			ms[1].Healthy, ms[2].Healthy = false, false
			return ms
		}, "1 is healthy (cp1): the quorum is lost", "bring its host back"},
	} {
		ms := c.change(threeMembers())
		var out bytes.Buffer
		if err := renderHealth(&out, ms); err != nil {
			t.Fatal(err)
		}
		err := sick(ms)
		if !strings.Contains(out.String(), c.says) || (err != nil) != (c.remedy != "") || !strings.Contains(fault.RemedyOf(err), c.remedy) {
			t.Errorf("%s: %v, %s\n%s", name, err, fault.RemedyOf(err), out.String())
		}
		if err != nil && fault.CodeOf(err) != fault.Unhealthy {
			t.Errorf("%s: %s", name, fault.CodeOf(err))
		}
	}
}

// sending is an etcd that only sends a snapshot.
type sending struct {
	etcd.Keeper
	content []byte
	err     error
}

func (s sending) Snapshot(_ context.Context, w io.Writer) error {
	for _, b := range s.content { // the smallest pieces
		if _, err := w.Write([]byte{b}); err != nil {
			return err
		}
	}
	return s.err
}

func TestBrokenSnapshotLeavesNothing(t *testing.T) {
	sum := sha256.Sum256([]byte("data"))
	for name, c := range map[string]struct {
		sending
		says string
	}{
		"broken off":  {sending{content: []byte("data"), err: errors.New("connection lost")}, "connection lost"},
		"cut short":   {sending{content: []byte("data")}, "damaged on the way"},
		"altered":     {sending{content: append([]byte("dat4"), sum[:]...)}, "damaged on the way"},
		"no database": {sending{content: append([]byte("data"), sum[:]...)}, "look into the snapshot"},
	} {
		file := filepath.Join(t.TempDir(), "etcd.db")
		if err := os.WriteFile(file, []byte("the last one"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := saveSnapshot(t.Context(), c.sending, file, true)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
		have, err := os.ReadFile(file)
		names, _ := filepath.Glob(filepath.Join(filepath.Dir(file), ".*"))
		if err != nil || string(have) != "the last one" || len(names) > 0 {
			t.Errorf("%s: %v, %q, %v", name, err, have, names)
		}
	}
}
