package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kubewright/kubewright/bootstrap/probe"
)

// greeting is the line that a listener answers every connection with.
func greeting(token string, host int) string {
	return fmt.Sprintf("kubewright-probe %s %d\n", token, host)
}

func (h *here) listen(o probe.Listen) (*probe.Listening, error) {
	var l probe.Listening
	for _, port := range o.TCP {
		listener, err := net.ListenTCP("tcp4", &net.TCPAddr{Port: port})
		if errors.Is(err, syscall.EADDRINUSE) {
			l.Taken = append(l.Taken, probe.Port{Protocol: "tcp", Number: port})
			continue
		}
		if err != nil {
			return nil, err
		}
		h.listeners = append(h.listeners, listener)
		go greet(listener, greeting(o.Token, o.Host))
	}
	if o.UDP == 0 {
		return &l, nil
	}
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{Port: o.UDP})
	if errors.Is(err, syscall.EADDRINUSE) {
		l.Taken = append(l.Taken, probe.Port{Protocol: "udp", Number: o.UDP})
		return &l, nil
	}
	if err != nil {
		return nil, err
	}
	h.udp = conn
	go acknowledge(conn, o.Token)
	return &l, nil
}

func greet(l net.Listener, line string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return // it was closed
		}
		go func() {
			conn.SetDeadline(time.Now().Add(time.Second)) //nolint:errcheck // the next call fails too
			conn.Write([]byte(line))                      //nolint:errcheck // the caller misses it
			conn.Close()                                  //nolint:errcheck // likewise
		}()
	}
}

// acknowledge answers each datagram that begins with the token by the token and
// its size: never with more than was sent.
func acknowledge(conn *net.UDPConn, token string) {
	buffer := make([]byte, maxPacket)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return // it was closed
		}
		if n < len(token)+sizeField || string(buffer[:len(token)]) != token {
			continue
		}
		conn.WriteToUDPAddrPort(binary.BigEndian.AppendUint16([]byte(token), uint16(n)), from) //nolint:errcheck // the caller misses it
	}
}

const (
	maxPacket  = 64 << 10
	sizeField  = 2
	udpHeaders = 28  // of IPv4 and UDP, bytes
	leastMTU   = 576 // what IPv4 promises
	fineStep   = 4   // how exactly a path's MTU is found
	coarseStep = 64  // how many datagrams it takes: 15 of one step and 15 of the other, up to 1500
	settle     = 150 * time.Millisecond
)

// callers bounds what is under way at once.
const callers = 64

func reach(o probe.Reach) []probe.Reached {
	all := make([]probe.Reached, len(o.To))
	slots := make(chan struct{}, callers)
	var done sync.WaitGroup
	for i, peer := range o.To {
		r := &all[i]
		r.Host, r.Addr, r.Called = peer.Host, peer.Addr, len(peer.TCP)
		var mu sync.Mutex
		for _, port := range peer.TCP {
			done.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				want := greeting(o.Token, peer.Host)
				if slices.Contains(peer.Others, port) {
					want = ""
				}
				if err := call(netip.AddrPortFrom(peer.Addr, uint16(port)), want, o.Timeout); err != nil {
					mu.Lock()
					defer mu.Unlock()
					r.Blocked = append(r.Blocked, probe.Blocked{Port: port, Why: why(err), Refused: errors.Is(err, syscall.ECONNREFUSED)})
				}
			})
		}
		if peer.UDP != 0 {
			done.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				r.MTU, r.Whole = pathMTU(netip.AddrPortFrom(peer.Addr, uint16(peer.UDP)), o.Token, o.Timeout)
				r.UDP = r.MTU > 0
			})
		}
	}
	done.Wait()
	for i := range all {
		slices.SortFunc(all[i].Blocked, func(a, b probe.Blocked) int { return a.Port - b.Port })
	}
	return all
}

var errStranger = errors.New("somebody else answers there")

// call connects and, if want is not "", reads the line that proves who listens.
func call(to netip.AddrPort, want string, timeout time.Duration) error {
	conn, err := net.DialTimeout("tcp4", to.String(), timeout)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // all was read
	if want == "" {
		return nil
	}
	conn.SetDeadline(time.Now().Add(timeout)) //nolint:errcheck // the next call fails too
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && line != want {
		err = errStranger
	}
	return err
}

// why is the error without the words that the caller says better.
func why(err error) string {
	var timeout net.Error
	var errno syscall.Errno
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return "no answer"
	case errors.As(err, &errno):
		return strings.ToLower(errno.Error())
	default:
		return err.Error()
	}
}

// pathMTU finds the largest packet that is acknowledged, without fragments, up to
// the whole MTU of the interface that leads there; 0 if none is. Only where the
// largest does not arrive, others are sent: coarsely, then finely, each step all at once.
func pathMTU(to netip.AddrPort, token string, timeout time.Duration) (best, whole int) {
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return 0, 0
	}
	defer conn.Close() //nolint:errcheck // nothing is left to be sent
	via, err := interfaceWith(conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap())
	if err != nil {
		return 0, 0
	}
	if err := dontFragment(conn); err != nil {
		return 0, 0
	}
	largest := min(via.MTU, maxPacket-1)
	u := datagrams{conn, token}
	const resend = 200 * time.Millisecond
	for deadline := time.Now().Add(timeout); best == 0 && time.Now().Before(deadline); {
		best = u.largest([]int{leastMTU, largest}, resend)
	}
	for range 2 { // it may have been lost by chance
		if best > 0 && best < largest {
			best = max(best, u.largest([]int{largest}, settle))
		}
	}
	if best == 0 || best == largest {
		return best, largest
	}
	for _, step := range []int{coarseStep, fineStep} {
		top := min(largest, best+16*step)
		if step == coarseStep {
			top = largest
		}
		var sizes []int
		for size := best; size <= top && len(sizes) < callers; size += step {
			sizes = append(sizes, size)
		}
		best = max(best, u.largest(append(sizes, top), settle))
	}
	return best, largest
}

type datagrams struct {
	conn  *net.UDPConn
	token string
}

// largest sends a packet of each size and returns the largest that was
// acknowledged within a time, which it does not wait out if all were.
func (u datagrams) largest(sizes []int, within time.Duration) int {
	most := slices.Max(sizes)
	for _, size := range sizes {
		payload := make([]byte, max(size-udpHeaders, len(u.token)+sizeField))
		copy(payload, u.token)
		u.conn.Write(payload) //nolint:errcheck // too large for this host: it is not acknowledged
	}
	best := 0
	u.conn.SetReadDeadline(time.Now().Add(within)) //nolint:errcheck // the next call fails too
	reply := make([]byte, maxPacket)
	for best < most {
		n, err := u.conn.Read(reply)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			return best
		}
		if err != nil { // refused: asked again until the time is over
			time.Sleep(time.Millisecond)
			continue
		}
		if n == len(u.token)+sizeField && string(reply[:len(u.token)]) == u.token {
			best = max(best, int(binary.BigEndian.Uint16(reply[len(u.token):]))+udpHeaders)
		}
	}
	return best
}

// dontFragment has packets dropped on the way rather than cut, also where the
// kernel believes to know the path already.
func dontFragment(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	})
	return errors.Join(err, failed)
}
