package support

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kubewright/kubewright/bootstrap/certs"
	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/containerd"
	"github.com/kubewright/kubewright/bootstrap/doctor"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/install"
	"github.com/kubewright/kubewright/bootstrap/journal"
	"github.com/kubewright/kubewright/bootstrap/kernel"
	"github.com/kubewright/kubewright/bootstrap/kubelet"
	"github.com/kubewright/kubewright/bootstrap/kubeproxy"
	"github.com/kubewright/kubewright/bootstrap/spec"
	"github.com/kubewright/kubewright/bootstrap/systemd"
	"github.com/kubewright/kubewright/pki"
)

// command is one whose output is collected. It changes nothing.
type command struct {
	file string
	argv []string
}

func commands() []command {
	const lines = "3000"
	var all []command
	for _, u := range units() {
		all = append(all, command{"journal/" + u + ".log", []string{"journalctl", "-u", u, "-n", lines, "-o", "short-iso", "--no-pager"}})
	}
	return append(all,
		command{"journal/kernel.log", []string{"journalctl", "-k", "-n", "500", "-o", "short-iso", "--no-pager"}},
		command{"uname.txt", []string{"uname", "-a"}},
		command{"uptime.txt", []string{"uptime"}},
		command{"date.txt", []string{"date", "-u", "+%FT%T.%NZ"}},
		command{"failed-units.txt", []string{"systemctl", "list-units", "--failed", "--no-pager"}},
		command{"processes.txt", []string{"ps", "-e", "-o", "pid,ppid,stat,rss,etimes,comm"}}, // without arguments: they may be anyone's
		command{"net/address.txt", []string{"ip", "-details", "address"}},
		command{"net/route.txt", []string{"ip", "route", "show", "table", "all"}},
		command{"net/rule.txt", []string{"ip", "rule"}},
		command{"net/neighbour.txt", []string{"ip", "neighbour"}},
		command{"net/nftables.txt", []string{"nft", "list", "ruleset"}},
		command{"net/sockets.txt", []string{"ss", "-lntu"}},
		command{"df.txt", []string{"df", "-P", "-k"}},
		command{"df-inodes.txt", []string{"df", "-P", "-i"}},
		command{"containers.txt", []string{install.Bin("ctr"), "--namespace", "k8s.io", "containers", "list"}},
		command{"images.txt", []string{install.Bin("ctr"), "--namespace", "k8s.io", "images", "list"}},
	)
}

// etcdCommands ask etcd. Its client reads the key on the host; nobody else does.
func etcdCommands() []command {
	of := path.Join(certs.Dir, "etcd")
	ctl := []string{install.Bin("etcdctl"), "--endpoints=https://127.0.0.1:" + etcd.ClientPort, "--cacert=" + of + "/ca.crt",
		"--cert=" + of + "/healthcheck-client.crt", "--key=" + of + "/healthcheck-client.key"}
	return []command{
		{"etcd/status.json", append(slices.Clone(ctl), "endpoint", "status", "--cluster", "--write-out=json")},
		{"etcd/members.json", append(slices.Clone(ctl), "member", "list", "--write-out=json")},
		{"etcd/alarms.txt", append(slices.Clone(ctl), "alarm", "list")},
	}
}

// files are configuration and state. None holds a private key; kubeconfigs do, and are not among them.
func files() []string {
	all := []string{
		claim.File,
		containerd.ConfigFile, kubelet.ConfigFile, kubeproxy.ConfigFile, "/etc/kubernetes/kubelet.nft",
		kernel.SysctlFile, kernel.ModulesFile,
		"/etc/os-release", "/etc/hosts", "/etc/resolv.conf", "/etc/fstab",
		"/proc/cmdline", "/proc/loadavg", "/proc/meminfo", "/proc/mounts", "/proc/swaps", "/proc/cgroups",
		"/proc/pressure/cpu", "/proc/pressure/io", "/proc/pressure/memory",
	}
	for _, u := range units() {
		all = append(all, path.Join(systemd.Dir, u))
	}
	return all
}

// folders are those of which all files are collected that can be no key.
func folders() []string {
	all := []string{containerd.CNIConfigDir, "/etc/kubernetes/manifests"}
	for _, u := range units() {
		all = append(all, path.Join(systemd.Dir, u+".d"))
	}
	return all
}

func units() []string { return doctor.Units(spec.ControlPlaneRole) }

// mayHoldKey tells files that are not even read.
func mayHoldKey(name string) bool {
	name = strings.ToLower(name)
	return slices.Contains([]string{".key", ".pem", ".p12", ".pfx", ".kubeconfig"}, path.Ext(name)) ||
		strings.Contains(name, "kubeconfig") || strings.HasPrefix(path.Base(name), "id_")
}

// atOnce bounds what is asked of a host at the same time.
const atOnce = 4

func (a *archive) host(ctx context.Context, h doctor.Host) {
	dir := path.Join("hosts", safe(h.Name))
	if h.Reader == nil {
		a.add(dir, nil, fmt.Errorf("the host was not reached: %w", h.Err))
		return
	}
	c := collector{archive: a, dir: dir, Reader: h.Reader}
	var parts sync.WaitGroup
	for _, part := range []func(context.Context){c.facts, c.units, c.certificates, c.journal, c.commands, c.files} {
		parts.Go(func() { part(ctx) })
	}
	parts.Wait()
}

// collector collects from one host.
type collector struct {
	*archive
	host.Reader
	dir string
}

func (c collector) commands(ctx context.Context) {
	all := commands()
	if found, err := c.Stat(ctx, path.Join(certs.Dir, "etcd/healthcheck-client.crt")); err == nil && found[0].Exists {
		all = append(all, etcdCommands()...)
	}
	calls := errgroup.Group{}
	calls.SetLimit(atOnce)
	for _, cmd := range all {
		calls.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, itemTimeout)
			defer cancel()
			out, err := c.Query(ctx, cmd.argv...)
			c.add(path.Join(c.dir, cmd.file), out, err)
			return nil
		})
	}
	calls.Wait() //nolint:errcheck // each tells its own trouble
}

func (c collector) files(ctx context.Context) {
	all := files()
	for _, dir := range folders() {
		names, err := c.ReadDir(ctx, dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.add(path.Join(c.dir, "files", dir), nil, err)
		}
		for _, n := range names {
			all = append(all, path.Join(dir, n))
		}
	}
	found, err := c.Stat(ctx, all...)
	if err != nil {
		c.add(path.Join(c.dir, "files"), nil, err)
		return
	}
	for _, f := range found {
		if !f.Exists || f.Mode.IsDir() || mayHoldKey(f.Path) {
			continue
		}
		content, err := c.ReadFile(ctx, f.Path)
		c.add(path.Join(c.dir, "files", f.Path), content, err)
	}
}

func (c collector) facts(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, itemTimeout)
	defer cancel()
	f, err := host.Gather(ctx, c)
	c.json(path.Join(c.dir, "facts.json"), f, err)
	current, err := c.Stat(ctx, install.Current)
	if err != nil {
		c.add(path.Join(c.dir, "bundle.txt"), nil, err)
		return
	}
	c.add(path.Join(c.dir, "bundle.txt"), []byte(current[0].Target+"\n"), nil)
}

func (c collector) units(ctx context.Context) {
	states, err := c.Units(ctx, units()...)
	c.json(path.Join(c.dir, "units.json"), states, err)
}

// certificates tells what certificates say, and the modes of the files beside them.
func (c collector) certificates(ctx context.Context) {
	var paths []string
	for _, name := range pki.FileNames() {
		paths = append(paths, path.Join(certs.Dir, name))
	}
	found, err := c.Stat(ctx, paths...)
	if err != nil {
		c.add(path.Join(c.dir, "certificates.txt"), nil, err)
		return
	}
	var text bytes.Buffer
	for _, f := range found {
		if !f.Exists {
			continue
		}
		fmt.Fprintf(&text, "%s %d:%d %s\n", f.Mode, f.UID, f.GID, f.Path)
		if path.Ext(f.Path) != ".crt" {
			continue
		}
		content, err := c.ReadFile(ctx, f.Path)
		if err != nil {
			fmt.Fprintf(&text, "  %v\n", err)
			continue
		}
		describe(&text, content)
	}
	c.add(path.Join(c.dir, "certificates.txt"), text.Bytes(), nil)
}

func describe(text *bytes.Buffer, content []byte) {
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			fmt.Fprintf(text, "  %v\n", err)
			continue
		}
		fmt.Fprintf(text, "  subject %s, issuer %s, serial %x, from %s to %s, names %v %v\n", cert.Subject, cert.Issuer, cert.SerialNumber,
			cert.NotBefore.Format(time.RFC3339), cert.NotAfter.Format(time.RFC3339), cert.DNSNames, cert.IPAddresses)
	}
}

// journal is what was changed on the host, by which step, when and by whom. What
// stood there before stays on the host, and copies of it are not even read.
func (c collector) journal(ctx context.Context) {
	entries, err := journal.Read(ctx, c)
	for i := range entries {
		for j := range entries[i].Before {
			entries[i].Before[j].Content, entries[i].Before[j].Value = nil, ""
		}
	}
	c.json(path.Join(c.dir, "journal.json"), entries, err)
}
