package apilb

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestServiceGolden: the unit on a worker, and on a host that has an API server of its own.
func TestServiceGolden(t *testing.T) {
	for name, own := range map[string]netip.AddrPort{
		"worker":        {},
		"control-plane": netip.MustParseAddrPort("192.0.2.1:6443"),
	} {
		got := Service(Inputs{CAFile: "/pki/ca.crt", Kubeconfig: "/kubelet.conf", Own: own}).File()
		path := filepath.Join("testdata", name+".service")
		if *update {
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s: -want +got; go test -update accepts it:\n%s", path, diff)
		}
	}
}

func servers(text ...string) []netip.AddrPort {
	var all []netip.AddrPort
	for _, s := range text {
		all = append(all, netip.MustParseAddrPort(s))
	}
	return all
}

// TestLines: the list is the same however its servers came together, and comes back from the ConfigMap.
func TestLines(t *testing.T) {
	for name, c := range map[string]struct {
		of   []netip.AddrPort
		want []string
	}{
		"none":   {nil, []string{}},
		"one":    {servers("192.0.2.1:6443"), []string{"192.0.2.1:6443"}},
		"sorted": {servers("192.0.2.10:6443", "192.0.2.9:6443"), []string{"192.0.2.9:6443", "192.0.2.10:6443"}},
		"once":   {servers("192.0.2.1:6443", "192.0.2.2:6443", "192.0.2.1:6443"), []string{"192.0.2.1:6443", "192.0.2.2:6443"}},
		"ports":  {servers("192.0.2.1:7443", "192.0.2.1:6443"), []string{"192.0.2.1:6443", "192.0.2.1:7443"}},
	} {
		before := slices.Clone(c.of)
		if diff := cmp.Diff(c.want, Lines(c.of)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if !slices.Equal(before, c.of) {
			t.Errorf("%s: it sorts what it is given", name)
		}
		o := Object(c.of)
		text, ok := o.Object["data"].(map[string]any)[Key].(string)
		if !ok || o.GetName() != ConfigMap || o.GetNamespace() != Namespace {
			t.Fatalf("%s: %v", name, o)
		}
		back, err := Parse(text)
		if diff := cmp.Diff(c.want, Lines(back)); err != nil || diff != "" {
			t.Errorf("%s: read from %q: %v %s", name, text, err, diff)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{"192.0.2.1", "api.example.com:6443", "192.0.2.1:6443\nnonsense", "192.0.2.1:99999"} {
		if got, err := Parse(text); err == nil || !strings.Contains(err.Error(), ConfigMap) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

// TestRemembered: a file that is no list is that of a node which knows nothing, and is written anew.
func TestRemembered(t *testing.T) {
	for name, c := range map[string]struct {
		content string
		want    []netip.AddrPort
	}{
		"absent":       {"", nil},
		"cut off":      {`{"servers":["192.0.2.1:64`, nil},
		"no addresses": {`{"servers":["here"]}`, nil},
		"two":          {`{"servers":["192.0.2.1:6443","192.0.2.2:6443"]}`, servers("192.0.2.1:6443", "192.0.2.2:6443")},
	} {
		s := hosttest.NewSim(t, "w1")
		if c.content != "" {
			s.Put(ServersFile, c.content, 0o644)
		}
		got, err := Remembered(t.Context(), s)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		if n := seed(t, s, "192.0.2.1:6443"); (n == 0) != (len(c.want) > 0) {
			t.Errorf("%s: %d changes by a seed", name, n)
		}
	}
}
