package overlay

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

func TestConf(t *testing.T) {
	got, err := conf(netip.MustParsePrefix("10.244.1.0/24"), 1450)
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/10-kubewright.conflist"
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("-golden +got (go test -update writes it):\n%s", diff)
	}
	// As the runtime reads it.
	list, err := libcni.ConfListFromBytes(got)
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Plugins) != 2 || list.Plugins[0].Network.IPAM.Type != "host-local" || !list.Plugins[1].Network.Capabilities["portMappings"] {
		t.Errorf("the runtime reads %+v", list)
	}
}

func TestWriteConf(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "10-kubewright.conflist")
	pods := netip.MustParsePrefix("10.244.1.0/24")
	write := func(mtu int) os.FileInfo {
		t.Helper()
		if err := writeConf(path, pods, mtu); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	first := write(1450)
	if first.Mode() != 0o644 {
		t.Errorf("mode %v", first.Mode())
	}
	if !os.SameFile(first, write(1450)) {
		t.Error("a file that was right was replaced")
	}
	if os.SameFile(first, write(1500)) {
		t.Error("a file was written in place")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if err := writeConf(filepath.Join(dir, "missing", "x.conflist"), pods, 1450); err == nil {
		t.Error("no error without the folder")
	}
}
