package vip

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// tracked is a lock that tells when the API server stops to answer for it, and when
// it does again, and not each try between.
type tracked struct {
	resourcelock.Interface
	log  *slog.Logger
	lost operation // that failed last, "" if all is well

	renewed atomic.Pointer[time.Time] // when the last renewal was begun, nil: another has the lease
}

// left is for how long the lease is surely this host's.
func (t *tracked) left() time.Duration {
	renewed := t.renewed.Load()
	if renewed == nil {
		return 0
	}
	return lease - time.Since(*renewed)
}

// operation on the lease. One that succeeds says nothing of the other: an etcd
// without room can be read.
type operation string

const (
	reading operation = "read"
	writing operation = "write"
)

func (t *tracked) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := t.Interface.Get(ctx)
	t.heard(reading, err)
	if err == nil && record.HolderIdentity != t.Identity() {
		t.renewed.Store(nil)
	}
	return record, raw, err
}

func (t *tracked) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	begun := time.Now()
	err := t.Interface.Create(ctx, record)
	t.wrote(begun, record, err)
	return err
}

func (t *tracked) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	begun := time.Now()
	err := t.Interface.Update(ctx, record)
	t.wrote(begun, record, err)
	return err
}

func (t *tracked) wrote(begun time.Time, record resourcelock.LeaderElectionRecord, err error) {
	t.heard(writing, err)
	if err == nil && record.HolderIdentity == t.Identity() {
		t.renewed.Store(&begun)
	}
}

// heard is called by one goroutine at a time: the election's.
func (t *tracked) heard(op operation, err error) {
	failed := err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err)
	switch {
	case failed && t.lost == "":
		t.log.Warn("this host's API server does not serve the lease", "operation", string(op), "reason", err)
		t.lost = op
	case failed:
		t.lost = op
	case t.lost == op:
		t.log.Info("this host's API server serves the lease")
		t.lost = ""
	}
}

// release gives the lease up if this host has it, so that others need not wait.
func (t *tracked) release() {
	ctx, cancel := context.WithTimeout(context.Background(), call)
	defer cancel()
	record, _, err := t.Get(ctx)
	if err != nil || record.HolderIdentity != t.Identity() {
		return
	}
	now := metav1.Now()
	_ = t.Update(ctx, resourcelock.LeaderElectionRecord{ // in vain it is told, and ends by itself
		LeaderTransitions: record.LeaderTransitions, LeaseDurationSeconds: 1, RenewTime: now, AcquireTime: now,
	})
}
