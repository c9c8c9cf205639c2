package cluster

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// network is where some servers answer, others refuse, and the rest are silent.
type network struct {
	answer, refuse []string
	dialed         []string
}

func (n *network) dial(ctx context.Context, _, address string) (net.Conn, error) {
	n.dialed = append(n.dialed, address)
	switch {
	case slices.Contains(n.answer, address):
		ours, theirs := net.Pipe()
		theirs.Close() //nolint:errcheck // a pipe
		return ours, nil
	case slices.Contains(n.refuse, address):
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.Join(errors.New(address), syscall.ECONNREFUSED)}
	}
	<-ctx.Done()
	return nil, errors.Join(errors.New(address), context.Cause(ctx))
}

// TestWays asks the server that was asked for first, then the others, and remembers which one answered.
func TestWays(t *testing.T) {
	others := []string{"b:1", "c:1"}
	for name, c := range map[string]struct {
		answer, refuse []string
		want           []string // that are dialed
		took           time.Duration
		again          []string // by a second call
	}{
		"the first":             {answer: []string{"a:1", "b:1"}, want: []string{"a:1"}, again: []string{"a:1"}},
		"another":               {answer: []string{"b:1"}, refuse: []string{"a:1"}, want: []string{"a:1", "b:1"}, again: []string{"b:1"}},
		"another, after a dead": {answer: []string{"c:1"}, refuse: []string{"b:1"}, want: []string{"a:1", "b:1", "c:1"}, took: wayTime, again: []string{"c:1"}},
		"none":                  {refuse: []string{"a:1", "b:1", "c:1"}, want: []string{"a:1", "b:1", "c:1"}, again: []string{"a:1", "b:1", "c:1"}},
		"none is alive":         {want: []string{"a:1", "b:1", "c:1"}, took: 3 * wayTime, again: []string{"a:1", "b:1", "c:1"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &network{answer: c.answer, refuse: c.refuse}
				w := &ways{dial: n.dial, others: others}
				began := time.Now()
				conn, err := w.Dial(t.Context(), "tcp", "a:1")
				if (err == nil) != (len(c.answer) > 0) {
					t.Fatal(err)
				}
				if took := time.Since(began); took != c.took {
					t.Errorf("it took %v, want %v", took, c.took)
				}
				if diff := cmp.Diff(c.want, n.dialed); diff != "" {
					t.Error(diff)
				}
				for _, at := range c.want {
					if err != nil && !strings.Contains(err.Error(), at) {
						t.Errorf("the error does not tell of %s: %v", at, err)
					}
				}
				n.dialed = nil
				if conn != nil {
					conn.Close() //nolint:errcheck // a pipe
				}
				if conn, err := w.Dial(t.Context(), "tcp", "a:1"); err == nil {
					conn.Close() //nolint:errcheck // likewise
				}
				if diff := cmp.Diff(c.again, n.dialed); diff != "" {
					t.Errorf("again: %s", diff)
				}
			})
		})
	}
}

// TestWaysGoBack: the one that answered last may be the next to die.
func TestWaysGoBack(t *testing.T) {
	n := &network{answer: []string{"b:1"}, refuse: []string{"a:1"}}
	w := &ways{dial: n.dial, others: []string{"b:1"}}
	dial := func() {
		t.Helper()
		conn, err := w.Dial(t.Context(), "tcp", "a:1")
		if err != nil {
			t.Fatal(err)
		}
		conn.Close() //nolint:errcheck // a pipe
	}
	dial()
	n.answer, n.refuse, n.dialed = []string{"a:1"}, []string{"b:1"}, nil
	dial()
	if diff := cmp.Diff([]string{"b:1", "a:1"}, n.dialed); diff != "" {
		t.Error(diff)
	}
}

// TestWaysEnd: who does not want to wait any more has no further server tried.
func TestWaysEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := (&ways{dial: n.dial, others: []string{"b:1"}}).Dial(ctx, "tcp", "a:1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if diff := cmp.Diff([]string{"a:1"}, n.dialed); diff != "" {
			t.Error(diff)
		}
	})
}

// TestConfigOfSeveralServers: another server's certificate does not have the address that was asked for.
func TestConfigOfSeveralServers(t *testing.T) {
	one := Config(Access{Server: "https://192.0.2.1:6443"}, nil)
	if one.ServerName != "" || one.Dial != nil {
		t.Errorf("one server: %q, %v", one.ServerName, one.Dial != nil)
	}
	several := Config(Access{Server: "https://192.0.2.1:6443", Others: []string{"192.0.2.2:6443"}}, nil)
	if several.ServerName != anyServer || several.Dial == nil || several.Host != "https://192.0.2.1:6443" {
		t.Errorf("several: %+v", several)
	}
}

// TestServing waits for all of the servers, in whatever slices they are, and for no one else's.
func TestServing(t *testing.T) {
	slice := func(name, service string, addresses ...string) *discoveryv1.EndpointSlice {
		s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: metav1.NamespaceDefault,
			Labels: map[string]string{discoveryv1.LabelServiceName: service}}}
		for _, a := range addresses {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
		}
		return s
	}
	a := Serving{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")}}
	for name, c := range map[string]struct {
		slices  []*discoveryv1.EndpointSlice
		missing string
	}{
		"nothing":            {nil, "192.0.2.2 does not serve yet; 192.0.2.3 does not serve yet"},
		"one of them":        {[]*discoveryv1.EndpointSlice{slice("kubernetes", "kubernetes", "192.0.2.1", "192.0.2.3")}, "192.0.2.2 does not serve yet"},
		"another service's":  {[]*discoveryv1.EndpointSlice{slice("a", "app", "192.0.2.2", "192.0.2.3")}, "192.0.2.2 does not serve yet; 192.0.2.3 does not serve yet"},
		"all in two slices":  {[]*discoveryv1.EndpointSlice{slice("k1", "kubernetes", "192.0.2.2"), slice("k2", "kubernetes", "192.0.2.3")}, ""},
		"all, and the first": {[]*discoveryv1.EndpointSlice{slice("kubernetes", "kubernetes", "192.0.2.1", "192.0.2.2", "192.0.2.3")}, ""},
	} {
		api := newAPI()
		for _, s := range c.slices {
			if err := api.kube.Tracker().Add(s); err != nil {
				t.Fatal(err)
			}
		}
		diff, err := a.Check(t.Context(), api)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if len(diff) > 0 {
			got = diff[0].Detail
		}
		if got != c.missing || len(diff) > 1 {
			t.Errorf("%s: %v, want %q", name, diff, c.missing)
		}
	}
}

// TestServingWaits until the last one serves.
func TestServingWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newAPI()
		time.AfterFunc(time.Minute, func() {
			if err := api.kube.Tracker().Add(&discoveryv1.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Namespace: metav1.NamespaceDefault, Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
				Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{"192.0.2.2"}}},
			}); err != nil {
				t.Error(err)
			}
		})
		began := time.Now()
		if err := (Serving{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.2")}}).Apply(t.Context(), api); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took < time.Minute || took > time.Minute+time.Second {
			t.Errorf("it waited %v", took)
		}
	})
}

// TestWaysReady prefers a server that is ready to one that only takes connections, and the one
// that was asked for to the others.
func TestWaysReady(t *testing.T) {
	const slow = 2 * headStart
	for name, c := range map[string]struct {
		ready map[string]time.Duration // after how long it says so; others never do
		want  string
		took  time.Duration
	}{
		"the first":                 {ready: map[string]time.Duration{"a:1": headStart / 2, "b:1": 0}, want: "a:1", took: headStart / 2},
		"the first, without a word": {ready: map[string]time.Duration{"b:1": 0}, want: "b:1", took: headStart},
		"the quickest of the rest":  {ready: map[string]time.Duration{"b:1": slow, "c:1": slow / 2}, want: "c:1", took: headStart + slow/2},
		"none":                      {want: "a:1", took: headStart + wayTime},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &network{answer: []string{"a:1", "b:1", "c:1"}}
				w := &ways{dial: n.dial, others: []string{"b:1", "c:1"}, ready: func(ctx context.Context, address string) bool {
					after, ok := c.ready[address]
					if !ok {
						<-ctx.Done()
						return false
					}
					select {
					case <-ctx.Done():
						return false
					case <-time.After(after):
						return true
					}
				}}
				began := time.Now()
				conn, err := w.Dial(t.Context(), "tcp", "a:1")
				if err != nil {
					t.Fatal(err)
				}
				conn.Close() //nolint:errcheck // a pipe
				if took := time.Since(began); took != c.took {
					t.Errorf("it took %v, want %v", took, c.took)
				}
				if diff := cmp.Diff([]string{c.want}, n.dialed); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}
