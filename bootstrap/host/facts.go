package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
)

// Facts is what planning must know of a machine. It is observed once, at the
// start, and says nothing of the cluster.
type Facts struct {
	Hostname          string // the kernel's, as it is written there
	MachineID         string // /etc/machine-id, "" on a host that has none
	BootID            string // another one after each boot
	Arch              string // as GOARCH names it; the kernel's own name if Go has none
	Kernel            string // release, as uname -r prints it
	OS                string // PRETTY_NAME of os-release, "" if it is unknown
	OSID              string // ID of os-release: debian, fedora, ...
	OSVersion         string // VERSION_ID of os-release, "" on a rolling release
	Virtualization    string // as systemd-detect-virt names it, "none" on bare metal, "" if it is unknown
	CPUs              int    // online
	MemoryBytes       uint64
	Interfaces        []Interface // loopback included; empty on a host without an ip program
	Routes            []Route     // IPv4, of the main table; empty on a host without an ip program
	CgroupV2          bool        // the unified hierarchy alone
	Swap              bool        // some swap is on
	CapSysResource    bool        // services of pid 1 may have it: oom_score_adj can be lowered
	ConntrackMaxFixed bool        // nf_conntrack_max cannot be set from here, as in containers
	Resolvers         []string    // addresses that names outside the cluster can be asked of, in order

	tools      map[string]string
	resolvConf string
}

// Interface is a network interface with its addresses.
type Interface struct {
	Name  string
	MTU   int
	MAC   string         // as ip prints it, "" if it has none
	Addrs []netip.Prefix // the host's own address with the length of its network
}

// Route is where packets to a network go.
type Route struct {
	To      netip.Prefix // 0.0.0.0/0: the default
	Gateway netip.Addr   // invalid if the network is reached directly
	Dev     string       // the interface, "" of a route that refuses
}

// DefaultInterface is the interface of the default route, "" without one. It is
// no hint at the node's address: on Vagrant's machines it leads to a NAT that all share.
func (f Facts) DefaultInterface() string {
	for _, r := range f.Routes {
		if r.To.Bits() == 0 {
			return r.Dev
		}
	}
	return ""
}

// Tool returns the absolute path of one of the programs that kubewright looks
// for (nft, ip, mount, umount, sysctl, modprobe, systemctl), "" if the host lacks it.
func (f Facts) Tool(name string) string { return f.tools[name] }

// ResolvConf returns the file whose name servers pods are to inherit: the one
// systemd-resolved keeps of its upstreams, where it runs, since its stub on
// 127.0.0.53 answers the host alone; else /etc/resolv.conf; "" if there is neither.
func (f Facts) ResolvConf() string { return f.resolvConf }

// Files whose presence or mode tells something.
const (
	resolvedConf  = "/run/systemd/resolve/resolv.conf"
	etcResolvConf = "/etc/resolv.conf"
	conntrackMax  = "/proc/sys/net/netfilter/nf_conntrack_max"
	containerMark = "/run/systemd/container" // systemd writes it when it is pid 1 of a container
	cgroupV2Mark  = "/sys/fs/cgroup/cgroup.controllers"
)

const (
	ownerMayWrite  = fs.FileMode(0o200)
	capSysResource = 24 // its bit number in linux/capability.h
	isNone         = 1  // systemd-detect-virt's exit status where there is none
)

func toolNames() []string {
	return []string{"nft", "ip", "mount", "umount", "sysctl", "modprobe", "systemctl"}
}

func toolDirs() []string { return []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"} }

// Gather observes a host in about two round trips: everything is asked at once.
func Gather(ctx context.Context, r Reader) (Facts, error) {
	var f Facts
	all, ctx := errgroup.WithContext(ctx)

	read := func(path string, optional bool, use func([]byte) error) {
		all.Go(func() error {
			content, err := r.ReadFile(ctx, path)
			if optional && errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			if err := use(content); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			return nil
		})
	}
	text := func(into *string) func([]byte) error {
		return func(content []byte) error { *into = strings.TrimSpace(string(content)); return nil }
	}
	read("/proc/sys/kernel/hostname", false, text(&f.Hostname))
	read("/proc/sys/kernel/osrelease", false, text(&f.Kernel))
	read("/etc/machine-id", true, text(&f.MachineID))
	read("/proc/sys/kernel/random/boot_id", false, text(&f.BootID))
	read("/etc/os-release", true, func(b []byte) error {
		f.OS, f.OSID, f.OSVersion = osField(string(b), "PRETTY_NAME"), osField(string(b), "ID"), osField(string(b), "VERSION_ID")
		return nil
	})
	read("/sys/devices/system/cpu/online", false, func(b []byte) (err error) { f.CPUs, err = countCPUs(string(b)); return err })
	var own, stub []string // resolvers by systemd-resolved, whose own is a stub for this host only
	read(resolvedConf, true, func(b []byte) error { own = nameservers(string(b)); return nil })
	read(etcResolvConf, true, func(b []byte) error { stub = nameservers(string(b)); return nil })
	read("/proc/swaps", true, func(b []byte) error { f.Swap = swapOn(string(b)); return nil })
	read("/proc/meminfo", false, func(b []byte) (err error) { f.MemoryBytes, err = memTotal(string(b)); return err })
	read("/proc/1/status", false, func(b []byte) error {
		caps, err := boundingCaps(string(b))
		f.CapSysResource = caps&(1<<capSysResource) != 0
		return err
	})

	all.Go(func() error {
		machine, err := r.Query(ctx, "uname", "-m")
		f.Arch = goarch(strings.TrimSpace(string(machine)))
		return err
	})
	all.Go(func() error {
		out, err := r.Query(ctx, "systemd-detect-virt")
		exit := (*ExitError)(nil)
		switch {
		case errors.As(err, &exit) && exit.Status == isNone:
			f.Virtualization = "none"
		case errors.As(err, &exit) && exit.Status == NoProgram:
		default:
			f.Virtualization = strings.TrimSpace(string(out))
			return err
		}
		return nil
	})
	ip := func(object string, use func([]byte) error) {
		all.Go(func() error {
			out, err := r.Query(ctx, "ip", "-json", object, "show")
			if exit := (*ExitError)(nil); errors.As(err, &exit) && exit.Status == NoProgram {
				return nil // Tool says so too; whoever needs it tells the admin
			}
			if err != nil {
				return err
			}
			return use(out)
		})
	}
	ip("address", func(out []byte) (err error) { f.Interfaces, err = interfaces(out); return err })
	ip("route", func(out []byte) (err error) { f.Routes, err = routes(out); return err })
	all.Go(func() error {
		paths := []string{resolvedConf, etcResolvConf, conntrackMax, containerMark, cgroupV2Mark}
		for _, dir := range toolDirs() {
			for _, name := range toolNames() {
				paths = append(paths, path.Join(dir, name))
			}
		}
		found, err := r.Stat(ctx, paths...)
		if err != nil {
			return err
		}
		f.see(found)
		return nil
	})
	if err := all.Wait(); err != nil {
		return Facts{}, err
	}
	f.Resolvers = reachable(own)
	if len(f.Resolvers) == 0 {
		f.Resolvers = reachable(stub)
	}
	return f, nil
}

// reachable are the resolvers that others than the host itself can ask, too.
func reachable(resolvers []string) []string {
	return slices.DeleteFunc(slices.Clone(resolvers), func(text string) bool {
		a, err := netip.ParseAddr(text)
		return err != nil || a.IsLoopback() || a.IsUnspecified()
	})
}

// see takes what the one Stat call found.
func (f *Facts) see(found []File) {
	at := make(map[string]File, len(found))
	for _, file := range found {
		at[file.Path] = file
	}
	for _, candidate := range []string{etcResolvConf, resolvedConf} {
		if at[candidate].Exists {
			f.resolvConf = candidate
		}
	}
	f.CgroupV2 = at[cgroupV2Mark].Exists
	// Outside the first network namespace the kernel shows the limit read-only, or
	// not at all. Elsewhere an absent file is a module that is not loaded yet.
	if limit := at[conntrackMax]; limit.Exists {
		f.ConntrackMaxFixed = limit.Mode&ownerMayWrite == 0
	} else {
		f.ConntrackMaxFixed = at[containerMark].Exists
	}
	f.tools = make(map[string]string)
	for _, name := range toolNames() {
		for _, dir := range toolDirs() {
			if file := at[path.Join(dir, name)]; file.Exists {
				f.tools[name] = file.Path
				break
			}
		}
	}
}

// goarch translates the kernel's name of a machine.
func goarch(machine string) string {
	switch machine {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	case "armv6l", "armv7l", "armv8l":
		return "arm"
	case "i386", "i486", "i586", "i686":
		return "386"
	case "loongarch64":
		return "loong64"
	default: // ppc64le, riscv64, s390x, mips64 ... are called alike
		return machine
	}
}

// osField finds a field of an os-release file, "" if it is not there.
func osField(content, name string) string {
	for line := range strings.Lines(content) {
		value, ok := strings.CutPrefix(strings.TrimSpace(line), name+"=")
		if !ok {
			continue
		}
		if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
			value = value[1 : n-1]
		}
		return strings.NewReplacer(`\"`, `"`, `\$`, `$`, "\\`", "`", `\\`, `\`).Replace(value)
	}
	return ""
}

// nameservers lists the name servers of a resolv.conf.
func nameservers(content string) []string {
	var servers []string
	for line := range strings.Lines(content) {
		if words := strings.Fields(line); len(words) >= 2 && words[0] == "nameserver" {
			servers = append(servers, words[1])
		}
	}
	return servers
}

// swapOn tells whether /proc/swaps lists anything below its header line.
func swapOn(content string) bool {
	return strings.Contains(strings.TrimSpace(content), "\n")
}

// memTotal finds MemTotal in /proc/meminfo, in bytes.
func memTotal(content string) (uint64, error) {
	value, ok := statusField(content, "MemTotal")
	if !ok {
		return 0, errors.New("no MemTotal")
	}
	kib, err := strconv.ParseUint(strings.TrimSuffix(value, " kB"), 10, 54)
	if err != nil {
		return 0, fmt.Errorf("MemTotal: %w", err)
	}
	return kib << 10, nil
}

// boundingCaps finds CapBnd in a /proc/PID/status. Pid 1 may have more itself
// than it can hand on: what it executes is bounded by this set.
func boundingCaps(content string) (uint64, error) {
	value, ok := statusField(content, "CapBnd")
	if !ok {
		return 0, errors.New("no CapBnd")
	}
	caps, err := strconv.ParseUint(value, 16, 64)
	if err != nil {
		return 0, fmt.Errorf("CapBnd: %w", err)
	}
	return caps, nil
}

// countCPUs counts a list as the kernel writes it: 0-3,8,10-11.
func countCPUs(content string) (int, error) {
	n := 0
	for part := range strings.SplitSeq(strings.TrimSpace(content), ",") {
		low, high, ok := strings.Cut(part, "-")
		if !ok {
			high = low
		}
		from, err := strconv.Atoi(low)
		if err != nil {
			return 0, err
		}
		to, err := strconv.Atoi(high)
		if err != nil {
			return 0, err
		}
		n += to - from + 1
	}
	return n, nil
}

// statusField finds the value of a "Name:   value" line.
func statusField(content, name string) (string, bool) {
	for line := range strings.Lines(content) {
		if key, value, ok := strings.Cut(line, ":"); ok && key == name {
			return strings.TrimSpace(value), true
		}
	}
	return "", false
}

// interfaces reads what ip -json address show prints.
func interfaces(out []byte) ([]Interface, error) {
	var links []struct {
		Name  string `json:"ifname"`
		MTU   int    `json:"mtu"`
		MAC   string `json:"address"`
		Addrs []struct {
			Local     string `json:"local"`
			PrefixLen int    `json:"prefixlen"`
		} `json:"addr_info"`
	}
	if err := json.Unmarshal(out, &links); err != nil {
		return nil, fmt.Errorf("ip -json address show: %w", err)
	}
	var list []Interface
	for _, link := range links {
		i := Interface{Name: link.Name, MTU: link.MTU, MAC: link.MAC}
		for _, a := range link.Addrs {
			if a.Local == "" { // ip prints an empty object for what it filtered
				continue
			}
			addr, err := netip.ParseAddr(a.Local)
			if err != nil {
				return nil, fmt.Errorf("ip -json address show: %s: %w", link.Name, err)
			}
			i.Addrs = append(i.Addrs, netip.PrefixFrom(addr, a.PrefixLen))
		}
		if i.Name != "" {
			list = append(list, i)
		}
	}
	return list, nil
}

// routes reads what ip -json route show prints.
func routes(out []byte) ([]Route, error) {
	var entries []struct {
		To      string `json:"dst"`
		Gateway string `json:"gateway"`
		Dev     string `json:"dev"`
	}
	if err := json.Unmarshal(out, &entries); err != nil {
		return nil, fmt.Errorf("ip -json route show: %w", err)
	}
	var list []Route
	for _, e := range entries {
		r := Route{Dev: e.Dev}
		var err error
		switch {
		case e.To == "default":
			r.To = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		case strings.Contains(e.To, "/"):
			r.To, err = netip.ParsePrefix(e.To)
		default: // one address alone
			var to netip.Addr
			if to, err = netip.ParseAddr(e.To); err == nil {
				r.To = netip.PrefixFrom(to, to.BitLen())
			}
		}
		if err == nil && e.Gateway != "" {
			r.Gateway, err = netip.ParseAddr(e.Gateway)
		}
		if err != nil {
			return nil, fmt.Errorf("ip -json route show: %s: %w", e.To, err)
		}
		list = append(list, r)
	}
	return list, nil
}
