package apilb

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// grade is how much a server is good for. More is better.
type grade int

const (
	// down: nothing answers there, or not our API server. No connection to it lives.
	down grade = iota
	// unready: it is there, and does not do its work: it starts or stops, has lost its
	// etcd, or hangs.
	unready
	// unknown: it was not asked yet.
	unknown
	ready
)

func (g grade) String() string {
	switch g {
	case down:
		return "down"
	case unready:
		return "unready"
	case unknown:
		return "unknown"
	case ready:
		return "ready"
	}
	return fmt.Sprintf("grade %d", int(g))
}

// answer is what became of one question.
type answer struct {
	grade  grade
	reason string // of a grade that is not ready
	sure   bool   // no second question is needed to believe it
}

// The times decide how long clients wait for a host that lost its power: the next
// question comes within interval, goes unanswered, and so does the connection that
// is tried in its place: 2.2 s at worst (docs/decisions/0015-apilb.md).
const (
	// interval is the time between two questions to a server.
	interval = time.Second
	// recheck is the time after a bad answer until it is asked again.
	recheck = 250 * time.Millisecond
	// unanswered is how long a host may let packets go unanswered. It is not the time
	// that its server takes: a kernel answers under any load.
	unanswered = 600 * time.Millisecond
	// bound is how long the server may take to say that it is ready: long enough for
	// a host to be found dead twice.
	bound = 1500 * time.Millisecond
	// believed is how many answers in a row change a grade.
	believed = 2
)

// score is what is believed of a server: its grade changes after two answers in a
// row that differ from it, or a sure one.
type score struct {
	answer
	differ int
}

// add counts an answer, and says whether the grade changed.
func (s *score) add(a answer) bool {
	if a.grade == s.grade {
		s.differ = 0
		return false
	}
	s.differ++
	if s.grade != unknown && !a.sure && s.differ < believed {
		return false
	}
	*s = score{answer: a}
	return true
}

// watch asks one server until ctx ends, and tells of every change of its grade.
// A message on soon has it asked at once.
func watch(ctx context.Context, ask func(context.Context) answer, soon <-chan struct{}, tell func(answer)) {
	believe := score{answer: answer{grade: unknown}}
	for {
		got := ask(ctx)
		if ctx.Err() != nil {
			return
		}
		if believe.add(got) {
			tell(got)
		}
		wait := interval
		if got.grade < believe.grade {
			wait = recheck
		}
		select {
		case <-ctx.Done():
			return
		case <-soon:
		case <-time.After(wait):
		}
	}
}

// questions asks servers for their health.
type questions struct {
	config *tls.Config
}

// newQuestions reads the authority's certificate. The kubeconfig is read when a
// connection is made: it comes late, and its certificate is renewed.
func newQuestions(caFile, kubeconfig string) (*questions, error) {
	text, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("read the cluster's authority: %w", err)
	}
	authority := x509.NewCertPool()
	if !authority.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("read the cluster's authority: %s holds no certificate", caFile)
	}
	return &questions{&tls.Config{
		RootCAs: authority,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return clientCertificate(kubeconfig)
		},
	}}, nil
}

// clientCertificate is the kubeconfig's, and an empty one, which makes the question
// an anonymous one, while there is none.
func clientCertificate(kubeconfig string) (*tls.Certificate, error) {
	access, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err == nil {
		err = rest.LoadTLSFiles(access)
	}
	if err != nil || len(access.CertData) == 0 {
		return &tls.Certificate{}, nil
	}
	cert, err := tls.X509KeyPair(access.CertData, access.KeyData)
	if err != nil {
		return &tls.Certificate{}, nil
	}
	return &cert, nil
}

// ask returns the question to a server, which it asks over one connection as long
// as that lives.
func (q *questions) ask(server netip.AddrPort) func(context.Context) answer {
	// HTTP/1: one question at a time, and a new connection after one in vain.
	client := &http.Client{Transport: &http.Transport{DialContext: strictDialer().DialContext, TLSClientConfig: q.config.Clone()}}
	readyz := "https://" + server.String() + "/readyz"
	stranger := false // the server does not know us by the certificate of this connection
	return func(ctx context.Context) answer {
		ctx, cancel := context.WithTimeout(ctx, bound)
		defer cancel()
		status, text, err := get(ctx, client, readyz, stranger)
		if err != nil {
			return unheard(err)
		}
		switch status {
		case http.StatusOK, http.StatusTooManyRequests:
			stranger = false
			return answer{grade: ready}
		case http.StatusUnauthorized, http.StatusForbidden:
			stranger = true
			return answer{grade: ready}
		}
		return answer{grade: unready, reason: fmt.Sprintf("readyz says %d%s", status, failedChecks(text))}
	}
}

// errTwice is a server that did not answer over the connection there was, nor by a new one.
var errTwice = errors.New("not over a new connection either")

// get returns the status and the text of an answer; last has it close the connection
// that it came by. Over a connection that breaks, net/http asks again by a new one.
func get(ctx context.Context, client *http.Client, address string, last bool) (status int, text string, err error) {
	reused := false
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { reused = c.Reused }})
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return 0, "", err
	}
	request.Close = last
	response, err := client.Do(request)
	if err != nil {
		if dial := (*net.OpError)(nil); reused && errors.As(err, &dial) && dial.Op == "dial" {
			err = errors.Join(err, errTwice)
		}
		return 0, "", err
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	return response.StatusCode, string(body), errors.Join(err, response.Body.Close())
}

// failedChecks names the checks that an API server says have failed.
func failedChecks(text string) string {
	var failed []string
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "[-]"); ok {
			name, _, _ := strings.Cut(rest, " ")
			failed = append(failed, strings.TrimSpace(name))
		}
	}
	if len(failed) == 0 {
		return ""
	}
	return ": " + strings.Join(failed, ", ") + " failed"
}

// unheard is the answer of a server that gave none. Time that ran out after the
// connection was made is the server's, all else the host's or the network's.
func unheard(err error) answer {
	var op *net.OpError
	dial := errors.As(err, &op) && op.Op == "dial"
	twice := errors.Is(err, errTwice)
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return answer{grade: down, reason: "connection refused", sure: true}
	case dial && op.Timeout(), errors.Is(err, unix.ETIMEDOUT):
		return answer{grade: down, reason: "the host does not answer", sure: twice}
	case dial:
		return answer{grade: down, reason: op.Err.Error(), sure: twice}
	case errors.Is(err, context.DeadlineExceeded):
		return answer{grade: unready, reason: fmt.Sprintf("no answer within %v", bound)}
	}
	if of := (*url.Error)(nil); errors.As(err, &of) {
		err = of.Err // without the address, which the log has
	}
	return answer{grade: down, reason: err.Error()}
}

// strictDialer makes connections that break if packets go unanswered. It is for the
// questions alone: a server that is slow to read a large request leaves some, too.
func strictDialer() *net.Dialer {
	return &net.Dialer{Timeout: unanswered, Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unanswered.Milliseconds()))
		}), err)
	}}
}
