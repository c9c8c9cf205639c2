package e2e

import (
	"testing"
	"time"

	"github.com/kubewright/kubewright/bootstrap/host/sshhost"
	"github.com/kubewright/kubewright/bootstrap/inventory"
	"github.com/kubewright/kubewright/lab"
)

// TestInventory finds a host equal to itself after logins and some time, and
// sees a change of each kind, and none once it is put back.
func TestInventory(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "lockinv", Hosts: 1})
	target := "root@" + e.host(1)
	dial := func() *sshhost.Host {
		h, err := sshhost.Dial(t.Context(), target, sshhost.Config{ConfigFile: e.lab.SSHConfig()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close() }) //nolint:errcheck // nothing is lost
		return h
	}
	h := dial()
	take := func() inventory.Inventory {
		t.Helper()
		i, err := inventory.Take(t.Context(), h, "vm/overcommit_memory")
		if err != nil {
			t.Fatal(err)
		}
		return *i
	}
	start := time.Now()
	before := take()
	took := time.Since(start)
	small, err := before.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for section, objects := range before.Sections {
		t.Logf("%s: %d", section, len(objects))
	}
	t.Logf("taken in %v, %d bytes", took.Round(time.Millisecond), len(small))

	other := dial() // a login
	if _, err := other.Query(t.Context(), "true"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second) // what a host does by itself is what this is about
	if differences := inventory.Diff(before, take()); len(differences) > 0 {
		t.Errorf("nothing was changed: %v", differences)
	}

	for _, c := range []struct {
		section    inventory.Section
		object     string
		make, undo []string
	}{
		{inventory.Files, "/etc/kubewright-test", []string{"cp", "/etc/hostname", "/etc/kubewright-test"}, []string{"rm", "/etc/kubewright-test"}},
		{inventory.Files, "/var/lib/kubewright-test", []string{"mkdir", "/var/lib/kubewright-test"}, []string{"rmdir", "/var/lib/kubewright-test"}},
		{inventory.Units, "nftables.service", []string{"systemctl", "enable", "nftables.service"}, []string{"systemctl", "disable", "nftables.service"}},
		{inventory.Mounts, "/mnt", []string{"mount", "-t", "tmpfs", "test", "/mnt"}, []string{"umount", "/mnt"}},
		{inventory.Interfaces, "kwtest", []string{"ip", "link", "add", "kwtest", "type", "bridge"}, []string{"ip", "link", "del", "kwtest"}},
		{inventory.Interfaces, "lo", []string{"ip", "addr", "add", "198.19.255.1/32", "dev", "lo"}, []string{"ip", "addr", "del", "198.19.255.1/32", "dev", "lo"}},
		{inventory.Routes, "-4 route blackhole 198.19.254.0/24", []string{"ip", "route", "add", "blackhole", "198.19.254.0/24"}, []string{"ip", "route", "del", "198.19.254.0/24"}},
		{inventory.Firewall, "table ip kwtest", []string{"nft", "add", "table", "ip", "kwtest"}, []string{"nft", "delete", "table", "ip", "kwtest"}},
	} {
		e.on(t, e.host(1), c.make...)
		differences := inventory.Diff(before, take())
		seen := false
		for _, d := range differences {
			t.Log(d)
			seen = seen || d.Section == c.section && d.Object == c.object
		}
		if !seen {
			t.Errorf("%v is not seen as a change of %s %s", c.make, c.section, c.object)
		}
		e.on(t, e.host(1), c.undo...)
		if after := take(); after.Digest() != before.Digest() {
			t.Errorf("%v leaves %v", c.undo, inventory.Diff(before, after))
		}
	}
}
