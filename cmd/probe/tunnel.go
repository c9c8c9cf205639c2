package main

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/kubewright/kubewright/bootstrap/probe"
)

// tunnel is a VXLAN device in a network namespace of its own, whose frames go
// through the host's. It is in no file system and on no list: the namespace
// ends with the process, and the device with the namespace.
type tunnel struct {
	ns       netns.NsHandle
	listener net.Listener
}

const (
	device    = "kwprobe"
	innerPort = 7
	overhead  = 50 // of VXLAN, bytes
)

// inner is a host's link-local address inside the tunnel, and mac its hardware address.
func inner(host int) netip.Addr {
	return netip.AddrFrom4([4]byte{169, 254, byte(1 + host/250), byte(1 + host%250)})
}

func mac(host int) net.HardwareAddr {
	return net.HardwareAddr{0x02, 'k', 'w', 0, byte(host >> 8), byte(host)}
}

// dig makes the tunnel, its neighbours and its listener.
func (h *here) dig(o probe.Tunnel) (err error) {
	if h.udp != nil { // the device listens there now
		h.udp.Close() //nolint:errcheck // nothing is left to be sent
		h.udp = nil
	}
	below, err := interfaceWith(o.Addr)
	if err != nil {
		return err
	}
	t := &tunnel{}
	if t.ns, err = namespace(); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	h.tunnel = t
	if err := netlink.LinkAdd(&netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{
			Name: device, Namespace: netlink.NsFd(int(t.ns)), HardwareAddr: mac(o.Host), MTU: below.MTU - overhead,
		},
		VxlanId: o.VNI, Port: o.Port, VtepDevIndex: below.Index, SrcAddr: o.Addr.AsSlice(), Learning: false,
	}); err != nil {
		return fmt.Errorf("make a VXLAN device: %w", err)
	}
	if err := t.furnish(o); err != nil {
		return err
	}
	return t.inside(func() error {
		at := netip.AddrPortFrom(inner(o.Host), innerPort)
		t.listener, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at))
		if err != nil {
			return fmt.Errorf("listen in the tunnel: %w", err)
		}
		go echo(t.listener)
		return nil
	})
}

// furnish gives the device its address, and tells it where its peers are: nobody has to be asked.
func (t *tunnel) furnish(o probe.Tunnel) error {
	in, err := netlink.NewHandleAt(t.ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("enter the tunnel's namespace: %w", err)
	}
	defer in.Close()
	link, err := in.LinkByName(device)
	if err != nil {
		return fmt.Errorf("find the VXLAN device: %w", err)
	}
	own := &net.IPNet{IP: inner(o.Host).AsSlice(), Mask: net.CIDRMask(16, 32)}
	if err := errors.Join(in.AddrAdd(link, &netlink.Addr{IPNet: own}), in.LinkSetUp(link)); err != nil {
		return fmt.Errorf("set up the VXLAN device: %w", err)
	}
	for _, p := range o.Peers {
		index := link.Attrs().Index
		if err := errors.Join(
			in.NeighSet(&netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF,
				HardwareAddr: mac(p.Host), IP: p.Addr.AsSlice()}),
			in.NeighSet(&netlink.Neigh{LinkIndex: index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
				HardwareAddr: mac(p.Host), IP: inner(p.Host).AsSlice()}),
		); err != nil {
			return fmt.Errorf("neighbour %s of the VXLAN device: %w", p.Addr, err)
		}
	}
	return nil
}

// close takes the device away itself: with the namespace alone it would go a moment
// later, and hold the port until then, which the next preflight would find taken.
func (t *tunnel) close() {
	if t.listener != nil {
		t.listener.Close() //nolint:errcheck // it ends with the namespace
	}
	if in, err := netlink.NewHandleAt(t.ns, unix.NETLINK_ROUTE); err == nil {
		if link, err := in.LinkByName(device); err == nil {
			in.LinkDel(link) //nolint:errcheck // it ends with the namespace
		}
		in.Close()
	}
	t.ns.Close() //nolint:errcheck // likewise
}

// namespace makes a network namespace that is kept by its handle alone.
func namespace() (netns.NsHandle, error) {
	own := netns.None()
	err := apart(unix.CLONE_NEWNET, func() (err error) {
		own, err = netns.Get()
		return err
	})
	return own, err
}

// inside runs f on a thread in the tunnel's namespace. A socket stays in the
// namespace that it was made in.
func (t *tunnel) inside(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := netns.Set(t.ns); err != nil {
			result <- fmt.Errorf("enter the tunnel's namespace: %w", err)
			return
		}
		result <- f()
	}()
	return <-result
}

func interfaceWith(addr netip.Addr) (*net.Interface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		addrs, err := i.Addrs()
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr() == addr {
				return &i, nil
			}
		}
	}
	return nil, fmt.Errorf("no interface has the address %s", addr)
}

// echo sends back what it is sent.
func echo(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return // it was closed
		}
		go func() {
			defer conn.Close()                             //nolint:errcheck // the caller sees it
			conn.SetDeadline(time.Now().Add(transferTime)) //nolint:errcheck // the next call fails too
			io.Copy(conn, conn)                            //nolint:errcheck // the caller misses it
		}()
	}
}

const (
	transferTime = 5 * time.Second // at most
	transfer     = 64 << 10        // bytes each way: tens of segments of full size
)

func (t *tunnel) carry(o probe.Carry) []probe.Carried {
	all := make([]probe.Carried, len(o.To))
	slots := make(chan struct{}, callers)
	var done sync.WaitGroup
	for i, host := range o.To {
		c := &all[i]
		c.Host = host
		done.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			c.TCP = t.transfer(host, o.Timeout) == nil
		})
		done.Go(func() { c.Frames = t.ping(host, o.Timeout) == nil })
	}
	done.Wait()
	for i := range all { // what carries TCP carries frames, should the one ping have been lost
		all[i].Frames = all[i].Frames || all[i].TCP
	}
	return all
}

// transfer sends data to a host and wants it back.
func (t *tunnel) transfer(host int, timeout time.Duration) error {
	to := netip.AddrPortFrom(inner(host), innerPort)
	deadline := time.Now().Add(timeout)
	var conn net.Conn
	err := t.inside(func() (err error) {
		conn, err = (&net.Dialer{Deadline: deadline}).Dial("tcp4", to.String())
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // all was read
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	sent, got := make([]byte, transfer), make([]byte, transfer)
	rand.Read(sent)
	go conn.Write(sent) //nolint:errcheck // what is missing is not read back
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if !bytes.Equal(sent, got) {
		return errors.New("what came back is not what was sent")
	}
	return nil
}

const (
	echoRequest = 8 // ICMP types
	echoReply   = 0
	icmpHeader  = 8
)

// ping sends an echo request, whose checksum is computed here and never left to
// a network card, and waits for the reply.
func (t *tunnel) ping(host int, timeout time.Duration) error {
	var conn net.PacketConn
	err := t.inside(func() (err error) {
		conn, err = net.ListenPacket("ip4:icmp", "0.0.0.0")
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is left to be sent
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	request := make([]byte, icmpHeader)
	request[0] = echoRequest
	rand.Read(request[4:])
	binary.BigEndian.PutUint16(request[2:], checksum(request))
	if _, err := conn.WriteTo(request, &net.IPAddr{IP: inner(host).AsSlice()}); err != nil {
		return err
	}
	reply := make([]byte, maxPacket)
	for {
		n, _, err := conn.ReadFrom(reply)
		if err != nil {
			return err
		}
		if n == icmpHeader && reply[0] == echoReply && bytes.Equal(reply[4:n], request[4:]) {
			return nil
		}
	}
}

// checksum is the Internet's, of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	sum = sum>>16 + sum&0xffff
	return ^uint16(sum + sum>>16)
}
