package overlay

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// nftTable is the name of our table, in family ip. Nothing else is in it.
const nftTable = "kubewright-overlay"

// multicast is never masqueraded: its answers, if any, do not come back by the way it went.
var multicast = netip.MustParsePrefix("224.0.0.0/4")

// side is an address of a packet, by its offset in the IPv4 header.
type side uint32

const (
	source      side = 12
	destination side = 16
)

// match holds for packets with an address in a range, or outside it.
type match struct {
	Side    side
	Outside bool
	Range   netip.Prefix
}

// rule masquerades the packets for which every match holds.
type rule []match

// rules are those of a node. pods is the cluster's pod range, own the node's.
//
// What leaves the pod network for anything that is not a pod, nodes included,
// takes the node's address: nothing outside the pod network, and no host-gw
// node's router, needs to know pods. Pods see each other's true addresses.
//
// What comes into the pod network through this node for a pod of another one
// takes this node's address too, so that its answer comes back through here and
// not past it. For a pod of this node the true source is kept, which
// externalTrafficPolicy: Local promises.
//
// There is no rule that accepts forwarded packets: one in a table of our own
// cannot overrule a drop in another's.
func rules(pods, own netip.Prefix) []rule {
	return []rule{
		{{source, false, pods}, {destination, true, pods}, {destination, true, multicast}},
		{{source, true, pods}, {destination, false, pods}, {destination, true, own}},
	}
}

// exprs loads the address, masks it, and compares.
func (m match) exprs() []expr.Any {
	mask := make([]byte, 4)
	for bit := range m.Range.Bits() {
		mask[bit/8] |= 0x80 >> (bit % 8)
	}
	op := expr.CmpOpEq
	if m.Outside {
		op = expr.CmpOpNeq
	}
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: uint32(m.Side), Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: binaryutil.NativeEndian.PutUint32(0)},
		&expr.Cmp{Register: 1, Op: op, Data: m.Range.Masked().Addr().AsSlice()},
	}
}

func (r rule) exprs() []expr.Any {
	var all []expr.Any
	for _, m := range r {
		all = append(all, m.exprs()...)
	}
	// Source ports at random, or two pods' DNS queries can race for one.
	return append(all, &expr.Counter{}, &expr.Masq{FullyRandom: true})
}

// masquerade replaces our table by the rules for these ranges, in one transaction.
// Connections that are masqueraded already stay so.
func masquerade(pods, own netip.Prefix) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables table %s: %w", nftTable, err)
	}
	table := &nftables.Table{Name: nftTable, Family: nftables.TableFamilyIPv4}
	conn.AddTable(table) // so that there is one to delete
	conn.DelTable(table)
	conn.AddTable(table)
	chain := conn.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	for _, r := range rules(pods, own) {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: r.exprs()})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables table %s: %w", nftTable, err)
	}
	return nil
}
