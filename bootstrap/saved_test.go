package bootstrap

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

func exampleSaved() *Saved {
	wish := &spec.Cluster{Name: "c", Hosts: []spec.Host{{Name: "cp", Address: netip.MustParseAddr("192.0.2.1"), Taints: []spec.Taint{{Key: "k", Effect: spec.NoSchedule}}}}}
	wish.Default()
	return &Saved{
		By: "me@here", Kubewright: "v0.1.0", Bundle: "sha256:b",
		Request: Request{Verb: "init", Spec: wish, Hosts: wish.Hosts, ID: "id"},
		Seen:    Guards{"cp: Kernel": `"6.1"`, "cluster: nodes": "cp"},
		Steps: []plan.Foreseen{
			{Lane: "cp", Step: "a/configure", Diff: plan.Diff{{Verb: plan.Create, Kind: plan.ObjectFile, Object: "/etc/a", After: plan.FileState(0o600, []byte("secret"))}}},
			{Lane: "cp", Step: "a/wait", Diff: plan.Diff{{Verb: plan.Await, Kind: plan.ObjectWait, Object: "a"}}},
		},
	}
}

func TestSavedPlanComesBack(t *testing.T) {
	s := exampleSaved()
	var text bytes.Buffer
	if err := s.Encode(&text); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text.String(), "sha256:") || strings.Contains(text.String(), "secret") {
		t.Errorf("the plan has a secret:\n%s", text.String())
	}
	back, err := DecodePlan(bytes.NewReader(text.Bytes()), "plan.json")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s.Request.Hosts, back.Request.Hosts, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if back.Request.Spec == nil || back.Request.Spec.Name != "c" {
		t.Errorf("the wish: %+v", back.Request.Spec)
	}
	if err := back.Stale(s); err != nil {
		t.Errorf("it differs from itself: %v", err)
	}
	for name, bad := range map[string]string{
		"no JSON":         "hello",
		"another kind":    `{"apiVersion": "v1", "kind": "List"}`,
		"a field unknown": strings.Replace(text.String(), `"kind"`, `"kinf"`, 1),
	} {
		if _, err := DecodePlan(strings.NewReader(bad), "bad.json"); fault.CodeOf(err) != fault.Usage || !strings.Contains(err.Error(), "bad.json") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStaleNamesWhatMoved(t *testing.T) {
	for name, c := range map[string]struct {
		move func(*Saved)
		want string
	}{
		"a fact":                   {func(s *Saved) { s.Seen["cp: Kernel"] = `"6.2"` }, `cp: apply-plan: Kernel was "6.1", and is "6.2"`},
		"a fact that is new":       {func(s *Saved) { s.Seen["cp: claim"] = "x" }, `cp: apply-plan: claim was absent, and is x`},
		"the cluster":              {func(s *Saved) { s.Seen["cluster: nodes"] = "cp w1" }, "cluster: apply-plan: nodes was cp, and is cp w1"},
		"the bundle":               {func(s *Saved) { s.Bundle = "sha256:c" }, "the bundle was sha256:b, and is sha256:c"},
		"kubewright":               {func(s *Saved) { s.Kubewright = "v9" }, "made by kubewright v0.1.0, this is v9"},
		"a step that is done":      {func(s *Saved) { s.Steps[0].Diff = nil }, "cp: apply-plan: a/configure would no longer create /etc/a"},
		"a change more":            {func(s *Saved) { s.Steps[1].Diff = plan.Diff{{Verb: plan.Delete, Object: "/b"}} }, "a/wait would now delete /b"},
		"another content":          {func(s *Saved) { s.Steps[0].Diff[0].After = plan.FileState(0o600, []byte("other")) }, "a/configure would now create /etc/a sha256:"},
		"a step that is not there": {func(s *Saved) { s.Steps = s.Steps[1:] }, "a/configure would no longer create /etc/a"},
	} {
		now := exampleSaved()
		c.move(now)
		err := exampleSaved().Stale(now)
		if fault.CodeOf(err) != fault.PlanStale || !strings.Contains(err.Error(), c.want) || fault.RemedyOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	waits := exampleSaved()
	waits.Steps[1].Diff = nil
	if err := exampleSaved().Stale(waits); err != nil {
		t.Errorf("a wait that came true: %v", err)
	}
}

func TestAllow(t *testing.T) {
	s := exampleSaved()
	for name, c := range map[string]struct {
		step string
		diff plan.Diff
		ok   bool
	}{
		"as planned":       {"a/configure", s.Steps[0].Diff, true},
		"less":             {"a/configure", nil, true},
		"a wait":           {"a/configure", plan.Diff{{Verb: plan.Await, Kind: plan.ObjectWait, Object: "b"}}, true},
		"another object":   {"a/configure", plan.Diff{{Verb: plan.Create, Kind: plan.ObjectFile, Object: "/etc/b"}}, false},
		"another step":     {"a/start", s.Steps[0].Diff, false},
		"of another kind":  {"a/configure", plan.Diff{{Verb: plan.Stop, Kind: plan.ObjectUnit, Object: "/etc/a"}}, false},
		"a unit that fell": {"a/start", plan.Diff{{Verb: plan.Start, Kind: plan.ObjectUnit, Object: "a.service"}}, true},
	} {
		err := s.Allow("cp", c.step, c.diff)
		if (err == nil) != c.ok || err != nil && fault.CodeOf(err) != fault.PlanStale {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestHostGuards leaves out what comes and goes with pods and boots.
func TestHostGuards(t *testing.T) {
	target := Target{Wish: spec.Host{Name: "w1"}, Facts: host.Facts{Kernel: "6.1", BootID: "one", Interfaces: []host.Interface{
		{Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}},
	}, Routes: []host.Route{{To: netip.MustParsePrefix("192.0.2.0/24"), Dev: "eth0"}}}}
	before, err := HostGuards(target)
	if err != nil {
		t.Fatal(err)
	}
	target.Facts.BootID = "two"
	target.Facts.Interfaces = append(target.Facts.Interfaces, host.Interface{Name: "veth1", Addrs: []netip.Prefix{netip.MustParsePrefix("fe80::1/64")}},
		host.Interface{Name: "cni0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.244.0.1/24")}})
	target.Facts.Routes = append(target.Facts.Routes, host.Route{To: netip.MustParsePrefix("10.244.1.0/24"), Dev: "flannel.1"})
	after, err := HostGuards(target)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Error(diff)
	}
	target.Facts.Interfaces[0].MTU = 1400
	if moved, err := HostGuards(target); err != nil || moved["w1: interface eth0"] != "[192.0.2.1/24] with MTU 1400" || moved["w1: route to 192.0.2.0/24"] != "by eth0" {
		t.Errorf("an interface: %v, %v", moved, err)
	}
	target.Facts.Kernel = "6.2"
	if moved, err := HostGuards(target); err != nil || cmp.Equal(before, moved) {
		t.Errorf("another kernel is no difference: %v", err)
	}
}
