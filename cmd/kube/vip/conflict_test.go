package vip

import (
	"net"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mdlayher/arp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const foreignMAC = "02:00:00:00:00:09"

// TestTaken has another machine have the address, and let it go at last.
func TestTaken(t *testing.T) {
	if !inNetns(t) {
		return
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		other := b.foreign(foreignMAC)
		stop := b.start("a")
		stopB := b.start("b")
		b.nobody(time.Minute)
		holder := b.holder()
		if holder == "" {
			t.Error("the lease is nobody's")
		}
		b.tells(1, "another machine has the virtual IP: this host does not take it", foreignMAC, "address=192.0.2.9")
		if n := int(other.asked.Load()); n > 10+60/5+1 { // every retry at first, then every askAgain
			t.Errorf("it was asked %d times in a minute", n)
		}
		other.has.Store(false)
		b.within(quiet+2*askAgain, holder)
		b.must(stop())
		b.must(stopB())
	})
}

// TestFailoverElsewhere has the address move within another cluster: for a while it is nobody's.
func TestFailoverElsewhere(t *testing.T) {
	if !inNetns(t) {
		return
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		first, second := b.foreign(foreignMAC), b.foreign("02:00:00:00:00:0a")
		second.has.Store(false)
		stop := b.start("a")
		b.nobody(time.Minute)
		for range 5 {
			first.has.Store(false)
			b.nobody(9 * time.Second)
			second.has.Store(true)
			second.announce()
			b.nobody(time.Minute)
			first, second = second, first
		}
		b.must(stop())
	})
}

// TestPreviousHolder has a holder of the same cluster whose time is not over: the Lease was deleted.
func TestPreviousHolder(t *testing.T) {
	if !inNetns(t) {
		return
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		previous := b.foreign(foreignMAC)
		stop := b.start("a")
		b.nobody(lease - time.Second)
		previous.has.Store(false)
		b.within(retry+askTime, "a")
		b.must(stop())
	})
}

// TestDefended has another machine take the address while a host has it.
func TestDefended(t *testing.T) {
	if !inNetns(t) {
		return
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		other := b.foreign(foreignMAC)
		other.has.Store(false)
		stop := b.start("a")
		time.Sleep(time.Minute)
		b.within(0, "a")

		before := other.heard.Load()
		other.announce()
		synctest.Wait()
		if other.heard.Load() == before {
			t.Error("the holder does not defend the address")
		}
		const claims = "another machine has the virtual IP as well"
		b.tells(1, claims, foreignMAC)
		before = other.heard.Load()
		for range 600 {
			other.announce()
			time.Sleep(100 * time.Millisecond)
		}
		b.within(0, "a")
		if n := other.heard.Load() - before; n > 2*7 { // a request and an answer every 10 s
			t.Errorf("it defended itself %d times in a minute", n)
		}
		time.Sleep(quiet + retry)
		b.tells(1, "no other machine claims the address any more", foreignMAC)

		other.has.Store(true) // and says so only if it is asked
		time.Sleep(askEachOther * retry)
		b.tells(2, claims, foreignMAC)
		b.within(0, "a")

		// Who has lost the lease leaves it to the other.
		b.cut("a", true)
		b.within(lease, "")
		b.cut("a", false)
		b.nobody(time.Minute)
		b.must(stop())
	})
}

// TestKernelAnswers asks the kernel of another host, by real packets.
func TestKernelAnswers(t *testing.T) {
	if !inNetns(t) {
		return
	}
	b := newBench(t)
	place, err := findPlace("a", b.address, arp.Dial)
	b.must(err)
	neighbours, err := place.meet()
	b.must(err)
	owner := func(want net.HardwareAddr) {
		t.Helper()
		if got, err := neighbours.owner(t.Context()); err != nil || !slices.Equal(got, want) {
			t.Errorf("%v has it, %v; want %v", got, err, want)
		}
	}
	owner(nil)
	virtual, err := netlink.ParseAddr("192.0.2.9/32")
	b.must(err)
	b.must(netlink.AddrAdd(b.link("b"), virtual))
	owner(nil) // b is this host's own

	hardware := b.link("b").Attrs().HardwareAddr
	elsewhere := b.move("b")
	there, err := elsewhere.LinkByName("b")
	b.must(err)
	b.must(elsewhere.LinkSetUp(there))
	owner(nil)
	b.must(elsewhere.AddrAdd(there, virtual))
	owner(hardware)
	b.must(elsewhere.AddrDel(there, virtual))
	owner(nil)
	b.must(neighbours.close())
}

// TestAnnounce has a neighbour hear of the address.
func TestAnnounce(t *testing.T) {
	if !inNetns(t) {
		return
	}
	b := newBench(t)
	device, err := net.InterfaceByName("b")
	b.must(err)
	neighbour, err := arp.Dial(device)
	b.must(err)
	defer neighbour.Close()
	b.must(neighbour.SetDeadline(time.Now().Add(20 * time.Second)))
	place, err := findPlace("a", b.address, arp.Dial)
	b.must(err)
	neighbours, err := place.meet()
	b.must(err)
	b.must(neighbours.announce())
	for _, want := range []arp.Operation{arp.OperationRequest, arp.OperationReply} {
		for {
			p, _, err := neighbour.Read()
			b.must(err)
			if p.SenderIP != b.address {
				continue // the kernel's own
			}
			if p.Operation != want || p.TargetIP != b.address || p.SenderHardwareAddr.String() != place.link.Attrs().HardwareAddr.String() {
				t.Errorf("%+v", p)
			}
			break
		}
	}
	b.must(neighbours.close())
}

// move has an interface be another host's.
func (b *bench) move(name string) *netlink.Handle {
	b.Helper()
	runtime.LockOSThread() // for good: the process is this test's
	here, err := netns.Get()
	b.must(err)
	there, err := netns.New()
	b.must(err)
	b.must(netns.Set(here))
	b.must(netlink.LinkSetNsFd(b.link(name), int(there)))
	h, err := netlink.NewHandleAt(there, unix.NETLINK_ROUTE)
	b.must(err)
	return h
}
