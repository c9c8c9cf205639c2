package bootstrap

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/drill"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
)

// A host that is down is the cluster's trouble; one that only this machine does not reach is this machine's.
func TestMiss(t *testing.T) {
	lost := drill.Node{Name: "cp2", Host: "admin@cp2", Address: netip.MustParseAddr("192.0.2.2"), ControlPlane: true}
	silent := fault.New(fault.HostUnreachable, "is it on?", "no answer")
	for name, c := range map[string]struct {
		reason error
		serves bool // the lost host answers one of two others
		others int
		want   fault.Code
		exit   int
		says   string
	}{
		"nobody reaches it":                {silent, false, 2, fault.Unhealthy, 19, "admin@cp2: connect: the cluster is not well before the drill: neither this machine nor any of its other hosts reaches node cp2: no answer"},
		"another host does":                {silent, true, 2, fault.HostUnreachable, 5, "admin@cp2: connect: no answer"},
		"there is nobody to ask":           {silent, false, 0, fault.HostUnreachable, 5, "no answer"},
		"it answers, and lets us not in":   {fault.New(fault.AuthRefused, "", "no key"), false, 2, fault.AuthRefused, 8, "no key"},
		"what it is has no code of faults": {errors.New("strange"), false, 2, fault.StepFailed, 13, "strange"},
	} {
		t.Run(name, func(t *testing.T) {
			var others []host.Reader
			for i := range c.others {
				s := hosttest.NewSim(t, "other")
				if c.serves && i == 1 {
					s.Serve("tcp", "192.0.2.2:10250", func(c net.Conn) { c.Close() })
				}
				others = append(others, s)
			}
			err := (&Ground{}).Miss(t.Context(), lost, others, c.reason)
			if fault.CodeOf(err) != c.want || fault.Exit(err) != c.exit || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s (exit %d): %v", fault.CodeOf(err), fault.Exit(err), err)
			}
		})
	}
}
