package lab

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestTrouble has all kinds at once, but a full disk, on the last host of two,
// and looks at both before and after a power cut.
func TestTrouble(t *testing.T) {
	const slow, ahead, port = 100 * time.Millisecond, 10 * time.Minute, 8472
	name := testName("trouble")
	l := newTestLab(t, Options{Name: name, Hosts: 2, SameMachineID: true,
		Trouble: Trouble{ClockAhead: ahead, Swap: true, SlowDisk: slow, DropUDP: port}})
	well, ill := name+"-1", name+"-2"
	// What fsync takes, by the host's own clock of time since boot.
	fsync := func(host string) time.Duration {
		t.Helper()
		out := run(t, l, host, "sh", "-c",
			"echo >/var/lib/etcd/probe; read before _ </proc/uptime; for i in 1 2 3 4 5; do sync -d /var/lib/etcd/probe; done; "+
				"read after _ </proc/uptime; echo $before $after")
		f := strings.Fields(out)
		before, err1 := strconv.ParseFloat(f[0], 64)
		after, err2 := strconv.ParseFloat(f[1], 64)
		if err1 != nil || err2 != nil {
			t.Fatal(out)
		}
		return time.Duration((after - before) / 5 * float64(time.Second))
	}
	// Nobody listens: a host says so to whoever's datagram came in.
	letsIn := func(from string, to Host, port int) bool {
		t.Helper()
		_, status := try(t, l, from, "bash", "-c", fmt.Sprintf("exec 3<>/dev/udp/%s/%d && echo >&3 && read -t 1 -r <&3", to.Address, port))
		const timeout = 128 // and above
		return status < timeout
	}
	look := func(t *testing.T) {
		t.Helper()
		offset := func(host string) time.Duration {
			t.Helper()
			out, err := login(t, l, "root", host, "date", "+%s")
			seconds, err2 := strconv.ParseInt(out, 10, 64)
			if err != nil || err2 != nil {
				t.Fatalf("%s: date: %q, %v", host, out, err)
			}
			return time.Until(time.Unix(seconds, 0))
		}
		const late = 30 * time.Second // how long the login may take
		if got := offset(well); got < -late || got > time.Second {
			t.Errorf("%s: its clock is off by %s", well, got)
		}
		if got := offset(ill); got < ahead-late || got > ahead+time.Second {
			t.Errorf("%s: its clock is ahead by %s", ill, got)
		}
		if got := run(t, l, well, "cat", "/proc/swaps"); strings.Contains(got, "lab-swap") {
			t.Errorf("%s has swap: %s", well, got)
		}
		if got := run(t, l, ill, "swapon", "--show", "--noheadings"); !strings.Contains(got, "lab-swap") {
			t.Errorf("%s has no swap: %q", ill, got)
		}
		if got := fsync(well); got > slow {
			t.Errorf("%s: fsync takes %s", well, got)
		}
		if got := fsync(ill); got < slow || got > 3*slow {
			t.Errorf("%s: fsync takes %s", ill, got)
		}
		if got := run(t, l, ill, "stat", "-f", "-c", "%T", "/var/lib/etcd"); got != "fuseblk" {
			t.Errorf("%s: its disk is %s", ill, got)
		}
		hosts := l.Hosts()
		if letsIn(well, hosts[1], port) || !letsIn(well, hosts[1], port+1) || !letsIn(ill, hosts[0], port) {
			t.Errorf("UDP %d, another port, and from there: %v, %v, %v", port, letsIn(well, hosts[1], port), letsIn(well, hosts[1], port+1), letsIn(ill, hosts[0], port))
		}
	}
	look(t)
	if a, b := run(t, l, well, "cat", "/etc/machine-id"), run(t, l, ill, "cat", "/etc/machine-id"); a != b {
		t.Errorf("machine ids are %s and %s", a, b)
	}
	// The disk is a whole one.
	run(t, l, ill, "sh", "-c", `cd /var/lib/etcd && mkdir -m 700 dir && echo text >dir/file && mv dir/file dir/moved && ln -s moved dir/link &&
		chown admin dir/moved && chmod 640 dir/moved && flock dir/moved truncate -s 1M dir/moved && fallocate -l 2M dir/space && sync dir/moved`)
	if err := l.Kill(t.Context(), ill); err != nil {
		t.Fatal(err)
	}
	for _, trace := range traces(t, name) {
		if strings.Contains(trace, ill) {
			t.Errorf("killed, it left %s", trace)
		}
	}
	if err := l.Start(t.Context(), ill); err != nil {
		t.Fatal(err)
	}
	look(t)
	if got := run(t, l, ill, "stat", "-c", "%a %U %s", "/var/lib/etcd/dir", "/var/lib/etcd/dir/moved", "/var/lib/etcd/dir/space"); !strings.HasSuffix(got,
		"640 admin 1048576\n644 root 2097152") || !strings.HasPrefix(got, "700 root") {
		t.Errorf("files after a power cut: %s", got)
	}
}

func TestFullDisk(t *testing.T) {
	name := testName("full")
	l := newTestLab(t, Options{Name: name, Hosts: 1, Trouble: Trouble{FullDisk: true}})
	for _, folder := range dataFolders() {
		if out, status := try(t, l, name+"-1", "dd", "if=/dev/zero", "of="+folder+"/probe", "bs=1M", "count=17"); status == 0 || !strings.Contains(out, "No space left") {
			t.Errorf("%s: %s", folder, out)
		}
	}
}

func TestEtcdDisk(t *testing.T) {
	name := testName("etcddisk")
	l := newTestLab(t, Options{Name: name, Hosts: 1, Trouble: Trouble{EtcdDisk: 32}})
	fill := []string{"dd", "if=/dev/zero", "of=" + etcdFolder + "/probe", "bs=1M", "count=33"}
	if out, status := try(t, l, name+"-1", fill...); status == 0 || !strings.Contains(out, "No space left") {
		t.Errorf("33 MiB on 32: %s", out)
	}
	run(t, l, name+"-1", "dd", "if=/dev/zero", "of=/var/lib/kubelet/probe", "bs=1M", "count=33") // another's room
}

// TestBastion has hosts behind the first one; and users whose sudo asks, as every host has.
func TestBastion(t *testing.T) {
	name := testName("bastion")
	l := newTestLab(t, Options{Name: name, Hosts: 3, Bastion: true})
	for _, h := range l.Hosts() {
		if got, err := login(t, l, "root", h.Name, "hostname"); err != nil || got != h.Name {
			t.Errorf("%s: %s, %v", h.Name, got, err)
		}
		past := exec.CommandContext(t.Context(), "ssh", "-F", l.SSHConfig(), "-o", "BatchMode=yes", "-o", "ProxyJump=none", "-o", "ConnectTimeout=2", h.Name, "true")
		out, err := past.CombinedOutput()
		if reached := err == nil; reached != (h.Name == name+"-1") {
			t.Errorf("%s without the bastion: %v: %s", h.Name, err, out)
		}
		for _, other := range l.Hosts() {
			if !hears(t, l, h.Name, other.Address.String()) {
				t.Errorf("%s does not hear %s", h.Name, other.Name)
			}
		}
	}
	// A sudo that asks, and what it is answered with.
	sudo := func(user, password string) error {
		cmd := exec.CommandContext(t.Context(), "ssh", "-F", l.SSHConfig(), "-o", "BatchMode=yes", "-l", user, name+"-1", "sudo", "-S", "true")
		cmd.Stdin = strings.NewReader(password + "\n")
		return cmd.Run()
	}
	if err := sudo(opsUser, SudoPassword); err != nil {
		t.Errorf("%s with the right password: %v", opsUser, err)
	}
	for user, password := range map[string]string{opsUser: "open barley", noSudoUser: SudoPassword} {
		if err := sudo(user, password); err == nil {
			t.Errorf("%s with %q is root", user, password)
		}
	}
}

func TestTroubleFiles(t *testing.T) {
	s := exampleState()
	s.Options.Trouble = Trouble{ClockAhead: 90 * time.Second, DropUDP: 8472}
	for i := range 2 {
		if files := s.trouble(&s.Hosts[i]).files(); files != nil {
			t.Errorf("%s is well and has %v", s.Hosts[i].Name, files)
		}
	}
	want := map[string]string{
		"/etc/ssh/sshd_config.d/clock.conf": "Match User root\nSetEnv LD_PRELOAD=/usr/$LIB/faketime/libfaketime.so.1 FAKETIME=+90 FAKETIME_DONT_FAKE_MONOTONIC=1\n",
		"/etc/nftables.conf": "table inet firewall {\n\tchain input {\n\t\ttype filter hook input priority filter; policy accept;\n" +
			"\t\tudp dport 8472 drop\n\t}\n}\n",
		"/etc/systemd/system/sysinit.target.d/firewall.conf": "[Unit]\nWants=nftables.service\n",
	}
	got := map[string]string{}
	for _, f := range s.trouble(&s.Hosts[2]).files() {
		got[f.Path] = string(f.Content)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	s.Options.Bastion = true
	if rules := switchRules(s); !strings.Contains(rules, "iifname \"uplink\" oifname != \"host1\" drop\n\t\tiifname != \"host1\" oifname \"uplink\" drop\n") {
		t.Errorf("rules of a bastion:\n%s", rules)
	}
}
