package sshhost

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"
)

// These tests run OpenSSH's own server (package openssh-server) on loopback, as root.
const sshd = "/usr/sbin/sshd"

// server is an sshd of the test's own.
type server struct {
	dir     string
	port    string
	hostKey ssh.PublicKey
	sudo    string // the folder of a fake sudo, if it has one
}

// newKey writes a private key, locked if there is a passphrase, and its public half.
func newKey(t *testing.T, file, passphrase string) ssh.PublicKey {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var block *pem.Block
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(private, "")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	write(t, file, string(pem.EncodeToMemory(block)))
	write(t, file+".pub", string(ssh.MarshalAuthorizedKey(key)))
	return key
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// newServer starts an sshd that lets root in with the key dir/id, with more lines
// of configuration before its own host key.
func newServer(t *testing.T, more ...string) server {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test logs in as root: run it as root")
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		t.Fatal(err)
	}
	s := server{dir: t.TempDir()}
	s.hostKey = newKey(t, filepath.Join(s.dir, "host"), "")
	newKey(t, filepath.Join(s.dir, "id"), "")

	// The kernel does not hand out a port of this kind again at once after it was freed.
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, s.port, _ = net.SplitHostPort(free.Addr().String())
	free.Close()
	write(t, filepath.Join(s.dir, "sshd_config"), strings.Join(more, "\n")+fmt.Sprintf(`
ListenAddress 127.0.0.1:%s
HostKey %s/host
AuthorizedKeysFile %s/id.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
LogLevel VERBOSE
`, s.port, s.dir, s.dir))
	cmd := exec.Command(sshd, "-D", "-e", "-f", filepath.Join(s.dir, "sshd_config"))
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: install the package openssh-server", err)
	}
	listening := make(chan bool, 1)
	drained := make(chan struct{})
	var said strings.Builder
	go func() {
		defer close(drained)
		line := make([]byte, 4096)
		for {
			n, err := log.Read(line)
			said.Write(line[:n])
			if strings.Contains(said.String(), "Server listening on") {
				select {
				case listening <- true:
				default:
				}
			}
			if err != nil {
				close(listening)
				return
			}
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-drained
		cmd.Wait()
		if t.Failed() {
			t.Logf("sshd on port %s:\n%s", s.port, said.String())
		}
	})
	if !<-listening {
		t.Fatalf("sshd did not start:\n%s", said.String())
	}
	return s
}

func (s server) addr() string { return "127.0.0.1:" + s.port }

// config writes an ssh_config in which the server is called name, with more lines for it.
func (s server) config(t *testing.T, name string, more ...string) string {
	t.Helper()
	return fmt.Sprintf("Host %s\n\tHostName 127.0.0.1\n\tPort %s\n\tUser root\n\tIdentityFile %s/id\n\tIdentitiesOnly yes\n"+
		"\tIdentityAgent none\n\tUserKnownHostsFile %s/known_hosts\n\t%s\n", name, s.port, s.dir, s.dir, strings.Join(more, "\n\t"))
}

func (s server) know(t *testing.T) {
	t.Helper()
	write(t, filepath.Join(s.dir, "known_hosts"), knownhosts.Line([]string{s.addr()}, s.hostKey)+"\n")
}

// dial connects to name by the ssh_config text.
func dial(t *testing.T, name, text string, cfg Config) (*Host, error) {
	t.Helper()
	cfg.ConfigFile = filepath.Join(t.TempDir(), "config")
	write(t, cfg.ConfigFile, text)
	h, err := Dial(t.Context(), name, cfg)
	if err == nil {
		t.Cleanup(func() {
			if err := h.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
	return h, err
}

// connect is a connection that must stand.
func connect(t *testing.T) *Host {
	t.Helper()
	s := newServer(t)
	s.know(t)
	h, err := dial(t, "one", s.config(t, "one"), Config{})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// wantFault checks code and that the message has all of the words.
func wantFault(t *testing.T, err error, code fault.Code, words ...string) {
	t.Helper()
	if fault.CodeOf(err) != code {
		t.Fatalf("%v: code %q, want %q", err, fault.CodeOf(err), code)
	}
	for _, word := range words {
		if !strings.Contains(err.Error()+"\n"+fault.RemedyOf(err), word) {
			t.Errorf("%v (%s): does not say %q", err, fault.RemedyOf(err), word)
		}
	}
}

func TestHostKeys(t *testing.T) {
	s := newServer(t)
	file := filepath.Join(s.dir, "new", "known_hosts")
	text := strings.Replace(s.config(t, "one"), s.dir+"/known_hosts", file, 1)
	fingerprint := ssh.FingerprintSHA256(s.hostKey)

	_, err := dial(t, "one", text, Config{})
	wantFault(t, err, fault.HostKeyUnknown, s.addr(), fingerprint, "--accept-new-host-keys")
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a refused key left %s: %v", file, err)
	}

	for range 2 { // the second time it is known
		h, err := dial(t, "one", text, Config{AcceptNewHostKeys: true})
		if err != nil {
			t.Fatal(err)
		}
		if h.ServerAddr().String() != "127.0.0.1" {
			t.Errorf("the server's address is %v", h.ServerAddr())
		}
	}
	if _, err := dial(t, "one", text, Config{}); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(file)
	if err != nil || strings.Count(string(content), "\n") != 1 {
		t.Errorf("known_hosts: %q, %v", content, err)
	}
	for name, mode := range map[string]fs.FileMode{file: 0o600, filepath.Dir(file): 0o700} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}

	other := newKey(t, filepath.Join(s.dir, "other"), "")
	write(t, file, "# a comment\n"+knownhosts.Line([]string{s.addr()}, other)) // and no newline at the end
	_, err = dial(t, "one", text, Config{AcceptNewHostKeys: true})
	wantFault(t, err, fault.HostKeyChanged, s.addr(), file+":2", fingerprint, ssh.FingerprintSHA256(other),
		"ssh-keygen -f "+file+" -R '[127.0.0.1]:"+s.port+"'")

	elsewhere := filepath.Join(s.dir, "elsewhere")
	write(t, elsewhere, knownhosts.Line([]string{"example.com"}, other)) // no newline at the end
	if _, err := dial(t, "one", text, Config{AcceptNewHostKeys: true, KnownHosts: []string{elsewhere}}); err != nil {
		t.Fatal(err)
	}
	if _, err := dial(t, "one", text, Config{KnownHosts: []string{elsewhere}}); err != nil {
		t.Errorf("after it was added to a file without a last newline: %v", err)
	}
}

// A server that has more kinds of host key than are known shows the known one.
func TestHostKeyOfKnownKind(t *testing.T) {
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(other, "")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ecdsa")
	write(t, file, string(pem.EncodeToMemory(block)))
	public, err := ssh.NewPublicKey(other.Public())
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t, "HostKey "+file)
	for _, known := range []ssh.PublicKey{s.hostKey, public} {
		write(t, filepath.Join(s.dir, "known_hosts"), knownhosts.Line([]string{s.addr()}, known)+"\n")
		if _, err := dial(t, "one", s.config(t, "one"), Config{}); err != nil {
			t.Errorf("%s alone is known: %v", known.Type(), err)
		}
	}
}

func TestRefusedKeys(t *testing.T) {
	s := newServer(t)
	s.know(t)
	stranger, locked, absent := filepath.Join(s.dir, "stranger"), filepath.Join(s.dir, "locked"), filepath.Join(s.dir, "absent")
	newKey(t, stranger, "")
	newKey(t, locked, "secret")
	text := strings.Replace(s.config(t, "one", "IdentityFile "+locked, "IdentityFile "+absent), s.dir+"/id\n", stranger+"\n", 1)
	_, err := dial(t, "one", text, Config{})
	wantFault(t, err, fault.AuthRefused, "root@127.0.0.1", "offered "+stranger, locked+": has a passphrase", absent, "ssh-copy-id -p "+s.port)
}

// A key of which only the public half is here is used through the agent, and
// IdentitiesOnly keeps the agent's other keys from being offered.
func TestAgent(t *testing.T) {
	s := newServer(t)
	s.know(t)
	ring := agent.NewKeyring()
	for _, name := range []string{"stranger", "id"} {
		if name != "id" {
			newKey(t, filepath.Join(s.dir, name), "")
		}
		content, err := os.ReadFile(filepath.Join(s.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		key, err := ssh.ParseRawPrivateKey(content)
		if err != nil {
			t.Fatal(err)
		}
		if err := ring.Add(agent.AddedKey{PrivateKey: key}); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(s.dir, "agent")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go agent.ServeAgent(ring, conn)
		}
	}()
	// Without the private half, .pub alone names the agent's key.
	if err := os.Remove(filepath.Join(s.dir, "id")); err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(s.config(t, "one"), "IdentityAgent none", "IdentityAgent "+socket, 1)
	if _, err := dial(t, "one", text, Config{}); err != nil {
		t.Errorf("by its .pub: %v", err)
	}

	newKey(t, filepath.Join(s.dir, "else"), "")
	_, err = dial(t, "one", strings.Replace(text, s.dir+"/id\n", s.dir+"/else\n", 1), Config{})
	wantFault(t, err, fault.AuthRefused, "(offered "+s.dir+"/else)")
}

func TestUnreachable(t *testing.T) {
	deaf, err := net.Listen("tcp", "127.0.0.1:0") // it accepts, and never says a word
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	_, err = dial(t, "root@"+deaf.Addr().String(), "", Config{Timeout: 50 * time.Millisecond})
	wantFault(t, err, fault.HostUnreachable, deaf.Addr().String(), "no answer in 50ms")

	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	_, err = dial(t, "root@"+closed.Addr().String(), "", Config{})
	wantFault(t, err, fault.HostUnreachable, "no SSH at "+closed.Addr().String()+": connection refused")
}

func TestProxyJump(t *testing.T) {
	near, far := newServer(t), newServer(t)
	near.know(t)
	text := near.config(t, "near") + far.config(t, "far", "ProxyJump near")
	_, err := dial(t, "far", text, Config{})
	wantFault(t, err, fault.HostKeyUnknown, far.addr())
	far.know(t)
	h, err := dial(t, "far", text, Config{})
	if err != nil {
		t.Fatal(err)
	}
	out, err := h.Query(t.Context(), "printenv", "SSH_CONNECTION")
	if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), " "+far.port) {
		t.Errorf("%q, %v: not the far server, %s", out, err, far.port)
	}

	middle := newServer(t)
	middle.know(t)
	text = near.config(t, "near") + middle.config(t, "middle") + far.config(t, "far", "ProxyJump near,middle")
	if h, err = dial(t, "far", text, Config{}); err != nil {
		t.Fatal(err)
	}
	if len(h.jumps) != 2 {
		t.Errorf("through %d hosts, not 2", len(h.jumps))
	}
	out, err = h.Query(t.Context(), "printenv", "SSH_CONNECTION")
	if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), " "+far.port) {
		t.Errorf("%q, %v: not the far server, %s", out, err, far.port)
	}

	loop := near.config(t, "near", "ProxyJump far") + far.config(t, "far", "ProxyJump near")
	_, err = dial(t, "far", loop, Config{})
	wantFault(t, err, fault.Usage, "loop")
}

// What any host's Run has to do, the conformance suite tests.
func TestRunKilled(t *testing.T) {
	var exit *host.ExitError
	if _, err := connect(t).Query(t.Context(), "sh", "-c", "kill -KILL $$"); !errors.As(err, &exit) || exit.Status != 128+9 {
		t.Errorf("%v", err)
	}
}

func TestRunCancelled(t *testing.T) {
	h := connect(t)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if _, err := h.Query(t.Context(), "mkfifo", fifo); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := h.Run(ctx, host.Command{Argv: []string{"sh", "-c", "exec 3>" + fifo + "; echo running >&3; exec sleep 600"}})
		ended <- err
	}()
	f, err := os.Open(fifo) // until the command has opened it too
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	line := make([]byte, 8)
	if _, err := io.ReadFull(f, line); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if rest, err := io.ReadAll(f); err != nil || len(rest) > 0 { // it ends when the command is gone
		t.Errorf("%q, %v", rest, err)
	}
}

func TestRemoveRefuses(t *testing.T) {
	h := connect(t)
	for _, bad := range []string{"/", "relative", "/proc", "/proc/../"} {
		if err := h.Remove(t.Context(), bad); err == nil {
			t.Errorf("%s was removed", bad)
		}
	}
}

// The message names the file system as the host's admin knows it.
func TestDiskFull(t *testing.T) {
	f := hosttest.ThisMachine(t, connect(t))
	f.Mount(t, f.Dir)
	err := f.Host.WriteFile(t.Context(), filepath.Join(f.Dir, "below", "file"), bytes.NewReader(make([]byte, 8<<20)), host.Meta{Mode: 0o600})
	wantFault(t, err, fault.DiskFull, "file system "+f.Dir, "df -h "+f.Dir)
}

// A server that falls silent is given up, and what waits for it is told.
func TestConnectionLost(t *testing.T) {
	s := newServer(t)
	s.know(t)
	between := newRelay(t, s.addr())
	text := strings.Replace(s.config(t, "one", "HostKeyAlias 127.0.0.1"), "Port "+s.port, "Port "+between.port(), 1)
	write(t, filepath.Join(s.dir, "known_hosts"), knownhosts.Line([]string{"127.0.0.1"}, s.hostKey)+"\n")
	// Long enough for a server on a busy machine to be taken for a living one before.
	h, err := dial(t, "one", text, Config{keepalive: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	between.silence()
	ended := make(chan error, 2)
	go func() { _, err := h.Query(t.Context(), "true"); ended <- err }()
	go func() { _, err := h.ReadFile(t.Context(), "/etc/hostname"); ended <- err }()
	for range 2 {
		wantFault(t, <-ended, fault.HostUnreachable, "lost")
	}
	_, err = h.Stat(t.Context(), "/etc")
	wantFault(t, err, fault.HostUnreachable, "lost")
}

// relay passes bytes on until it is silenced; then it keeps the connections open.
type relay struct {
	listener net.Listener
	silent   chan struct{}
}

func newRelay(t *testing.T, to string) *relay {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	r := &relay{listener: listener, silent: make(chan struct{})}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				return
			}
			t.Cleanup(func() { client.Close(); server.Close() })
			go io.Copy(server, &passing{client, r.silent})
			go io.Copy(client, &passing{server, r.silent})
		}
	}()
	return r
}

func (r *relay) port() string {
	_, port, _ := net.SplitHostPort(r.listener.Addr().String())
	return port
}

func (r *relay) silence() { close(r.silent) }

// passing reads until the relay is silent, and swallows everything then.
type passing struct {
	net.Conn
	silent chan struct{}
}

func (p *passing) Read(b []byte) (int, error) {
	for {
		n, err := p.Conn.Read(b)
		select {
		case <-p.silent:
			if err != nil {
				return 0, err
			}
		default:
			return n, err
		}
	}
}
