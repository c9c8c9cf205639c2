package preflight

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/probe"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

// tools are programs of the host's own that a node cannot do without, with the
// Debian package that has each.
var tools = [...]struct{ name, pkg, why string }{
	{"nft", "nftables", "kube-proxy makes Services with it"},
	{"ip", "iproute2", "the service range needs a route"},
	{"mount", "mount", "the kubelet mounts volumes with it"},
	{"sysctl", "procps", "kernel settings are made with it"},
}

// factFindings judges what Facts tell. Of a member only what would keep it from
// working is told again: what is merely worth knowing was told when it joined.
func factFindings(h *Host, arch string) finding.Report {
	var r finding.Report
	found := func(c finding.Code, s finding.Severity, remedy, format string, args ...any) {
		r = append(r, finding.Finding{Code: c, Severity: s, Host: h.Wish.Name, Message: fmt.Sprintf(format, args...), Remedy: remedy})
	}
	f := h.Facts
	if f.Arch != arch {
		found(finding.ArchMismatch, finding.Error, "use a bundle for "+f.Arch, "the bundle is for %s, the host is %s", arch, f.Arch)
	}
	for _, t := range tools {
		if f.Tool(t.name) == "" {
			found(finding.ToolMissing, finding.Error, "apt-get install "+t.pkg, "the host has no %s: %s", t.name, t.why)
		}
	}
	if f.Swap {
		found(finding.SwapOn, finding.Error, `swapoff -a && sed -i '/\sswap\s/d' /etc/fstab`, "swap is on: the kubelet would not start")
	}
	if h.Member {
		return r
	}
	const modern = "install a distribution with systemd and Linux 5.13 or later, such as Debian 12"
	if f.Tool("systemctl") == "" {
		found(finding.OSUnsupported, finding.Error, modern, "%s has no systemd", cmp.Or(f.OS, "the host"))
	}
	if older(f.Kernel, 5, 13) {
		found(finding.OSUnsupported, finding.Error, modern, "its kernel is %s, kube-proxy's nftables mode needs 5.13", f.Kernel)
	}
	if !f.CgroupV2 {
		found(finding.CgroupV1, finding.Warning, "remove systemd.unified_cgroup_hierarchy=0 from the kernel's command line, then reboot",
			"it uses cgroup version 1: works, but Kubernetes will drop it")
	}
	if f.MachineID == "" {
		found(finding.MachineIDMissing, finding.Error, "systemd-machine-id-setup", "/etc/machine-id is missing or empty")
	}
	least, good := uint64(384*mib), uint64(900*mib)
	if h.controlPlane() {
		least, good = 768*mib, 1700*mib
	}
	switch {
	case f.MemoryBytes < least:
		found(finding.MemoryLow, finding.Error, "give the host "+size(good)+" of memory or more",
			"it has %s of memory, a %s node needs %s", size(f.MemoryBytes), h.Wish.Role, size(least))
	case f.MemoryBytes < good:
		found(finding.MemoryLow, finding.Warning, "give the host "+size(good)+" of memory or more",
			"it has %s of memory, which leaves a %s node little for pods", size(f.MemoryBytes), h.Wish.Role)
	}
	if h.controlPlane() && f.CPUs < 2 {
		found(finding.CPULow, finding.Warning, "give the host two processors", "it has one processor: the control plane will be slow")
	}
	return r
}

// virtualIP finds control-plane hosts that could not have the virtual IP: nobody in
// their networks would look for it there.
func virtualIP(in Input) finding.Report {
	var r finding.Report
	ip := in.Cluster.ControlPlaneEndpoint.VirtualIP
	if !ip.IsValid() {
		return nil
	}
	for _, h := range in.Hosts {
		var networks []string
		within := false
		for _, i := range h.Facts.Interfaces {
			for _, a := range i.Addrs {
				if a.Addr().Is4() && !a.Addr().IsLoopback() && !a.IsSingleIP() {
					networks = append(networks, a.Masked().String())
					within = within || a.Contains(ip)
				}
			}
		}
		if !h.controlPlane() || within {
			continue
		}
		r = append(r, finding.Finding{Code: finding.VirtualIPOutside, Severity: finding.Error, Host: h.Wish.Name, Object: ip.String(),
			Message: fmt.Sprintf("the virtual IP %s is in none of its networks (%s)", ip, strings.Join(networks, ", ")),
			Remedy:  "set controlPlaneEndpoint.virtualIP to an unused address of a network that all control-plane hosts are in"})
	}
	return r
}

// evenControlPlanes notes that the last control-plane host makes the cluster no safer.
func evenControlPlanes(in Input) finding.Report {
	all, comes := len(in.Servers), ""
	for _, h := range in.Hosts {
		is := func(s netip.AddrPort) bool { return s.Addr() == h.Address }
		if h.controlPlane() && !slices.ContainsFunc(in.Servers, is) {
			all, comes = all+1, h.Wish.Name
		}
	}
	if all == 0 || all%2 == 1 || comes == "" {
		return nil
	}
	return finding.Report{{Code: finding.ControlPlanesEven, Severity: finding.Note, Host: comes, Object: strconv.Itoa(all),
		Message: fmt.Sprintf("%d control-plane hosts survive the loss of %d, no more than %d would: etcd needs %d of %d", all, all/2-1, all-1, all/2+1, all),
		Remedy:  "make it an odd number"}}
}

// older compares a kernel's release, such as 6.1.0-28-amd64; one that is not like that is not old.
func older(release string, major, minor int) bool {
	parts := strings.SplitN(release, ".", 3)
	if len(parts) < 2 {
		return false
	}
	x, errX := strconv.Atoi(parts[0])
	y, errY := strconv.Atoi(strings.TrimRight(parts[1], "-+abcdefghijklmnopqrstuvwxyz"))
	return errX == nil && errY == nil && (x < major || x == major && y < minor)
}

func size(bytes uint64) string {
	if bytes >= gib {
		return fmt.Sprintf("%.1f GiB", float64(bytes)/gib)
	}
	return fmt.Sprintf("%d MiB", bytes/mib)
}

// duplicates finds what only one host may have. Each is told once, of the later host.
func duplicates(hosts []Host) finding.Report {
	var r finding.Report
	names, ids, addrs := map[string]string{}, map[string]string{}, map[netip.Addr]string{}
	for _, h := range hosts {
		found := func(c finding.Code, s finding.Severity, other, remedy, format string, args ...any) {
			r = append(r, finding.Finding{Code: c, Severity: s, Host: h.Wish.Name, Object: other, Message: fmt.Sprintf(format, args...), Remedy: remedy})
		}
		name := cmp.Or(h.Wish.Node, strings.ToLower(h.Facts.Hostname))
		if other, ok := names[name]; ok {
			found(finding.HostnameDuplicate, finding.Error, other, "hostnamectl set-hostname NAME, or a name of its own with `node:` in the cluster file",
				"its node name %s is also that of %s", name, other)
		}
		names[name] = h.Wish.Name
		if id := h.Facts.MachineID; id != "" {
			if other, ok := ids[id]; ok {
				found(finding.MachineIDDuplicate, finding.Error, other, "rm /etc/machine-id && systemd-machine-id-setup && reboot",
					"its machine-id is also that of %s: one is a clone of the other", other)
			}
			ids[id] = h.Wish.Name
		}
		addr := cmp.Or(h.Wish.Address, h.Reached)
		if !addr.IsValid() || addr.IsLoopback() || h.interfaceOf(addr).Name == "" {
			continue // translated on the way: it is not the host's own
		}
		if other, ok := addrs[addr]; ok {
			found(finding.AddressDuplicate, finding.Error, other, "give one of them another address, or name the host once",
				"its address %s is also that of %s", addr, other)
		}
		addrs[addr] = h.Wish.Name
	}
	return r
}

func (h Host) interfaceOf(a netip.Addr) host.Interface {
	for _, i := range h.Facts.Interfaces {
		if slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Addr() == a }) {
			return i
		}
	}
	return host.Interface{}
}

// leftovers are traces that claim does not refuse, but that a node stumbles over.
var leftovers = [...]claim.Trace{
	{Path: "/var/lib/etcd/member", Who: "another cluster's etcd", Remedy: "if its data is needed no more: rm -r /var/lib/etcd/member"},
	{Path: "/sys/class/net/cni0", Who: "another cluster's pod network", Remedy: "ip link delete cni0"},
	{Path: "/sys/class/net/flannel.1", Who: "another cluster's pod network", Remedy: "ip link delete flannel.1"},
	{Path: "/sys/class/net/cilium_host", Who: "Cilium", Remedy: "cilium-dbg cleanup, or reboot"},
	{Path: "/sys/class/net/vxlan.calico", Who: "Calico", Remedy: "ip link delete vxlan.calico"},
	{Path: "/sys/class/net/kube-ipvs0", Who: "another cluster's kube-proxy", Remedy: "ip link delete kube-ipvs0"},
}

// cniConfigs is the folder whose first configuration, by name, containerd takes
// for pods, whosever it is.
const (
	cniConfigs = "/etc/cni/net.d"
	cniConfig  = "10-kubewright.conflist" // ours
)

// foreignTraces finds what another installer left. A claimed host has files of
// its own at the same places, and whose it is claim itself tells.
func foreignTraces(ctx context.Context, h *Host) (finding.Report, error) {
	traces := slices.Concat(claim.Foreign(), leftovers[:])
	paths := []string{claim.File, cniConfigs}
	for _, t := range traces {
		paths = append(paths, t.Path)
	}
	found, err := h.Host.Stat(ctx, paths...)
	if err != nil || found[0].Exists {
		return nil, err
	}
	var r finding.Report
	said := map[string]bool{} // by what is to be done: one fault each
	if found[1].Exists {
		names, err := h.Host.ReadDir(ctx, cniConfigs)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			file := path.Join(cniConfigs, name)
			traces = append(traces, claim.Trace{Path: file, Who: "another cluster's pod network", Remedy: "if nothing needs it: rm " + file})
			found = append(found, host.File{Path: file, Exists: slices.Contains([]string{".conf", ".conflist", ".json"}, path.Ext(name))})
		}
	}
	for i, f := range found[2:] {
		if t := traces[i]; f.Exists && !said[t.Remedy] {
			said[t.Remedy] = true
			severity := finding.Error
			if path.Dir(t.Path) == cniConfigs && path.Base(t.Path) > cniConfig { // it loses to ours
				severity = finding.Warning
			}
			r = append(r, finding.Finding{Code: finding.ForeignInstaller, Severity: severity, Host: h.Wish.Name, Object: t.Path,
				Message: fmt.Sprintf("the host is, or was, in another cluster (%s): %s exists", t.Who, t.Path),
				Remedy:  t.Remedy + ", then run the same command again"})
		}
	}
	return r, nil
}

// Ports of a node, with whose they are. All but those of others are for the host itself.
const (
	etcdClients = 2379
	etcdPeers   = 2380
	kubeletAPI  = 10250
	vxlanPort   = 8472
)

// ports are all that a node of a role listens on.
func ports(c *spec.Cluster, role spec.Role) []probe.Port {
	numbers := []int{kubeletAPI, 10248, 10249, 10256, 6444, 6445}
	if role == spec.ControlPlaneRole {
		numbers = append(numbers, c.APIServer.Port, etcdClients, etcdPeers, 2381, 10257, 10259)
	}
	if c.Kubelet.ReadOnlyPort != 0 {
		numbers = append(numbers, c.Kubelet.ReadOnlyPort)
	}
	if c.Network.Backend != spec.NoNet {
		numbers = append(numbers, 10261)
	}
	var all []probe.Port
	for _, n := range numbers {
		all = append(all, probe.Port{Protocol: "tcp", Number: n})
	}
	if c.Network.Backend == spec.VXLAN {
		all = append(all, probe.Port{Protocol: "udp", Number: vxlanPort})
	}
	return all
}

// needs is what a node writes below a path until it runs its first pods.
type needs struct {
	path  string
	bytes uint64
	why   string
}

const etcdData = "/var/lib/etcd"

func rooms(role spec.Role) []needs {
	all := []needs{
		{"/opt/kubewright", 400 * mib, "the bundle"},
		{"/var/lib/containerd", 300 * mib, "images"},
		{"/var/lib/kubelet", 100 * mib, "pods"},
	}
	if role == spec.ControlPlaneRole {
		all = append(all, needs{etcdData, 300 * mib, "etcd's database"})
	}
	return all
}

func paths(role spec.Role) []string {
	var all []string
	for _, n := range rooms(role) {
		all = append(all, n.path)
	}
	return all
}

// ours are where the programs of a node stand.
const ours = "/opt/kubewright/"

// Limits of what etcd's disk may take for a write: what etcd's own documentation
// asks for, and half of its election timeout, with which no leader can last.
const (
	slowDisk     = 10 * time.Millisecond
	hopelessDisk = 500 * time.Millisecond
)

// seenFindings judges what the probe saw of one host.
func seenFindings(h *Host, order probe.Look, seen *probe.Seen) finding.Report {
	var r finding.Report
	found := func(c finding.Code, s finding.Severity, object, remedy, format string, args ...any) {
		r = append(r, finding.Finding{Code: c, Severity: s, Host: h.Wish.Name, Object: object, Message: fmt.Sprintf(format, args...), Remedy: remedy})
	}
	for _, m := range seen.Missing {
		remedy := "install a kernel that has it (apt-get install linux-image-" + h.Facts.Arch + "), then reboot"
		if module := map[string]string{"bridge-netfilter": "br_netfilter", "nftables": "nf_tables", "overlay": "overlay", "vxlan": "vxlan"}[m.Feature]; module != "" {
			remedy = "modprobe " + module + "; if there is no such module, " + remedy
		}
		found(finding.KernelFeatureMissing, finding.Error, m.Feature, remedy, "its kernel lacks %s: %s", m.Feature, m.Why)
	}
	for _, u := range seen.Uses {
		port := fmt.Sprintf("%s %d", strings.ToUpper(u.Protocol), u.Number)
		switch {
		case strings.HasPrefix(u.Program, ours): // of a run that was broken off, or of the cluster that claim tells
		case u.PID > 0:
			found(finding.PortInUse, finding.Error, port, fmt.Sprintf("systemctl status %d shows whose it is: stop that (systemctl disable --now UNIT)", u.PID),
				"port %s is in use by %s (pid %d)", port, cmp.Or(path.Base(u.Program), u.Process), u.PID)
		case u.Protocol == "tcp":
			found(finding.PortInUse, finding.Error, port, "ss -lptn 'sport = :"+strconv.Itoa(u.Number)+"' shows more", "port %s is in use by the kernel or another container", port)
		}
	}
	if o := seen.Owner; o != nil {
		ip, who := order.Unused.String(), o.Hardware+" answers for it"
		if o.Self {
			who = "the host itself has it"
		}
		found(finding.VirtualIPTaken, finding.Error, ip, "set controlPlaneEndpoint.virtualIP to an address that nobody has, or find its owner with `ip neigh show "+ip+"`",
			"the virtual IP %s is in use: %s on %s", ip, who, o.Interface)
	}
	r = append(r, roomFindings(h, seen.Rooms)...)
	if d := seen.Disk; d != nil && d.P99 > slowDisk {
		severity := finding.Warning
		if d.P99 > hopelessDisk {
			severity = finding.Error
		}
		found(finding.DiskSlow, severity, d.Dir, "give "+etcdData+" an SSD or NVMe of its own; to go on all the same: --ignore "+string(finding.DiskSlow),
			"the disk of %s takes %v for a write (99th percentile of %d), etcd wants %v", d.Dir, d.P99.Round(time.Millisecond/10), d.Writes, slowDisk)
	}
	for _, f := range seen.Firewalls {
		who := cmp.Or(f.Owner, "nftables")
		remedy := map[string]string{
			"ufw":       "ufw allow from HOST-NETWORK && ufw allow from POD-RANGE",
			"firewalld": "firewall-cmd --permanent --zone=trusted --add-source=HOST-NETWORK --add-source=POD-RANGE && firewall-cmd --reload",
			"nftables":  "nft insert rule " + f.Table + " " + f.Chain + " ip saddr { HOST-NETWORK, POD-RANGE } accept",
		}[who]
		found(finding.FirewallActive, finding.Warning, f.Table+" "+f.Chain, remedy,
			"%s drops what it does not know (table %s, chain %s): let hosts and pods in", who, f.Table, f.Chain)
	}
	return r
}

// roomFindings adds up what is needed of each file system.
func roomFindings(h *Host, seen []probe.Room) finding.Report {
	need := map[string]needs{}
	for _, n := range rooms(h.Wish.Role) {
		need[n.path] = n
	}
	type total struct {
		bytes, free uint64
		paths       []string
	}
	devices := map[uint64]*total{}
	for _, room := range seen {
		d := devices[room.Device]
		if d == nil {
			d = &total{free: room.Free}
			devices[room.Device] = d
		}
		n := need[room.Path]
		d.bytes += n.bytes
		d.paths = append(d.paths, fmt.Sprintf("%s (%s)", n.path, n.why))
	}
	var r finding.Report
	for _, device := range slices.Sorted(maps.Keys(devices)) {
		if d := devices[device]; d.free < d.bytes {
			r = append(r, finding.Finding{Code: finding.DiskSpace, Severity: finding.Error, Host: h.Wish.Name, Object: d.paths[0],
				Message: fmt.Sprintf("%s is free for %s, which need %s", size(d.free), strings.Join(d.paths, ", "), size(d.bytes)),
				Remedy:  "make room there (journalctl --vacuum-size=100M; apt-get clean), then run the same command again"})
		}
	}
	return r
}

func probeFailed(h *Host, err error) finding.Finding {
	return finding.Finding{Code: finding.ProbeFailed, Severity: finding.Warning, Host: h.Wish.Name,
		Message: fmt.Sprintf("kernel, disk, ports and network could not be tried: %v", err), Remedy: "mount -o remount,exec /dev/shm"}
}

// Limits of clocks: tokens are accepted a minute off, so half of it blocks; etcd
// complains from a second on.
const (
	skewTold    = time.Second
	skewBlocked = 30 * time.Second
)

// clocks compares all clocks that were read, the workstation's among them, with
// the middle one: whoever is off alone is named.
func clocks(hosts []Host, looks []looked) finding.Report {
	type reading struct {
		host string
		clock
	}
	all := []reading{{}} // the workstation is 0 ahead of itself
	for i, l := range looks {
		if l.seen != nil {
			all = append(all, reading{hosts[i].Wish.Name, l.clock})
		}
	}
	sorted := slices.SortedFunc(slices.Values(all), func(a, b reading) int { return cmp.Compare(a.ahead, b.ahead) })
	middle := sorted[len(sorted)/2]
	if len(all) == 2 { // nobody knows which of two is wrong: most likely the host
		middle = all[0]
	}
	var r finding.Report
	for _, c := range all {
		off := (c.ahead - middle.ahead).Abs() - c.error - middle.error
		if off < skewTold {
			continue
		}
		direction := "ahead"
		if c.ahead < middle.ahead {
			direction = "behind"
		}
		f := finding.Finding{Code: finding.ClockSkew, Severity: finding.Warning, Host: c.host, Object: middle.host, Remedy: "timedatectl set-ntp true",
			Message: fmt.Sprintf("its clock is %v %s of %s's", off.Round(time.Second/10), direction, cmp.Or(middle.host, "this workstation"))}
		if c.host == "" {
			f.Message = "this workstation: " + f.Message
		}
		if off >= skewBlocked {
			f.Severity = finding.Error
		}
		r = append(r, f)
	}
	return r
}
