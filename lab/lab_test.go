package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/crypto/ssh"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// createVariable makes the test program create the lab of that name and end,
// so that a test can kill it meanwhile.
const createVariable = "KUBEWRIGHT_LAB_TEST_CREATE"

func TestMain(m *testing.M) {
	MaybeInit()
	if name := os.Getenv(createVariable); name != "" {
		_, err := Create(context.Background(), Options{Name: name, Hosts: 2, NATNIC: true}, func(line string) { fmt.Println(line) })
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// testName is a lab name that no other run of the tests uses.
func testName(suffix string) string { return fmt.Sprintf("t%d-%s", os.Getpid(), suffix) }

// newTestLab makes a lab that ends with the test.
func newTestLab(t *testing.T, o Options) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("labs need root on Linux: run the tests with sudo")
	}
	t.Cleanup(func() { destroyClean(t, o.Name) })
	l, err := Create(t.Context(), o, logTo(t))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// destroyClean destroys a lab and fails if anything of it is left.
func destroyClean(t *testing.T, name string) {
	t.Helper()
	if err := Destroy(context.Background(), name); err != nil {
		t.Error(err)
	}
	for _, trace := range traces(t, name) {
		t.Errorf("lab %s left %s", name, trace)
	}
}

// traces lists whatever this machine has of a lab: its folder and interface,
// cgroups, processes in these or named after it, and mounts from its folder in
// the namespace of any process.
func traces(t *testing.T, name string) []string {
	t.Helper()
	var found []string
	dir := filepath.Join(stateRoot, name)
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		found = append(found, "folder "+dir)
	}
	if _, err := netlink.LinkByName(uplinkName(name)); err == nil {
		found = append(found, "interface "+uplinkName(name))
	}
	trees, err := machineHierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range trees {
		for _, group := range groups(filepath.Join(h.Dir, cgroupFolder, name)) {
			found = append(found, "cgroup "+group)
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		// One that has ended is the machine's init to collect, when it gets to it.
		if pid, err := strconv.Atoi(filepath.Base(p)); err == nil {
			if _, state, err := processStat(pid); err != nil || state == 'Z' || state == 'X' {
				continue
			}
		}
		for file, sign := range map[string]string{
			"cgroup":    "/" + cgroupFolder + "/" + name + "/",
			"cmdline":   "kubewright-lab: switch of " + name + "\x00",
			"mountinfo": dir + "/",
		} {
			if b, err := os.ReadFile(filepath.Join(p, file)); err == nil && bytes.Contains(b, []byte(sign)) {
				found = append(found, fmt.Sprintf("process %s by its %s", p, file))
			}
		}
	}
	return found
}

// run runs a command in a host and returns its standard output without the last newline.
func run(t *testing.T, l *Lab, host string, argv ...string) string {
	t.Helper()
	out, status := try(t, l, host, argv...)
	if status != 0 {
		t.Fatalf("%s: %q: exit status %d: %s", host, argv, status, out)
	}
	return out
}

func try(t *testing.T, l *Lab, host string, argv ...string) (out string, status int) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status, err := l.Exec(t.Context(), host, argv, nil, &stdout, &stderr)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(stdout.String()+stderr.String(), "\n"), status
}

// hears tells whether a ping from a host is answered within a second.
func hears(t *testing.T, l *Lab, host, target string) bool {
	t.Helper()
	_, status := try(t, l, host, "ping", "-n", "-c", "1", "-W", "1", target)
	return status == 0
}

// hearsAgain is hears for hosts that could not until now: the kernel is still
// asking for a neighbour that did not answer, and gives up before it asks anew.
func hearsAgain(t *testing.T, l *Lab, host, target string) bool {
	t.Helper()
	for range 10 { // ten seconds; three are what the kernel takes to give up
		if hears(t, l, host, target) {
			return true
		}
	}
	return false
}

func login(t *testing.T, l *Lab, user, host string, argv ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "ssh", append([]string{"-F", l.SSHConfig(), "-o", "BatchMode=yes", "-l", user, host, "--"}, argv...)...)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func TestLab(t *testing.T) {
	name := testName("lab")
	l := newTestLab(t, Options{Name: name, Hosts: 2})
	one, two := name+"-1", name+"-2"

	t.Run("exec passes streams and status", func(t *testing.T) {
		var stdout, stderr bytes.Buffer
		status, err := l.Exec(t.Context(), one, []string{"sh", "-c", "cat; echo err >&2; exit 7"}, strings.NewReader("in"), &stdout, &stderr)
		if err != nil || status != 7 || stdout.String() != "in" || stderr.String() != "err\n" {
			t.Errorf("status %d, out %q, err %q, %v", status, &stdout, &stderr, err)
		}
		if _, status := try(t, l, one, "sh", "-c", "kill -TERM $$"); status != signalled+15 {
			t.Errorf("a command ended by SIGTERM has status %d", status)
		}
		if _, err := l.Exec(t.Context(), one, []string{"no-such-command"}, nil, nil, nil); err == nil {
			t.Error("a command that does not exist was run")
		}
		if _, err := l.Exec(t.Context(), "other", []string{"true"}, nil, nil, nil); fault.CodeOf(err) != fault.Usage {
			t.Errorf("a host that does not exist: %v", err)
		}
	})
	t.Run("exec is inside", func(t *testing.T) {
		if got := run(t, l, one, "hostname"); got != one {
			t.Errorf("hostname is %s", got)
		}
		for line := range strings.Lines(run(t, l, one, "cat", "/proc/self/cgroup")) {
			path := line[strings.LastIndexByte(line, ':')+1:]
			if path = strings.TrimSpace(path); path != "/" && path != "/"+execFolder {
				t.Errorf("cgroup %s is outside of the host", line)
			}
		}
		if got := run(t, l, one, "readlink", "/proc/1/exe"); !strings.HasSuffix(got, "/systemd") {
			t.Errorf("pid 1 is %s", got)
		}
	})
	t.Run("cancelled exec ends the command", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		in, out, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		ended := make(chan error)
		go func() {
			_, err := l.Exec(ctx, one, []string{"sh", "-c", "echo started; exec sleep 12345"}, nil, out, nil)
			out.Close()
			ended <- err
		}()
		if _, err := in.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if out, status := try(t, l, one, "pgrep", "-f", "^sleep 12345"); status == 0 {
			t.Errorf("it still runs: %s", out)
		}
	})
	t.Run("ssh by name", func(t *testing.T) {
		for user, uid := range map[string]string{"root": "0", adminUser: "0"} {
			if got, err := login(t, l, user, two, "sudo", "-n", "id", "-u"); err != nil || got != uid {
				t.Errorf("%s: %s, %v", user, got, err)
			}
		}
		if got, err := login(t, l, noSudoUser, two, "sudo", "-n", "id", "-u"); err == nil {
			t.Errorf("%s has sudo without a password: %s", noSudoUser, got)
		}
		if got, err := login(t, l, noSudoUser, two, "hostname"); err != nil || got != two {
			t.Errorf("%s: %s, %v", noSudoUser, got, err)
		}
	})
	t.Run("hosts are whole and apart", func(t *testing.T) {
		for _, h := range l.Hosts() {
			if got := run(t, l, h.Name, "systemctl", "is-system-running"); got != "running" {
				t.Errorf("%s is %s", h.Name, got)
			}
			if got := run(t, l, h.Name, "cat", "/etc/resolv.conf", "/proc/sys/net/ipv4/ip_forward"); got != "0" {
				t.Errorf("%s: resolv.conf and ip_forward are %q", h.Name, got)
			}
			if got := run(t, l, h.Name, "findmnt", "-no", "PROPAGATION", "/"); got != "shared" {
				t.Errorf("%s: root is %s", h.Name, got)
			}
			for _, folder := range dataFolders() {
				if got := run(t, l, h.Name, "findmnt", "-no", "FSTYPE", folder); got == "overlay" {
					t.Errorf("%s: %s is in the overlay", h.Name, folder)
				}
			}
		}
		if a, b := run(t, l, one, "cat", "/etc/machine-id"), run(t, l, two, "cat", "/etc/machine-id"); a == b {
			t.Errorf("both have machine id %s", a)
		}
		if got := run(t, l, one, "stat", "-c", "%a %U", "/", "/etc", "/etc/ssh", hostKeyFile); got != "755 root\n755 root\n755 root\n600 root" {
			t.Errorf("modes are %q", got)
		}
	})
	t.Run("network leads to the other hosts alone", func(t *testing.T) {
		if !hears(t, l, one, two) || !hears(t, l, two, one) || !hears(t, l, one, l.Gateway().String()) {
			t.Error("a host does not hear another or the gateway")
		}
		if got := run(t, l, one, "ip", "route", "show", "default"); got != "" {
			t.Errorf("default route: %s", got)
		}
		// This machine would answer at any of its addresses, forwarding or not, if a packet came to it.
		run(t, l, one, "ip", "route", "add", "default", "via", l.Gateway().String())
		defer run(t, l, one, "ip", "route", "delete", "default")
		for _, a := range outerAddresses(t, l.Gateway()) {
			if hears(t, l, one, a.String()) {
				t.Errorf("a packet to %s left the lab", a)
			}
		}
	})
	t.Run("create again changes nothing", func(t *testing.T) {
		before := fmt.Sprint(l.Hosts())
		again, err := Create(t.Context(), Options{Name: name, Hosts: 2}, logTo(t))
		if err != nil {
			t.Fatal(err)
		}
		if after := fmt.Sprint(again.Hosts()); after != before {
			t.Errorf("hosts were %s, are %s", before, after)
		}
		if _, err := Create(t.Context(), Options{Name: name, Hosts: 3}, logTo(t)); fault.CodeOf(err) != fault.Usage {
			t.Errorf("create with another number of hosts: %v", err)
		}
	})
	t.Run("kill and start keep the host", func(t *testing.T) {
		run(t, l, one, "sh", "-c", "echo kept > /root/file; echo kept > /var/lib/etcd/file; echo gone > /run/file")
		identity := []string{"sh", "-c", "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub; ip -o address show scope global; ip -o link show eth0 | grep -o 'link/ether [^ ]*'"}
		before := run(t, l, one, identity...)
		for range 2 { // the second changes nothing
			if err := l.Kill(t.Context(), one); err != nil {
				t.Fatal(err)
			}
		}
		if h := l.Hosts()[0]; h.Running || h.PID != 0 {
			t.Errorf("killed, it is %+v", h)
		}
		for _, trace := range traces(t, name) {
			if strings.Contains(trace, one) {
				t.Errorf("killed, it left %s", trace)
			}
		}
		if _, err := l.Exec(t.Context(), one, []string{"true"}, nil, nil, nil); fault.CodeOf(err) != fault.HostUnreachable {
			t.Errorf("exec in a host without power: %v", err)
		}
		if hears(t, l, two, l.Hosts()[0].Address.String()) {
			t.Error("a host without power answers")
		}
		for range 2 {
			if err := l.Start(t.Context(), one); err != nil {
				t.Fatal(err)
			}
		}
		if got := run(t, l, one, "cat", "/root/file", "/var/lib/etcd/file"); got != "kept\nkept" {
			t.Errorf("files are %q", got)
		}
		if _, status := try(t, l, one, "test", "-e", "/run/file"); status == 0 {
			t.Error("/run was kept")
		}
		if after := run(t, l, one, identity...); after != before {
			t.Errorf("was\n%s\nis\n%s", before, after)
		}
		if got, err := login(t, l, "root", one, "hostname"); err != nil || got != one {
			t.Errorf("ssh: %s, %v", got, err)
		}
	})
	t.Run("partition and heal", func(t *testing.T) {
		if err := l.Partition(t.Context(), one, "other"); fault.CodeOf(err) != fault.Usage {
			t.Errorf("partition from a host that does not exist: %v", err)
		}
		for _, to := range []string{two, Everyone} {
			for range 2 {
				if err := l.Partition(t.Context(), one, to); err != nil {
					t.Fatal(err)
				}
			}
			run(t, l, one, "nft", "flush", "ruleset")
			run(t, l, two, "nft", "flush", "ruleset")
			if err := l.Kill(t.Context(), two); err != nil {
				t.Fatal(err)
			}
			if err := l.Start(t.Context(), two); err != nil {
				t.Fatal(err)
			}
			if hears(t, l, one, two) || hears(t, l, two, one) {
				t.Errorf("parted from %s, they hear each other", to)
			}
			if got, err := login(t, l, "root", one, "hostname"); err != nil || got != one {
				t.Errorf("parted from %s, it is not reached from outside: %s, %v", to, got, err)
			}
			if err := l.Heal(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !hearsAgain(t, l, one, two) || !hearsAgain(t, l, two, one) {
				t.Errorf("healed, they do not hear each other")
			}
		}
	})
	t.Run("a lost switch is made anew", func(t *testing.T) {
		if err := l.state.Switch.kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		again, err := Create(t.Context(), Options{Name: name, Hosts: 2}, logTo(t))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := login(t, again, "root", one, "hostname"); err != nil || got != one {
			t.Errorf("ssh: %s, %v", got, err)
		}
		if !hears(t, again, one, two) {
			t.Error("hosts do not hear each other")
		}
	})
}

// outerAddresses are this machine's own outside of a lab.
func outerAddresses(t *testing.T, gateway netip.Addr) []netip.Addr {
	t.Helper()
	all, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	var out []netip.Addr
	for _, a := range all {
		if addr, ok := netip.AddrFromSlice(a.IP.To4()); ok && !addr.IsLoopback() && addr != gateway {
			out = append(out, addr)
		}
	}
	return out
}

func TestVagrantLike(t *testing.T) {
	const rate, size = "8mbit", 2 << 20 // 1 MB/s
	name := testName("nat")
	l := newTestLab(t, Options{Name: name, Hosts: 2, NATNIC: true, Rate: rate, MTU: 1400})
	for _, h := range l.Hosts() {
		if got := run(t, l, h.Name, "ip", "-4", "-o", "address", "show", "eth0"); !strings.Contains(got, natAddress) {
			t.Errorf("%s: eth0 is %s", h.Name, got)
		}
		if got := run(t, l, h.Name, "ip", "route", "show", "default"); !strings.HasPrefix(got, "default via 10.0.2.2 dev eth0") {
			t.Errorf("%s: default route is %s", h.Name, got)
		}
		if got := run(t, l, h.Name, "ip", "-o", "address", "show", "eth1"); !strings.Contains(got, h.Address.String()+"/24") {
			t.Errorf("%s: eth1 is %s", h.Name, got)
		}
		if got := run(t, l, h.Name, "cat", "/sys/class/net/eth1/mtu"); got != "1400" {
			t.Errorf("%s: MTU is %s", h.Name, got)
		}
		if !hears(t, l, h.Name, "10.0.2.2") {
			t.Errorf("%s does not hear its router", h.Name)
		}
		for _, a := range outerAddresses(t, l.Gateway()) {
			if hears(t, l, h.Name, a.String()) {
				t.Errorf("%s reaches %s by its NAT NIC", h.Name, a)
			}
		}
	}
	if !hears(t, l, name+"-1", l.Hosts()[1].Address.String()) {
		t.Error("hosts do not hear each other")
	}
	// A rate shows in the time that it forbids to be shorter: two seconds, less the bursts.
	const least = 1500 * time.Millisecond
	for way, transfer := range map[string]*exec.Cmd{
		"from": exec.CommandContext(t.Context(), "ssh", "-F", l.SSHConfig(), name+"-1", "head", "-c", fmt.Sprint(size), "/dev/zero"),
		"to":   exec.CommandContext(t.Context(), "ssh", "-F", l.SSHConfig(), name+"-1", "cat", ">", "/dev/null"),
	} {
		if way == "to" {
			transfer.Stdin = bytes.NewReader(make([]byte, size))
		}
		start := time.Now()
		if err := transfer.Run(); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < least {
			t.Errorf("%d bytes %s a host at %s took %s", size, way, rate, took)
		}
	}
}

func logTo(t *testing.T) func(string) {
	t.Helper()
	return func(line string) { t.Log(line) }
}

func TestLabsBesideEachOther(t *testing.T) {
	labs := make([]*Lab, 3)
	var wait sync.WaitGroup
	for i := range labs {
		wait.Go(func() { labs[i] = newTestLab(t, Options{Name: testName(fmt.Sprint("side", i)), Hosts: 1}) })
	}
	wait.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for i, l := range labs {
		for _, other := range labs[:i] {
			if l.Gateway() == other.Gateway() {
				t.Errorf("%s and %s share a network", l.Name(), other.Name())
			}
			if hears(t, l, l.Hosts()[0].Name, other.Hosts()[0].Address.String()) {
				t.Errorf("%s hears %s", l.Name(), other.Name())
			}
		}
	}
	all, err := List()
	if err != nil {
		t.Fatal(err)
	}
	listed := 0
	for _, l := range all {
		for _, mine := range labs {
			if l.Name() == mine.Name() {
				listed++
			}
		}
	}
	if listed != len(labs) {
		t.Errorf("%d of %d labs are listed", listed, len(labs))
	}
	destroyClean(t, labs[0].Name())
	for _, l := range labs[1:] {
		if got, err := login(t, l, "root", l.Hosts()[0].Name, "true"); err != nil {
			t.Errorf("%s, beside a lab that was destroyed: %s, %v", l.Name(), got, err)
		}
	}
	if _, err := Open(labs[0].Name()); fault.CodeOf(err) != fault.Usage {
		t.Errorf("open of a lab that was destroyed: %v", err)
	}
	if err := labs[0].Start(t.Context(), labs[0].Name()+"-1"); fault.CodeOf(err) != fault.Usage {
		t.Errorf("start in a lab that was destroyed: %v", err)
	}
}

// TestKilledCreate kills creates without notice right after each line that they
// tell, and some way into the steps between them.
func TestKilledCreate(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("labs need root on Linux: run the tests with sudo")
	}
	if _, err := BuildRootfs(t.Context(), logTo(t)); err != nil {
		t.Fatal(err)
	}
	const lines = 7 // network, disks, switch, 2 x power on, 2 x booting
	for kill := 1; kill <= lines; kill++ {
		for _, later := range []time.Duration{0, 5 * time.Millisecond, 25 * time.Millisecond} {
			t.Run(fmt.Sprintf("line %d and %s", kill, later), func(t *testing.T) {
				name := testName("killed")
				t.Cleanup(func() { destroyClean(t, name) })
				killCreate(t, name, kill, later)
			})
		}
	}
	t.Run("then create", func(t *testing.T) {
		name := testName("again")
		killCreate(t, name, lines, 0)
		newTestLab(t, Options{Name: name, Hosts: 1})
	})
}

// killCreate starts a create and kills it when it has told a number of lines and some time has passed.
func killCreate(t *testing.T, name string, lines int, later time.Duration) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), createVariable+"="+name)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	told := bufio.NewScanner(out)
	for range lines {
		if !told.Scan() {
			t.Fatal("create ended before it was killed")
		}
	}
	time.Sleep(later) // no synchronisation: where in the step it is killed does not matter
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() //nolint:errcheck // it was killed
}

func TestDestroyOfLittleOrNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("labs need root on Linux: run the tests with sudo")
	}
	name := testName("none")
	destroyClean(t, name)
	if err := os.MkdirAll(filepath.Join(stateRoot, name, "hosts"), 0o755); err != nil { // killed before its state was written
		t.Fatal(err)
	}
	destroyClean(t, name)
}

func TestBadOptions(t *testing.T) {
	for _, o := range []Options{
		{Hosts: 1},
		{Name: "rootfs", Hosts: 1},
		{Name: "..", Hosts: 1},
		{Name: "a/b", Hosts: 1},
		{Name: "a,b", Hosts: 1},
		{Name: "Upper", Hosts: 1},
		{Name: "ends-", Hosts: 1},
		{Name: strings.Repeat("a", 41), Hosts: 1},
		{Name: "a"},
		{Name: "a", Hosts: maxHosts + 1},
		{Name: "a", Hosts: 1, MTU: 1},
		{Name: "a", Hosts: 1, Rate: "fast"},
		{Name: "a", Hosts: 1, Trouble: Trouble{ClockAhead: time.Millisecond}},
		{Name: "a", Hosts: 1, Trouble: Trouble{ClockAhead: -time.Hour}},
		{Name: "a", Hosts: 1, Trouble: Trouble{SlowDisk: time.Hour}},
		{Name: "a", Hosts: 1, Trouble: Trouble{SlowDisk: time.Second, FullDisk: true}},
		{Name: "a", Hosts: 1, Trouble: Trouble{EtcdDisk: 100, FullDisk: true}},
		{Name: "a", Hosts: 1, Trouble: Trouble{EtcdDisk: 2000}},
	} {
		if err := o.check(); fault.CodeOf(err) != fault.Usage {
			t.Errorf("%+v: %v", o, err)
		}
	}
	for _, name := range []string{"", ".", "../x", "rootfs"} {
		if err := Destroy(t.Context(), name); fault.CodeOf(err) != fault.Usage {
			t.Errorf("destroy %q: %v", name, err)
		}
	}
}

func TestUplinkNameFits(t *testing.T) {
	const limit = 15 // IFNAMSIZ less the zero
	a, b := uplinkName(strings.Repeat("a", 40)), uplinkName("b")
	if len(a) > limit || !strings.HasPrefix(a, "kw") || a == b || a != uplinkName(strings.Repeat("a", 40)) {
		t.Errorf("names are %s and %s", a, b)
	}
}

func TestAllocate(t *testing.T) {
	first, err := allocate("demo", nil)
	if err != nil {
		t.Fatal(err)
	}
	if !labRange().Contains(first.Addr()) || first.Bits() != subnetBits || first != first.Masked() {
		t.Errorf("%s is no /%d of %s", first, subnetBits, labRange())
	}
	if again, _ := allocate("demo", nil); again != first {
		t.Errorf("the same name gets %s and %s", first, again)
	}
	// One after the other, all of the range is given out once.
	taken := []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24")}
	seen := map[netip.Prefix]bool{}
	for range 1 << (subnetBits - rangeBits) {
		p, err := allocate("demo", taken)
		if err != nil {
			t.Fatal(err)
		}
		if seen[p] || !labRange().Contains(p.Addr()) {
			t.Fatalf("%s is given out twice or is not of %s", p, labRange())
		}
		seen[p] = true
		taken = append(taken, p)
	}
	if p, err := allocate("demo", taken); fault.CodeOf(err) != fault.HostUnsuitable {
		t.Errorf("of a full range: %s, %v", p, err)
	}
	wide := []netip.Prefix{netip.MustParsePrefix("198.18.0.0/16")}
	if p, err := allocate("demo", wide); err != nil || wide[0].Overlaps(p) {
		t.Errorf("beside %s: %s, %v", wide[0], p, err)
	}
}

func TestParseRate(t *testing.T) {
	for text, want := range map[string]uint64{"800kbit": 100e3, "100mbit": 12.5e6, "10gbit": 1.25e9} {
		if got, err := parseRate(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "100", "mbit", "-1mbit", "0mbit", "1kbit", "1.5mbit", "100mbps"} {
		if got, err := parseRate(text); fault.CodeOf(err) != fault.Usage {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}

func exampleState() *state {
	subnet := netip.MustParsePrefix("198.18.7.0/24")
	s := &state{Name: "demo", Subnet: subnet}
	for n := 1; n <= 3; n++ {
		s.Hosts = append(s.Hosts, hostState{Name: hostName("demo", n), Number: n, Address: at(subnet, firstHost+n-1)})
	}
	return s
}

func TestSwitchRules(t *testing.T) {
	s := exampleState()
	s.Partitions = []partition{{"demo-1", "demo-2"}, {"demo-3", Everyone}}
	const want = `table bridge lab
delete table bridge lab
table bridge lab {
	chain forward {
		type filter hook forward priority 0; policy accept;
		iifname "uplink" ether type != { ip, arp } drop
		iifname "uplink" ether type ip ip saddr != 198.18.7.1 drop
		oifname "uplink" ether type != { ip, arp } drop
		oifname "uplink" ether type ip ip daddr != 198.18.7.1 drop
		iifname "host1" oifname "host2" drop
		iifname "host2" oifname "host1" drop
		iifname "host3" oifname != "uplink" drop
		iifname != "uplink" oifname "host3" drop
	}
}
`
	if diff := cmp.Diff(want, switchRules(s)); diff != "" {
		t.Error(diff)
	}
}

func TestSSHFiles(t *testing.T) {
	s := exampleState()
	s.Hosts = s.Hosts[:2]
	const want = `# Hosts of kubewright lab demo.

Host demo-1
	HostName 198.18.7.11
	User root
	IdentityFile /var/lib/kubewright-lab/demo/id_ed25519
	IdentitiesOnly yes
	UserKnownHostsFile /var/lib/kubewright-lab/demo/known_hosts
	StrictHostKeyChecking yes

Host demo-2
	HostName 198.18.7.12
	User root
	IdentityFile /var/lib/kubewright-lab/demo/id_ed25519
	IdentitiesOnly yes
	UserKnownHostsFile /var/lib/kubewright-lab/demo/known_hosts
	StrictHostKeyChecking yes
`
	if diff := cmp.Diff(want, sshConfig(s)); diff != "" {
		t.Error(diff)
	}
	_, public, err := newKey("demo-1")
	if err != nil {
		t.Fatal(err)
	}
	marker, hosts, key, _, _, err := ssh.ParseKnownHosts([]byte(knownHost(&s.Hosts[0], public)))
	if err != nil || marker != "" || key.Type() != ssh.KeyAlgoED25519 {
		t.Errorf("known_hosts: %q, %v, %v", marker, key, err)
	}
	if diff := cmp.Diff([]string{"demo-1", "198.18.7.11"}, hosts); diff != "" {
		t.Error(diff)
	}
}

func TestHierarchies(t *testing.T) {
	const hybrid = `31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset,clone_children
35 31 0:31 / /sys/fs/cgroup/cpuset-again rw,relatime - cgroup cgroup rw,cpuset
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/lib/systemd/systemd-cgroups-agent,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
42 31 0:39 / /elsewhere rw,relatime - cgroup cgroup rw,pids
`
	want := []hierarchy{
		{Dir: "/sys/fs/cgroup/cpu,cpuacct", Folder: "cpu,cpuacct", Options: []string{"cpu", "cpuacct"}},
		{Dir: "/sys/fs/cgroup/cpuset", Folder: "cpuset", Options: []string{"cpuset"}},
		{Dir: "/sys/fs/cgroup/systemd", Folder: "systemd", Options: []string{"none", "name=systemd"}},
		{Dir: "/sys/fs/cgroup/unified", Folder: "unified", V2: true},
	}
	if diff := cmp.Diff(want, hierarchies(hybrid)); diff != "" {
		t.Error(diff)
	}
	const v2 = "41 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
	if diff := cmp.Diff([]hierarchy{{Dir: "/sys/fs/cgroup", V2: true}}, hierarchies(v2)); diff != "" {
		t.Error(diff)
	}
}

func TestProcessIdentity(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sleep", "infinity")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	other := p
	other.Start++
	if !p.alive() || other.alive() || (process{}).alive() {
		t.Errorf("%+v is alive: %v; with another start time: %v", p, p.alive(), other.alive())
	}
	if err := other.kill(t.Context()); err != nil || !p.alive() {
		t.Errorf("a process of another start time was killed: %v", err)
	}
	for range 2 {
		if err := p.kill(t.Context()); err != nil || p.alive() {
			t.Errorf("kill: %v, alive %v", err, p.alive())
		}
	}
	cmd.Wait() //nolint:errcheck // it was killed
}
