package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/lock"
)

// locks are those of all hosts of a run.
type locks struct {
	held  []*lock.Held
	hosts []string
	gone  chan struct{} // closed when one is lost before release
	once  sync.Once
}

// lockAll takes the locks of all hosts that the work may change, or none.
func lockAll(ctx context.Context, w *work, notice func(string)) (*locks, error) {
	all := w.all()
	l := &locks{gone: make(chan struct{})}
	held := make([]*lock.Held, len(all))
	faults := make([]error, len(all))
	var taking sync.WaitGroup
	for i, t := range all {
		taking.Go(func() {
			user, from := operator()
			who := lock.Holder{User: user, From: from, Verb: w.String()}
			if t.Claim != nil {
				who.Cluster = t.Claim.Cluster
			} else if w.Spec != nil {
				who.Cluster = w.Spec.Name
			}
			h, err := lock.Take(ctx, t.Host, who)
			held[i], faults[i] = h, fault.At(t.Wish.Name, "lock", err)
		})
	}
	taking.Wait()
	for i, h := range held {
		if h == nil {
			continue
		}
		l.held, l.hosts = append(l.held, h), append(l.hosts, all[i].Wish.Name)
		if h.TookOver != nil {
			notice(all[i].Wish.Name + ": took over the lock of a run that gave no sign of life: " + h.TookOver.String())
		}
	}
	if err := errors.Join(faults...); err != nil {
		l.release(ctx)
		return nil, err
	}
	for _, h := range l.held {
		go func() {
			<-h.Lost()
			l.once.Do(func() { close(l.gone) })
		}()
	}
	return l, nil
}

// orLost is closed when stop is, or when a lock is lost.
func (l *locks) orLost(stop <-chan struct{}) <-chan struct{} {
	either := make(chan struct{})
	go func() {
		select {
		case <-stop:
		case <-l.gone:
		}
		close(either)
	}()
	return either
}

// lost are the faults of locks that are no longer ours.
func (l *locks) lost() error {
	var faults []error
	for i, h := range l.held {
		faults = append(faults, fault.At(l.hosts[i], "lock", h.Err()))
	}
	return errors.Join(faults...)
}

// releaseTime bounds how long giving back a lock may take: it ends with the connection anyway.
const releaseTime = 5 * time.Second

// release gives all locks back. One that cannot be given back ends with its connection.
func (l *locks) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTime)
	defer cancel()
	var all sync.WaitGroup
	for _, h := range l.held {
		all.Go(func() { h.Release(ctx) }) //nolint:errcheck // see above
	}
	all.Wait()
}
