package main

import (
	"errors"
	"testing"

	"github.com/kubewright/kubewright/bootstrap"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/fault"
)

// TestWithoutNode: of a host that the file names and nobody reaches, it is said if the cluster has no such node.
func TestWithoutNode(t *testing.T) {
	live := &bootstrap.Live{Record: cluster.Record{Name: "prod"}, Nodes: []bootstrap.Member{{Node: "node-1", Host: "w1"}}, Removed: []string{"w2"}}
	away := func(host string) error {
		return fault.At(host, "connect", fault.New(fault.HostUnreachable, "see whether it is up", "no route to host"))
	}
	refused := fault.At("w4", "connect", fault.New(fault.AuthRefused, "add a key", "no key fits"))
	got := fault.Each(withoutNode(live, errors.Join(away("w1"), away("w2"), away("w3"), refused)))
	want := []struct {
		message, remedy string
		code            fault.Code
	}{
		{"w1: connect: no route to host", "see whether it is up", fault.HostUnreachable},
		{"w2: connect: no route to host; the file still names it, and it was removed from cluster prod", "take it out of the file", fault.HostUnreachable},
		{"w3: connect: no route to host; the file names it, and cluster prod has no such node", "if it left the cluster, take it out of the file; if it is to join, see whether it is up", fault.HostUnreachable},
		{"w4: connect: no key fits", "add a key", fault.AuthRefused},
	}
	if len(got) != len(want) {
		t.Fatalf("%v", got)
	}
	for i, w := range want {
		if got[i].Error() != w.message || fault.RemedyOf(got[i]) != w.remedy {
			t.Errorf("%v (%s)\nwant: %s (%s)", got[i], fault.RemedyOf(got[i]), w.message, w.remedy)
		}
		if code := fault.CodeOf(got[i]); code != w.code {
			t.Errorf("%v: %s", got[i], code)
		}
	}
}
