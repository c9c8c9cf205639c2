package preflight

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/probe"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

const (
	// reachTime is how long a port is waited for: one SYN may be lost.
	reachTime = 1200 * time.Millisecond
	// carryTime is likewise for what goes through the tunnel.
	carryTime = 1000 * time.Millisecond
	// nodeCarryTime is that where nodes take part, which have other work.
	nodeCarryTime = 3 * carryTime
	// firstVNI is the least of those that tunnels have: the pod network's own is 1. Each
	// run has one of its own, since the kernel takes a moment to let go of the last one's.
	firstVNI = 1 << 23
	// overhead is what VXLAN takes of every packet, in bytes.
	overhead = 50
	// leastMTU is what IPv6 asks of every link.
	leastMTU = 1280
)

// mesh is what is tried between the hosts. Hosts are spoken of by their number
// in hosts.
type mesh struct {
	cluster    *spec.Cluster
	servers    []netip.AddrPort // of the cluster that the hosts join
	hosts      []Host           // those asked for, and then neighbours
	given      int              // how many are asked for
	looks      []looked
	candidates [][]netip.Addr
	chosen     []netip.Addr
	proven     []netip.Addr // those of chosen that all others reached

	token     string
	vni       int
	listening []probe.Listening
	reached   []map[netip.Addr]probe.Reached // by caller: how each address was reached
	carried   []map[int]probe.Carried        // by caller: how each host was
	dug       []error                        // why a host has no tunnel
	left      []error                        // why a node did not go on
	findings  finding.Report
}

func newMesh(in Input, looks []looked) *mesh {
	hosts, addresses := slices.Clone(in.Hosts), candidates(in.Hosts)
	for _, n := range in.Neighbours {
		hosts = append(hosts, Host{Wish: spec.Host{Name: n.Name}, Host: n.Host, Member: true, Address: n.Address})
		addresses = append(addresses, []netip.Addr{n.Address})
	}
	n := len(hosts)
	return &mesh{
		cluster: in.Cluster, servers: in.Servers, hosts: hosts, given: len(in.Hosts), looks: looks,
		candidates: addresses, chosen: make([]netip.Addr, n), proven: make([]netip.Addr, n), token: rand.Text(), vni: firstVNI + mathrand.IntN(firstVNI),
		listening: make([]probe.Listening, n), reached: make([]map[netip.Addr]probe.Reached, n),
		carried: make([]map[int]probe.Carried, n), dug: make([]error, n), left: make([]error, n),
	}
}

// run tries, in this order: all listen; all call all; all make a tunnel; all call all through it.
func (m *mesh) run(ctx context.Context) (finding.Report, error) {
	if m.probed() == 0 || m.probed() == 1 && len(m.hosts) == 1 && len(m.servers) == 0 {
		return nil, nil
	}
	if err := m.each(ctx, m.looksAt, m.listen); err != nil {
		return nil, err
	}
	if err := m.each(ctx, m.looksAt, m.reach); err != nil {
		return nil, err
	}
	m.choose()
	m.judgeTCP()
	m.judgeUDP()
	m.judgeMTU()
	if m.cluster.Network.Backend == spec.VXLAN && len(m.hosts) > 1 {
		if err := m.each(ctx, m.tunnels, m.dig); err != nil {
			return nil, err
		}
		if err := m.each(ctx, m.tunnels, m.carry); err != nil {
			return nil, err
		}
		m.judgeTunnels()
	}
	return m.findings, nil
}

func (m *mesh) probed() int {
	n := 0
	for i := range m.looks {
		if m.looksAt(i) {
			n++
		}
	}
	return n
}

func (m *mesh) looksAt(i int) bool { return m.looks[i].seen != nil }

// each has every host that is one of those do something, all at once, and returns when all have.
func (m *mesh) each(ctx context.Context, those func(i int) bool, do func(i int, s *session) error) error {
	faults := make([]error, len(m.hosts))
	var all sync.WaitGroup
	for i, l := range m.looks {
		if those(i) {
			all.Go(func() { faults[i] = fault.At(m.hosts[i].Wish.Name, step, do(i, l.session)) })
		}
	}
	all.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(faults...)
}

// needed are the TCP ports of one node that another calls.
func (m *mesh) needed(from, to Host) []int {
	all := []int{kubeletAPI} // from the API server, and from pods that read metrics
	if to.controlPlane() {
		all = append(all, m.cluster.APIServer.Port)
		if from.controlPlane() {
			all = append(all, etcdClients, etcdPeers)
		}
	}
	return all
}

func (m *mesh) udp() int {
	if m.cluster.Network.Backend == spec.VXLAN {
		return vxlanPort
	}
	return 0
}

func (m *mesh) listen(i int, s *session) error {
	order := probe.Listen{Token: m.token, Host: i, UDP: m.udp()}
	for _, from := range m.hosts[:m.given] {
		for _, port := range m.needed(from, m.hosts[i]) {
			if !slices.Contains(order.TCP, port) {
				order.TCP = append(order.TCP, port)
			}
		}
	}
	r, err := s.ask(probe.Order{Listen: &order})
	if err == nil && r.Listening != nil {
		m.listening[i] = *r.Listening
	}
	return err
}

// taken tells whether somebody else listens on a port of a host.
func (m *mesh) taken(i int, protocol string, port int) bool {
	return slices.Contains(m.listening[i].Taken, probe.Port{Protocol: protocol, Number: port})
}

func (m *mesh) reach(i int, s *session) error {
	order := probe.Reach{Token: m.token, Timeout: reachTime}
	for j, h := range m.hosts[:m.given] {
		if i == j {
			continue
		}
		peer := probe.Peer{Host: j, TCP: m.needed(m.hosts[i], h), UDP: m.udp()}
		for _, port := range peer.TCP {
			if m.looks[j].seen == nil || m.taken(j, "tcp", port) {
				peer.Others = append(peer.Others, port)
			}
		}
		if m.looks[j].seen == nil || m.taken(j, "udp", peer.UDP) {
			peer.UDP = 0
		}
		if m.looks[j].seen == nil && !h.Member { // nobody listens there
			continue
		}
		for _, addr := range m.candidates[j] {
			peer.Addr = addr
			order.To = append(order.To, peer)
		}
	}
	for _, server := range m.servers {
		ports := []int{int(server.Port())}
		if m.hosts[i].controlPlane() {
			ports = append(ports, etcdClients, etcdPeers)
		}
		order.To = append(order.To, probe.Peer{Host: -1, Addr: server.Addr(), TCP: ports, Others: ports})
	}
	r, err := s.ask(probe.Order{Reach: &order})
	m.reached[i] = make(map[netip.Addr]probe.Reached, len(r.Reached))
	for _, one := range r.Reached {
		m.reached[i][one.Addr] = one
	}
	return err
}

// callers are the hosts that called host j.
func (m *mesh) callers(j int) []int {
	var all []int
	for i, l := range m.looks {
		if i != j && l.seen != nil && m.reached[i] != nil {
			all = append(all, i)
		}
	}
	return all
}

func (m *mesh) name(i int) string { return m.hosts[i].Wish.Name }

func (m *mesh) names(numbers []int) string {
	words := make([]string, len(numbers))
	for i, n := range numbers {
		words[i] = m.name(n)
	}
	return strings.Join(words, ", ")
}

func (m *mesh) found(c finding.Code, s finding.Severity, host, object, remedy, format string, args ...any) {
	m.findings = append(m.findings, finding.Finding{Code: c, Severity: s, Host: host, Object: object, Remedy: remedy, Message: fmt.Sprintf(format, args...)})
}

// judgeTCP tells of each host which of its ports do not answer, and whom.
func (m *mesh) judgeTCP() {
	for j, h := range m.hosts[:m.given] {
		from := map[probe.Blocked][]int{}
		for _, i := range m.callers(j) {
			for _, b := range m.reached[i][m.chosen[j]].Blocked {
				if b.Refused && m.looks[j].seen == nil {
					continue // a node's component that does not run: the way there is free
				}
				from[b] = append(from[b], i)
			}
		}
		for _, b := range slices.SortedFunc(maps.Keys(from), func(a, b probe.Blocked) int { return cmp.Or(a.Port-b.Port, cmp.Compare(a.Why, b.Why)) }) {
			m.found(finding.TCPBlocked, finding.Error, h.Wish.Name, m.names(from[b]),
				fmt.Sprintf("on %s: ufw allow %d/tcp, or nft insert rule inet filter input tcp dport %d accept", h.Wish.Name, b.Port, b.Port),
				"TCP port %d of %s cannot be reached from %s: %s", b.Port, at(h, m.chosen[j]), m.names(from[b]), b.Why)
		}
	}
	for i := range m.hosts {
		m.judgeServers(i)
	}
}

// judgeServers tells which control-plane hosts of its cluster a host does not reach. That
// one of them is dead is no reason not to join the others.
func (m *mesh) judgeServers(i int) {
	if m.reached[i] == nil {
		return
	}
	severity := finding.Error
	for _, s := range m.servers {
		if len(m.reached[i][s.Addr()].Blocked) == 0 {
			severity = finding.Warning
		}
	}
	for _, s := range m.servers {
		for _, b := range m.reached[i][s.Addr()].Blocked {
			m.found(finding.TCPBlocked, severity, m.name(i), netip.AddrPortFrom(s.Addr(), uint16(b.Port)).String(),
				fmt.Sprintf("on that control-plane host: ufw allow from %s to any port %d proto tcp; if it is dead, bring it back, or take it out with `kubewright remove HOST --force`", m.chosen[i], b.Port),
				"it does not reach TCP port %d of the cluster's control-plane host %s: %s", b.Port, s.Addr(), b.Why)
		}
	}
}

// judgeUDP tells of each host whose datagrams did not reach it, or were not answered.
func (m *mesh) judgeUDP() {
	if m.udp() == 0 {
		return
	}
	for j, h := range m.hosts[:m.given] {
		var from []int
		for _, i := range m.callers(j) {
			if m.looks[j].seen != nil && !m.taken(j, "udp", vxlanPort) && !m.reached[i][m.chosen[j]].UDP {
				from = append(from, i)
			}
		}
		if len(from) > 0 {
			m.found(finding.UDPBlocked, finding.Error, h.Wish.Name, m.names(from),
				fmt.Sprintf("on %s: ufw allow 8472/udp, or nft insert rule inet filter input udp dport %d accept", h.Wish.Name, vxlanPort),
				"UDP port %d of %s does not get what %s sends", vxlanPort, at(h, m.chosen[j]), m.names(from))
		}
	}
}

func at(h Host, a netip.Addr) string {
	if a.IsValid() && a.String() != h.Wish.Name {
		return h.Wish.Name + " (" + a.String() + ")"
	}
	return h.Wish.Name
}

// judgeMTU compares what arrives with what the interfaces allow, and says what pods get.
func (m *mesh) judgeMTU() {
	cost := 0
	if m.cluster.Network.Backend == spec.VXLAN {
		cost = overhead
	}
	got := map[int][]int{} // hosts by their pods' MTU
	for i, h := range m.hosts {
		iface := h.interfaceOf(m.chosen[i])
		if iface.Name == "" || m.looks[i].seen == nil {
			continue
		}
		got[iface.MTU-cost] = append(got[iface.MTU-cost], i)
		if iface.MTU < leastMTU {
			m.found(finding.MTUTooSmall, finding.Warning, h.Wish.Name, iface.Name, "ip link set dev "+iface.Name+" mtu 1500",
				"the MTU of %s is %d, pods get %d: many programs need %d", iface.Name, iface.MTU, iface.MTU-cost, leastMTU)
		}
		least, to := iface.MTU, []int(nil)
		for j := range m.hosts {
			r := m.reached[i][m.chosen[j]]
			if i == j || !r.UDP || r.MTU >= r.Whole {
				continue
			}
			least, to = min(least, r.MTU), append(to, j)
		}
		if len(to) > 0 {
			m.found(finding.PathMTU, finding.Error, h.Wish.Name, m.names(to),
				fmt.Sprintf("on %s: ip link set dev %s mtu %d, and the same in its network configuration", h.Wish.Name, iface.Name, least),
				"packets of more than %d bytes do not arrive at %s, though %s has an MTU of %d", least, m.names(to), iface.Name, iface.MTU)
		}
	}
	for _, mtu := range slices.Sorted(maps.Keys(got)) {
		whose := "pods of all hosts"
		if len(got) > 1 {
			whose = "pods of " + m.names(got[mtu])
		}
		reason := "that of the interface"
		if cost > 0 {
			reason = fmt.Sprintf("%d of the interface less %d of VXLAN", mtu+cost, cost)
		}
		m.found(finding.MTUChosen, finding.Note, "", "", "", "%s get an MTU of %d: %s", whose, mtu, reason)
	}
}

// tunnels tells whether a host takes part in the tunnel: not if something else is
// wrong there that was told already.
func (m *mesh) tunnels(i int) bool {
	if m.looks[i].session == nil || !m.chosen[i].IsValid() {
		return false
	}
	if m.hosts[i].Member {
		return true
	}
	if m.looks[i].seen == nil {
		return false
	}
	lacks := slices.ContainsFunc(m.looks[i].seen.Missing, func(f probe.Missing) bool { return f.Feature == "vxlan" })
	foreign := slices.ContainsFunc(m.looks[i].seen.Uses, func(u probe.Use) bool { return u.Protocol == "udp" && u.Number == vxlanPort && u.PID > 0 })
	return !lacks && !foreign
}

func (m *mesh) dig(i int, s *session) error {
	order := probe.Tunnel{Host: i, Addr: m.chosen[i], VNI: m.vni, Port: vxlanPort}
	for j := range m.hosts {
		if i != j && m.tunnels(j) {
			order.Peers = append(order.Peers, probe.Outer{Host: j, Addr: m.chosen[j]})
		}
	}
	_, err := s.ask(probe.Order{Tunnel: &order})
	var refused *refusal
	if errors.As(err, &refused) || m.hosts[i].Member {
		m.dug[i] = err
		return nil
	}
	return err
}

// carry calls the hosts that plain UDP connects with this one, both ways.
func (m *mesh) carry(i int, s *session) error {
	order := probe.Carry{Timeout: carryTime}
	for j := range m.hosts {
		if m.tries(i, j) {
			order.To = append(order.To, j)
			if m.hosts[i].Member || m.hosts[j].Member {
				order.Timeout = nodeCarryTime
			}
		}
	}
	if len(order.To) == 0 {
		return nil
	}
	r, err := s.ask(probe.Order{Carry: &order})
	if err != nil && m.hosts[i].Member {
		m.left[i] = err
		return nil
	}
	m.carried[i] = make(map[int]probe.Carried, len(r.Carried))
	for _, one := range r.Carried {
		m.carried[i][one.Host] = one
	}
	return err
}

func (m *mesh) tries(i, j int) bool {
	if i == j || !m.tunnels(i) || !m.tunnels(j) || m.dug[i] != nil || m.dug[j] != nil {
		return false
	}
	if m.hosts[i].Member || m.hosts[j].Member {
		return m.hosts[i].Member != m.hosts[j].Member && m.certain(i) && m.certain(j)
	}
	return m.connected(i, j) && m.connected(j, i)
}

// certain tells whether a host will have the address that was chosen for it: where none was proven, and SSH uses none, it
// may be another.
func (m *mesh) certain(i int) bool {
	return len(m.candidates[i]) == 1 || m.proven[i].IsValid() || m.chosen[i] == m.hosts[i].Reached
}

// connected tells whether UDP goes from i to j in packets of any size, as far as
// that was tried: else what goes wrong in the tunnel is no news.
func (m *mesh) connected(i, j int) bool {
	r := m.reached[i][m.chosen[j]]
	return m.taken(j, "udp", vxlanPort) || r.UDP && r.MTU >= r.Whole
}

// judgeTunnels names the hosts without which no pair would be broken: of those
// that are in most broken pairs, each is told with its pairs.
func (m *mesh) judgeTunnels() {
	for i := range m.hosts {
		switch err := cmp.Or(m.dug[i], m.left[i]); {
		case err != nil && m.hosts[i].Member:
			m.findings = append(m.findings, untried(m.name(i), err))
		case err != nil:
			remedy := "modprobe vxlan"
			if m.hosts[i].interfaceOf(m.chosen[i]).Name == "" {
				remedy = fmt.Sprintf("the host has no address %s: name one that it has with --address, or `address:` in the cluster file", m.chosen[i])
			}
			m.found(finding.VXLANBlocked, finding.Error, m.name(i), "", remedy, "it cannot be tried whether VXLAN reaches it: %v", err)
		}
	}
	frames, tcp := m.broken(func(c probe.Carried) bool { return !c.Frames }), m.broken(func(c probe.Carried) bool { return c.Frames && !c.TCP })
	withNode := func(p pair) bool { return m.hosts[p[0]].Member || m.hosts[p[1]].Member }
	for _, b := range cover(slices.DeleteFunc(slices.Clone(frames), withNode)) {
		m.found(finding.VXLANBlocked, finding.Error, m.name(b.host), m.names(b.with), "use `network: {backend: host-gw}`, if all hosts are in one layer-2 network",
			"VXLAN frames (UDP port %d) do not pass between %s and %s, plain UDP does", vxlanPort, at(m.hosts[b.host], m.chosen[b.host]), m.names(b.with))
	}
	// Plain UDP is not tried to nodes: the kernel has the port.
	for _, b := range cover(slices.DeleteFunc(frames, func(p pair) bool { return !withNode(p) })) {
		m.found(finding.VXLANBlocked, finding.Error, m.name(b.host), m.names(b.with),
			fmt.Sprintf("on both: ufw allow %d/udp, or nft insert rule inet filter input udp dport %d accept", vxlanPort, vxlanPort),
			"VXLAN frames (UDP port %d) do not pass between %s and %s, of which one is a node already", vxlanPort, at(m.hosts[b.host], m.chosen[b.host]), m.names(b.with))
	}
	for _, b := range cover(tcp) {
		h := m.hosts[b.host]
		m.found(finding.VXLANTCPBroken, finding.Error, h.Wish.Name, m.names(b.with),
			fmt.Sprintf("on %s: ethtool -K %s tx-checksum-ip-generic off", h.Wish.Name, cmp.Or(h.interfaceOf(m.chosen[b.host]).Name, "DEV")),
			"TCP inside VXLAN fails between %s and %s, though frames arrive", at(h, m.chosen[b.host]), m.names(b.with))
	}
}

// pair is two hosts, the one with the smaller number first.
type pair [2]int

func (m *mesh) broken(is func(probe.Carried) bool) []pair {
	var all []pair
	for i := range m.hosts {
		for j := range m.hosts {
			if c, tried := m.carried[i][j]; tried && is(c) && m.left[j] == nil && !slices.Contains(all, pair{min(i, j), max(i, j)}) {
				all = append(all, pair{min(i, j), max(i, j)})
			}
		}
	}
	return all
}

// breakage is a host with those that it is in a broken pair with.
type breakage struct {
	host int
	with []int
}

// cover takes the host of most pairs, then of those that remain, until none is left.
func cover(pairs []pair) []breakage {
	var all []breakage
	for len(pairs) > 0 {
		count := map[int]int{}
		for _, p := range pairs {
			count[p[0]]++
			count[p[1]]++
		}
		worst := slices.MaxFunc(slices.Sorted(maps.Keys(count)), func(a, b int) int { return count[a] - count[b] })
		b := breakage{host: worst}
		pairs = slices.DeleteFunc(pairs, func(p pair) bool {
			if p[0] != worst && p[1] != worst {
				return false
			}
			b.with = append(b.with, p[0]+p[1]-worst)
			return true
		})
		all = append(all, b)
	}
	return all
}
