package bootstrap

import (
	"slices"
	"strings"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/spec"
)

// TestFounderFirst: others are added to a member that votes, wherever it is in the file.
func TestFounderFirst(t *testing.T) {
	cp := func(name string) Target { return Target{Wish: spec.Host{Name: name, Role: spec.ControlPlaneRole}} }
	worker := Target{Wish: spec.Host{Name: "w", Role: spec.WorkerRole}, Member: true, Serving: true}
	voter := func(t Target) Target { t.EtcdData, t.HasAPI = true, true; return t }
	learner := func(t Target) Target { t.EtcdData = true; return t }
	begun := func(t Target) Target { t.HasAPI = true; return t }
	for name, c := range map[string]struct {
		targets []Target
		want    string
	}{
		"bare hosts":                      {[]Target{cp("a"), cp("b"), worker}, "a b w"},
		"a worker first":                  {[]Target{worker, cp("a"), cp("b")}, "a b w"},
		"the second is the founder":       {[]Target{cp("a"), voter(cp("b")), cp("c")}, "b a c"},
		"all are members":                 {[]Target{voter(cp("a")), voter(cp("b")), voter(cp("c"))}, "a b c"},
		"a learner before the founder":    {[]Target{learner(cp("a")), cp("b"), voter(cp("c"))}, "c a b"},
		"a founder that is about to":      {[]Target{cp("a"), begun(cp("b"))}, "b a"},
		"and data are more than that":     {[]Target{begun(cp("a")), learner(cp("b"))}, "b a"},
		"an API server that lost etcd":    {[]Target{begun(cp("a")), voter(cp("b"))}, "b a"},
		"whoever claimed first is no one": {[]Target{cp("a"), cp("b")}, "a b"},
	} {
		before := slices.Clone(c.targets)
		var names []string
		for _, t := range FounderFirst(c.targets) {
			names = append(names, t.Wish.Name)
		}
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
		for i := range before {
			if before[i].Wish.Name != c.targets[i].Wish.Name {
				t.Errorf("%s: it sorts what it is given", name)
			}
		}
	}
}
