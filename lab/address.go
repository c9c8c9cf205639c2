package lab

import (
	"crypto/sha256"
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

const (
	rangeBits  = 15 // of labRange
	subnetBits = 24 // of one lab
	gatewayAt  = 1  // the outer machine in a lab's subnet
	firstHost  = 11 // the first host in it
)

// labRange is reserved for benchmarks of networks (RFC 2544): nothing on the
// internet or in a company's network has such an address.
func labRange() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, 0, 0}), rangeBits)
}

// allocate returns the /24 for a lab: one that depends on its name alone if that
// is free, so that a lab made anew has its old addresses, or else the next one
// that overlaps no prefix in taken.
func allocate(lab string, taken []netip.Prefix) (netip.Prefix, error) {
	const count = 1 << (subnetBits - rangeBits)
	base := labRange().Addr().As4()
	sum := sha256.Sum256([]byte(lab))
	start := binary.BigEndian.Uint32(sum[:4])
next:
	for i := range uint32(count) {
		n := (start + i) % count
		subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{base[0], base[1] + byte(n>>8), byte(n), 0}), subnetBits)
		for _, p := range taken {
			if p.Overlaps(subnet) {
				continue next
			}
		}
		return subnet, nil
	}
	return netip.Prefix{}, fault.New(fault.HostUnsuitable, "destroy labs that are not needed: kubewright lab list",
		"allocate a network: all of %s is in use", labRange())
}

// at returns the nth address of a /24.
func at(subnet netip.Prefix, n int) netip.Addr {
	b := subnet.Addr().As4()
	b[3] = byte(n)
	return netip.AddrFrom4(b)
}

// hardware returns the MAC address that goes with an address of a lab. A host
// keeps it over a restart, so its neighbours' caches stay true.
func hardware(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 'k', b[0], b[1], b[2], b[3]} // 02: locally administered
}
