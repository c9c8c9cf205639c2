package main

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/bootstrap"
	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// A host is found by the name that SSH knows, or by its node's; and not every one answers.
func TestLeave(t *testing.T) {
	unreachable := func(name string) error { return fault.New(fault.HostUnreachable, "", "%s does not answer", name) }
	up := map[string]*claim.Claim{
		"admin@w1": {ClusterID: "id", Node: "node-1", Role: "worker"},
		"w3":       nil, // put back before
		"w4":       {ClusterID: "id", Node: "node-4", Role: "worker"},
		"other":    {ClusterID: "another", Node: "node-9", Role: "worker"},
		"bare":     nil,
	}
	connect := connector(func(hosts []spec.Host) ([]bootstrap.Target, error) {
		c, ok := up[hosts[0].Name]
		if !ok {
			return nil, unreachable(hosts[0].Name)
		}
		return []bootstrap.Target{{Wish: hosts[0], Claim: c}}, nil
	})
	live := &bootstrap.Live{Record: cluster.Record{ID: "id"}, Removed: []string{"node-5"}, Nodes: []bootstrap.Member{
		{Node: "node-1", Host: "admin@w1"}, {Node: "node-2", Host: "w2"}, {Node: "node-3", Host: "w3"},
	}}
	type result struct {
		Node    string // that leaves
		Lost    bool
		Targets int // to be put back
		Code    fault.Code
	}
	for name, want := range map[string]result{
		"admin@w1": {Node: "node-1", Targets: 1},
		"node-1":   {Node: "node-1", Targets: 1},
		"w2":       {Node: "node-2", Lost: true, Code: fault.HostUnreachable},
		"node-2":   {Node: "node-2", Lost: true, Code: fault.HostUnreachable},
		"w3":       {Node: "node-3"},
		"w4":       {Node: "node-4", Targets: 1}, // its node is gone already
		"node-5":   {},                           // by an earlier run
		"bare":     {},
		"other":    {Code: fault.HostTaken},
		"nobody":   {Code: fault.Usage},
	} {
		t.Run(name, func(t *testing.T) {
			w := &work{live: live}
			d := &bootstrap.Departure{Live: live}
			hosts := &found{map[string]bootstrap.Target{}, map[string]error{}}
			if err := hosts.find(connect, name); err != nil {
				t.Fatal(err)
			}
			got := result{Code: fault.CodeOf(w.leave(d, hosts, connect, name)), Targets: len(w.targets)}
			for _, n := range d.Nodes {
				got.Node, got.Lost = n.Node, n.Lost
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// etcdOf is an etcd that only tells its members.
type etcdOf struct {
	etcd.Writer
	members []etcd.Member
}

func (e etcdOf) Members(context.Context) ([]etcd.Member, error) { return e.members, nil }

// A member of etcd whose node somebody deleted is found by way of a control-plane host that stays, and leaves as lost.
func TestLeaveWithoutNode(t *testing.T) {
	reached := 0
	connect := connector(func(hosts []spec.Host) ([]bootstrap.Target, error) {
		if hosts[0].Name != "cp1" {
			return nil, fault.New(fault.HostUnreachable, "", "%s does not answer", hosts[0].Name)
		}
		reached++
		return []bootstrap.Target{{Wish: hosts[0], Claim: &claim.Claim{ClusterID: "id", Node: "cp1", Role: "control-plane"}}}, nil
	})
	live := &bootstrap.Live{Record: cluster.Record{ID: "id"}, Nodes: []bootstrap.Member{{Node: "cp1", Host: "cp1", ControlPlane: true}}}
	w := &work{live: live, Request: bootstrap.Request{Hosts: []spec.Host{{Name: "cp3"}}}}
	d := &bootstrap.Departure{Live: live, Etcd: func(host.Reader) etcd.Writer {
		return etcdOf{members: []etcd.Member{{Name: "cp3", Peers: []string{"https://192.0.2.3:2380"}}}}
	}}
	hosts := &found{map[string]bootstrap.Target{}, map[string]error{}}
	if err := hosts.find(connect, "cp3"); err != nil {
		t.Fatal(err)
	}
	if err := w.findNodeless(t.Context(), d, hosts, connect); err != nil {
		t.Fatal(err)
	}
	if err := w.leave(d, hosts, connect, "cp3"); fault.CodeOf(err) != fault.HostUnreachable {
		t.Errorf("%v", err)
	}
	if len(d.Nodes) != 1 || !d.Nodes[0].Lost || !d.Nodes[0].ControlPlane || d.Nodes[0].Address.String() != "192.0.2.3" {
		t.Errorf("%+v", d.Nodes)
	}
	if _, err := keeper(d, hosts, connect); err != nil || reached != 1 {
		t.Errorf("reached %d times: %v", reached, err)
	}
}
