package cluster

import "testing"

// A node that was to be removed, and joins again, takes pods again; one that an admin cordoned does not.
func TestNodeMetaUncordons(t *testing.T) {
	for name, c := range map[string]struct {
		ours bool
		want bool // it stays cordoned
	}{
		"by a drain of ours": {ours: true},
		"by an admin":        {want: true},
	} {
		t.Run(name, func(t *testing.T) {
			n := node("w1")
			n.Spec.Unschedulable = true
			if c.ours {
				n.Annotations = map[string]string{cordonedKey: "", drainedKey: "2026-11-26T01:00:00Z"}
			}
			a := newAPI(n)
			meta := NodeMeta{Node: "w1", Labels: map[string]string{"a": "b"}}
			if err := meta.Apply(t.Context(), a); err != nil {
				t.Fatal(err)
			}
			got := a.node(t, "w1")
			if got.Spec.Unschedulable != c.want || marked(got) || got.Annotations[drainedKey] != "" {
				t.Errorf("%+v", got)
			}
			if diff, err := meta.Check(t.Context(), a); err != nil || len(diff) > 0 {
				t.Errorf("%v %v", diff, err)
			}
		})
	}
}
