package main

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/kubewright/kubewright/bootstrap"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/lock"
)

// locks are those of all hosts of a run, for as long as it works.
type locks struct {
	verb   string // with its hosts, as others are told
	notice func(string)

	held  []*lock.Held
	hosts []string
	gone  chan struct{} // closed when one is lost before release
	once  sync.Once
}

func newLocks(verb string, notice func(string)) *locks {
	return &locks{verb: verb, notice: notice, gone: make(chan struct{})}
}

// take takes the locks of hosts, besides those that are held; of all that can be had, also
// if it fails: release gives them back.
func (l *locks) take(ctx context.Context, targets []bootstrap.Target) error {
	held := make([]*lock.Held, len(targets))
	faults := make([]error, len(targets))
	var taking sync.WaitGroup
	for i, t := range targets {
		taking.Go(func() {
			user, from := operator()
			who := lock.Holder{User: user, From: from, Verb: l.verb}
			if t.Claim != nil {
				who.Cluster = t.Claim.Cluster
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
		l.held, l.hosts = append(l.held, h), append(l.hosts, targets[i].Wish.Name)
		if h.TookOver != nil {
			l.notice(targets[i].Wish.Name + ": took over the lock of a run that gave no sign of life: " + h.TookOver.String())
		}
		go func() {
			<-h.Lost()
			l.once.Do(func() { close(l.gone) })
		}()
	}
	return errors.Join(faults...)
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

// others tells of the runs that work on hosts now.
func others(ctx context.Context, targets []bootstrap.Target) []string {
	texts := make([]string, len(targets))
	var looking sync.WaitGroup
	for i, t := range targets {
		looking.Go(func() {
			holder, alive, err := lock.Read(ctx, t.Host)
			if err == nil && alive && holder != nil {
				texts[i] = t.Wish.Name + ": another run works on the host: " + holder.String()
			}
		})
	}
	looking.Wait()
	return slices.DeleteFunc(texts, func(text string) bool { return text == "" })
}
