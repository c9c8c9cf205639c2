package etcd

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	"github.com/kubewright/kubewright/bootstrap/host"
)

const (
	// healthTimeout bounds the question to one member.
	healthTimeout = 3 * time.Second
	// changeTimeout bounds a change of the membership, which etcd itself gives up after about 7 s.
	changeTimeout = 10 * time.Second
)

// own is the member of the host that a client goes through.
const own = "https://127.0.0.1:" + ClientPort

// Client is etcd as seen from a control-plane host: every member is reached through that
// host's connection. It connects when it is first used; Close ends all connections.
type Client struct {
	via host.Reader
	pki string
	// patience is how long one member is waited for.
	patience time.Duration

	// changing is held for a change of the membership: etcd's raft drops one that arrives while
	// another is under way, and says nothing until the call has timed out.
	changing sync.Mutex

	mu    sync.Mutex
	tls   *tls.Config
	conns map[string]*conn // by client URL
	known []string         // client URLs of all members, the one that listed them first; nil: none is known yet
}

var (
	_ Writer    = (*Client)(nil)
	_ io.Closer = (*Client)(nil)
)

// NewClient returns a client that is the health check client whose certificate is on the
// control-plane host via, below pki.
func NewClient(via host.Reader, pki string) *Client {
	return &Client{via: via, pki: pki, patience: healthTimeout, conns: map[string]*conn{}}
}

// conn is a connection to one member, and to no other.
type conn struct {
	*clientv3.Client
	url string

	mu     sync.Mutex
	dialed error // of the last attempt to reach it
}

// credentials reads who the client is from the host, and whom it trusts.
func credentials(ctx context.Context, r host.Reader, pki string) (*tls.Config, error) {
	read := func(name string) ([]byte, error) { return r.ReadFile(ctx, pki+"/"+name) }
	ca, err := read("ca.crt")
	if err != nil {
		return nil, err
	}
	cert, err := read("healthcheck-client.crt")
	if err != nil {
		return nil, err
	}
	key, err := read("healthcheck-client.key")
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("etcd client certificate: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}, nil
}

// neighbours are the members that the host's apilb knows of: a way to etcd if the host's own member is dead.
func (c *Client) neighbours(ctx context.Context) []string {
	content, err := c.via.ReadFile(ctx, NeighboursFile)
	if err != nil {
		return nil // there is none on a host that is only being made
	}
	var remembered struct {
		Servers []string `json:"servers"`
	}
	if json.Unmarshal(content, &remembered) != nil {
		return nil
	}
	var urls []string
	for _, server := range remembered.Servers {
		if address, _, err := net.SplitHostPort(server); err == nil {
			urls = append(urls, url(address, ClientPort))
		}
	}
	return urls
}

// member is the connection to the member at a client URL.
func (c *Client) member(ctx context.Context, at string) (*conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if to, ok := c.conns[at]; ok {
		return to, nil
	}
	if c.tls == nil {
		var err error
		if c.tls, err = credentials(ctx, c.via, c.pki); err != nil {
			return nil, err
		}
	}
	to := &conn{url: at}
	var err error
	to.Client, err = clientv3.New(clientv3.Config{
		Context:         context.WithoutCancel(ctx), // it outlives the call; Close ends it
		Endpoints:       []string{at},
		MaxUnaryRetries: 1,            // whoever calls knows better what a failure means
		Logger:          zap.NewNop(), // what it would print is in its errors, too
		TLS:             c.tls.Clone(),
		DialOptions: []grpc.DialOption{
			grpc.WithChainUnaryInterceptor(failAtOnce),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 2, MaxDelay: time.Second},
				MinConnectTimeout: healthTimeout,
			}),
			grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
				tcp, err := c.via.Dial(ctx, "tcp", address)
				to.mu.Lock()
				defer to.mu.Unlock()
				to.dialed = err
				return tcp, err
			}),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("etcd client: %w", err)
	}
	c.conns[at] = to
	return to, nil
}

// failAtOnce has a call to a member that cannot be reached fail, where etcd's client would wait for it.
func failAtOnce(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return call(ctx, method, req, reply, cc, append(slices.Clone(opts), grpc.WaitForReady(false))...)
}

// Close ends all connections.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var faults []error
	for _, to := range c.conns {
		faults = append(faults, to.Close())
	}
	clear(c.conns)
	return errors.Join(faults...)
}

// explain says why a call to a member failed, for people: first of all, that it was not reached.
func (to *conn) explain(err error) string {
	to.mu.Lock()
	defer to.mu.Unlock()
	switch {
	case err == nil:
		return ""
	case to.dialed != nil:
		return "it cannot be reached: " + to.dialed.Error()
	case errors.Is(err, context.DeadlineExceeded):
		return "it did not answer in time"
	}
	return "it does not answer: " + status.Convert(err).Message()
}

// typed gives etcd's own errors the names of this package.
func typed(err error) error {
	for _, e := range []struct{ theirs, ours error }{
		{rpctypes.ErrMemberLearnerNotReady, ErrBehind},
		{rpctypes.ErrMemberNotFound, ErrMemberNotFound},
		{rpctypes.ErrPeerURLExist, ErrMemberExists},
		{rpctypes.ErrMemberExist, ErrMemberExists}, // its ID is made of its peer URL
		{rpctypes.ErrTooManyLearners, ErrOtherLearner},
		{rpctypes.ErrUnhealthy, ErrUnsettled},
		{rpctypes.ErrMemberNotEnoughStarted, ErrUnsettled},
		{rpctypes.ErrNotLeader, ErrElecting},
		{rpctypes.ErrLeaderChanged, ErrElecting},
		{rpctypes.ErrBadLeaderTransferee, ErrElecting},
		{rpctypes.ErrNoLeader, ErrNoQuorum},
		{rpctypes.ErrTimeout, ErrNoQuorum},
		{rpctypes.ErrTimeoutDueToLeaderFail, ErrNoQuorum},
		{rpctypes.ErrTimeoutDueToConnectionLost, ErrNoQuorum},
	} {
		if errors.Is(err, e.theirs) {
			return fmt.Errorf("%w (%w)", e.ours, err)
		}
	}
	// A member that takes itself out ends before it answers.
	if e := (rpctypes.EtcdError{}); errors.As(err, &e) && e.Code() == codes.Unavailable || status.Code(err) == codes.Unavailable {
		return fmt.Errorf("%w (%w)", ErrUnreachable, err)
	}
	return err
}

// list is one member's answer to the question who is a member.
type list struct {
	from *conn
	*clientv3.MemberListResponse
}

// ways are the client URLs of all members that are known, the best one first.
func (c *Client) ways(ctx context.Context) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil {
		c.known = append([]string{own}, c.neighbours(ctx)...)
	}
	return slices.Clone(c.known)
}

// ask asks all known members at once for the list, and takes the first answer. Unless
// remembered, the answer is one that a quorum stands for; else it is what that member remembers.
func (c *Client) ask(ctx context.Context, remembered bool) (list, error) {
	ctx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	var opts []clientv3.OpOption
	if remembered {
		opts = append(opts, clientv3.WithSerializable())
	}
	known := c.ways(ctx)
	type answer struct {
		list
		err   error
		alive bool // it answers, though not this question
	}
	answers := make(chan answer, len(known))
	for _, url := range known {
		to, err := c.member(ctx, url)
		if err != nil {
			return list{}, err
		}
		go func() {
			got, err := to.MemberList(ctx, opts...)
			a := answer{list: list{to, got}}
			if err != nil {
				a.err = &unanswered{url, to.explain(err), typed(err)}
				// Whoever lets a question wait to whom there is a connection has no quorum.
				a.alive = to.ActiveConnection().GetState() == connectivity.Ready
			}
			answers <- a
		}()
	}
	var faults silence
	why := ErrUnreachable
	for range known {
		a := <-answers
		if a.err == nil {
			return a.list, nil
		}
		if a.alive {
			why = ErrNoQuorum
		}
		faults = append(faults, a.err)
	}
	return list{}, fmt.Errorf("%w: %w", why, faults)
}

// unanswered is why one member did not answer: in words, and what it is.
type unanswered struct {
	url, why string
	err      error
}

func (u *unanswered) Error() string { return u.url + ": " + u.why }
func (u *unanswered) Unwrap() error { return u.err }

// silence is that of all members, on one line.
type silence []error

func (s silence) Error() string {
	var all []string
	for _, err := range s {
		all = append(all, err.Error())
	}
	return strings.Join(all, "; ")
}

func (s silence) Unwrap() []error { return s }

// Members lists all members with the health of each.
func (c *Client) Members(ctx context.Context) ([]Member, error) { return c.members(ctx, false) }

// Remembered lists the members as the first one that answers remembers them, also
// where there is no quorum.
func (c *Client) Remembered(ctx context.Context) ([]Member, error) { return c.members(ctx, true) }

func (c *Client) members(ctx context.Context, remembered bool) ([]Member, error) {
	l, err := c.ask(ctx, remembered)
	if err != nil {
		return nil, fmt.Errorf("list etcd's members: %w", err)
	}
	c.learn(l)
	members := make([]Member, len(l.Members))
	states := make([]*clientv3.StatusResponse, len(l.Members))
	var all sync.WaitGroup
	for i, m := range l.Members {
		members[i] = Member{Name: m.Name, ID: hexID(m.ID), Peers: m.PeerURLs, Clients: m.ClientURLs, Learner: m.IsLearner}
		if len(m.ClientURLs) == 0 {
			members[i].Trouble = "it has not started yet"
			continue
		}
		all.Go(func() { states[i], members[i].Trouble = c.status(ctx, m.ClientURLs[0]) })
	}
	all.Wait()
	judge(members, states, c.alarms(ctx, l.from, states))
	slices.SortFunc(members, byName)
	return members, nil
}

// byName orders members for people: etcd's own order is that of their IDs. Those without a name come last.
func byName(a, b Member) int {
	switch {
	case a.Started() && !b.Started():
		return -1
	case !a.Started() && b.Started():
		return 1
	}
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
}

// learn remembers where the members are, the one that answered first.
func (c *Client) learn(l list) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known = []string{l.from.url}
	for _, m := range l.Members {
		for _, url := range m.ClientURLs {
			if !slices.Contains(c.known, url) {
				c.known = append(c.known, url)
			}
		}
	}
	if !slices.Contains(c.known, own) {
		c.known = append(c.known, own)
	}
}

// status asks one member how it is.
func (c *Client) status(ctx context.Context, at string) (*clientv3.StatusResponse, string) {
	ctx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	to, err := c.member(ctx, at)
	if err != nil {
		return nil, err.Error()
	}
	// Maintenance.Status would connect anew for each question.
	s, err := etcdserverpb.NewMaintenanceClient(to.ActiveConnection()).Status(ctx, &etcdserverpb.StatusRequest{})
	return (*clientv3.StatusResponse)(s), to.explain(clientv3.ContextError(ctx, err))
}

// alarms are those that are raised, by member. etcd is asked only if a member speaks of one:
// the question is a write to it.
func (c *Client) alarms(ctx context.Context, to *conn, states []*clientv3.StatusResponse) map[string][]Alarm {
	raised := slices.ContainsFunc(states, func(s *clientv3.StatusResponse) bool {
		return s != nil && (len(s.Errors) > 1 || len(s.Errors) == 1 && s.Leader != 0)
	})
	if !raised {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	got, err := to.AlarmList(ctx)
	if err != nil {
		return nil // each member's Trouble has them in etcd's words then
	}
	all := map[string][]Alarm{}
	for _, a := range got.Alarms {
		all[hexID(a.MemberID)] = append(all[hexID(a.MemberID)], Alarm(a.Alarm.String()))
	}
	return all
}

// judge completes members with what they said of themselves and what alarms they raised.
func judge(members []Member, states []*clientv3.StatusResponse, alarms map[string][]Alarm) {
	var newest *clientv3.StatusResponse // of those that know a leader
	var committed uint64
	for _, s := range states {
		if s == nil {
			continue
		}
		committed = max(committed, s.RaftIndex)
		if s.Leader != 0 && (newest == nil || s.RaftTerm > newest.RaftTerm) {
			newest = s
		}
	}
	for i, s := range states {
		m := &members[i]
		if newest != nil {
			m.Leader = m.ID == hexID(newest.Leader)
		}
		if s == nil {
			continue
		}
		m.Version, m.DBSize, m.InUse, m.Quota = s.Version, s.DbSize, s.DbSizeInUse, s.DbSizeQuota
		m.Index, m.Behind = s.RaftIndex, committed-s.RaftIndex
		m.Alarms = alarms[m.ID]
		switch {
		case s.Leader == 0:
			m.Trouble = "it knows of no leader"
		case s.RaftTerm < newest.RaftTerm:
			m.Trouble = fmt.Sprintf("it is cut off from the others: it is at term %d, they are at %d", s.RaftTerm, newest.RaftTerm)
		case slices.Contains(m.Alarms, Corrupt):
			m.Trouble = "it raises alarm CORRUPT: its data differ from the other members'"
		case slices.Contains(m.Alarms, NoSpace):
			m.Full, m.Trouble = true, "it raises alarm NOSPACE: its database is full"
		case alarms == nil && len(s.Errors) > 0:
			m.Trouble = s.Errors[0]
		default:
			m.Healthy = true
		}
	}
}

// leading is the connection through which changes are made: to a member that answers with a quorum.
func (c *Client) leading(ctx context.Context) (*conn, error) {
	l, err := c.ask(ctx, false)
	if err != nil {
		return nil, err
	}
	c.learn(l)
	return l.from, nil
}

// AddLearner is Writer's.
func (c *Client) AddLearner(ctx context.Context, peerURL string) error {
	c.changing.Lock()
	defer c.changing.Unlock()
	to, err := c.leading(ctx)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, changeTimeout)
		defer cancel()
		_, err = to.MemberAddAsLearner(ctx, []string{peerURL})
	}
	if err != nil {
		return fmt.Errorf("let etcd member %s in: %w", peerURL, typed(err))
	}
	return nil
}

// Promote is Writer's.
func (c *Client) Promote(ctx context.Context, id string) error {
	return c.change(ctx, "promote", id, func(ctx context.Context, to *conn, n uint64) error {
		_, err := to.MemberPromote(ctx, n)
		return err
	})
}

// Remove is Writer's.
func (c *Client) Remove(ctx context.Context, id string) error {
	return c.change(ctx, "remove", id, func(ctx context.Context, to *conn, n uint64) error {
		_, err := to.MemberRemove(ctx, n)
		return err
	})
}

// MoveLeader is Writer's.
func (c *Client) MoveLeader(ctx context.Context, id string) error {
	return c.change(ctx, "move the lead to", id, func(ctx context.Context, _ *conn, n uint64) error {
		members, err := c.Members(ctx)
		if err != nil {
			return err
		}
		leader, ok := Membership(members).first(func(m Member) bool { return m.Leader && len(m.Clients) > 0 })
		if !ok {
			return ErrNoQuorum
		}
		if leader.ID == id {
			return nil
		}
		to, err := c.member(ctx, leader.Clients[0]) // only the leader can
		if err != nil {
			return err
		}
		_, err = to.Maintenance.MoveLeader(ctx, n)
		return err
	})
}

func (c *Client) change(ctx context.Context, verb, id string, do func(context.Context, *conn, uint64) error) error {
	c.changing.Lock()
	defer c.changing.Unlock()
	n, err := strconv.ParseUint(id, 16, 64)
	if err != nil {
		return fmt.Errorf("%s etcd member %q: %w", verb, id, ErrMemberNotFound)
	}
	to, err := c.leading(ctx)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, changeTimeout)
		defer cancel()
		err = do(ctx, to, n)
	}
	if err != nil {
		return fmt.Errorf("%s etcd member %s: %w", verb, id, typed(err))
	}
	return nil
}

// Disarm takes back a member's alarm. If its reason still stands, it is raised again.
func (c *Client) Disarm(ctx context.Context, id string, alarm Alarm) error {
	return c.change(ctx, "disarm alarm "+string(alarm)+" of", id, func(ctx context.Context, to *conn, n uint64) error {
		_, err := to.AlarmDisarm(ctx, &clientv3.AlarmMember{MemberID: n,
			Alarm: etcdserverpb.AlarmType(etcdserverpb.AlarmType_value[string(alarm)])})
		return err
	})
}

// Compact throws all revisions of the data away but the newest: what is there now stays.
func (c *Client) Compact(ctx context.Context) error {
	to, err := c.leading(ctx)
	if err != nil {
		return fmt.Errorf("compact etcd: %w", typed(err))
	}
	now, err := to.Get(ctx, "any", clientv3.WithCountOnly())
	if err == nil {
		_, err = to.KV.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical())
	}
	if err != nil && !errors.Is(err, rpctypes.ErrCompacted) { // by another, at that very revision
		return fmt.Errorf("compact etcd: %w", typed(err))
	}
	return nil
}

// Defragment gives the space that a member's database does not use back to its file
// system. The member answers nobody meanwhile.
func (c *Client) Defragment(ctx context.Context, m Member) error {
	if len(m.Clients) == 0 {
		return fmt.Errorf("defragment etcd member %s: it has not started yet", m.Title())
	}
	to, err := c.member(ctx, m.Clients[0])
	if err == nil {
		_, err = to.Maintenance.Defragment(ctx, m.Clients[0])
	}
	if err != nil {
		return fmt.Errorf("defragment etcd member %s: %w", m.Title(), typed(err))
	}
	return nil
}

// Snapshot streams all data of a member that answers with a quorum, followed by their
// SHA-256, into w: the form that etcd's tools restore from.
func (c *Client) Snapshot(ctx context.Context, w io.Writer) error {
	to, err := c.leading(ctx)
	if errors.Is(err, ErrNoQuorum) { // a member hands out what it has all the same
		var l list
		if l, err = c.ask(ctx, true); err == nil {
			to = l.from
		}
	}
	if err != nil {
		return fmt.Errorf("snapshot of etcd: %w", typed(err))
	}
	s, err := to.SnapshotWithVersion(ctx)
	if err != nil {
		return fmt.Errorf("snapshot of etcd: %w", typed(err))
	}
	defer s.Snapshot.Close() //nolint:errcheck // only read from
	if _, err := io.Copy(w, s.Snapshot); err != nil {
		return fmt.Errorf("snapshot of etcd: %w", err)
	}
	return nil
}

func hexID(id uint64) string { return strconv.FormatUint(id, 16) }
