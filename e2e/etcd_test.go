package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kubewright/kubewright/lab"
)

// vote is what is looked at of `etcd health -o json`.
type vote struct {
	Healthy []string `json:"healthy"`
	Sick    []string `json:"sick"`
	MayFail int      `json:"mayFail"`
	Members []struct {
		Name   string `json:"name"`
		Leader bool   `json:"leader"`
	} `json:"members"`
}

// vote asks how etcd is; exit is how the question has to end.
func (e *env) vote(t testing.TB, exit int, args ...string) vote {
	t.Helper()
	r := e.kubewright(t, append([]string{"etcd", "health", "-o", "json"}, args...)...)
	if r.exit != exit {
		t.Fatalf("etcd health ends with %d, not %d:\n%s", r.exit, exit, r.output())
	}
	var v vote
	if err := json.Unmarshal([]byte(r.stdout), &v); err != nil {
		t.Fatalf("%v:\n%s", err, r.output())
	}
	slices.Sort(v.Healthy)
	return v
}

func (v vote) leader() string {
	for _, m := range v.Members {
		if m.Leader {
			return m.Name
		}
	}
	return ""
}

// powerOn turns hosts on, all at once. How far they come is for the caller to see: a host whose etcd
// does not start is degraded.
func (e *env) powerOn(t testing.TB, hosts ...string) {
	t.Helper()
	var all sync.WaitGroup
	for _, host := range hosts {
		all.Go(func() {
			if err := e.lab.Start(t.Context(), host); err != nil {
				t.Log(err)
			}
		})
	}
	all.Wait()
}

// TestEtcd looks after etcd, and replaces members that died until those of the first day would be
// a quorum of their own, if they were let.
func TestEtcd(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "etcd", Hosts: 4})
	cp1, cp2, cp3, cp4 := e.host(1), e.host(2), e.host(3), e.host(4)
	e.must(t, "init", "-f", e.spec(t, "hosts:\n- {name: "+cp1+"}\n- {name: "+cp2+", role: control-plane}\n- {name: "+cp3+", role: control-plane}\n"))
	e.allReady(t, []string{cp1, cp2, cp3})

	t.Run("care", func(t *testing.T) {
		if v := e.vote(t, 0); len(v.Healthy) != 3 || v.MayFail != 1 {
			t.Errorf("%+v", v)
		}
		if r := e.must(t, "etcd", "defrag"); strings.Count(r.stdout, " after\n") != 3 {
			t.Errorf("%s", r.stdout)
		}
		e.must(t, "etcd", "move-leader", cp2)
		if now := e.vote(t, 0).leader(); now != cp2 {
			t.Errorf("%s leads", now)
		}
		file := filepath.Join(e.dir, "etcd.db")
		e.must(t, "etcd", "snapshot", "-o", file)
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 || info.Size() == 0 {
			t.Errorf("%v, %v", info, err)
		}
		refused{2, []string{"file already exists", "--force"}}.check(t, e.kubewright(t, "etcd", "snapshot", "-o", file))
	})
	t.Run("all hosts off, and on again", func(t *testing.T) {
		for _, host := range []string{cp1, cp2, cp3} {
			if err := e.lab.Kill(t.Context(), host); err != nil {
				t.Fatal(err)
			}
		}
		e.powerOn(t, cp1, cp2, cp3)                                                            // at once: none is up before etcd has a quorum
		for _, way := range [][]string{{"etcd", "health", "--via", cp1}, {"etcd", "health"}} { // the API comes up after it
			eventually(t, time.Minute, strings.Join(way, " "), func() string {
				if r := e.kubewright(t, way...); r.exit != 0 {
					return r.output()
				}
				return ""
			})
		}
	})
	t.Run("the dead are replaced", func(t *testing.T) {
		if err := e.lab.Kill(t.Context(), cp2); err != nil {
			t.Fatal(err)
		}
		if v := e.vote(t, 19); !slices.Equal(v.Sick, []string{cp2}) || v.MayFail != 0 {
			t.Errorf("%+v", v)
		}
		refused{19, []string{cp2, "is not healthy", "--force"}}.check(t, e.kubewright(t, "etcd", "defrag"))
		refused{20, []string{"etcd has 3 voting members, a quorum is 2, and 2 are healthy", "kubewright remove " + cp2 + " --force"}}.check(t,
			e.kubewright(t, "join", cp4, "--control-plane"))
		e.must(t, "remove", cp2, "--force")
		e.must(t, "join", cp4, "--control-plane")
		if err := e.lab.Kill(t.Context(), cp3); err != nil {
			t.Fatal(err)
		}
		e.must(t, "remove", cp3, "--force")
		if v := e.vote(t, 0); !slices.Equal(v.Healthy, []string{cp1, cp4}) {
			t.Errorf("%+v", v)
		}
	})
	t.Run("and stay dead", func(t *testing.T) {
		e.powerOn(t, cp2, cp3)
		for _, host := range []string{cp2, cp3} {
			eventually(t, time.Minute, host+" is fenced", func() string {
				if state := e.on(t, host, "systemctl", "show", "etcd", "-p", "ActiveState,NRestarts,ExecMainStatus"); !strings.Contains(state, "ActiveState=failed") ||
					!strings.Contains(state, "NRestarts=0") || !strings.Contains(state, "ExecMainStatus=78") {
					return state
				}
				return ""
			})
			if why := e.on(t, host, "head", "-n1", "/var/lib/etcd/FENCED"); !strings.Contains(why, "was taken out of its cluster") {
				t.Errorf("%s: %s", host, why)
			}
		}
		refused{11, []string{"is fenced", "kubewright reset " + cp2}}.check(t, e.kubewright(t, "join", cp2, "--control-plane"))
		found, _ := e.doctor(t, cp2)
		if !slices.ContainsFunc(found, func(a ailment) bool { return a.Code == "etcd-fenced" && a.Host == cp2 }) {
			t.Errorf("doctor: %+v", found)
		}
		if v := e.vote(t, 0); !slices.Equal(v.Healthy, []string{cp1, cp4}) {
			t.Errorf("%+v", v)
		}
		e.must(t, "reset", cp2, "--force")
		e.must(t, "join", cp2, "--control-plane")
		if v := e.vote(t, 0); !slices.Equal(v.Healthy, []string{cp1, cp2, cp4}) {
			t.Errorf("%+v", v)
		}
	})
}
