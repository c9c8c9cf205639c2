package vip

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Neighbours keep the hardware address of the last holder for minutes. Each is told
// of the new one at once, some times more for the packets that get lost, and then
// now and then for switches that forget. A machine that has the address, too, may say so only
// when it is asked.
const (
	announceOften = 5  // times, one a retry
	announceEvery = 20 // retries from then on: 10 s
	askEachOther  = 10 // retries: 5 s
)

// Whoever finds that another machine has the address leaves it there. If that lets go within
// lease, it was a holder of this very cluster, whose time was not over (somebody deleted the
// Lease; a virtual machine stood still), and the address is taken at once. If not, it is another's:
// most likely the cluster that took this one's place. While that moves the address between its own
// hosts nobody answers for it, for up to 8 s, and that must not be long enough to steal it.
const (
	askAgain = 5 * time.Second  // between two questions
	quiet    = 15 * time.Second // for which nobody may have answered
	tellMost = time.Minute      // one line of the log, for rivals that change
)

// rival is another machine that has the address.
type rival struct {
	hardware    string    // address
	since, last time.Time // it was heard
	told        time.Time // when the log named it
}

// holder has the address, or waits for it, while its host is elected.
type holder struct {
	*place
	*neighbours
	lock *tracked
	log  *slog.Logger

	has  int       // for how many ticks
	next time.Time // before which it is not asked for the address
	told string    // the last trouble with announcing
}

// hold has the interface have the address while the lease lasts, and tells the
// neighbours, until ctx ends. It does not take it from another machine. The lease is kept all the
// same: the other hosts of the cluster are in the same network, and would only have to find out
// anew whose the address is.
func (p *place) hold(ctx context.Context, lock *tracked, log *slog.Logger) (err error) {
	neighbours, err := p.meet()
	if err != nil {
		return err
	}
	h := &holder{place: p, neighbours: neighbours, lock: lock, log: log.With("address", p.address)}
	defer func() {
		err = errors.Join(err, h.drop(), neighbours.close())
		h.status(stands)
	}()
	tick := time.NewTicker(retry)
	defer tick.Stop()
	for ctx.Err() == nil {
		if err := h.turn(ctx); err != nil {
			return err
		}
		h.await(ctx, tick.C)
	}
	return nil
}

// turn does what there is to do now.
func (h *holder) turn(ctx context.Context) error {
	if h.has == 0 && h.lock.left() >= time.Second {
		if free, err := h.free(ctx); err != nil || !free {
			return err
		}
	}
	left := h.lock.left()
	if left < time.Second {
		// This program did not go on for a while: another may have the lease.
		return h.drop()
	}
	if err := h.give(left); err != nil {
		return err
	}
	if h.has == 0 {
		h.log.Info("this host has the address", "interface", h.device.Name)
		h.rival = nil
		h.status("this host has the address")
	}
	if h.has < announceOften || h.has%announceEvery == 0 {
		h.announce()
	}
	if h.has%askEachOther == 0 {
		_ = h.ask() // what ails the interface is told by announce
	}
	h.has++
	if r := h.rival; r != nil && time.Since(r.last) > quiet {
		h.log.Info("no other machine claims the address any more", "hardware", r.hardware)
		h.rival = nil
		h.status("this host has the address")
	}
	return nil
}

// await hears what other machines say until the next tick.
func (h *holder) await(ctx context.Context, tick <-chan time.Time) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick:
			return
		case hardware := <-h.claims:
			h.heard(hardware)
		}
	}
}

// free asks whether the address may be taken.
func (h *holder) free(ctx context.Context) (bool, error) {
	if time.Now().Before(h.next) {
		return false, nil
	}
	hardware, err := h.owner(ctx)
	if err != nil || ctx.Err() != nil {
		return false, err
	}
	now := time.Now()
	if hardware != nil {
		h.heard(hardware)
		if now.Sub(h.rival.since) > lease {
			h.next = now.Add(askAgain)
		}
		return false, nil
	}
	if r := h.rival; r != nil && r.last.Sub(r.since) > lease && now.Sub(r.last) < quiet {
		h.next = now.Add(askAgain)
		return false, nil
	}
	return true, nil
}

// heard is called when another machine says that it has the address.
//
// A holder defends it for ever (RFC 5227, 2.4 c), as it is what kubeconfigs lead to: one that
// yielded would leave the API to whoever claims its address, most of all to the old hosts of this
// cluster, which have its certificates. It answers the first claim at once; from then on it announces
// itself as always, every 10 s, which is as often as the RFC allows. Who of the two is right is for a
// person to say.
func (h *holder) heard(hardware net.HardwareAddr) {
	now, name := time.Now(), hardware.String()
	r := h.rival
	switch {
	case r == nil || now.Sub(r.last) > quiet:
		r = &rival{hardware: name, since: now}
		if h.rival = r; h.has > 0 {
			h.announce()
		}
	case r.hardware == name || now.Sub(r.told) < tellMost:
		r.last = now
		return
	}
	r.hardware, r.last, r.told = name, now, now
	says := "another machine has the virtual IP: this host does not take it"
	if h.has > 0 {
		says = "another machine has the virtual IP as well: clients reach the one or the other"
	}
	h.log.Error(says, "hardware", name, "interface", h.device.Name,
		"remedy", "find the machine with this hardware address (ip neigh, the switch's table) and take the address from it; a host of a cluster that was restored or recovered elsewhere: kubewright reset it, or keep it off")
	h.status(says + " (" + name + ")")
}

// announce tells the neighbours, and the log if it cannot.
func (h *holder) announce() {
	if err := h.neighbours.announce(); err != nil && err.Error() != h.told {
		h.told = err.Error()
		h.log.Warn("neighbours may send to the last holder for a while", "reason", err)
	}
}

// drop takes the address from this host.
func (h *holder) drop() error {
	err := h.remove()
	if err == nil && h.has > 0 {
		h.log.Info("the address was taken away from this host")
	}
	h.has = 0
	return err
}

// stands is the status of a host that is not elected.
const stands = "stands for election"

// status is what systemctl status shows.
func (h *holder) status(says string) {
	_, _ = daemon.SdNotify(false, "STATUS="+says) // it is in the log, too
}
