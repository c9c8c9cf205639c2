package etcd

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestByName(t *testing.T) {
	ms := members("~", "cp3", "cp1", "-cp2")
	slices.SortFunc(ms, byName)
	var names []string
	for _, m := range ms {
		names = append(names, m.Name)
	}
	if diff := cmp.Diff([]string{"cp1", "cp2", "cp3", ""}, names); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestSilence: what etcd's client calls the same is not told again, and still known by its type.
func TestSilence(t *testing.T) {
	err := fmt.Errorf("%w: %w", ErrNoQuorum, silence{
		&unanswered{"https://127.0.0.1:2379", "it did not answer in time", fmt.Errorf("%w (etcdserver: request timed out)", ErrElecting)},
		&unanswered{"https://10.0.0.2:2379", "it cannot be reached: no route to host", ErrUnreachable},
	})
	want := ErrNoQuorum.Error() + ": https://127.0.0.1:2379: it did not answer in time; https://10.0.0.2:2379: it cannot be reached: no route to host"
	if err.Error() != want {
		t.Errorf("%s\nwant: %s", err, want)
	}
	for _, is := range []error{ErrNoQuorum, ErrUnreachable, ErrElecting} {
		if !errors.Is(err, is) {
			t.Errorf("it is not %v", is)
		}
	}
}
