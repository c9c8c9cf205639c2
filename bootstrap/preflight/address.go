package preflight

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/kubewright/kubewright/bootstrap/finding"
)

// most is how many addresses of a host are tried.
const most = 4

// candidates are the addresses that could be each host's inside the cluster, the
// likeliest first: the wished one alone; else the one that SSH reached, then
// those in a network with all other hosts, then the rest. What several hosts
// have (docker0, Vagrant's NAT) can be nobody's.
func candidates(hosts []Host) [][]netip.Addr {
	owners := map[netip.Addr]int{}
	for _, h := range hosts {
		for _, p := range h.prefixes() {
			owners[p.Addr()]++
		}
	}
	all := make([][]netip.Addr, len(hosts))
	for i, h := range hosts {
		if decided := cmp.Or(h.Wish.Address, h.Address); decided.IsValid() {
			all[i] = []netip.Addr{decided}
			continue
		}
		own := slices.DeleteFunc(h.prefixes(), func(p netip.Prefix) bool { return owners[p.Addr()] > 1 })
		rank := func(p netip.Prefix) int {
			switch {
			case p.Addr() == h.Reached:
				return 0
			case !slices.ContainsFunc(hosts, func(o Host) bool { return !o.within(p.Masked()) }):
				return 1
			default:
				return 2
			}
		}
		slices.SortStableFunc(own, func(a, b netip.Prefix) int { return rank(a) - rank(b) })
		for _, p := range own[:min(most, len(own))] {
			all[i] = append(all[i], p.Addr())
		}
	}
	return all
}

// inside are the beginnings of the names of interfaces for containers and virtual
// machines on the host itself.
var inside = [...]string{"br-", "cali", "cilium", "cni", "docker", "flannel", "kube-", "lxc", "podman", "veth", "virbr", "vxlan"}

// prefixes are the host's IPv4 addresses that others could know it by.
func (h Host) prefixes() []netip.Prefix {
	var all []netip.Prefix
	for _, i := range h.Facts.Interfaces {
		if i.Name != h.interfaceOf(h.Reached).Name && slices.ContainsFunc(inside[:], func(begin string) bool { return strings.HasPrefix(i.Name, begin) }) {
			continue
		}
		for _, p := range i.Addrs {
			if a := p.Addr(); a.Is4() && !a.IsLoopback() && !a.IsLinkLocalUnicast() {
				all = append(all, p)
			}
		}
	}
	return all
}

func (h Host) within(network netip.Prefix) bool {
	return slices.ContainsFunc(h.prefixes(), func(p netip.Prefix) bool { return network.Contains(p.Addr()) })
}

// choose takes of each host the first address that all others reach. Where none
// is, the likeliest stays, and what is blocked there is told. That a choice was
// made is told where there was one.
func (m *mesh) choose() {
	for j, h := range m.hosts {
		if len(m.candidates[j]) == 0 {
			continue
		}
		m.chosen[j] = m.candidates[j][0]
		callers := m.callers(j)
		if len(callers) == 0 {
			continue
		}
		var reachable, not []string
		for _, a := range m.candidates[j] {
			ok := !slices.ContainsFunc(callers, func(i int) bool { return !m.reaches(i, a) })
			if ok && len(reachable) == 0 {
				m.chosen[j], m.proven[j] = a, a
			}
			if text := fmt.Sprintf("%s (%s)", a, h.interfaceOf(a).Name); ok {
				reachable = append(reachable, text)
			} else {
				not = append(not, text)
			}
		}
		if len(m.candidates[j]) == 1 || len(reachable) == 0 {
			continue
		}
		text := fmt.Sprintf("its address is %s: all other hosts reach it", reachable[0])
		switch {
		case len(reachable) > 1 && m.chosen[j] == h.Reached:
			text += ", and so does SSH; they reach " + strings.Join(reachable[1:], ", ") + " too"
		case len(reachable) > 1:
			text += "; they reach " + strings.Join(reachable[1:], ", ") + " too"
		}
		if len(not) > 0 {
			text += "; not all reach " + strings.Join(not, ", ")
		}
		m.found(finding.AddressChosen, finding.Note, h.Wish.Name, m.chosen[j].String(), "name another one with `address:` in the cluster file", "%s", text)
	}
}

// reaches tells whether host i got an answer at an address: at one of the ports,
// as a firewall may keep others.
func (m *mesh) reaches(i int, a netip.Addr) bool {
	r, tried := m.reached[i][a]
	return tried && (r.UDP || len(r.Blocked) < r.Called)
}
