package preflight_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/preflight"
	"github.com/kubewright/kubewright/bootstrap/probe"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// machine is a simulated host that a simulated probe can be sent to.
type machine struct {
	*hosttest.Sim
	rtt   time.Duration // of each operation
	wish  spec.Host
	files map[string]string // what Gather reads, to be changed before it does
	addrs []string          // of eth0, eth1, ... with the length of their networks
	mtu   int

	member   bool
	dies     bool   // when it is to call through the tunnel
	reached  string // address that SSH uses, "": the first
	noexec   []string
	programs map[string]bool // that were sent and have not removed themselves

	ahead time.Duration // its clock
	seen  probe.Seen
	taken []probe.Port
	net   *network
}

// network is what is between the machines: all passes but what is blocked.
type network struct {
	tcp    map[string]string // "TO-ADDRESS:PORT" -> why it is blocked
	udp    map[string]bool   // "FROM>TO", by the hosts' numbers
	mtu    map[string]int    // likewise
	frames map[string]bool   // likewise, blocked in the tunnel
	inTCP  map[string]bool   // likewise, TCP alone
}

func newMachines(t testing.TB, n int) []*machine {
	net := &network{map[string]string{}, map[string]bool{}, map[string]int{}, map[string]bool{}, map[string]bool{}}
	var all []*machine
	for i := range n {
		name := fmt.Sprintf("h%d", i)
		role := spec.WorkerRole
		if i == 0 {
			role = spec.ControlPlaneRole
		}
		m := &machine{
			Sim: hosttest.NewSim(t, name), wish: spec.Host{Name: name, Role: role}, net: net, mtu: 1500,
			addrs: []string{fmt.Sprintf("198.19.0.%d/24", i+1)}, programs: map[string]bool{},
			files: map[string]string{
				"/proc/sys/kernel/hostname":         name,
				"/proc/sys/kernel/osrelease":        "6.1.0-28-amd64",
				"/proc/sys/kernel/random/boot_id":   "boot-" + name,
				"/etc/machine-id":                   "id-" + name,
				"/etc/os-release":                   "PRETTY_NAME=\"Debian 12\"\nID=debian\n",
				"/sys/devices/system/cpu/online":    "0-1",
				"/sys/fs/cgroup/cgroup.controllers": "cpu memory",
				"/proc/swaps":                       "Filename Type Size Used Priority\n",
				"/proc/meminfo":                     "MemTotal: 4000000 kB\n",
				"/proc/1/status":                    "CapBnd: 000001ffffffffff\n",
				"/usr/sbin/nft":                     "",
				"/usr/sbin/ip":                      "",
				"/usr/bin/mount":                    "",
				"/usr/sbin/sysctl":                  "",
				"/usr/bin/systemctl":                "",
				"/dev/shm/.keep":                    "",
			},
		}
		m.seen.Rooms = []probe.Room{
			{Path: "/opt/kubewright", Device: 1, Free: 10 << 30}, {Path: "/var/lib/containerd", Device: 1, Free: 10 << 30},
			{Path: "/var/lib/kubelet", Device: 1, Free: 10 << 30},
		}
		if role == spec.ControlPlaneRole {
			m.seen.Rooms = append(m.seen.Rooms, probe.Room{Path: "/var/lib/etcd", Device: 1, Free: 10 << 30})
			m.seen.Disk = &probe.Disk{Dir: "/var/lib", Writes: 100, P99: 2 * time.Millisecond}
		}
		all = append(all, m)
	}
	return all
}

// input has the machines' facts gathered as on real hosts.
func input(t testing.TB, machines []*machine) preflight.Input {
	t.Helper()
	in := preflight.Input{Arch: "amd64", Program: func() ([]byte, error) { return []byte("probe"), nil }, Cluster: &spec.Cluster{}}
	for _, m := range machines {
		for path, content := range m.files {
			m.Put(path, content, 0o755)
		}
		type addr struct {
			Local     string `json:"local"`
			PrefixLen int    `json:"prefixlen"`
		}
		type link struct {
			Name  string `json:"ifname"`
			MTU   int    `json:"mtu"`
			Addrs []addr `json:"addr_info"`
		}
		links := []link{{"lo", 65536, []addr{{"127.0.0.1", 8}}}}
		for i, text := range m.addrs {
			p := netip.MustParsePrefix(text)
			links = append(links, link{fmt.Sprintf("eth%d", i), m.mtu, []addr{{p.Addr().String(), p.Bits()}}})
		}
		text, err := json.Marshal(links)
		if err != nil {
			t.Fatal(err)
		}
		m.Script(
			hosttest.Answer{Argv: []string{"uname", "-m"}, Stdout: "x86_64\n"},
			hosttest.Answer{Argv: []string{"systemd-detect-virt"}, Stdout: "kvm\n"},
			hosttest.Answer{Argv: []string{"ip", "-json", "address", "show"}, Stdout: string(text)},
			hosttest.Answer{Argv: []string{"ip", "-json", "route", "show"}, Stdout: "[]"},
		)
		facts, err := host.Gather(t.Context(), m.Sim)
		if err != nil {
			t.Fatal(err)
		}
		h := preflight.Host{Wish: m.wish, Host: m, Facts: facts, Member: m.member, Reached: netip.MustParsePrefix(m.addrs[0]).Addr()}
		if m.reached != "" {
			h.Reached = netip.MustParseAddr(m.reached)
		}
		in.Hosts = append(in.Hosts, h)
		in.Cluster.Hosts = append(in.Cluster.Hosts, m.wish)
	}
	in.Cluster.Default()
	return in
}

func (m *machine) Stat(ctx context.Context, paths ...string) ([]host.File, error) {
	time.Sleep(m.rtt)
	return m.Sim.Stat(ctx, paths...)
}

func (m *machine) WriteFile(ctx context.Context, path string, content io.Reader, meta host.Meta) error {
	time.Sleep(2 * m.rtt)
	m.programs[path] = true
	return m.Sim.WriteFile(ctx, path, content, meta)
}

func (m *machine) Remove(ctx context.Context, paths ...string) error {
	for _, p := range paths {
		delete(m.programs, p)
	}
	return m.Sim.Remove(ctx, paths...)
}

// Query has a clock of its own.
func (m *machine) Query(ctx context.Context, argv ...string) ([]byte, error) {
	if argv[0] != "date" {
		return m.Sim.Query(ctx, argv...)
	}
	time.Sleep(m.rtt)
	return fmt.Appendf(nil, "%d\n", time.Now().Add(m.ahead).UnixNano()), nil
}

// Run is a probe as far as preflight can tell.
func (m *machine) Run(ctx context.Context, cmd host.Command) ([]byte, error) {
	file := cmd.Argv[0]
	for _, dir := range m.noexec {
		if strings.HasPrefix(file, dir+"/") {
			return nil, &host.ExitError{Argv: cmd.Argv, Status: 126, Stderr: "Permission denied"}
		}
	}
	if err := m.Remove(ctx, file); err != nil {
		return nil, err
	}
	in, out := json.NewDecoder(cmd.Stdin), json.NewEncoder(cmd.Stdout)
	for {
		var o probe.Order
		if err := in.Decode(&o); errors.Is(err, io.EOF) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
		if m.dies && o.Carry != nil {
			return nil, errors.New("the connection was lost")
		}
		time.Sleep(m.rtt)
		if err := out.Encode(m.answer(o)); err != nil {
			return nil, err
		}
	}
}

func (m *machine) number() (n int) {
	fmt.Sscanf(m.Name(), "h%d", &n) //nolint:errcheck // newMachines named it
	return n
}

func (m *machine) answer(o probe.Order) (r probe.Reply) {
	way := func(to int) string { return fmt.Sprintf("%d>%d", m.number(), to) }
	switch {
	case o.Look != nil:
		seen := m.seen
		if !o.Look.Unused.IsValid() {
			seen.Owner = nil
		}
		r.Seen = &seen
	case o.Listen != nil:
		r.Listening = &probe.Listening{Taken: m.taken}
	case o.Reach != nil:
		for _, p := range o.Reach.To {
			one := probe.Reached{Host: p.Host, Addr: p.Addr, Called: len(p.TCP)}
			for _, port := range p.TCP {
				if why := m.net.tcp[netip.AddrPortFrom(p.Addr, uint16(port)).String()]; why != "" {
					one.Blocked = append(one.Blocked, probe.Blocked{Port: port, Why: why})
				} else if why := m.net.tcp[p.Addr.String()]; why != "" {
					one.Blocked = append(one.Blocked, probe.Blocked{Port: port, Why: why})
				}
			}
			if p.UDP != 0 && !m.net.udp[way(p.Host)] && m.net.tcp[p.Addr.String()] == "" {
				one.UDP, one.MTU, one.Whole = true, m.mtu, m.mtu
				if least := m.net.mtu[way(p.Host)]; least != 0 {
					one.MTU = min(one.MTU, least)
				}
			}
			r.Reached = append(r.Reached, one)
		}
	case o.Carry != nil:
		for _, to := range o.Carry.To {
			frames := !m.net.frames[way(to)]
			r.Carried = append(r.Carried, probe.Carried{Host: to, Frames: frames, TCP: frames && !m.net.inTCP[way(to)]})
		}
	}
	return r
}

// lines are a report as short texts: host, severity, code, and what of the message is wanted.
func lines(r finding.Report) []string {
	var all []string
	for _, f := range r {
		all = append(all, fmt.Sprintf("%s %s %s: %s", f.Host, f.Severity, f.Code, f.Message))
	}
	return all
}

// left are the programs that are still on the machine.
func (m *machine) left() []string {
	var all []string
	for name := range maps.Keys(m.programs) {
		all = append(all, name)
	}
	return all
}
