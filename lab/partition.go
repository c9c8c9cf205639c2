package lab

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// Everyone as the second name of a Partition means all other hosts.
const Everyone = "*"

// partition is two hosts that do not hear each other. B may be Everyone.
type partition struct {
	A string `json:"a"`
	B string `json:"b"`
}

// Partition drops every frame between two hosts, in both directions, from now
// on and over their restarts; b may be Everyone. The outer machine still
// reaches both. Partitions add up; one that is there already is no error.
func (l *Lab) Partition(ctx context.Context, a, b string) error {
	return l.change(ctx, func() error {
		for _, name := range []string{a, b} {
			if _, ok := l.state.host(name); !ok && (name != Everyone || name == a) {
				return l.noHost(name)
			}
		}
		if a == b {
			return fault.New(fault.Usage, "", "lab %s: a host cannot be parted from itself", l.state.Name)
		}
		p := partition{a, b}
		if slices.Contains(l.state.Partitions, p) {
			return nil
		}
		if err := l.update(func(s *state) { s.Partitions = append(s.Partitions, p) }); err != nil {
			return err
		}
		return l.applyPartitions()
	})
}

// Heal ends all partitions of the lab.
func (l *Lab) Heal(ctx context.Context) error {
	return l.change(ctx, func() error {
		if err := l.update(func(s *state) { s.Partitions = nil }); err != nil {
			return err
		}
		return l.applyPartitions()
	})
}

// reached tells whether the outer machine reaches a host without going through another.
func (s *state) reached(h *hostState) bool {
	return !s.Options.Bastion || h.Number == s.Hosts[0].Number
}

func (l *Lab) applyPartitions() error {
	if !l.state.Switch.alive() {
		return nil // it is made with them
	}
	if err := l.nft(switchRules(l.state)); err != nil {
		return fmt.Errorf("set rules of the switch: %w", err)
	}
	return nil
}

// switchRules is the whole rule set of a lab's switch. nft replaces the old one
// by it in one transaction.
func switchRules(s *state) string {
	var b strings.Builder
	rule := func(format string, args ...any) { fmt.Fprintf(&b, "\t\t"+format+"\n", args...) }
	b.WriteString("table bridge lab\ndelete table bridge lab\ntable bridge lab {\n\tchain forward {\n")
	rule("type filter hook forward priority 0; policy accept;")
	// The uplink carries packets from and to the gateway's own address, and ARP.
	for _, side := range []struct{ name, address string }{{"iifname", "saddr"}, {"oifname", "daddr"}} {
		rule("%s %q ether type != { ip, arp } drop", side.name, uplinkPort)
		rule("%s %q ether type ip ip %s != %s drop", side.name, uplinkPort, side.address, s.gateway())
	}
	if s.Options.Bastion {
		rule("iifname %q oifname != %q drop", uplinkPort, portName(&s.Hosts[0]))
		rule("iifname != %q oifname %q drop", portName(&s.Hosts[0]), uplinkPort)
	}
	for _, p := range s.Partitions {
		a, ok := s.host(p.A)
		if !ok {
			continue
		}
		if p.B == Everyone {
			rule("iifname %q oifname != %q drop", portName(a), uplinkPort)
			rule("iifname != %q oifname %q drop", uplinkPort, portName(a))
		} else if b, ok := s.host(p.B); ok {
			rule("iifname %q oifname %q drop", portName(a), portName(b))
			rule("iifname %q oifname %q drop", portName(b), portName(a))
		}
	}
	b.WriteString("\t}\n}\n")
	return b.String()
}
