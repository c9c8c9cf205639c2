package spec_test

import (
	"net/netip"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/spec"
)

func TestServiceIP(t *testing.T) {
	for _, test := range []struct {
		cidr string
		nth  int
		want string // "": none
	}{
		{"10.96.0.0/16", 1, "10.96.0.1"},
		{"10.96.0.0/16", 10, "10.96.0.10"},
		{"10.96.0.0/16", 256, "10.96.1.0"},
		{"10.96.0.0/16", 65535, "10.96.255.255"},
		{"10.96.0.0/16", 65536, ""},
		{"10.96.0.0/16", -1, ""},
		{"10.96.0.16/28", 10, "10.96.0.26"},
		{"10.96.0.7/16", 1, "10.96.0.1"},
		{"255.255.255.240/28", 16, ""},
		{"fd00::/112", 1, ""},
	} {
		got := spec.Network{ServiceCIDR: netip.MustParsePrefix(test.cidr)}.ServiceIP(test.nth)
		var want netip.Addr
		if test.want != "" {
			want = netip.MustParseAddr(test.want)
		}
		if got != want {
			t.Errorf("address %d of %s: %v, want %v", test.nth, test.cidr, got, want)
		}
	}
	if got := (spec.Network{}).ServiceIP(1); got.IsValid() {
		t.Errorf("address of no range: %v", got)
	}
	n := cluster().Network
	if got := n.KubernetesIP().String() + " " + n.DNSIP().String(); got != "10.96.0.1 10.96.0.10" {
		t.Error(got)
	}
}

func TestParseTarget(t *testing.T) {
	for name, want := range map[string]spec.Target{
		"web":                {Host: "web"},
		"rack_2.example.com": {Host: "rack_2.example.com"},
		"root@10.0.0.1":      {User: "root", Host: "10.0.0.1"},
		"root@10.0.0.1:2222": {User: "root", Host: "10.0.0.1", Port: 2222},
		"web:22":             {Host: "web", Port: 22},
		"fd00::1":            {Host: "fd00::1"},
		"a@[fd00::1]":        {User: "a", Host: "fd00::1"},
		"a@[fd00::1]:2222":   {User: "a", Host: "fd00::1", Port: 2222},
	} {
		if got, err := spec.ParseTarget(name); err != nil || got != want {
			t.Errorf("%q: %+v, %v, want %+v", name, got, err, want)
		}
		if got := (spec.Host{Name: name}).SSHTarget(); got != want {
			t.Errorf("SSHTarget of %q: %+v", name, got)
		}
	}
	for _, name := range []string{"", "@", "a@", "@a", ":22", "a:", "a:0", "a:65536", "a:x", "a:+1", "-oX=y", "a@-oX=y", "-l@a", "a b", "a\nb", "a/b", "*", "a,b", "!a",
		"[fd00::1", "[fd00::1]x", "[fd00::1]:", "[web]", "fd00::1:zzzz", "a@b@c", "$(x)"} {
		if got, err := spec.ParseTarget(name); err == nil {
			t.Errorf("%q: taken as %+v", name, got)
		}
	}
}

func TestParseTaint(t *testing.T) {
	for text, want := range map[string]spec.Taint{
		"dedicated=db:NoSchedule":  {Key: "dedicated", Value: "db", Effect: spec.NoSchedule},
		"dedicated:NoExecute":      {Key: "dedicated", Effect: spec.NoExecute},
		"example.com/x=:NoExecute": {Key: "example.com/x", Effect: spec.NoExecute},
		"a:PreferNoSchedule":       {Key: "a", Effect: spec.PreferNoSchedule},
	} {
		got, err := spec.ParseTaint(text)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
		if again, err := spec.ParseTaint(got.String()); err != nil || again != want {
			t.Errorf("%q written as %q: %+v, %v", text, got, again, err)
		}
	}
	for _, text := range []string{"", ":", "a", "a=b", ":NoSchedule", "a:", "a:noschedule", "a:b:NoSchedule", "a=b=c:NoSchedule", "a b:NoSchedule", "a:NoSchedule-"} {
		if got, err := spec.ParseTaint(text); err == nil {
			t.Errorf("%q: taken as %+v", text, got)
		}
	}
}

func TestControlPlaneHost(t *testing.T) {
	if h, ok := cluster().ControlPlaneHost(); !ok || h.Name != "root@198.18.0.11" {
		t.Errorf("%+v, %v", h, ok)
	}
	if _, ok := new(spec.Cluster).ControlPlaneHost(); ok {
		t.Error("the zero cluster has one")
	}
}
