// Package sshhost reaches hosts over SSH: commands in sessions, files by SFTP,
// systemd by its D-Bus, sockets by forwarding, all through one connection.
//
// Host keys are always verified. A user other than root does everything through
// sudo, which must not ask for a password unless there is one in the Config.
package sshhost

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/cpu"
)

// Config says how to reach hosts.
type Config struct {
	ConfigFile        string        // ssh_config; "": ~/.ssh/config, then /etc/ssh/ssh_config
	AcceptNewHostKeys bool          // trust and remember the key of a host that no known_hosts file lists
	KnownHosts        []string      // known_hosts files in the place of ssh_config's; new keys go to the first
	Timeout           time.Duration // for the connection to stand, each hop; 0: 10 s
	SudoPassword      *SudoPassword // what sudo asks for; nil: it must not ask. Shared by all hosts of a run

	keepalive  time.Duration // how often the server is asked whether it is there; 0: 5 s
	alwaysSudo bool          // also as root: tests log in as nobody else
}

const (
	defaultTimeout   = 10 * time.Second
	defaultKeepalive = 5 * time.Second
	keepaliveMisses  = 3 // answers in a row that stay out before the connection is given up
	maxJumps         = 8
)

// Host is a connection to a machine. Its methods may be called concurrently.
type Host struct {
	name     string
	endpoint endpoint
	client   *ssh.Client
	jumps    []*ssh.Client // what it goes through, nearest to us first
	sudo     []string      // what makes a command root's, empty for root
	password *SudoPassword // what it asks for, nil if it must not
	sessions chan struct{} // one token for each command that runs
	server   netip.Addr
	session  Session

	lost  chan struct{} // closed when the connection has ended
	cause error         // why; to be read after that

	files opening[*sftp.Client]
	bus   opening[*systemBus]
}

var _ host.Host = (*Host)(nil)

// Dial connects to a target, [user@]host[:port] or a Host of ssh_config, and
// makes sure that it can be root there. Its errors are faults: HostUnreachable,
// HostKeyUnknown, HostKeyChanged, AuthRefused, SudoRefused, or Usage.
func Dial(ctx context.Context, name string, cfg Config) (*Host, error) {
	t, err := parseTarget(name)
	if err != nil {
		return nil, err
	}
	r, err := newResolver(cfg.ConfigFile)
	if err != nil {
		return nil, err
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	if cfg.keepalive == 0 {
		cfg.keepalive = defaultKeepalive
	}
	h := &Host{name: name, sessions: make(chan struct{}, maxSessions), lost: make(chan struct{})}
	h.files, h.bus = newOpening[*sftp.Client](), newOpening[*systemBus]()
	d := &dialer{resolver: r, cfg: cfg}
	conn, err := d.dial(ctx, t, nil)
	h.jumps = d.jumps
	if err != nil {
		h.closeJumps()
		return nil, err
	}
	h.client, h.endpoint = conn.client, conn.endpoint
	go h.watch(conn.heard, cfg.keepalive)
	if h.endpoint.user != "root" || cfg.alwaysSudo {
		h.sudo, h.password = sudo(cfg.SudoPassword), cfg.SudoPassword
	}
	if err := h.begin(ctx); err != nil {
		h.Close() //nolint:errcheck // the first error tells more
		return nil, err
	}
	return h, nil
}

// begin asks for all that is needed in any case, at once: the address the host
// is reached at, whether sudo lets us, and SFTP. D-Bus is opened meanwhile, for
// whoever needs it first.
func (h *Host) begin(ctx context.Context) error {
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error {
		// printenv fails where the variable is missing: the address is unknown then.
		out, err := h.exec(ctx, []string{"printenv", "SSH_CONNECTION"}, newConsole(nil), host.Command{Argv: []string{"printenv"}})
		if exit := (*host.ExitError)(nil); err != nil && !errors.As(err, &exit) {
			return err
		}
		h.session = parseSession(string(out))
		h.server = h.ownAddr()
		return nil
	})
	all.Go(func() error {
		if err := h.checkSudo(ctx); err != nil {
			return err
		}
		_, err := h.sftp(ctx)
		return err
	})
	if err := all.Wait(); err != nil {
		return err
	}
	go h.systemBus(context.Background()) //nolint:errcheck // whoever needs it tries again and is told
	return nil
}

// Session is the SSH connection as the host sees it; what it does not tell is zero.
type Session struct {
	Client netip.Addr     // whence it comes
	Server netip.AddrPort // where sshd answered it
}

// parseSession reads the variable SSH_CONNECTION: client's address and port, server's address and port.
func parseSession(sshConnection string) Session {
	words := strings.Fields(sshConnection)
	if len(words) != 4 {
		return Session{}
	}
	client, err := netip.ParseAddr(words[0])
	if err != nil {
		return Session{}
	}
	server, err := netip.ParseAddr(words[2])
	if err != nil {
		return Session{}
	}
	port, err := strconv.ParseUint(words[3], 10, 16)
	if err != nil {
		return Session{}
	}
	return Session{Client: client.Unmap(), Server: netip.AddrPortFrom(server.Unmap(), uint16(port))}
}

// ownAddr is the host's own end of the connection. If that is not what was dialed, the
// address was translated on the way, and says nothing of where other hosts find this one.
func (h *Host) ownAddr() netip.Addr {
	own := h.session.Server.Addr()
	if len(h.jumps) > 0 || !own.IsValid() { // what was dialed is the last hop's business
		return own
	}
	if dialed, ok := h.client.RemoteAddr().(*net.TCPAddr); !ok || dialed.AddrPort().Addr().Unmap().WithZone("") != own.WithZone("") {
		return netip.Addr{}
	}
	return own
}

// Name is the host as the admin wrote it.
func (h *Host) Name() string { return h.name }

// ServerAddr is the host's own end of the connection, invalid if it is unknown
// or was translated on the way.
func (h *Host) ServerAddr() netip.Addr { return h.server }

// Session is the connection as the host sees it.
func (h *Host) Session() Session { return h.session }

// Close ends the connection and all that goes through it.
func (h *Host) Close() error {
	err := h.client.Close()
	h.closeJumps()
	<-h.lost
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
		return nil // it had ended before
	}
	return err
}

func (h *Host) closeJumps() {
	for i := len(h.jumps) - 1; i >= 0; i-- {
		h.jumps[i].Close() //nolint:errcheck // what went through it is closed already
	}
}

// Dial connects to an address as seen from the host. "unix" is for root alone:
// sshd opens sockets as the user who is logged in.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	switch network {
	case "tcp", "tcp4", "tcp6":
	case "unix":
		if len(h.sudo) > 0 {
			return nil, fmt.Errorf("dial unix %s: user %s cannot open it through sshd, root can", address, h.endpoint.user)
		}
	default:
		return nil, fmt.Errorf("dial %s %s: %w", network, address, net.UnknownNetworkError(network))
	}
	conn, err := h.client.DialContext(ctx, network, address)
	if err != nil {
		return nil, h.explain(fmt.Errorf("dial %s %s from the host: %w", network, address, err))
	}
	return conn, nil
}

// watch closes the connection when nothing is heard of the server for
// keepaliveMisses intervals though it was asked, so that no call hangs on it.
func (h *Host) watch(heard *atomic.Int64, interval time.Duration) {
	ended := make(chan error, 1)
	go func() { ended <- h.client.Wait() }()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	defer close(h.lost)

	answered := make(chan struct{}, 1)
	asked, misses, last := false, 0, heard.Load()
	for {
		select {
		case h.cause = <-ended:
			return
		case <-answered:
			asked, misses = false, 0
		case <-tick.C:
			if now := heard.Load(); now != last { // anything it sends is a sign of life
				last, misses = now, 0
			} else if asked {
				misses++
			}
			if misses >= keepaliveMisses {
				h.cause = fmt.Errorf("no answer for %v", keepaliveMisses*interval)
				h.client.Close() //nolint:errcheck // it is given up
				<-ended
				return
			}
			if !asked {
				asked = true
				go func() {
					h.client.SendRequest("keepalive@openssh.com", true, nil) //nolint:errcheck // any answer will do, Wait tells of none
					answered <- struct{}{}
				}()
			}
		}
	}
}

// explain makes an error that comes of the connection's end a HostUnreachable,
// and returns any other as it is.
func (h *Host) explain(err error) error {
	if err == nil || answered(err) {
		return err
	}
	select {
	case <-h.lost:
	case <-time.After(closeGrace): // streams on a connection may end a moment before it does
		return err
	}
	why := "it was closed"
	if h.cause != nil {
		why = h.cause.Error()
	}
	return fault.New(fault.HostUnreachable, "see whether the host is up, then run the same command again: it goes on where it stopped",
		"connection to %s lost (%s): %w", h.endpoint.addr(), why, err)
}

// answered tells whether err is what the host said, or our caller's own end.
func answered(err error) bool {
	var (
		channel *ssh.OpenChannelError
		status  *sftp.StatusError
		bus     dbus.Error
		told    *fault.Fault
		ended   givenUp
	)
	return errors.As(err, &channel) || errors.As(err, &status) || errors.As(err, &bus) || errors.As(err, &told) || errors.As(err, &ended) ||
		errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.ENOTDIR) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// dialer makes the connection to a target through all the hosts before it.
type dialer struct {
	resolver *resolver
	cfg      Config
	jumps    []*ssh.Client
	depth    int
}

// connection is one that stands.
type connection struct {
	client   *ssh.Client
	endpoint endpoint
	heard    *atomic.Int64 // bytes that came from the server
}

// dial connects to t through the hosts in via, or through those that t's own
// ssh_config names if via is nil.
func (d *dialer) dial(ctx context.Context, t target, via []string) (connection, error) {
	e, err := d.resolver.resolve(t)
	if err != nil {
		return connection{}, err
	}
	if len(d.cfg.KnownHosts) > 0 {
		e.userKnown = d.cfg.KnownHosts
	}
	if via == nil {
		via = e.jumps
	}
	var through *ssh.Client
	if len(via) > 0 {
		if d.depth++; d.depth > maxJumps {
			return connection{}, fault.New(fault.Usage, "look for a loop of ProxyJump in ssh_config", "more than %d jumps to reach %s", maxJumps, t.host)
		}
		last := len(via) - 1
		hop, err := parseTarget(strings.TrimPrefix(via[last], "ssh://"))
		if err != nil {
			return connection{}, fmt.Errorf("ProxyJump of %s: %w", t.host, err)
		}
		var before []string // nil for the nearest: its own ssh_config counts
		if last > 0 {
			before = via[:last]
		}
		jump, err := d.dial(ctx, hop, before)
		if err != nil {
			return connection{}, fmt.Errorf("jump host %s: %w", via[last], err)
		}
		through = jump.client
		d.jumps = append(d.jumps, through)
	}
	return d.connect(ctx, e, through)
}

// bare is what befell a connection, without the address and the system call's name that net puts before it.
func bare(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		err = op.Err
	}
	var call *os.SyscallError
	if errors.As(err, &call) {
		err = call.Err
	}
	return err
}

// connect makes one connection and logs in.
func (d *dialer) connect(ctx context.Context, e endpoint, through *ssh.Client) (connection, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, d.cfg.Timeout, fmt.Errorf("no answer in %v", d.cfg.Timeout))
	defer cancel()
	keys, err := newHostKeys(e, d.cfg.AcceptNewHostKeys)
	if err != nil {
		return connection{}, err
	}
	unreachable := func(err error) error {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if errors.Is(err, context.Canceled) {
			return fmt.Errorf("connect to %s: %w", e.addr(), err)
		}
		return fault.New(fault.HostUnreachable, "see whether the host is up and its sshd listens there: ssh "+e.login(),
			"no SSH at %s: %w", e.addr(), bare(err))
	}
	var conn net.Conn
	if through == nil {
		conn, err = new(net.Dialer).DialContext(ctx, "tcp", e.addr())
	} else {
		conn, err = through.DialContext(ctx, "tcp", e.addr())
	}
	if err != nil {
		return connection{}, unreachable(err)
	}
	heard := &hearing{Conn: conn}
	stop := context.AfterFunc(ctx, func() { conn.Close() }) //nolint:errcheck // it ends the handshake
	defer stop()

	ring := openKeyring(ctx, e, d.resolver.home)
	defer ring.close()
	c, channels, requests, err := ssh.NewClientConn(heard, e.addr(), &ssh.ClientConfig{
		User:              e.user,
		Auth:              []ssh.AuthMethod{ssh.PublicKeys(ring.signers...)},
		HostKeyCallback:   keys.verify,
		HostKeyAlgorithms: keys.algorithms(),
		Config:            ssh.Config{Ciphers: ciphers()},
	})
	var ioErr net.Error
	switch {
	case err == nil:
		return connection{client: ssh.NewClient(c, channels, requests), endpoint: e, heard: &heard.bytes}, nil
	case keys.refusal != nil:
		err = keys.refusal
	case keys.verified && ctx.Err() == nil && !errors.As(err, &ioErr) && !errors.Is(err, io.EOF):
		err = ring.refused(e, err)
	default:
		err = unreachable(err)
	}
	conn.Close() //nolint:errcheck // it came to nothing
	return connection{}, err
}

// ciphers is what to ask for, the fastest first: AES-GCM where the processor has
// instructions for it, else ChaCha20.
func ciphers() []string {
	all := ssh.SupportedAlgorithms().Ciphers
	if cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ || cpu.ARM64.HasAES && cpu.ARM64.HasPMULL {
		return all // AES-GCM is what x/crypto begins with
	}
	return append([]string{ssh.CipherChaCha20Poly1305}, slices.DeleteFunc(all, func(c string) bool { return c == ssh.CipherChaCha20Poly1305 })...)
}

// hearing counts the bytes that come in.
type hearing struct {
	net.Conn
	bytes atomic.Int64
}

func (h *hearing) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	h.bytes.Add(int64(n))
	return n, err
}

// opening is something on the connection that is opened once it is needed, by
// one caller while the others wait, and again after it was lost.
type opening[T any] struct{ turn chan *T }

func newOpening[T any]() opening[T] {
	o := opening[T]{turn: make(chan *T, 1)}
	o.turn <- nil
	return o
}

// get returns what is open, if alive says that it is good still, or opens it.
func (o opening[T]) get(ctx context.Context, alive func(T) bool, open func() (T, error)) (T, error) {
	var zero T
	var held *T
	select {
	case held = <-o.turn:
	case <-ctx.Done():
		return zero, givenUp{context.Cause(ctx)}
	}
	if held != nil && alive(*held) {
		o.turn <- held
		return *held, nil
	}
	opened, err := open()
	if err != nil {
		o.turn <- nil
		return zero, err
	}
	o.turn <- &opened
	return opened, nil
}
