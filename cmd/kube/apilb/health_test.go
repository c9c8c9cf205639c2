package apilb

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

var (
	good    = answer{grade: ready}
	failing = answer{grade: unready, reason: "readyz says 500"}
	silent  = answer{grade: down, reason: "the host does not answer"}
	refused = answer{grade: down, reason: "connection refused", sure: true}
)

func TestScore(t *testing.T) {
	for _, test := range []struct {
		name    string
		answers []answer
		want    []grade // believed after each
	}{
		{"the first answer is believed", []answer{silent, silent}, []grade{down, down}},
		{"one bad answer changes nothing", []answer{good, failing, good, failing, good}, []grade{ready, ready, ready, ready, ready}},
		{"two do", []answer{good, failing, failing}, []grade{ready, ready, unready}},
		{"of two bad ones the last says how bad", []answer{good, failing, silent}, []grade{ready, ready, down}},
		{"a refusal is sure", []answer{good, refused}, []grade{ready, down}},
		{"so is up", []answer{refused, good, failing, good, good}, []grade{down, down, unready, unready, ready}},
	} {
		t.Run(test.name, func(t *testing.T) {
			believe := score{answer: answer{grade: unknown}}
			var got []grade
			for _, a := range test.answers {
				before := believe.grade
				if changed := believe.add(a); changed != (believe.grade != before) {
					t.Errorf("%v after %v: changed is %v", believe.grade, before, changed)
				}
				got = append(got, believe.grade)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestWatch has a server whose host loses its power, and each question to it take
// as long as it does then.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		begun := time.Now()
		cut := begun.Add(10*interval + time.Millisecond) // the worst moment: just after a good answer
		asked := 0
		ask := func(context.Context) answer {
			asked++
			if time.Now().Before(cut) {
				return good
			}
			time.Sleep(unanswered)
			return silent
		}
		var told []grade
		var when []time.Duration
		soon := make(chan struct{}, 1)
		done := make(chan struct{})
		go func() {
			defer close(done)
			watch(ctx, ask, soon, func(a answer) {
				told, when = append(told, a.grade), append(when, time.Since(begun))
			})
		}()
		time.Sleep(cut.Sub(begun))
		if asked != 11 {
			t.Errorf("asked %d times in ten intervals", asked)
		}
		time.Sleep(time.Minute)
		if !slices.Equal(told, []grade{ready, down}) {
			t.Fatalf("told %v", told)
		}
		if took := when[1] - cut.Sub(begun); took > 2500*time.Millisecond {
			t.Errorf("a dead host is found after %v", took)
		}
		before := asked
		soon <- struct{}{}
		time.Sleep(unanswered) // it may have been asked just now
		synctest.Wait()
		if asked != before+1 {
			t.Errorf("asked %d times more at once", asked-before)
		}
		stop()
		<-done
	})
}

func TestFailedChecks(t *testing.T) {
	text := "[+]ping ok\n[-]etcd failed: reason withheld\n[+]log ok\n[-]informer-sync failed: reason withheld\nreadyz check failed\n"
	if got, want := failedChecks(text), ": etcd, informer-sync failed"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := failedChecks("no such page"); got != "" {
		t.Errorf("%q", got)
	}
}

// TestAsk has servers of every kind.
func TestAsk(t *testing.T) {
	c := newCluster(t)
	q, err := newQuestions(c.caFile, c.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	gone := c.start(t)
	gone.Close()
	foreign := newCluster(t).start(t)
	c.allow(t)

	for _, test := range []struct {
		name   string
		server *apiServer
		status int
		want   answer
	}{
		{"ready", c.start(t), http.StatusOK, good},
		{"anonymous requests are off", c.start(t), http.StatusUnauthorized, good},
		{"no rights", c.start(t), http.StatusForbidden, good},
		{"busy", c.start(t), http.StatusTooManyRequests, good},
		{"not ready", c.start(t), http.StatusInternalServerError, answer{grade: unready, reason: "readyz says 500: etcd failed"}},
		{"something else", c.start(t), http.StatusNotFound, answer{grade: unready, reason: "readyz says 404"}},
		{"gone", gone, 0, refused},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.server.ready.Store(int64(test.status))
			if got := q.ask(test.server.address)(t.Context()); got != test.want {
				t.Errorf("%+v, want %+v", got, test.want)
			}
		})
	}
	t.Run("another cluster's", func(t *testing.T) {
		got := q.ask(foreign.address)(t.Context())
		if got.grade != down || got.sure || !strings.Contains(got.reason, "x509") {
			t.Errorf("%+v", got)
		}
	})
	t.Run("hangs", func(t *testing.T) {
		s := c.start(t)
		s.hang()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond) // of the bound's 1.5 s
		defer cancel()
		if got := q.ask(s.address)(ctx); got.grade != unready || got.sure {
			t.Errorf("%+v", got)
		}
	})
}

// TestUnheard has hosts that no packet comes back from.
func TestUnheard(t *testing.T) {
	dial := &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}
	for _, test := range []struct {
		err  error
		want answer
	}{
		{dial, answer{grade: down, reason: "the host does not answer"}},
		{errors.Join(dial, errTwice), answer{grade: down, reason: "the host does not answer", sure: true}},
		{&net.OpError{Op: "read", Err: unix.ETIMEDOUT}, answer{grade: down, reason: "the host does not answer"}},
		{&net.OpError{Op: "dial", Err: unix.EHOSTUNREACH}, answer{grade: down, reason: "no route to host"}},
		{&net.OpError{Op: "read", Err: unix.ECONNRESET}, answer{grade: down, reason: "read: connection reset by peer"}},
		{context.DeadlineExceeded, answer{grade: unready, reason: "no answer within 1.5s"}},
	} {
		if got := unheard(&url.Error{Op: "Get", URL: "https://192.0.2.1:6443/readyz", Err: test.err}); got != test.want {
			t.Errorf("%v: %+v, want %+v", test.err, got, test.want)
		}
	}
}

// TestCertificate has a node that comes by its credentials later, and a server that
// then knows it.
func TestCertificate(t *testing.T) {
	c := newCluster(t)
	q, err := newQuestions(c.caFile, c.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	s := c.start(t)
	s.ready.Store(byCertificate)
	ask := q.ask(s.address)
	for range 2 {
		if got := ask(t.Context()); got != good {
			t.Fatalf("%+v", got)
		}
	}
	if s.knew.Load() {
		t.Error("known without a certificate")
	}
	c.allow(t)
	// The connection that there is ends with the next answer.
	for range 2 {
		ask(t.Context())
	}
	if !s.knew.Load() {
		t.Error("not known by the certificate")
	}
	if n := s.dialed.Load(); n > 4 {
		t.Errorf("%d connections for 4 questions", n)
	}
	before := s.dialed.Load()
	for range 3 {
		ask(t.Context())
	}
	if n := s.dialed.Load() - before; n != 0 {
		t.Errorf("%d new connections of a known node", n)
	}
}
