package lock

import (
	"context"
	"slices"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
)

// A simulated host has the lock without a script, and it costs two operations.
func TestSimulated(t *testing.T) {
	s := hosttest.NewSim(t, "w1")
	before := s.Snapshot()
	first, err := Take(t.Context(), s, alice())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Take(t.Context(), s, bob()); fault.CodeOf(err) != fault.HostLocked {
		t.Errorf("the second: %v", err)
	}
	if holder, alive, err := Read(t.Context(), s); err != nil || !alive || holder == nil || holder.User != "alice" {
		t.Errorf("read: %v, alive %v, %v", holder, alive, err)
	}
	if err := first.Release(t.Context()); err != nil {
		t.Error(err)
	}
	if diff := before.Diff(s.Snapshot()); len(diff) > 0 {
		t.Errorf("left: %v", diff)
	}
	operations := s.Operations()
	if last := operations[len(operations)-1]; last != "remove "+File || len(slices.Compact(operations)) != 2 {
		t.Errorf("operations: %q", operations)
	}
}

func TestInterrupted(t *testing.T) {
	hosttest.Interrupt(t, func(t testing.TB) *hosttest.Sim { return hosttest.NewSim(t, "w1") }, func(ctx context.Context, h host.Host) error {
		held, err := Take(ctx, h, alice())
		if err != nil {
			return err
		}
		return held.Release(ctx)
	})
}
