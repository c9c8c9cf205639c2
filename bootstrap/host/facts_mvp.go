package host

import (
	"context"
	"encoding/json"
	"net/netip"
	"strings"
)

type Facts struct {
	Hostname, MachineID, Arch, Kernel string
	Interfaces                        []Interface
	CgroupV2, Swap, CapSysResource    bool
	ConntrackMaxFixed                 bool
	tools                             map[string]string
}
type Interface struct {
	Name  string
	MTU   int
	Addrs []netip.Prefix
}

func (f Facts) Tool(n string) string { return f.tools[n] }
func (f Facts) ResolvConf() string   { return "/etc/resolv.conf" }

func Gather(ctx context.Context, r Reader) (Facts, error) {
	f := Facts{tools: map[string]string{}}
	for _, x := range []struct {
		p string
		s *string
	}{{"/proc/sys/kernel/hostname", &f.Hostname}, {"/etc/machine-id", &f.MachineID}} {
		b, err := r.ReadFile(ctx, x.p)
		if err != nil {
			return f, err
		}
		*x.s = strings.TrimSpace(string(b))
	}
	f.Arch = "amd64"
	out, err := r.Query(ctx, "ip", "-j", "addr")
	if err != nil {
		return f, err
	}
	var links []struct {
		Ifname    string
		Mtu       int
		Addr_info []struct {
			Family, Local string
			Prefixlen     int
		}
	}
	if err := json.Unmarshal(out, &links); err != nil {
		return f, err
	}
	for _, l := range links {
		i := Interface{Name: l.Ifname, MTU: l.Mtu}
		for _, a := range l.Addr_info {
			ad, err := netip.ParseAddr(a.Local)
			if err == nil {
				i.Addrs = append(i.Addrs, netip.PrefixFrom(ad, a.Prefixlen))
			}
		}
		f.Interfaces = append(f.Interfaces, i)
	}
	for _, t := range []string{"nft", "ip", "mount", "sysctl"} {
		for _, d := range []string{"/usr/sbin/", "/usr/bin/", "/sbin/", "/bin/"} {
			st, err := r.Stat(ctx, d+t)
			if err != nil {
				return f, err
			}
			if st[0].Exists {
				f.tools[t] = d + t
				break
			}
		}
	}
	f.ConntrackMaxFixed = true
	return f, nil
}
