package bootstrap

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kubewright/kubewright/bootstrap/bundle"
	"github.com/kubewright/kubewright/bootstrap/bundle/unpack"
	"github.com/kubewright/kubewright/bootstrap/containerd"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/kernel"
)

// machine is a simulated host with a kernel and programs. All of its state is
// files, also what a real one keeps elsewhere, so that one comparison sees it all.
type machine struct {
	*hosttest.Sim
	world   *world
	address netip.Addr
	bundle  *bundle.Bundle      // what the program that unpacks is sent
	procs   map[string]*process // by unit
	boots   int
	// restarted is when etcd was last: it is not back for restartTime.
	restarted time.Time
}

// Where a machine keeps what is no file on a real one.
const (
	linkDir    = "/sys/class/net"       // an empty file per interface
	moduleDir  = "/sys/module"          // likewise per module
	moduleFile = "/proc/modules"        // its name first in a line
	routeFile  = "/proc/net/sim-routes" // "NETWORK DEVICE PROTOCOL" a line
	tableFile  = "/proc/net/sim-tables" // of nftables, "FAMILY NAME" a line
	imageFile  = "/var/lib/containerd/sim-images"
	bootIDFile = "/proc/sys/kernel/random/boot_id"
	nic        = "eth0"
	adminTable = "inet admin" // of the admin's own firewall
)

// newMachine is a host as it comes, and no two come alike: odd ones have folders
// and files in places that a node uses.
func newMachine(t testing.TB, n int, b *bundle.Bundle) *machine {
	name := fmt.Sprintf("h%d", n)
	m := &machine{
		Sim: hosttest.NewSim(t, name), address: addressOfMachine(n),
		bundle: b, procs: map[string]*process{},
	}
	for file, content := range map[string]string{
		"/proc/sys/kernel/hostname": name, "/proc/sys/kernel/osrelease": "6.1.0", "/etc/machine-id": strings.Repeat(fmt.Sprint(n), 32),
		"/etc/os-release": "ID=debian\nVERSION_ID=\"12\"\n", "/sys/devices/system/cpu/online": "0-1", "/proc/swaps": "Filename\n",
		"/proc/meminfo": "MemTotal: 4194304 kB\n", "/proc/1/status": "CapBnd:\t000001ffffffffff\n", "/etc/resolv.conf": "nameserver 198.18.0.1\n",
		"/proc/sys/net/netfilter/nf_conntrack_max": "65536", "/sys/fs/cgroup/cgroup.controllers": "cpu memory",
		"/etc/sysctl.d/10-admin.conf": "kernel.panic = 30\n", "/usr/share/doc/README": "the distribution's",
	} {
		m.Put(file, content, 0o644)
	}
	for _, tool := range []string{"nft", "ip", "mount", "umount", "sysctl", "modprobe", "systemctl"} {
		m.Put("/usr/sbin/"+tool, "program", 0o755)
	}
	for _, dir := range []string{"/usr/libexec", "/opt/cni", "/etc/modules-load.d"} {
		m.PutDir(dir, 0o755)
	}
	if n%2 == 1 {
		m.PutDir("/etc/cni/net.d", 0o700)
		m.PutDir("/var/lib/containerd", 0o710)
		m.Put("/opt/cni/bin/of-the-admin", "a plugin", 0o755)
		m.Put("/etc/modules-load.d/admin.conf", "dummy\n", 0o644)
		m.Put("/etc/containerd/of-the-admin.toml", "version = 3\n", 0o600)
	}
	m.Otherwise(m.answer)
	m.startKernel()
	return m
}

// api is where the machine's API server serves, if it has one.
func (m *machine) api() string { return apiOf(m.address) }

func apiOf(a netip.Addr) string { return net.JoinHostPort(a.String(), "6443") }

// addressOfMachine is where the nth host is, from 1.
func addressOfMachine(n int) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, 0, byte(10 + n)}) }

// settings are the kernel's own values of what kubewright sets.
func settings() map[string]string {
	return map[string]string{
		"kernel.keys.root_maxbytes": "25000000", "kernel.keys.root_maxkeys": "1000000", "kernel.panic": "0", "kernel.panic_on_oops": "0",
		"net.ipv4.ip_forward": "0", "vm.overcommit_memory": "0", "vm.panic_on_oom": "0",
	}
}

// startKernel is a boot, up to where units start: what was in memory is as new.
func (m *machine) startKernel() {
	m.boots++
	m.Put(bootIDFile, fmt.Sprint(m.boots), 0o444)
	m.Drop(linkDir)
	m.Drop(moduleDir)
	m.PutDir(moduleDir, 0o755)
	m.Put(moduleFile, "", 0o444)
	m.Drop("/proc/sys/net/bridge")
	m.link("lo")
	m.link(nic)
	m.Put(routeFile, "198.18.0.0/24 "+nic+" kernel\n", 0o444)
	m.Put(tableFile, adminTable+"\n", 0o444)
	m.Put(host.MountTable, "", 0o444)
	for k, v := range settings() {
		m.Put(settingFile(k), v, 0o644)
	}
	for _, name := range m.List(path.Dir(kernel.ModulesFile)) {
		for _, module := range m.lines(path.Join(path.Dir(kernel.ModulesFile), name)) {
			m.load(module)
		}
	}
	for _, name := range m.List(path.Dir(kernel.SysctlFile)) {
		m.apply(m.lines(path.Join(path.Dir(kernel.SysctlFile), name)))
	}
}

// turnOn boots a machine that has no power, and mends its connection.
func (m *machine) turnOn() {
	if !m.Powered() {
		clear(m.procs)
		m.startKernel()
	}
	m.Restore()
}

func settingFile(name string) string { return "/proc/sys/" + strings.ReplaceAll(name, ".", "/") }

// lines are those of a file but for comments, none if there is no such file.
func (m *machine) lines(file string) []string {
	content, _ := m.Get(file)
	return slices.DeleteFunc(strings.Split(content, "\n"), func(l string) bool {
		return l == "" || strings.HasPrefix(l, "#") || strings.Contains(file, host.TemporaryMark)
	})
}

func (m *machine) write(file string, lines []string) {
	m.Put(file, strings.Join(append(lines, ""), "\n"), 0o444)
}

// add has a line in a sorted file once.
func (m *machine) add(file, line string) {
	if have := m.lines(file); !slices.Contains(have, line) {
		m.write(file, slices.Sorted(slices.Values(append(have, line))))
	}
}

func (m *machine) strike(file string, gone func(line string) bool) {
	m.write(file, slices.DeleteFunc(m.lines(file), gone))
}

func (m *machine) link(name string) { m.Put(path.Join(linkDir, name), "", 0o444) }

func (m *machine) load(module string) {
	m.Put(path.Join(moduleDir, module), "", 0o444)
	m.add(moduleFile, module+" 16384 0 - Live 0x0")
	if module == "br_netfilter" {
		m.Put(settingFile("net.bridge.bridge-nf-call-iptables"), "1", 0o644)
	}
}

func (m *machine) unload(module string) {
	m.Drop(path.Join(moduleDir, module))
	m.strike(moduleFile, func(l string) bool { return strings.HasPrefix(l, module+" ") })
	if module == "br_netfilter" {
		m.Drop("/proc/sys/net/bridge")
	}
}

// apply sets "NAME = VALUE" lines; a setting that the kernel lacks is passed over.
func (m *machine) apply(lines []string) {
	for _, l := range lines {
		name, value, _ := strings.Cut(l, "=")
		if file := settingFile(strings.TrimSpace(name)); m.has(file) {
			m.Put(file, strings.TrimSpace(value), 0o644)
		}
	}
}

// runs tells whether a unit's process was seen, and has power still.
func (m *machine) runs(unit string) bool { return m.procs[unit] != nil && m.Powered() }

func (m *machine) has(file string) bool { _, ok := m.Get(file); return ok }

// mount mounts something at a directory.
func (m *machine) mount(dir string) {
	if slices.ContainsFunc(m.lines(host.MountTable), func(l string) bool { return strings.Fields(l)[4] == dir }) {
		return
	}
	m.Mount(dir)
	m.add(host.MountTable, "1 1 0:1 / "+dir+" rw - tmpfs tmpfs rw")
}

func (m *machine) unmount(dirs []string) {
	for _, dir := range dirs {
		m.Unmount(dir)
		m.strike(host.MountTable, func(l string) bool { return strings.Fields(l)[4] == dir })
	}
}

// answer is what the machine's programs do.
func (m *machine) answer(argv []string) (hosttest.Answer, bool) {
	if path.IsAbs(argv[0]) && !m.has(argv[0]) {
		return hosttest.Answer{Status: host.NoProgram, Stderr: argv[0] + ": not found"}, true
	}
	says := func(v any) (hosttest.Answer, bool) {
		out, err := json.Marshal(v)
		return hosttest.Answer{Stdout: string(out)}, err == nil
	}
	does := func(f func()) (hosttest.Answer, bool) {
		return hosttest.Answer{Do: func([]byte) ([]byte, error) { f(); return nil, nil }}, true
	}
	halves := func(all []string, f func([]string)) (hosttest.Answer, bool) {
		a, ok := does(func() { f(all) })
		a.Half = func() { f(all[:len(all)/2]) }
		return a, ok
	}
	args := strings.Join(argv[1:], " ")
	last := argv[len(argv)-1]
	switch path.Base(argv[0]) + " " + args {
	case "uname -m":
		return hosttest.Answer{Stdout: "x86_64\n"}, true
	case "systemd-detect-virt ":
		return hosttest.Answer{Stdout: "none\n", Status: 1}, true
	case "ip -json address show":
		type addr struct {
			Local     string `json:"local"`
			PrefixLen int    `json:"prefixlen"`
		}
		type link struct {
			Name  string `json:"ifname"`
			MTU   int    `json:"mtu"`
			Addrs []addr `json:"addr_info"`
		}
		of := map[string][]addr{"lo": {{"127.0.0.1", 8}}, nic: {{m.address.String(), 24}}}
		var links []link
		for _, name := range m.List(linkDir) {
			links = append(links, link{name, 1500, of[name]})
		}
		return says(links)
	case "ip -json link show":
		var links []map[string]string
		for _, name := range m.List(linkDir) {
			links = append(links, map[string]string{"ifname": name})
		}
		return says(links)
	case "ip -json route show", "ip -json -4 route show":
		var routes []map[string]string
		for _, l := range m.lines(routeFile) {
			words := strings.Fields(l)
			routes = append(routes, map[string]string{"dst": words[0], "dev": words[1], "protocol": words[2]})
		}
		return says(routes)
	case "ip -4 route show":
		return hosttest.Answer{Stdout: strings.Join(m.lines(routeFile), "\n")}, true
	case "ip -6 route show", "ip -4 rule show", "ip -6 rule show":
		return hosttest.Answer{}, true
	case "nft --stateless list ruleset":
		var rules strings.Builder
		for _, l := range m.lines(tableFile) {
			fmt.Fprintf(&rules, "table %s {\n}\n", l)
		}
		return hosttest.Answer{Stdout: rules.String()}, true
	case "systemctl list-unit-files --no-pager --no-legend --plain":
		return m.units(func(u hosttest.UnitState) string { return u.File }), true
	case "systemctl list-units --no-pager --no-legend --plain --full --state=active,failed":
		return m.units(func(u hosttest.UnitState) string {
			if u.Active == "inactive" {
				return ""
			}
			return strings.Join([]string{u.Load, u.Active, u.Sub}, " ")
		}), true
	case "nft --json list tables":
		type table struct {
			Family string `json:"family"`
			Name   string `json:"name"`
		}
		objects := []map[string]table{}
		for _, l := range m.lines(tableFile) {
			family, name, _ := strings.Cut(l, " ")
			objects = append(objects, map[string]table{"table": {family, name}})
		}
		return says(map[string]any{"nftables": objects})
	case "ctr --address " + containerd.Socket + " --namespace k8s.io images list --quiet",
		"ctr --address " + containerd.Socket + " --namespace k8s.io images import -":
		if m.PID(containerd.Unit) == 0 {
			return hosttest.Answer{Status: 1, Stderr: "connection refused"}, true
		}
		if last == "--quiet" {
			return hosttest.Answer{Stdout: strings.Join(m.lines(imageFile), "\n")}, true
		}
		return does(func() { m.add(imageFile, bundle.PauseImage) })
	}
	switch {
	case argv[0] == "find":
		return m.find(argv[1:]), true
	case strings.HasPrefix(args, "--remove ") && argv[0] == "modprobe":
		return does(func() { m.unload(last) })
	case argv[0] == "modprobe":
		return does(func() { m.load(last) })
	case strings.HasPrefix(args, "-q -p ") && argv[0] == "sysctl":
		return halves(m.lines(last), m.apply)
	case strings.HasPrefix(args, "-q -w ") && argv[0] == "sysctl":
		return halves(argv[3:], m.apply)
	case argv[0] == "umount" && argv[1] == "--lazy" && argv[2] == "--":
		return halves(argv[2:], m.unmount)
	case strings.HasPrefix(args, "kill --kill-whom=all") && argv[0] == "systemctl":
		return does(func() {}) // what is killed so is started again, until it is stopped
	case strings.HasPrefix(args, "link delete dev "):
		return does(func() {
			m.Drop(path.Join(linkDir, last))
			m.strike(routeFile, func(l string) bool { return strings.Fields(l)[1] == last })
		})
	case strings.HasPrefix(args, "-4 route delete "):
		return does(func() { m.strike(routeFile, func(l string) bool { return strings.Fields(l)[0] == last }) })
	case strings.HasPrefix(args, "delete table ") && path.Base(argv[0]) == "nft":
		return does(func() { m.strike(tableFile, func(l string) bool { return l == argv[3]+" "+argv[4] }) })
	case path.Base(argv[0]) == ".unbundle" && argv[1] == "--into":
		a, ok := does(func() { m.unpack(last) })
		a.Half = func() { m.fill(last+".partial", len(m.bundle.Files())/2) }
		return a, ok
	}
	return m.disasters(argv)
}

// units lists units with what is said of each, but for those of which that is nothing.
func (m *machine) units(say func(hosttest.UnitState) string) hosttest.Answer {
	var lines strings.Builder
	for name, u := range m.Snapshot().Units {
		if said := say(u); said != "" {
			fmt.Fprintln(&lines, name, said)
		}
	}
	return hosttest.Answer{Stdout: lines.String()}
}

// find is find as package inventory calls it: trees, -maxdepth, paths that are left
// out, and then a line for each file, or the digests of regular ones.
func (m *machine) find(args []string) hosttest.Answer {
	options := slices.IndexFunc(args, func(a string) bool { return strings.HasPrefix(a, "-") })
	trees, depth := args[:options], 1000
	if args[options] == "-maxdepth" {
		depth = int(args[options+1][0] - '0')
	}
	below := func(name string, dirs []string) int {
		for _, dir := range dirs {
			if name == dir || strings.HasPrefix(name, dir+"/") {
				return strings.Count(strings.TrimPrefix(name, dir), "/")
			}
		}
		return -1
	}
	var left []string
	for i, a := range args {
		if a == "-path" {
			left = append(left, args[i+1])
		}
	}
	digests := slices.Contains(args, "sha256sum")
	kinds := map[fs.FileMode]string{0: "f", fs.ModeDir: "d", fs.ModeSymlink: "l"}
	var out strings.Builder
	state := m.Snapshot()
	for _, name := range state.Leftovers {
		state.Files[name] = hosttest.Entry{}
	}
	for name, e := range state.Files {
		deep := below(name, trees)
		switch {
		case deep < 0 || deep > depth || below(name, left) >= 0:
		case digests && e.Mode.IsRegular():
			fmt.Fprintf(&out, "%x  %s\x00", sha256.Sum256([]byte(e.Content)), name)
		case !digests:
			fmt.Fprintf(&out, "%s %o %d:%d %d %s\t%s\x00", kinds[e.Mode.Type()], e.Mode.Perm(), e.UID, e.GID, len(e.Content), e.Target, name)
		}
	}
	return hosttest.Answer{Stdout: out.String()}
}

// unpack does what cmd/unbundle does with the stream of the one bundle there is.
func (m *machine) unpack(dir string) {
	m.Drop(dir + ".partial") // of an earlier run
	m.Drop(dir)
	m.fill(dir, len(m.bundle.Files()))
	m.Put(path.Join(dir, unpack.ManifestName), string(m.bundle.Manifest()), 0o644)
}

// fill makes the first n files of the version directory.
func (m *machine) fill(dir string, n int) {
	for _, f := range m.bundle.Files()[:n] {
		if f.Link != "" {
			m.PutLink(f.Link, path.Join(dir, f.Path))
			continue
		}
		m.Put(path.Join(dir, f.Path), strings.Repeat("x", int(f.Size)), f.Mode)
	}
}
