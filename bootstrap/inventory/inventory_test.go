package inventory

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/host/localhost"
)

func TestDiff(t *testing.T) {
	before := Inventory{Sections: map[Section]map[string]string{Files: {"/a": "x", "/b": "x"}, Modules: {"m": "loaded"}}}
	after := Inventory{Sections: map[Section]map[string]string{Files: {"/a": "y", "/c": "x"}, Mounts: {"/": "ext4"}, Modules: {"m": "loaded"}}}
	want := []Difference{
		{Files, "/a", "x", "y"}, {Files, "/b", "x", ""}, {Files, "/c", "", "x"}, {Mounts, "/", "", "ext4"},
	}
	if diff := cmp.Diff(want, Diff(before, after)); diff != "" {
		t.Error(diff)
	}
	if got := want[1].String(); got != "files /b: x -> absent" {
		t.Error(got)
	}
	if before.Digest() == after.Digest() {
		t.Error("different inventories have the same digest")
	}
	if Diff(after, after) != nil || len(Diff(Inventory{}, after)) != 4 {
		t.Error("an inventory differs from itself, or not from an empty one")
	}
	content, err := before.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Decode(content)
	if err != nil || again.Digest() != before.Digest() || Diff(before, *again) != nil {
		t.Errorf("%+v, %v", again, err)
	}
	if _, err := Decode([]byte("x")); err == nil {
		t.Error("no error for what is no inventory")
	}
}

// What each kind of change to a file looks like, names with a line break included.
func TestFiles(t *testing.T) {
	deep, shallow := t.TempDir(), t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := scope{deep: []string{deep, "/absent"}, shallow: []string{shallow}, left: []string{filepath.Join(deep, "left")}}
	odd := filepath.Join(deep, "a\nb\tc")
	write(odd, "1")
	write(filepath.Join(deep, "left"), "1")
	write(filepath.Join(shallow, "f"), "1")
	if err := os.Symlink("x y", filepath.Join(deep, "link")); err != nil {
		t.Fatal(err)
	}
	look := func() map[string]string {
		t.Helper()
		found, err := s.files(t.Context(), localhost.New("here"))
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	if err := os.MkdirAll(filepath.Join(shallow, "1/2/3"), 0o700); err != nil {
		t.Fatal(err)
	}
	before := look()
	_, second := before[filepath.Join(shallow, "1/2")]
	_, third := before[filepath.Join(shallow, "1/2/3")]
	if !second || third {
		t.Errorf("depth: second %v, third %v", second, third)
	}
	if said := before[odd]; !strings.HasPrefix(said, "f 600 ") || !strings.Contains(said, " size 1 sha256 6b86b273ff34") {
		t.Errorf("%q", said)
	}
	if said := before[filepath.Join(deep, "link")]; !strings.HasSuffix(said, " -> x y") {
		t.Errorf("%q", said)
	}
	if said := before[filepath.Join(shallow, "f")]; !strings.HasPrefix(said, "f 600 ") || strings.Contains(said, "size") {
		t.Errorf("%q", said)
	}
	write(filepath.Join(deep, "left"), "2")
	write(filepath.Join(shallow, "f"), "22")
	if diff := cmp.Diff(before, look()); diff != "" {
		t.Errorf("of no interest:\n%s", diff)
	}
	write(odd, "2")
	if after := look(); before[odd] == after[odd] {
		t.Error("another content is not seen")
	}
}

// A host that has neither ip nor nft nor systemctl is one with less on it.
func TestSections(t *testing.T) {
	h := hosttest.NewSim(t, "w1")
	h.Put("/proc/self/mountinfo", "22 1 254:0 / / rw - ext4 /dev/vda rw\n30 22 0:5 / /run/user/0 rw - tmpfs tmpfs rw\n", 0o444)
	h.Put("/proc/modules", "overlay 100 0 - Live 0x0\n", 0o444)
	h.Put("/proc/sys/net/ipv4/ip_forward", "0\n", 0o644)
	script := func(stdout string, status int, words ...string) {
		h.Script(hosttest.Answer{Argv: words, Stdout: stdout, Status: status})
	}
	script("ssh.service enabled enabled\nsession.slice static -\n", 0, "systemctl", "list-unit-files", "--no-pager", "--no-legend", "--plain")
	script("ssh.service loaded active running OpenSSH\nsession-1.scope loaded active running x\n", 0,
		"systemctl", "list-units", "--no-pager", "--no-legend", "--plain", "--full", "--state=active,failed")
	script(`[{"ifname":"eth0","mtu":1500,"addr_info":[{"local":"198.18.0.2","prefixlen":24},{"local":"198.18.0.9","prefixlen":24,"dynamic":true}]}]`, 0,
		"ip", "-json", "address", "show")
	script("198.18.0.0/24 dev eth0 \n", 0, "ip", "-4", "route", "show")
	script("", 1, "ip", "-6", "route", "show")
	script("0:\tfrom all lookup local\n", 0, "ip", "-4", "rule", "show")
	script("", 2, "ip", "-6", "rule", "show")
	script("table ip t {\n\tchain c {\n\t\ttype filter hook input priority 0; policy accept;\n\t\taccept\n\t}\n}\n", 0, "nft", "--stateless", "list", "ruleset")
	h.PutDir("/sys/fs/cgroup", 0o755)
	script("/sys/fs/cgroup/cpuset/kubepods.slice\x00", 0, "find", "/sys/fs/cgroup", "-mindepth", "1", "-maxdepth", "2", "-type", "d", "-name", "kubepods*", "-printf", `%p\0`)
	s := scope{settings: []string{"net/ipv4/ip_forward", "net/absent"}}
	got, err := s.take(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	want := map[Section]map[string]string{
		Files:      {},
		Units:      {"ssh.service": "enabled active"},
		Mounts:     {"/": "ext4"},
		Interfaces: {"eth0": "mtu 1500 198.18.0.2/24"},
		Routes:     {"-4 route 198.18.0.0/24 dev eth0": present, "-4 rule 0: from all lookup local": present},
		Firewall:   {"table ip t": present, "table ip t chain c": "type filter hook input priority 0; policy accept;; accept"},
		Settings:   {"net/ipv4/ip_forward": "0"},
		Modules:    {"overlay": "loaded"},
		Groups:     {"/sys/fs/cgroup/cpuset/kubepods.slice": present},
	}
	if diff := cmp.Diff(want, got.Sections); diff != "" {
		t.Error(diff)
	}
	script("", 127, "nft", "--stateless", "list", "ruleset")
	if got, err = s.take(t.Context(), h); err != nil || len(got.Sections[Firewall]) != 0 {
		t.Errorf("without nft: %v, %v", got, err)
	}
}
