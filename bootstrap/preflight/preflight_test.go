package preflight_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/preflight"
	"github.com/kubewright/kubewright/bootstrap/probe"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

const podMTU = " note mtu-chosen: pods of all hosts get an MTU of 1450: 1500 of the interface less 50 of VXLAN"

func TestFindings(t *testing.T) {
	for name, c := range map[string]struct {
		change func(h []*machine)
		want   []string // the note on the MTU is added where it is told
		quiet  bool     // it is not told
	}{
		"all is well": {change: func([]*machine) {}},
		"no tool": {
			change: func(h []*machine) { delete(h[1].files, "/usr/sbin/nft") },
			want:   []string{"h1 error tool-missing: the host has no nft: kube-proxy makes Services with it"},
		},
		"no systemd, and old": {
			change: func(h []*machine) {
				delete(h[1].files, "/usr/bin/systemctl")
				h[1].files["/proc/sys/kernel/osrelease"] = "5.10.0-33-amd64"
			},
			want: []string{
				"h1 error os-unsupported: Debian 12 has no systemd",
				"h1 error os-unsupported: its kernel is 5.10.0-33-amd64, kube-proxy's nftables mode needs 5.13",
			},
		},
		"swap": {
			change: func(h []*machine) { h[2].files["/proc/swaps"] += "/dev/sda2 partition 1 0 -2\n" },
			want:   []string{"h2 error swap-on: swap is on: the kubelet would not start"},
		},
		"cgroup version 1": {
			change: func(h []*machine) { delete(h[0].files, "/sys/fs/cgroup/cgroup.controllers") },
			want:   []string{"h0 warning cgroup-v1: it uses cgroup version 1: works, but Kubernetes will drop it"},
		},
		"clones": {
			change: func(h []*machine) {
				h[2].files["/etc/machine-id"] = "id-h1"
				h[2].files["/proc/sys/kernel/hostname"] = "H1"
			},
			want: []string{
				"h2 error hostname-duplicate: its node name h1 is also that of h1",
				"h2 error machine-id-duplicate: its machine-id is also that of h1: one is a clone of the other",
			},
		},
		"no machine-id": {
			change: func(h []*machine) { delete(h[1].files, "/etc/machine-id") },
			want:   []string{"h1 error machine-id-missing: /etc/machine-id is missing or empty"},
		},
		"small": {
			change: func(h []*machine) {
				h[0].files["/proc/meminfo"] = "MemTotal: 1048576 kB\n"
				h[0].files["/sys/devices/system/cpu/online"] = "0"
				h[1].files["/proc/meminfo"] = "MemTotal: 262144 kB\n"
			},
			want: []string{
				"h1 error memory-low: it has 256 MiB of memory, a worker node needs 384 MiB",
				"h0 warning cpu-low: it has one processor: the control plane will be slow",
				"h0 warning memory-low: it has 1.0 GiB of memory, which leaves a control-plane node little for pods",
			},
		},
		"another installer": {
			change: func(h []*machine) {
				h[1].files["/etc/kubernetes/kubelet.conf"] = ""
				h[1].files["/etc/kubernetes/pki/ca.crt"] = "" // removed by the same command
				h[2].files["/var/lib/etcd/member/x"] = ""
				h[2].files["/etc/cni/net.d/05-cilium.conflist"] = "{}"
				h[2].files["/etc/cni/net.d/87-podman.conflist"] = "{}"
				h[2].files["/etc/cni/net.d/README"] = ""
			},
			want: []string{
				"h1 error foreign-installer: the host is, or was, in another cluster (kubeadm or another installer): /etc/kubernetes/kubelet.conf exists",
				"h2 error foreign-installer: the host is, or was, in another cluster (another cluster's pod network): /etc/cni/net.d/05-cilium.conflist exists",
				"h2 error foreign-installer: the host is, or was, in another cluster (another cluster's etcd): /var/lib/etcd/member exists",
				"h2 warning foreign-installer: the host is, or was, in another cluster (another cluster's pod network): /etc/cni/net.d/87-podman.conflist exists",
			},
		},
		"a host of ours is not foreign": {
			change: func(h []*machine) {
				h[1].files["/var/lib/kubewright/host.json"] = "{}"
				h[1].files["/etc/kubernetes/pki/ca.crt"] = ""
				h[1].seen.Uses = []probe.Use{{Port: probe.Port{Protocol: "tcp", Number: 10250}, PID: 5, Program: "/opt/kubewright/v1/bin/kube"}}
			},
		},
		"ports in use": {
			change: func(h []*machine) {
				h[0].seen.Uses = []probe.Use{
					{Port: probe.Port{Protocol: "tcp", Number: 6443}, PID: 612, Process: "haproxy", Program: "/usr/sbin/haproxy"},
					{Port: probe.Port{Protocol: "tcp", Number: 2379}},
					{Port: probe.Port{Protocol: "udp", Number: 8472}}, // a VXLAN device shares it
				}
			},
			want: []string{
				"h0 error port-in-use: port TCP 2379 is in use by the kernel or another container",
				"h0 error port-in-use: port TCP 6443 is in use by haproxy (pid 612)",
			},
		},
		"kernel": {
			change: func(h []*machine) {
				h[1].seen.Missing = []probe.Missing{{Feature: "nftables", Why: "operation not supported"}}
			},
			want: []string{"h1 error kernel-feature-missing: its kernel lacks nftables: operation not supported"},
		},
		"no room": {
			change: func(h []*machine) {
				for i := range h[1].seen.Rooms[1:] {
					h[1].seen.Rooms[1+i].Device, h[1].seen.Rooms[1+i].Free = 2, 350<<20
				}
			},
			want: []string{"h1 error disk-space: 350 MiB is free for /var/lib/containerd (images), /var/lib/kubelet (pods), which need 400 MiB"},
		},
		"slow disk": {
			change: func(h []*machine) { h[0].seen.Disk.P99 = 25 * time.Millisecond },
			want:   []string{"h0 warning disk-slow: the disk of /var/lib takes 25ms for a write (99th percentile of 100), etcd wants 10ms"},
		},
		"hopeless disk": {
			change: func(h []*machine) { h[0].seen.Disk.P99 = 700 * time.Millisecond },
			want:   []string{"h0 error disk-slow: the disk of /var/lib takes 700ms for a write (99th percentile of 100), etcd wants 10ms"},
		},
		"firewall": {
			change: func(h []*machine) {
				h[2].seen.Firewalls = []probe.Firewall{{Owner: "ufw", Table: "ip filter", Chain: "INPUT"}}
			},
			want: []string{"h2 warning firewall-active: ufw drops what it does not know (table ip filter, chain INPUT): let hosts and pods in"},
		},
		"a clock": {
			change: func(h []*machine) { h[1].ahead = -10 * time.Minute },
			want:   []string{"h1 error clock-skew: its clock is 10m0s behind of "},
		},
		"the workstation's clock": {
			change: func(h []*machine) {
				for _, m := range h {
					m.ahead = 5 * time.Second
				}
			},
			want: []string{" warning clock-skew: this workstation: its clock is 5s behind of "},
		},
		"a firewall between hosts": {
			change: func(h []*machine) { h[0].net.tcp["198.19.0.1:6443"] = "no answer" },
			want:   []string{"h0 error tcp-blocked: TCP port 6443 of h0 (198.19.0.1) cannot be reached from h1, h2: no answer"},
		},
		"UDP": {
			change: func(h []*machine) { h[0].net.udp["0>1"], h[0].net.udp["2>1"] = true, true },
			want:   []string{"h1 error udp-blocked: UDP port 8472 of h1 (198.19.0.2) does not get what h0, h2 sends"},
		},
		"VXLAN": {
			change: func(h []*machine) { h[0].net.frames["0>2"], h[0].net.frames["2>1"] = true, true },
			want:   []string{"h2 error vxlan-blocked: VXLAN frames (UDP port 8472) do not pass between h2 (198.19.0.3) and h0, h1, plain UDP does"},
		},
		"checksums": {
			change: func(h []*machine) { h[0].net.inTCP["1>0"] = true },
			want:   []string{"h0 error vxlan-tcp-broken: TCP inside VXLAN fails between h0 (198.19.0.1) and h1, though frames arrive"},
		},
		"a narrow path": {
			change: func(h []*machine) {
				h[0].net.mtu["1>0"], h[0].net.mtu["1>2"] = 1420, 1400
				h[0].net.inTCP["1>2"] = true // of course
			},
			want: []string{"h1 error path-mtu: packets of more than 1400 bytes do not arrive at h0, h2, though eth0 has an MTU of 1500"},
		},
		"no place for programs": {
			change: func(h []*machine) {
				h[1].noexec = append(h[1].noexec, "/dev/shm", "/run", "/tmp", "/var/tmp", "/root")
			},
			want: []string{"h1 warning probe-failed: kernel, disk, ports and network could not be tried: "},
		},
		"some place for programs": {change: func(h []*machine) { h[1].noexec = []string{"/dev/shm", "/run"} }},
		"members are left alone": {
			change: func(h []*machine) {
				for _, m := range h {
					m.member = true
					m.seen.Missing = []probe.Missing{{Feature: "overlay"}}
				}
			},
			quiet: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			machines := newMachines(t, 3)
			c.change(machines)
			out, err := preflight.Run(t.Context(), input(t, machines))
			if err != nil {
				t.Fatal(err)
			}
			want, got := c.want, lines(out.Report)
			if !c.quiet && len(got) > 0 && strings.Contains(got[len(got)-1], "mtu-chosen") {
				got = got[:len(got)-1]
			} else if !c.quiet {
				t.Error("what pods get is not told")
			}
			if len(got) != len(want) {
				t.Fatalf("-want +got:\n%s", cmp.Diff(want, got))
			}
			for i := range want {
				if !strings.HasPrefix(got[i], want[i]) {
					t.Errorf("-want +got:\n%s", cmp.Diff(want, got))
				}
			}
			for _, f := range out.Report {
				if f.Severity != finding.Note && f.Remedy == "" {
					t.Errorf("%s: no remedy", f)
				}
				if _, ok := finding.Explain(f.Code); !ok {
					t.Errorf("%s: no explanation", f)
				}
			}
			for _, m := range machines {
				if left := m.left(); len(left) > 0 {
					t.Errorf("%s: left: %v", m.Name(), left)
				}
			}
		})
	}
}

func TestMTUIsTold(t *testing.T) {
	out, err := preflight.Run(t.Context(), input(t, newMachines(t, 2)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{podMTU}, lines(out.Report)); diff != "" {
		t.Error(diff)
	}
}

// TestAddress has Vagrant's NAT first on every host, and two networks.
func TestAddress(t *testing.T) {
	machines := newMachines(t, 3)
	for i, m := range machines {
		m.addrs = []string{"10.0.2.15/24", fmt.Sprintf("198.19.0.%d/24", i+1), fmt.Sprintf("198.19.1.%d/24", i+1)}
		m.reached = fmt.Sprintf("198.19.1.%d", i+1)
		m.net.tcp[m.reached] = "no answer" // from the other hosts
	}
	out, err := preflight.Run(t.Context(), input(t, machines))
	if err != nil {
		t.Fatal(err)
	}
	for i, a := range out.Addresses {
		if want := netip.AddrFrom4([4]byte{198, 19, 0, byte(i + 1)}); a != want {
			t.Errorf("h%d: %s", i, a)
		}
	}
	if got := lines(out.Report)[1]; got != "h0 note address-chosen: its address is 198.19.0.1 (eth1): all other hosts reach it; not all reach 198.19.1.1 (eth2)" {
		t.Errorf("%s", got)
	}
	if err := preflight.Faults(out.Report); err != nil {
		t.Error(err)
	}
}

func TestJoin(t *testing.T) {
	const refused, none = "connection refused", "no answer"
	for _, test := range []struct {
		name    string
		role    spec.Role
		blocked map[string]string
		want    []string // beginnings of lines
	}{
		{"the only API server", spec.WorkerRole, map[string]string{"198.19.0.8:6443": refused, "198.19.0.9:6443": refused}, []string{
			"h0 error tcp-blocked: it does not reach TCP port 6443 of the cluster's control-plane host 198.19.0.8: connection refused",
			"h0 error tcp-blocked: it does not reach TCP port 6443 of the cluster's control-plane host 198.19.0.9: connection refused",
		}},
		{"one of two", spec.WorkerRole, map[string]string{"198.19.0.9:6443": none}, []string{
			"h0 warning tcp-blocked: it does not reach TCP port 6443 of the cluster's control-plane host 198.19.0.9: no answer",
		}},
		{"etcd is no matter of workers", spec.WorkerRole, map[string]string{"198.19.0.8:2380": none, "198.19.0.9:2379": none}, nil},
		{"etcd's peers", spec.ControlPlaneRole, map[string]string{"198.19.0.8:2380": none, "198.19.0.9:2379": none}, []string{
			"h0 error tcp-blocked: it does not reach TCP port 2380 of the cluster's control-plane host 198.19.0.8: no answer",
			"h0 error tcp-blocked: it does not reach TCP port 2379 of the cluster's control-plane host 198.19.0.9: no answer",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			machines := newMachines(t, 1)
			machines[0].wish.Role = test.role
			for at, why := range test.blocked {
				machines[0].net.tcp[at] = why
			}
			in := input(t, machines)
			in.Servers = []netip.AddrPort{netip.MustParseAddrPort("198.19.0.8:6443"), netip.MustParseAddrPort("198.19.0.9:6443")}
			out, err := preflight.Run(t.Context(), in)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, l := range lines(out.Report) {
				if strings.Contains(l, "tcp-blocked") {
					got = append(got, l)
				}
			}
			slices.Sort(got)
			slices.Sort(test.want)
			if !slices.Equal(got, test.want) {
				t.Errorf("%q", got)
			}
		})
	}
}

// Between hosts that join and nodes that are there, frames are tried as between hosts that join together; nodes are
// looked at no further, and one that is not there keeps nobody away.
func TestNeighbours(t *testing.T) {
	const tell = "h0 error vxlan-blocked: VXLAN frames (UDP port 8472) do not pass between h0 (198.19.0.1) and "
	for name, c := range map[string]struct {
		change func(h []*machine, in *preflight.Input)
		want   []string // beginnings of lines
	}{
		"all is well": {change: func(h []*machine, _ *preflight.Input) {
			h[1].seen.Missing = []probe.Missing{{Feature: "overlay"}}
			h[1].taken = []probe.Port{{Protocol: "udp", Number: 8472}}
			h[0].net.tcp["198.19.0.2:10250"] = "no answer" // no host but the API server's calls it
			h[0].net.frames["1>2"] = true                  // no matter of those who join
		}},
		"frames do not get there": {
			change: func(h []*machine, _ *preflight.Input) { h[0].net.frames["0>1"] = true },
			want:   []string{tell + "h1, of which one is a node already"},
		},
		"frames do not come back, from any": {
			change: func(h []*machine, _ *preflight.Input) { h[0].net.frames["1>0"], h[0].net.frames["2>0"] = true, true },
			want:   []string{tell + "h1, h2, of which one is a node already"},
		},
		"TCP": {
			change: func(h []*machine, _ *preflight.Input) { h[0].net.inTCP["0>2"] = true },
			want:   []string{"h0 error vxlan-tcp-broken: TCP inside VXLAN fails between h0 (198.19.0.1) and h2"},
		},
		"one was not reached": {
			change: func(_ []*machine, in *preflight.Input) {
				in.Neighbours[0].Host, in.Neighbours[0].Err = nil, errors.New("no answer in 5s")
			},
			want: []string{"h1 warning node-untried: whether VXLAN frames pass between it and the hosts that join was not tried: no answer in 5s"},
		},
		"one dies meanwhile": {
			change: func(h []*machine, _ *preflight.Input) { h[1].dies, h[0].net.frames["0>1"] = true, true },
			want:   []string{"h1 warning node-untried: whether VXLAN frames pass between it and the hosts that join was not tried: the connection was lost"},
		},
		"one runs no programs": {
			change: func(h []*machine, _ *preflight.Input) {
				h[2].noexec = []string{"/dev/shm", "/run", "/tmp", "/var/tmp", "/root"}
			},
			want: []string{"h2 warning node-untried: whether"},
		},
		"one that is asked for, and a node already": {
			change: func(h []*machine, in *preflight.Input) {
				in.Hosts, in.Neighbours = in.Hosts[:2], in.Neighbours[1:]
				in.Hosts[1].Member, in.Hosts[1].Address = true, in.Hosts[1].Reached
				h[0].net.frames["0>1"] = true
			},
			want: []string{tell + "h1, of which one is a node already"},
		},
		"a host whose address is not certain": {change: func(h []*machine, in *preflight.Input) {
			in.Hosts[0].Facts.Interfaces = append(in.Hosts[0].Facts.Interfaces, host.Interface{Name: "eth1", MTU: 1500, Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.2.15/24")}})
			in.Hosts[0].Reached = netip.Addr{}
			h[0].net.frames["0>1"] = true
		}},
		"nobody joins": {change: func(h []*machine, in *preflight.Input) {
			in.Hosts[0].Member = true
			in.Neighbours[0].Err = errors.New("no answer")
			h[0].net.frames["0>1"] = true
		}},
	} {
		t.Run(name, func(t *testing.T) {
			machines := newMachines(t, 3)
			in := input(t, machines)
			for i, m := range machines[1:] {
				in.Neighbours = append(in.Neighbours, preflight.Neighbour{Name: m.Name(), Host: m, Address: in.Hosts[i+1].Reached})
			}
			in.Hosts = in.Hosts[:1]
			in.Servers = []netip.AddrPort{netip.MustParseAddrPort("198.19.0.2:6443")}
			c.change(machines, &in)
			out, err := preflight.Run(t.Context(), in)
			if err != nil {
				t.Fatal(err)
			}
			got := slices.DeleteFunc(lines(out.Report), func(l string) bool { return strings.Contains(l, " note ") })
			if len(got) != len(c.want) {
				t.Fatalf("-want +got:\n%s", cmp.Diff(c.want, got))
			}
			for i := range c.want {
				if !strings.HasPrefix(got[i], c.want[i]) {
					t.Errorf("-want +got:\n%s", cmp.Diff(c.want, got))
				}
			}
			for _, m := range machines {
				if left := m.left(); len(left) > 0 {
					t.Errorf("%s: left: %v", m.Name(), left)
				}
			}
		})
	}
}

func TestFaults(t *testing.T) {
	machines := newMachines(t, 2)
	machines[0].files["/etc/rancher/k3s"] = ""
	machines[1].files["/proc/swaps"] += "/dev/sda2 partition 1 0 -2\n"
	in := input(t, machines)
	out, err := preflight.Run(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	var codes []fault.Code
	for _, e := range preflight.Faults(out.Report).(interface{ Unwrap() []error }).Unwrap() {
		var f *fault.Fault
		if !errors.As(e, &f) || f.Remedy == "" {
			t.Fatalf("%v", e)
		}
		codes = append(codes, f.Code)
	}
	if want := []fault.Code{fault.HostTaken, fault.HostUnsuitable}; !slices.Equal(codes, want) {
		t.Errorf("%v, want %v", codes, want)
	}
	in.Ignore = []finding.Code{finding.SwapOn, finding.ForeignInstaller}
	if out, err = preflight.Run(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	if err := preflight.Faults(out.Report); err != nil {
		t.Errorf("ignored: %v", err)
	}
}

// BenchmarkPreflight looks at simulated hosts that are 2 ms away.
func BenchmarkPreflight(b *testing.B) {
	for _, n := range []int{3, 30} {
		b.Run(fmt.Sprintf("hosts=%d", n), func(b *testing.B) {
			machines := newMachines(b, n)
			in := input(b, machines)
			for _, m := range machines {
				m.rtt = 2 * time.Millisecond
			}
			for b.Loop() {
				out, err := preflight.Run(b.Context(), in)
				if err != nil || len(out.Report.Blocking()) > 0 {
					b.Fatal(err, out.Report)
				}
			}
		})
	}
}

// TestVirtualIP has an address that another machine has, and one that is in no network.
func TestVirtualIP(t *testing.T) {
	taken := probe.Owner{Interface: "eth0", Hardware: "02:00:00:00:00:09"}
	for name, c := range map[string]struct {
		ip     string
		change func(h []*machine, in *preflight.Input)
		want   []string
	}{
		"unused": {ip: "198.19.0.9", change: func(h []*machine, _ *preflight.Input) { h[0].seen.Owner = nil }},
		"taken": {ip: "198.19.0.9", want: []string{
			"h0 error virtual-ip-taken: the virtual IP 198.19.0.9 is in use: 02:00:00:00:00:09 answers for it on eth0"}},
		"its own": {ip: "198.19.0.9", change: func(h []*machine, _ *preflight.Input) { h[0].seen.Owner = &probe.Owner{Interface: "eth0", Self: true} },
			want: []string{"h0 error virtual-ip-taken: the virtual IP 198.19.0.9 is in use: the host itself has it on eth0"}},
		"held by the cluster that hosts join": {ip: "198.19.0.9", change: func(_ []*machine, in *preflight.Input) {
			in.Servers = []netip.AddrPort{netip.MustParseAddrPort("198.19.0.1:6443")}
		}},
		"held by a member":             {ip: "198.19.0.9", change: func(_ []*machine, in *preflight.Input) { in.Hosts[1].Member = true }},
		"of a run that was broken off": {ip: "198.19.0.9", change: func(_ []*machine, in *preflight.Input) { in.Hosts[0].Address = in.Hosts[0].Reached }},
		"outside": {ip: "203.0.113.9", change: func(h []*machine, _ *preflight.Input) { h[0].seen.Owner = nil },
			want: []string{"h0 error virtual-ip-outside: the virtual IP 203.0.113.9 is in none of its networks (198.19.0.0/24)"}},
	} {
		t.Run(name, func(t *testing.T) {
			machines := newMachines(t, 3)
			for _, m := range machines {
				m.seen.Owner = &taken // who is not asked is not heard
			}
			in := input(t, machines)
			in.Cluster.ControlPlaneEndpoint.VirtualIP = netip.MustParseAddr(c.ip)
			if c.change != nil {
				c.change(machines, &in)
			}
			out, err := preflight.Run(t.Context(), in)
			if err != nil {
				t.Fatal(err)
			}
			got := slices.DeleteFunc(lines(out.Report), func(l string) bool { return !strings.Contains(l, "virtual-ip") })
			if !slices.Equal(got, c.want) {
				t.Error(cmp.Diff(c.want, got))
			}
		})
	}
}
