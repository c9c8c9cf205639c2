package etcd

import (
	"strings"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// members makes a membership of words: "cp1" is a healthy voter, "-cp1" one that is not,
// "!cp1" one whose database is full, "~cp1" a learner, "~" one that has never started.
func members(words ...string) Membership {
	var ms Membership
	for _, w := range words {
		name := strings.TrimLeft(w, "-!~")
		url := "https://" + name + ":2380"
		if name == "" {
			url = "https://new:2380"
		}
		m := Member{Name: name, ID: "id-" + name, Peers: []string{url}, Clients: []string{"https://" + name + ":2379"}, Healthy: true}
		switch {
		case strings.HasPrefix(w, "-"):
			m.Healthy, m.Trouble = false, "it cannot be reached"
		case strings.HasPrefix(w, "!"):
			m.Healthy, m.Full = false, true
		case strings.HasPrefix(w, "~"):
			m.Learner, m.Healthy = true, name != ""
		}
		ms = append(ms, m)
	}
	return ms
}

func TestArithmetic(t *testing.T) {
	for _, c := range []struct {
		members Membership
		remove  string // one of them
		add     string
		refused string // with these words; "" if it is not
		remedy  string
	}{
		{members: members("cp1"), remove: "cp1", refused: "etcd has 1 voting member, a quorum is 1, and 1 is healthy (cp1). Without cp1 none would be left", remedy: "kubewright reset"},
		{members: members("cp1", "cp2"), remove: "cp1"},
		{members: members("cp1", "-cp2"), remove: "cp2", refused: "etcd has 2 voting members, a quorum is 2, and 1 is healthy (cp1): the quorum is lost", remedy: "kubewright recover --from HOST"},
		{members: members("cp1", "-cp2"), remove: "cp1", refused: "the quorum is lost"},
		{members: members("cp1", "cp2", "cp3"), remove: "cp1"},
		{members: members("cp1", "cp2", "-cp3"), remove: "cp3"},
		{members: members("cp1", "cp2", "!cp3"), remove: "cp1"},
		{members: members("cp1", "cp2", "-cp3"), remove: "cp2",
			refused: "etcd has 3 voting members, a quorum is 2, and 2 are healthy (cp1, cp2). Without cp2 there would be 2 voting members, a quorum would be 2, and 1 would be healthy: the cluster would stop",
			remedy:  "bring cp3 back, or remove it first: `kubewright remove cp3 --force`"},
		{members: members("cp1", "-cp2", "-cp3"), remove: "cp3", refused: "and 1 is healthy (cp1): the quorum is lost"},
		{members: members("cp1", "cp2", "~cp3"), remove: "cp3"},
		{members: members("cp1", "cp2", "~"), remove: "cp2"},
		{members: members("cp1", "-cp2", "~cp3"), remove: "cp3", refused: "the quorum is lost"},
		{members: members("cp1", "cp2", "cp3"), remove: "cp9"},
		{members: members("cp1", "cp2", "cp3", "cp4", "-cp5"), remove: "cp1"},
		{members: members("cp1", "cp2", "cp3", "-cp4", "-cp5"), remove: "cp1", refused: "Without cp1 there would be 4 voting members, a quorum would be 3, and 2 would be healthy"},

		{members: members("cp1"), add: "cp2"},
		{members: members("-cp1"), add: "cp2", refused: "etcd has 1 voting member, a quorum is 1, and 0 are healthy: the quorum is lost"},
		{members: members("cp1", "cp2"), add: "cp3"},
		{members: members("cp1", "cp2", "~"), add: "cp3"},
		{members: members("cp1", "-cp2"), add: "cp3", refused: "the quorum is lost"},
		{members: members("cp1", "cp2", "-cp3"), add: "cp4",
			refused: "With cp4 there would be 4 voting members, and a quorum would be 3: if cp4 failed, the cluster would stop",
			remedy:  "bring cp3 back, or remove it for ever: `kubewright remove cp3 --force`"},
		{members: members("cp1", "cp2", "cp3"), add: "cp4"},
		{members: members("cp1", "cp2", "cp3", "cp4", "-cp5"), add: "cp6"},
	} {
		var err error
		if c.remove != "" {
			err = c.members.MayRemove(c.remove)
		} else {
			err = c.members.MayAdd(c.add)
		}
		switch {
		case c.refused == "" && err != nil:
			t.Errorf("%s, -%s +%s: refused: %v", c.members.Tally(), c.remove, c.add, err)
		case c.refused == "":
		case err == nil:
			t.Errorf("%s, -%s +%s: not refused", c.members.Tally(), c.remove, c.add)
		case fault.CodeOf(err) != fault.Quorum || !strings.Contains(err.Error(), c.refused) || !strings.Contains(fault.RemedyOf(err), c.remedy):
			t.Errorf("%s, -%s +%s: %s %v\n  remedy: %s", c.members.Tally(), c.remove, c.add, fault.CodeOf(err), err, fault.RemedyOf(err))
		}
	}
}

func TestInitialCluster(t *testing.T) {
	got := members("cp1", "cp2", "~").InitialCluster("cp3", "https://new:2380")
	if want := "cp1=https://cp1:2380,cp2=https://cp2:2380,cp3=https://new:2380"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
