package drill

import (
	"context"
	"sync"
	"time"
)

// Store is what one client of the load writes to and reads from.
type Store interface {
	// Append stores a record. Only nil says that it is stored: after an error it may be or not.
	Append(ctx context.Context, r Record) error
	// Has tells whether a record is there. All that was acknowledged before the call counts.
	Has(ctx context.Context, r Record) (bool, error)
	// All are the records that are there.
	All(ctx context.Context) (map[Record]bool, error)
}

const (
	// pace is how often a client begins an operation, if the one before has ended.
	pace = 100 * time.Millisecond
	// deadline bounds one operation: a client that is not answered begins another.
	deadline = time.Second
)

// load is writers and readers at work.
type load struct {
	account *account
	clients sync.WaitGroup
	stop    context.CancelFunc
}

// startLoad sets writers and readers to work, each on a store of its own. A reader asks for
// the newest acknowledged record of the writer with its number.
func startLoad(ctx context.Context, writers, readers []Store) *load {
	ctx, stop := context.WithCancel(ctx)
	l := &load{account: newAccount(), stop: stop}
	for i, s := range writers {
		next := Record{Writer: i}
		l.work(ctx, client{write, i}, func(ctx context.Context) error {
			r := next
			next.Number++ // whatever comes of it: one whose fate is unknown is not tried again
			err := s.Append(ctx, r)
			if err == nil {
				l.account.acknowledge(r)
			}
			return err
		})
	}
	for i, s := range readers {
		l.work(ctx, client{read, i}, func(ctx context.Context) error {
			r, any := l.account.newest(i % len(writers))
			found, err := s.Has(ctx, r)
			if err == nil && any && !found {
				l.account.missed(r)
			}
			return err
		})
	}
	return l
}

// work has a client do one operation after the other.
func (l *load) work(ctx context.Context, c client, do func(context.Context) error) {
	l.clients.Go(func() {
		tick := time.NewTicker(pace)
		defer tick.Stop()
		for ctx.Err() == nil {
			began := time.Now()
			one, cancel := context.WithTimeout(ctx, deadline)
			err := do(one)
			cancel()
			if err != nil && ctx.Err() != nil {
				return // it was told to end, which is no failure
			}
			l.account.did(c, op{began: began, ended: time.Now(), err: err})
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	})
}

// end stops the clients, and returns what they did.
func (l *load) end() *account {
	l.stop()
	l.clients.Wait()
	return l.account
}
