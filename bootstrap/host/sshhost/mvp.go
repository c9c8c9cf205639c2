package sshhost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path"
	"strings"
	"time"

	sdbus "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
	"github.com/kevinburke/ssh_config"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

type Config struct {
	ConfigFile        string
	AcceptNewHostKeys bool
	KnownHosts        []string
	Timeout           time.Duration
}
type Host struct {
	name string
	c    *ssh.Client
	s    *sftp.Client
	sd   *sdbus.Conn
}

func Dial(ctx context.Context, target string, cfg Config) (*Host, error) {
	f, err := os.Open(cfg.ConfigFile)
	if err != nil {
		return nil, err
	}
	sc, err := ssh_config.Decode(f)
	if err != nil {
		return nil, err
	}
	get := func(k string) string { v, _ := sc.Get(target, k); return v }
	key, err := os.ReadFile(get("IdentityFile"))
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(key)
	if err != nil {
		return nil, err
	}
	kh, err := knownhosts.New(get("UserKnownHostsFile"))
	if err != nil {
		return nil, err
	}
	hn := get("HostName")
	if hn == "" {
		hn = target
	}
	c, err := ssh.Dial("tcp", net.JoinHostPort(hn, "22"), &ssh.ClientConfig{User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: kh, HostKeyAlgorithms: []string{"ssh-ed25519"}})
	if err != nil {
		return nil, err
	}
	s, err := sftp.NewClient(c, sftp.UseConcurrentReads(true), sftp.UseConcurrentWrites(true))
	if err != nil {
		return nil, err
	}
	sd, err := sdbus.NewConnection(func() (*dbus.Conn, error) {
		nc, err := c.Dial("unix", "/run/dbus/system_bus_socket")
		if err != nil {
			return nil, err
		}
		dc, err := dbus.NewConn(nc)
		if err != nil {
			return nil, err
		}
		if err := dc.Auth([]dbus.Auth{dbus.AuthExternal("0")}); err != nil {
			return nil, err
		}
		return dc, dc.Hello()
	})
	if err != nil {
		return nil, err
	}
	return &Host{target, c, s, sd}, nil
}
func (h *Host) Close() error { h.sd.Close(); h.s.Close(); return h.c.Close() }
func (h *Host) ServerAddr() netip.Addr {
	return h.c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
}
func (h *Host) Name() string { return h.name }
func (h *Host) ReadFile(ctx context.Context, p string) ([]byte, error) {
	f, err := h.s.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b bytes.Buffer
	_, err = io.Copy(&b, f)
	return b.Bytes(), err
}
func (h *Host) Stat(ctx context.Context, paths ...string) ([]host.File, error) {
	out := make([]host.File, len(paths))
	for i, p := range paths {
		out[i].Path = p
		st, err := h.s.Lstat(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		x := st.Sys().(*sftp.FileStat)
		out[i] = host.File{Path: p, Exists: true, Mode: st.Mode(), Size: st.Size(), ModTime: st.ModTime(), UID: int(x.UID), GID: int(x.GID)}
		if st.Mode()&fs.ModeSymlink != 0 {
			out[i].Target, err = h.s.ReadLink(p)
			if err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}
func (h *Host) ReadDir(ctx context.Context, p string) ([]string, error) {
	es, err := h.s.ReadDir(p)
	var n []string
	for _, e := range es {
		n = append(n, e.Name())
	}
	return n, err
}
func quote(a []string) string {
	var o []string
	for _, s := range a {
		o = append(o, "'"+strings.ReplaceAll(s, "'", `'\''`)+"'")
	}
	return strings.Join(o, " ")
}
func (h *Host) Query(ctx context.Context, argv ...string) ([]byte, error) {
	return h.Run(ctx, host.Command{Argv: argv})
}
func (h *Host) Run(ctx context.Context, cmd host.Command) ([]byte, error) {
	s, err := h.c.NewSession()
	if err != nil {
		return nil, err
	}
	defer s.Close()
	var e bytes.Buffer
	s.Stderr = &e
	s.Stdin = cmd.Stdin
	out, err := s.Output(quote(cmd.Argv))
	var x *ssh.ExitError
	if errors.As(err, &x) {
		return out, &host.ExitError{Argv: cmd.Argv, Status: x.ExitStatus(), Stderr: e.String()}
	}
	return out, err
}
func (h *Host) Dial(ctx context.Context, n, a string) (net.Conn, error) {
	return h.c.DialContext(ctx, n, a)
}
func (h *Host) Units(ctx context.Context, names ...string) ([]host.Unit, error) {
	var out []host.Unit
	for _, n := range names {
		p, err := h.sd.GetAllPropertiesContext(ctx, n)
		if err != nil {
			return nil, err
		}
		u := host.Unit{Name: n, Load: p["LoadState"].(string), Active: p["ActiveState"].(string), Sub: p["SubState"].(string), Stale: p["NeedDaemonReload"].(bool)}
		u.File, _ = p["UnitFileState"].(string)
		u.Fragment, _ = p["FragmentPath"].(string)
		if v, ok := p["MainPID"].(uint32); ok {
			u.MainPID = int(v)
		}
		if v := p["ActiveEnterTimestamp"].(uint64); v > 0 {
			u.Started = time.UnixMicro(int64(v))
		}
		out = append(out, u)
	}
	return out, nil
}
func (h *Host) WriteFile(ctx context.Context, p string, c io.Reader, m host.Meta) error {
	if err := h.s.MkdirAll(path.Dir(p)); err != nil {
		return err
	}
	f, err := h.s.OpenFile(p+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	if err := f.Chmod(m.Mode); err != nil {
		return err
	}
	if _, err := io.Copy(f, c); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return h.s.PosixRename(p+".tmp", p)
}
func (h *Host) Mkdir(ctx context.Context, p string, m host.Meta) error {
	if err := h.s.MkdirAll(p); err != nil {
		return err
	}
	return h.s.Chmod(p, m.Mode)
}
func (h *Host) Symlink(ctx context.Context, t, p string) error {
	h.s.MkdirAll(path.Dir(p))
	h.s.Remove(p + ".tmp")
	if err := h.s.Symlink(t, p+".tmp"); err != nil {
		return err
	}
	return h.s.PosixRename(p+".tmp", p)
}
func (h *Host) Remove(ctx context.Context, ps ...string) error {
	if len(ps) == 0 {
		return nil
	}
	_, err := h.Run(ctx, host.Command{Argv: append([]string{"rm", "-rf", "--one-file-system", "--"}, ps...)})
	return err
}
func (h *Host) Systemd() host.Systemd { return sys{h} }

type sys struct{ h *Host }

func (s sys) Reload(ctx context.Context) error { return s.h.sd.ReloadContext(ctx) }
func (s sys) job(ctx context.Context, u, v string, f func(context.Context, string, string, chan<- string) (int, error)) error {
	ch := make(chan string, 1)
	if _, err := f(ctx, u, "replace", ch); err != nil {
		return err
	}
	select {
	case r := <-ch:
		if r != "done" && r != "skipped" {
			l, _ := s.h.Query(ctx, "journalctl", "-u", u, "-n", "15", "-o", "cat", "--no-pager")
			return &host.UnitError{Unit: u, Verb: v, Result: r, Log: string(l)}
		}
		return nil
	case <-ctx.Done():
		l, _ := s.h.Query(context.Background(), "journalctl", "-u", u, "-n", "15", "-o", "cat", "--no-pager")
		return fmt.Errorf("%w: %s", ctx.Err(), l)
	}
}
func (s sys) Start(ctx context.Context, u string) error {
	return s.job(ctx, u, "start", s.h.sd.StartUnitContext)
}
func (s sys) Restart(ctx context.Context, u string) error {
	return s.job(ctx, u, "restart", s.h.sd.RestartUnitContext)
}
func (s sys) Stop(ctx context.Context, u string) error {
	err := s.job(ctx, u, "stop", s.h.sd.StopUnitContext)
	if err != nil && strings.Contains(err.Error(), "not loaded") {
		return nil
	}
	return err
}
func (s sys) Enable(ctx context.Context, us ...string) error {
	_, _, err := s.h.sd.EnableUnitFilesContext(ctx, us, false, true)
	return err
}
func (s sys) Disable(ctx context.Context, us ...string) error {
	_, err := s.h.sd.DisableUnitFilesContext(ctx, us, false)
	return err
}
func (s sys) ResetFailed(ctx context.Context, u string) error {
	s.h.sd.ResetFailedUnitContext(ctx, u)
	return nil
}
