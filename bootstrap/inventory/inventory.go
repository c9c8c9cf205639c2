// Package inventory lists what stands on a host, so that it can be compared: the
// host after a reset with the host before the first change.
//
// What a running host changes by itself does not count: journals, caches and
// temporary files, sessions, timers, leases, counters, processes.
package inventory

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/kubewright/kubewright/bootstrap/host"
	"golang.org/x/sync/errgroup"
)

// Section is a kind of objects.
type Section string

// The sections.
const (
	Files      Section = "files"      // by path; type, mode, owner, and a link's target or a file's size and SHA-256
	Units      Section = "units"      // by name; enabled or not, active or not
	Mounts     Section = "mounts"     // by mount point; file system type
	Interfaces Section = "interfaces" // by name; MTU and addresses
	Routes     Section = "routes"     // by line of `ip route` and `ip rule`
	Firewall   Section = "firewall"   // by line of `nft list ruleset`, without counters
	Settings   Section = "settings"   // by path below /proc/sys; value
	Modules    Section = "modules"    // by name
	Groups     Section = "groups"     // control groups of pods in any hierarchy, by path; the outermost
)

// Inventory is what stands on a host: in each section, objects with what is said
// of them. It is JSON as it is; Encode makes it small.
type Inventory struct {
	Sections map[Section]map[string]string `json:"sections"`
}

// Difference is an object that is another than it was.
type Difference struct {
	Section Section `json:"section"`
	Object  string  `json:"object"`
	Before  string  `json:"before"` // what is said of it; "" if it was not there
	After   string  `json:"after"`  // likewise, if it is not there
}

// absent is what is said of an object that is not there.
const absent = "absent"

// String is the difference in a line.
func (d Difference) String() string {
	before, after := d.Before, d.After
	if before == "" {
		before = absent
	}
	if after == "" {
		after = absent
	}
	return fmt.Sprintf("%s %s: %s -> %s", d.Section, d.Object, before, after)
}

// Diff lists what after has otherwise than before, by section and object.
func Diff(before, after Inventory) []Difference {
	var differences []Difference
	sections := maps.Clone(before.Sections)
	if sections == nil {
		sections = make(map[Section]map[string]string)
	}
	maps.Copy(sections, after.Sections)
	for _, section := range slices.Sorted(maps.Keys(sections)) {
		was, is := before.Sections[section], after.Sections[section]
		objects := make(map[string]bool)
		for object := range was {
			objects[object] = true
		}
		for object := range is {
			objects[object] = true
		}
		for _, object := range slices.Sorted(maps.Keys(objects)) {
			if was[object] != is[object] {
				differences = append(differences, Difference{section, object, was[object], is[object]})
			}
		}
	}
	return differences
}

// Digest is the SHA-256 of all that is listed: equal inventories have the same.
func (i Inventory) Digest() string {
	h := sha256.New()
	for _, section := range slices.Sorted(maps.Keys(i.Sections)) {
		for _, object := range slices.Sorted(maps.Keys(i.Sections[section])) {
			fmt.Fprintf(h, "%q %q %q\n", section, object, i.Sections[section][object]) //nolint:errcheck // a hash takes all
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Len is how many objects are listed.
func (i Inventory) Len() int {
	n := 0
	for _, objects := range i.Sections {
		n += len(objects)
	}
	return n
}

// Encode returns the inventory as compressed JSON, the same bytes for the same inventory.
func (i Inventory) Encode() ([]byte, error) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if err := errors.Join(json.NewEncoder(w).Encode(i), w.Close()); err != nil {
		return nil, fmt.Errorf("encode inventory: %w", err)
	}
	return b.Bytes(), nil
}

// Decode reads what Encode wrote.
func Decode(content []byte) (*Inventory, error) {
	r, err := gzip.NewReader(bytes.NewReader(content))
	if err != nil {
		return nil, fmt.Errorf("decode inventory: %w", err)
	}
	var i Inventory
	if err := json.NewDecoder(r).Decode(&i); err != nil {
		return nil, fmt.Errorf("decode inventory: %w", err)
	}
	return &i, nil
}

// Take lists what stands on a host. settings are further kernel settings that
// count, as paths below /proc/sys. A section whose program the host lacks (ip,
// nft, systemctl) is empty.
func Take(ctx context.Context, r host.Reader, settings ...string) (*Inventory, error) {
	return standard(settings).take(ctx, r)
}

// scope is what is looked at; tests look at less.
type scope struct {
	deep     []string // trees whose files count with their content
	whole    []string // trees whose files count with type, mode and owner
	shallow  []string // trees that count like that, but for what is deeper than shallowDepth
	left     []string // trees in those that do not count
	settings []string
}

func standard(settings []string) scope {
	return scope{
		deep:     []string{"/etc", "/opt", "/usr/local", "/usr/libexec", "/root/.kube"},
		whole:    []string{"/var/lib/kubelet", "/var/lib/etcd", "/var/lib/containerd", "/var/lib/cni"},
		shallow:  []string{"/var/lib", "/var/log", "/run", "/usr/bin", "/usr/sbin", "/usr/lib/systemd"},
		left:     leftOut(),
		settings: slices.Concat(forwarding(), settings),
	}
}

// forwarding are the settings that anything with networks for containers changes.
func forwarding() []string {
	return []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/bridge/bridge-nf-call-iptables", "net/ipv4/conf/all/rp_filter"}
}

// leftOut are trees that are ours, other programs' own business, or a running host's.
func leftOut() []string {
	return []string{
		"/var/lib/kubewright", "/run/kubewright.lock",
		"/var/lib/docker", "/var/lib/systemd", "/var/lib/dhcp", "/var/lib/NetworkManager", "/var/lib/chrony", "/var/lib/logrotate",
		"/var/lib/apt", "/var/lib/dpkg", "/var/lib/private", "/var/lib/sudo", "/var/lib/fwupd", "/var/lib/update-notifier", "/var/lib/lastlog",
		"/var/log/journal", "/var/log/wtmp", "/var/log/btmp", "/var/log/lastlog", "/var/log/sysstat", "/var/log/unattended-upgrades",
		"/run/systemd", "/run/log", "/run/user", "/run/sshd", "/run/utmp", "/run/dbus", "/run/initctl", "/run/motd.dynamic", "/run/motd", "/run/sudo",
		"/run/udev", "/run/lock", "/run/chrony", "/run/NetworkManager", "/run/credentials", "/run/dhclient.pid", "/run/cloud-init",
		"/etc/ld.so.cache", "/etc/.pwd.lock", "/etc/resolv.conf", "/etc/mtab",
	}
}

func (s scope) take(ctx context.Context, r host.Reader) (*Inventory, error) {
	i := &Inventory{Sections: make(map[Section]map[string]string)}
	var mu sync.Mutex
	all, ctx := errgroup.WithContext(ctx)
	section := func(name Section, look func(context.Context, host.Reader) (map[string]string, error)) {
		all.Go(func() error {
			found, err := look(ctx, r)
			if err != nil {
				return fmt.Errorf("inventory of %s: %w", name, err)
			}
			mu.Lock()
			defer mu.Unlock()
			i.Sections[name] = found
			return nil
		})
	}
	section(Files, s.files)
	section(Units, units)
	section(Mounts, mounts)
	section(Interfaces, interfaces)
	section(Routes, routes)
	section(Firewall, firewall)
	section(Settings, s.values)
	section(Modules, modules)
	section(Groups, groups)
	if err := all.Wait(); err != nil {
		return nil, err
	}
	return i, nil
}

// query runs a program that the host may lack: it says nothing then.
func query(ctx context.Context, r host.Reader, argv ...string) (string, error) {
	out, err := r.Query(ctx, argv...)
	if exit := (*host.ExitError)(nil); errors.As(err, &exit) && exit.Status == host.NoProgram {
		return "", nil
	}
	return string(out), err
}

// shallowDepth bounds what a host with very many files costs, and keeps a data
// base's own files out.
const shallowDepth = "2"

// walk is the start of a find command over trees, without other file systems and
// what is left out. options are find's that come first.
func (s scope) walk(trees []string, options ...string) []string {
	argv := append([]string{"find"}, trees...)
	argv = append(append(argv, options...), "-xdev", "(", "-false")
	for _, p := range s.left {
		argv = append(argv, "-o", "-path", p)
	}
	return append(argv, ")", "-prune", "-o")
}

// contentMax is the size up to which a file counts with its content; a larger
// one counts with its size. It is a program or a data base.
const contentMax = "-1024k"

func (s scope) files(ctx context.Context, r host.Reader) (map[string]string, error) {
	found := make(map[string]string)
	if err := s.list(ctx, r, found, slices.Concat(s.deep, s.whole)); err != nil {
		return nil, err
	}
	if err := s.list(ctx, r, found, s.shallow, "-maxdepth", shallowDepth); err != nil {
		return nil, err
	}
	return found, s.sums(ctx, r, found)
}

// list adds what find sees in trees.
func (s scope) list(ctx context.Context, r host.Reader, found map[string]string, trees []string, options ...string) error {
	trees, err := host.Directories(ctx, r, trees)
	if err != nil || len(trees) == 0 {
		return err
	}
	// Records end with NUL: a name may hold anything else.
	out, err := find(ctx, r, append(s.walk(trees, options...), "-printf", `%y %m %U:%G %s %l\t%p\0`))
	if err != nil {
		return err
	}
	for record := range strings.SplitSeq(out, "\x00") {
		words, name, ok := strings.Cut(record, "\t")
		if !ok {
			continue
		}
		f := strings.SplitN(words, " ", 5) // type, mode, owner, size, target
		if len(f) < 5 {
			return fmt.Errorf("find: %q: unknown form", record)
		}
		said := f[0] + " " + f[1] + " " + f[2]
		switch {
		case f[0] == "l":
			said += " -> " + f[4]
		case f[0] == "f" && s.counted(name):
			said += " size " + f[3]
		}
		found[name] = said
	}
	return nil
}

// sums adds the SHA-256 of those files whose content counts.
func (s scope) sums(ctx context.Context, r host.Reader, found map[string]string) error {
	trees, err := host.Directories(ctx, r, s.deep)
	if err != nil || len(trees) == 0 {
		return err
	}
	out, err := find(ctx, r, append(s.walk(trees), "-type", "f", "-size", contentMax, "-exec", "sha256sum", "--zero", "{}", "+"))
	if err != nil {
		return err
	}
	for record := range strings.SplitSeq(out, "\x00") {
		sum, name, ok := strings.Cut(record, "  ")
		if said, known := found[name]; ok && known {
			found[name] = said + " sha256 " + sum
		}
	}
	return nil
}

// counted tells whether a file's size and content count.
func (s scope) counted(name string) bool {
	return slices.ContainsFunc(s.deep, func(tree string) bool { return strings.HasPrefix(name, tree+"/") })
}

// find runs find; what vanishes while it looks makes it fail, and is not there.
func find(ctx context.Context, r host.Reader, argv []string) (string, error) {
	out, err := r.Query(ctx, argv...)
	if exit := (*host.ExitError)(nil); errors.As(err, &exit) && exit.Status == 1 {
		err = nil
	}
	return string(out), err
}

// transient are units that come and go with logins, devices and runs of others.
func transient(unit string) bool {
	kind := path.Ext(unit)
	return kind == ".scope" || kind == ".device" || kind == ".mount" || kind == ".timer" || kind == ".swap" || kind == ".automount" ||
		strings.HasPrefix(unit, "session") || strings.HasPrefix(unit, "user@") || strings.HasPrefix(unit, "user-") || strings.HasPrefix(unit, "run-") ||
		strings.HasPrefix(unit, "ssh@") || strings.HasPrefix(unit, "sshd@") || strings.HasPrefix(unit, "systemd-")
}

// units says of each unit how it starts and, of services, sockets and slices that run, that they do.
func units(ctx context.Context, r host.Reader) (map[string]string, error) {
	files, err := query(ctx, r, "systemctl", "list-unit-files", "--no-pager", "--no-legend", "--plain")
	if err != nil {
		return nil, err
	}
	found := make(map[string]string)
	for line := range strings.Lines(files) {
		if f := strings.Fields(line); len(f) >= 2 && !transient(f[0]) {
			found[f[0]] = f[1]
		}
	}
	active, err := query(ctx, r, "systemctl", "list-units", "--no-pager", "--no-legend", "--plain", "--full", "--state=active,failed")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(active) {
		f := strings.Fields(line) // name, loaded, active, sub, description
		if len(f) < 4 || transient(f[0]) || found[f[0]] == "static" && f[3] == "exited" {
			continue
		}
		found[f[0]] = strings.TrimSpace(found[f[0]] + " " + f[2])
	}
	return found, nil
}

// mounts says which file system is where; those of users' sessions do not count.
func mounts(ctx context.Context, r host.Reader) (map[string]string, error) {
	table, err := r.ReadFile(ctx, "/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	found := make(map[string]string)
	for line := range strings.Lines(string(table)) {
		left, right, ok := strings.Cut(line, " - ")
		f, kind := strings.Fields(left), strings.Fields(right)
		if !ok || len(f) < 5 || len(kind) == 0 || strings.HasPrefix(f[4], "/run/user/") || strings.HasPrefix(f[4], "/run/credentials/") {
			continue
		}
		if found[f[4]] != "" { // one over the other
			kind[0] = found[f[4]] + " " + kind[0]
		}
		found[f[4]] = kind[0]
	}
	return found, nil
}

// interfaces says of each one its MTU and the addresses that were given to it.
func interfaces(ctx context.Context, r host.Reader) (map[string]string, error) {
	out, err := query(ctx, r, "ip", "-json", "address", "show")
	if err != nil || out == "" {
		return nil, err
	}
	var links []struct {
		Name  string `json:"ifname"`
		MTU   int    `json:"mtu"`
		Addrs []struct {
			Local   string `json:"local"`
			Length  int    `json:"prefixlen"`
			Dynamic bool   `json:"dynamic"`
		} `json:"addr_info"`
	}
	if err := json.Unmarshal([]byte(out), &links); err != nil {
		return nil, fmt.Errorf("ip -json address show: %w", err)
	}
	found := make(map[string]string)
	for _, link := range links {
		words := []string{fmt.Sprintf("mtu %d", link.MTU)}
		for _, a := range link.Addrs {
			if a.Local != "" && !a.Dynamic { // one that was leased comes and goes
				words = append(words, fmt.Sprintf("%s/%d", a.Local, a.Length))
			}
		}
		slices.Sort(words[1:])
		found[link.Name] = strings.Join(words, " ")
	}
	return found, nil
}

const present = "present"

// routes are the lines of the main table and of the rules, without leases' routes.
func routes(ctx context.Context, r host.Reader) (map[string]string, error) {
	found := make(map[string]string)
	for _, argv := range [][]string{{"ip", "-4", "route", "show"}, {"ip", "-6", "route", "show"}, {"ip", "-4", "rule", "show"}, {"ip", "-6", "rule", "show"}} {
		out, err := query(ctx, r, argv...)
		if exit := (*host.ExitError)(nil); errors.As(err, &exit) { // a kernel without IPv6, or without rules
			continue
		}
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(out) {
			line = strings.Join(strings.Fields(line), " ")
			if line != "" && !strings.Contains(line, "proto ra") && !strings.Contains(line, "expires") {
				found[strings.Join(argv[1:3], " ")+" "+line] = present
			}
		}
	}
	return found, nil
}

// firewall is the rules by table and chain, without their counters.
func firewall(ctx context.Context, r host.Reader) (map[string]string, error) {
	out, err := query(ctx, r, "nft", "--stateless", "list", "ruleset")
	if err != nil {
		return nil, err
	}
	found := make(map[string]string)
	var at []string // the blocks that we are in
	for line := range strings.Lines(out) {
		line = strings.Join(strings.Fields(line), " ")
		switch {
		case line == "":
		case line == "}":
			at = at[:max(0, len(at)-1)]
		case strings.HasSuffix(line, "{"):
			at = append(at, strings.TrimSuffix(line, " {"))
			found[strings.Join(at, " ")] = present
		default: // in order: it is what a packet meets first that counts
			key := strings.Join(at, " ")
			found[key] = strings.TrimPrefix(found[key]+"; "+line, present+"; ")
		}
	}
	return found, nil
}

// values reads settings; one that the kernel does not know is absent.
func (s scope) values(ctx context.Context, r host.Reader) (map[string]string, error) {
	found := make(map[string]string)
	for _, setting := range s.settings {
		value, err := r.ReadFile(ctx, path.Join("/proc/sys", setting))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found[setting] = strings.Join(strings.Fields(string(value)), " ")
	}
	return found, nil
}

// modules are those that are loaded; built-in ones cannot change.
func modules(ctx context.Context, r host.Reader) (map[string]string, error) {
	table, err := r.ReadFile(ctx, "/proc/modules")
	found := make(map[string]string)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 0 {
			found[f[0]] = "loaded"
		}
	}
	return found, nil
}

// groupRoot has the control groups: of version 1 a folder per hierarchy, of version 2 the groups themselves.
const groupRoot = "/sys/fs/cgroup"

// podGroups begins the names of the groups that kubelets make. All others come and go with a
// running host's services and sessions.
const podGroups = "kubepods"

func groups(ctx context.Context, r host.Reader) (map[string]string, error) {
	trees, err := host.Directories(ctx, r, []string{groupRoot})
	if err != nil || len(trees) == 0 {
		return nil, err
	}
	out, err := find(ctx, r, []string{"find", groupRoot, "-mindepth", "1", "-maxdepth", "2", "-type", "d", "-name", podGroups + "*", "-printf", `%p\0`})
	if err != nil {
		return nil, err
	}
	found := make(map[string]string)
	for group := range strings.SplitSeq(out, "\x00") {
		if group != "" {
			found[group] = present
		}
	}
	return found, nil
}
