package drill

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
)

// simVictim is a simulated host.
type simVictim struct {
	*hosttest.Sim
	forgotten *bool
}

func newSimVictim(t *testing.T) simVictim {
	return simVictim{hosttest.NewSim(t, "cp1"), new(bool)}
}

func (v simVictim) Host(context.Context) (host.Host, error)       { return v.Sim, nil }
func (v simVictim) Forget()                                       { *v.forgotten = true }
func (v simVictim) Mend(context.Context) ([]string, error)        { return nil, nil }
func (v simVictim) scripted(answers ...hosttest.Answer) simVictim { v.Script(answers...); return v }

func testPartition() Partition {
	return Partition{
		Others: []netip.Prefix{netip.MustParsePrefix("192.0.2.2/32"), netip.MustParsePrefix("10.244.1.0/24")},
		Admin:  netip.MustParseAddr("192.0.2.2"), Port: 22, For: 30 * time.Second,
	}
}

func TestPartition(t *testing.T) {
	want := []string{
		"systemd-run", "--quiet", "--collect", "--unit=kubewright-drill.service", "--description=kubewright drill: a fault that ends by itself",
		`--property=ExecStartPre=/usr/bin/env "nft" "add table inet kubewright-drill; ` +
			"add chain inet kubewright-drill in { type filter hook prerouting priority -310; }; " +
			"add chain inet kubewright-drill out { type filter hook postrouting priority -310; }; " +
			"add rule inet kubewright-drill in ip saddr 192.0.2.2 tcp dport 22 accept; " +
			"add rule inet kubewright-drill out ip daddr 192.0.2.2 tcp sport 22 accept; " +
			"add rule inet kubewright-drill in ip saddr { 192.0.2.2/32, 10.244.1.0/24 } drop; " +
			`add rule inet kubewright-drill out ip daddr { 192.0.2.2/32, 10.244.1.0/24 } drop"`,
		`--property=ExecStopPost=-/usr/bin/env "nft" "delete table inet kubewright-drill"`,
		"--", "sleep", "40",
	}
	if diff := cmp.Diff(want, testPartition().spell().argv()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	v := newSimVictim(t).scripted(hosttest.Answer{Argv: want})
	if err := testPartition().Begin(t.Context(), v); err != nil {
		t.Error(err)
	}
	if err := testPartition().End(t.Context(), v); err != nil {
		t.Errorf("the end of one that has ended by itself: %v", err)
	}
}

func TestPartitionOfUnknownAdmin(t *testing.T) {
	p := testPartition()
	p.Admin = netip.Addr{}
	if line := strings.Join(p.spell().argv(), " "); strings.Contains(line, "accept") {
		t.Error(line)
	}
}

const (
	ownDisk = "22 1 8:1 / / rw - ext4 /dev/sda rw\n30 22 8:2 / " + etcd.DataDir + " rw - ext4 /dev/sdb rw\n"
)

// free is the answer of a host that has so many blocks of 4096 bytes free.
func free(blocks string) hosttest.Answer {
	return hosttest.Answer{Argv: []string{"stat", "--file-system", "--format=%S %f", etcd.DataDir}, Stdout: "4096 " + blocks + "\n"}
}

func TestFill(t *testing.T) {
	v := newSimVictim(t).scripted(free("102400"))
	v.Put(host.MountTable, ownDisk, 0o444)
	f := Fill{Most: 1 << 30, For: 20 * time.Second}
	v.Script(
		hosttest.Answer{Argv: []string{
			"systemd-run", "--quiet", "--collect", "--unit=kubewright-drill.service", "--description=kubewright drill: a fault that ends by itself",
			`--property=ExecStartPre=/usr/bin/env "fallocate" "--length" "393216000" "/var/lib/etcd/kubewright-drill.fill"`,
			`--property=ExecStopPost=-/usr/bin/env "rm" "-f" "/var/lib/etcd/kubewright-drill.fill"`,
			"--property=StandardInput=file:/var/lib/etcd/kubewright-drill.fill",
			"--", "sleep", "30",
		}},
		hosttest.Answer{
			Argv:   []string{"dd", "if=/dev/zero", "of=/var/lib/etcd/kubewright-drill.fill", "oflag=append", "conv=notrunc", "bs=4096", "count=16384"},
			Do:     func([]byte) ([]byte, error) { v.Script(free("0")); return nil, nil },
			Status: 1, Stderr: "dd: error writing: No space left on device",
		})
	if err := f.Begin(t.Context(), v); err != nil {
		t.Error(err)
	}
	if left := v.List(etcd.DataDir); len(left) > 0 {
		t.Errorf("the file has its name still: %q", left)
	}
}

func TestFillRefuses(t *testing.T) {
	for _, c := range []struct {
		name, mounts, blocks, says string
	}{
		{"no file system of its own", "22 1 8:1 / / rw - ext4 /dev/sda rw\n", "10", "is not a file system of its own"},
		{"a folder of another", strings.Replace(ownDisk, "8:2 /", "8:2 /data", 1), "10", "mounted elsewhere too"},
		{"the one on top counts", ownDisk + "31 30 8:3 /data " + etcd.DataDir + " rw - ext4 /dev/sdc rw\n", "10", "mounted elsewhere too"},
		{"mounted twice", ownDisk + "31 22 8:2 / /srv rw - ext4 /dev/sdb rw\n", "10", "mounted elsewhere too"},
		{"a file system of unknown room", strings.Replace(ownDisk, "ext4 /dev/sdb", "fuse.disk disk", 1), "10", "is fuse.disk"},
		{"too small", ownDisk, "65535", "less than etcd may need"},
		{"too large", ownDisk, "262145", "more than may be filled"},
	} {
		v := newSimVictim(t).scripted(free(c.blocks))
		v.Put(host.MountTable, c.mounts, 0o444)
		err := Fill{Most: 1 << 30, For: time.Second}.Begin(t.Context(), v)
		if fault.CodeOf(err) != fault.HostUnsuitable || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.name, err)
		}
		if ops := v.Operations(); len(ops) != 0 {
			t.Errorf("%s: it changed the host: %q", c.name, ops)
		}
	}
}

func TestKill(t *testing.T) {
	v := newSimVictim(t).scripted(hosttest.Answer{Argv: []string{"systemctl", "kill", "--signal=SIGKILL", "etcd.service", "kube-apiserver.service"}})
	if err := (Kill{[]string{"etcd.service", "kube-apiserver.service"}}).Begin(t.Context(), v); err != nil {
		t.Error(err)
	}
}

func TestPowerCut(t *testing.T) {
	reset := hosttest.Answer{Argv: []string{"reboot", "--force", "--force", "-n"}}
	t.Run("a host that resets itself", func(t *testing.T) {
		v := newSimVictim(t)
		reset := reset
		reset.Do = func([]byte) ([]byte, error) { v.Kill(); return nil, nil }
		v.Script(reset)
		if err := (PowerCut{}).Begin(t.Context(), v); err != nil {
			t.Error(err)
		}
		if !*v.forgotten {
			t.Error("the connection to it is kept")
		}
	})
	t.Run("a host that says no", func(t *testing.T) {
		reset := reset
		reset.Status = 1
		if err := (PowerCut{}).Begin(t.Context(), newSimVictim(t).scripted(reset)); err == nil {
			t.Error("no error")
		}
	})
	t.Run("by commands", func(t *testing.T) {
		v := newSimVictim(t)
		c := &Cluster{Hosts: NewHosts([]Connection{{Host: v.Sim}}, nil)}
		dir := t.TempDir()
		made, err := c.fault(t.Context(), Node{Host: "cp1"}, Options{
			Kind: PoweredOff, Off: []string{"touch", filepath.Join(dir, "off-{host}")}, On: []string{"touch", filepath.Join(dir, "on-{host}")},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := made.Begin(t.Context(), v); err != nil || !*v.forgotten || !made.Nature().Lasts {
			t.Errorf("begin: %v, forgotten %t, lasts %t", err, *v.forgotten, made.Nature().Lasts)
		}
		if err := made.End(t.Context(), v); err != nil {
			t.Error(err)
		}
		names, err := filepath.Glob(filepath.Join(dir, "*"))
		if diff := cmp.Diff([]string{filepath.Join(dir, "off-cp1"), filepath.Join(dir, "on-cp1")}, names); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
	})
	t.Run("a container, which is turned on by a command", func(t *testing.T) {
		v := newSimVictim(t).scripted(hosttest.Answer{Argv: []string{"systemd-detect-virt", "--container"}, Stdout: "lxc\n"})
		if err := (PowerCut{}).fit(t.Context(), v); fault.CodeOf(err) != fault.HostUnsuitable || !strings.Contains(err.Error(), "(lxc)") {
			t.Errorf("without a command: %v", err)
		}
		if err := (PowerCut{On: []string{"true"}}).fit(t.Context(), v); err != nil {
			t.Error(err)
		}
	})
	t.Run("a host of the lab, which boots again", func(t *testing.T) {
		v := newSimVictim(t).scripted(hosttest.Answer{Argv: []string{"systemd-detect-virt", "--container"}, Stdout: "container-other\n"})
		v.Put("/run/systemd/container", "kubewright-lab\n", 0o644)
		if err := (PowerCut{}).fit(t.Context(), v); err != nil {
			t.Error(err)
		}
	})
	t.Run("a machine", func(t *testing.T) {
		v := newSimVictim(t).scripted(hosttest.Answer{Argv: []string{"systemd-detect-virt", "--container"}, Stdout: "none\n", Status: 1})
		if err := (PowerCut{}).fit(t.Context(), v); err != nil {
			t.Error(err)
		}
	})
	t.Run("a command that fails", func(t *testing.T) {
		if err := (PowerCut{Off: []string{"false"}, On: []string{"true"}}).Begin(t.Context(), newSimVictim(t)); err == nil {
			t.Error("no error")
		}
	})
}

func TestSpare(t *testing.T) {
	members := func(healthy, sick, learners int) (all etcd.Membership) {
		for i := range healthy + sick + learners {
			all = append(all, etcd.Member{Name: fmt.Sprintf("cp%d", i+1), Healthy: i < healthy, Learner: i >= healthy+sick})
		}
		return all
	}
	for _, c := range []struct {
		healthy, sick, learners int
		says                    string
	}{
		{1, 0, 0, "etcd has 1 voting member, a quorum is 1, and 1 is healthy (cp1): none can be spared for a drill, which needs 3"},
		{2, 0, 2, "etcd has 2 voting members, a quorum is 2, and 2 are healthy (cp1, cp2): none can be spared for a drill, which needs 3"},
		{2, 1, 0, "etcd has 3 voting members, a quorum is 2, and 2 are healthy (cp1, cp2): none can be spared for a drill, which needs 3"},
		{3, 0, 0, ""},
		{4, 1, 1, ""},
	} {
		err := spare(members(c.healthy, c.sick, c.learners))
		switch {
		case c.says == "" && err != nil:
			t.Errorf("%+v: %v", c, err)
		case c.says != "" && (fault.CodeOf(err) != fault.Quorum || err.Error() != c.says):
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestClientsHost(t *testing.T) {
	c := &Cluster{Nodes: []Node{{Host: "cp1", ControlPlane: true}, {Host: "cp2", ControlPlane: true}, {Host: "w1"}}}
	for _, x := range []struct {
		victim, via, want string
	}{
		{"cp1", "", "w1"}, {"cp1", "cp2", "cp2"}, {"cp1", "cp1", ""}, {"cp1", "other", ""},
	} {
		victim, err := c.find(x.victim)
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.clientsHost(victim, x.via)
		if got.Host != x.want || (err != nil) != (x.want == "") {
			t.Errorf("victim %s, via %q: %s, %v", x.victim, x.via, got.Host, err)
		}
	}
	if _, err := c.victim(nil, "w1"); fault.CodeOf(err) != fault.Usage {
		t.Errorf("a worker as the victim: %v", err)
	}
}
