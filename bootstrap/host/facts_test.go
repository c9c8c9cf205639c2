package host

import (
	"io/fs"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestGoarch(t *testing.T) {
	for machine, want := range map[string]string{
		"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386",
		"riscv64": "riscv64", "s390x": "s390x", "ppc64le": "ppc64le", "loongarch64": "loong64",
	} {
		if got := goarch(machine); got != want {
			t.Errorf("goarch(%q) = %q, want %q", machine, got, want)
		}
	}
}

func TestOSField(t *testing.T) {
	for content, want := range map[string]string{
		"NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n": "Debian GNU/Linux 12 (bookworm)",
		"PRETTY_NAME='Some OS'\n":         "Some OS",
		"PRETTY_NAME=Plain\n":             "Plain",
		`PRETTY_NAME="The \"Best\" \$OS"`: `The "Best" $OS`,
		"NAME=x\n":                        "",
		"PRETTY_NAME=\"\n":                `"`,
		"":                                "",
	} {
		if got := osField(content, "PRETTY_NAME"); got != want {
			t.Errorf("osField(%q) = %q, want %q", content, got, want)
		}
	}
	if got := osField("VERSION_ID=\"12\"\nID=debian\n", "ID"); got != "debian" {
		t.Errorf("ID is %q", got)
	}
}

func TestNameservers(t *testing.T) {
	content := "# nameserver 1.1.1.1\nsearch a b\nnameserver 10.0.0.1\n\tnameserver fe80::1%eth0\nnameserver\noptions x\n"
	if diff := cmp.Diff([]string{"10.0.0.1", "fe80::1%eth0"}, nameservers(content)); diff != "" {
		t.Error(diff)
	}
	if got := nameservers(""); got != nil {
		t.Errorf("of an empty file: %v", got)
	}
}

func TestSwapOn(t *testing.T) {
	header := "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
	for content, want := range map[string]bool{
		"":     false,
		header: false,
		header + "/dev/sda2   partition 999420 0 -2\n": true,
	} {
		if got := swapOn(content); got != want {
			t.Errorf("swapOn(%q) = %v", content, got)
		}
	}
}

func TestMemTotal(t *testing.T) {
	got, err := memTotal("MemTotal:       16384256 kB\nMemFree: 1 kB\n")
	if err != nil || got != 16384256*1024 {
		t.Errorf("%d, %v", got, err)
	}
	for _, bad := range []string{"", "MemTotal: many kB\n"} {
		if _, err := memTotal(bad); err == nil {
			t.Errorf("memTotal(%q) succeeded", bad)
		}
	}
}

func TestBoundingCaps(t *testing.T) {
	for content, want := range map[string]bool{
		"Name:\tsystemd\nCapEff:\t000001ffffffffff\nCapBnd:\t000001ffffffffff\n": true,
		"CapEff:\t000001ffffffffff\nCapBnd:\t000001fffeffffff\n":                 false,
	} {
		caps, err := boundingCaps(content)
		if err != nil || (caps&(1<<capSysResource) != 0) != want {
			t.Errorf("%q: %x, %v", content, caps, err)
		}
	}
	for _, bad := range []string{"", "CapBnd:\tnone\n"} {
		if _, err := boundingCaps(bad); err == nil {
			t.Errorf("boundingCaps(%q) succeeded", bad)
		}
	}
}

func TestCountCPUs(t *testing.T) {
	for content, want := range map[string]int{"0\n": 1, "0-1\n": 2, "0-3,8,10-11\n": 7} {
		if got, err := countCPUs(content); err != nil || got != want {
			t.Errorf("countCPUs(%q) = %d, %v; want %d", content, got, err, want)
		}
	}
	for _, bad := range []string{"", "0-", "a", "0,,1"} {
		if _, err := countCPUs(bad); err == nil {
			t.Errorf("countCPUs(%q) succeeded", bad)
		}
	}
}

func TestRoutes(t *testing.T) {
	out := `[{"dst":"default","gateway":"192.0.2.1","dev":"eth0","flags":[]},{"dst":"192.0.2.0/24","dev":"eth0","prefsrc":"192.0.2.2"},
{"dst":"10.1.2.3","gateway":"192.0.2.9","dev":"eth0"},{"type":"unreachable","dst":"10.0.0.0/8"}]`
	got, err := routes([]byte(out))
	if err != nil {
		t.Fatal(err)
	}
	want := []Route{
		{To: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("192.0.2.1"), Dev: "eth0"},
		{To: netip.MustParsePrefix("192.0.2.0/24"), Dev: "eth0"},
		{To: netip.MustParsePrefix("10.1.2.3/32"), Gateway: netip.MustParseAddr("192.0.2.9"), Dev: "eth0"},
		{To: netip.MustParsePrefix("10.0.0.0/8")},
	}
	if !slices.Equal(got, want) {
		t.Errorf("\n got %v\nwant %v", got, want)
	}
	if dev := (Facts{Routes: got}).DefaultInterface(); dev != "eth0" {
		t.Errorf("the default route is by %q", dev)
	}
	if dev := (Facts{Routes: got[1:]}).DefaultInterface(); dev != "" {
		t.Errorf("without a default route: by %q", dev)
	}
	for _, bad := range []string{"", "{}", `[{"dst":"ten"}]`, `[{"dst":"10.0.0.0/99"}]`, `[{"dst":"default","gateway":"x"}]`} {
		if _, err := routes([]byte(bad)); err == nil {
			t.Errorf("routes(%q) succeeded", bad)
		}
	}
}

func TestInterfaces(t *testing.T) {
	out := `[{"ifindex":1,"ifname":"lo","mtu":65536,"addr_info":[{"family":"inet","local":"127.0.0.1","prefixlen":8}]},
{"ifname":"eth0","mtu":1500,"address":"02:6b:00:00:00:01","addr_info":[{"family":"inet","local":"10.0.2.15","prefixlen":24},{"family":"inet6","local":"fe80::1","prefixlen":64},{}]},
{"ifname":"eth1","mtu":9000,"addr_info":[]},{}]`
	got, err := interfaces([]byte(out))
	if err != nil {
		t.Fatal(err)
	}
	want := []Interface{
		{Name: "lo", MTU: 65536, Addrs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8")}},
		{Name: "eth0", MTU: 1500, MAC: "02:6b:00:00:00:01", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.2.15/24"), netip.MustParsePrefix("fe80::1/64")}},
		{Name: "eth1", MTU: 9000},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"", "{}", `[{"ifname":"x","addr_info":[{"local":"ten"}]}]`} {
		if _, err := interfaces([]byte(bad)); err == nil {
			t.Errorf("interfaces(%q) succeeded", bad)
		}
	}
}

func TestSee(t *testing.T) {
	exists := func(mode fs.FileMode, paths ...string) []File {
		var files []File
		for _, p := range paths {
			files = append(files, File{Path: p, Exists: true, Mode: mode})
		}
		return files
	}
	for _, c := range []struct {
		name       string
		found      []File
		resolvConf string
		fixed, v2  bool
		nft        string
	}{
		{name: "bare"},
		{name: "container without conntrack", found: exists(0o444, containerMark), fixed: true},
		{name: "read-only limit", found: exists(0o444, conntrackMax), fixed: true},
		{name: "writable limit in a container", found: exists(0o644, conntrackMax, containerMark)},
		{name: "plain resolv.conf, cgroup v2", found: exists(0o644, etcResolvConf, cgroupV2Mark), resolvConf: etcResolvConf, v2: true},
		{name: "systemd-resolved", found: exists(0o644, etcResolvConf, resolvedConf), resolvConf: resolvedConf},
		{name: "nft twice", found: exists(0o755, "/sbin/nft", "/usr/sbin/nft"), nft: "/usr/sbin/nft"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var f Facts
			f.see(c.found)
			if f.ResolvConf() != c.resolvConf || f.ConntrackMaxFixed != c.fixed || f.CgroupV2 != c.v2 || f.Tool("nft") != c.nft {
				t.Errorf("%+v", f)
			}
		})
	}
}
