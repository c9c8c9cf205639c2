package spec_test

import (
	"bytes"
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

var update = flag.Bool("update", false, "write the golden files anew")

// specs is the folder of the cluster files.
const specs = "../../testdata/specs"

// sameAddresses has cmp compare addresses and ranges with ==.
var sameAddresses = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func load(t *testing.T, path string) (*spec.Cluster, error) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return spec.Load(bytes.NewReader(text), filepath.Base(path))
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(specs, pattern))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no %s in %s: %v", pattern, specs, err)
	}
	return paths
}

// Every file in invalid is refused with the text of the golden file beside it.
func TestLoadInvalid(t *testing.T) {
	for _, path := range glob(t, "invalid/*.yaml") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			_, err := load(t, path)
			if got := fault.CodeOf(err); got != fault.SpecInvalid {
				t.Fatalf("code %q of %v, want %q", got, err, fault.SpecInvalid)
			}
			var f *fault.Fault
			if errors.As(err, &f); !strings.Contains(f.Remedy, filepath.Base(path)) {
				t.Errorf("remedy %q does not name the file", f.Remedy)
			}
			golden := strings.TrimSuffix(path, ".yaml") + ".golden"
			got := err.Error() + "\n"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("-want +got; go test -update accepts it:\n%s", diff)
			}
		})
	}
}

// Every file in valid is read as the golden file beside it, which has the
// defaults filled in, and that is read as the same cluster.
func TestLoadValid(t *testing.T) {
	for _, path := range glob(t, "valid/*.yaml") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			c, err := load(t, path)
			if err != nil {
				t.Fatal(err)
			}
			text, err := spec.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			golden := strings.TrimSuffix(path, ".yaml") + ".golden"
			if *update {
				if err := os.WriteFile(golden, text, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(text)); diff != "" {
				t.Errorf("-want +got; go test -update accepts it:\n%s", diff)
			}
			again, err := spec.Load(bytes.NewReader(text), golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c, again, sameAddresses); diff != "" {
				t.Errorf("Load(Marshal(c)) differs, -c +again:\n%s", diff)
			}
		})
	}
}

func TestLoadFull(t *testing.T) {
	got, err := load(t, filepath.Join(specs, "valid/full.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	want := &spec.Cluster{
		APIVersion: "kubewright.dev/v1alpha1",
		Kind:       "Cluster",
		Name:       "full",
		Hosts: []spec.Host{
			{Name: "admin@198.18.0.11:2222", Role: spec.ControlPlaneRole, Node: "cp-1", Address: netip.MustParseAddr("198.18.0.11")},
			{
				Name: "rack2", Role: spec.WorkerRole, Node: "w-1.example.com", Address: netip.MustParseAddr("198.18.0.12"),
				Labels: map[string]string{"example.com/disk": "ssd", "node.kubernetes.io/tier": "", "version": "1.10"},
				Taints: []spec.Taint{{Key: "dedicated", Value: "db", Effect: spec.NoSchedule}, {Key: "example.com/draining", Effect: spec.NoExecute}},
			},
		},
		Network: spec.Network{
			Backend: spec.HostGW, DNSDomain: "corp.example",
			PodCIDR: netip.MustParsePrefix("172.20.0.0/20"), ServiceCIDR: netip.MustParsePrefix("172.21.0.0/24"),
		},
		ControlPlane: spec.ControlPlane{Schedulable: true},
		APIServer: spec.APIServer{
			Component: args("v", "2"), Port: 443,
			ExtraSANs: []string{"api.example.com", "*.k8s.example.com", "192.0.2.7"},
		},
		ControllerManager: args("node-monitor-grace-period", "20s"),
		Scheduler:         args("v", "1"),
		Etcd:              args("quota-backend-bytes", "8589934592"),
		Kubelet:           spec.Kubelet{Component: args("max-pods", "200"), ReadOnlyPort: 10255},
		KubeProxy:         args("v", "0"),
		Backup: spec.Backup{Schedule: "*-*-* 02:30:00", Keep: 14, Dir: "/srv/backups",
			Recipients: []string{"age15qfz6f40h2xdza5tcmzrwmm9v0qxy97v3dl3akum7yqu3v365vtsk3hdga"}},
	}
	if diff := cmp.Diff(want, got, sameAddresses); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func args(name, value string) spec.Component {
	return spec.Component{ExtraArgs: map[string]string{name: value}}
}

// A read that fails is no fault of the file.
func TestLoadReadError(t *testing.T) {
	broken := errors.New("broken pipe")
	_, err := spec.Load(iotest.ErrReader(broken), "x.yaml")
	if !errors.Is(err, broken) || fault.CodeOf(err) == fault.SpecInvalid {
		t.Errorf("got %v", err)
	}
}

func TestLoadTooLarge(t *testing.T) {
	_, err := spec.Load(strings.NewReader(strings.Repeat("#\n", 1<<20)), "x.yaml")
	if fault.CodeOf(err) != fault.SpecInvalid || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("got %v", err)
	}
}

// Errors can be taken apart by type.
func TestErrors(t *testing.T) {
	_, err := load(t, filepath.Join(specs, "invalid/ranges-size.yaml"))
	var faults *spec.Errors
	if !errors.As(err, &faults) {
		t.Fatalf("%v has no *spec.Errors", err)
	}
	want := &spec.Errors{File: "ranges-size.yaml", Faults: []spec.Fault{
		{Line: 8, Column: 12, Path: "network.podCIDR", Message: "10.244.0.0/23 is too small: each node gets a /24 of it, so 3 hosts need a /22 at least"},
		{Line: 9, Column: 16, Path: "network.serviceCIDR", Message: "10.96.0.0/29 is too small: it must be a /28 at least"},
	}}
	if diff := cmp.Diff(want, faults); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// No text makes Load panic; what it takes is valid and survives being written
// and read, and what it refuses has a reason.
func FuzzLoad(f *testing.F) {
	for _, pattern := range []string{"valid/*.yaml", "invalid/*.yaml"} {
		paths, err := filepath.Glob(filepath.Join(specs, pattern))
		if err != nil || len(paths) == 0 {
			f.Fatalf("no %s: %v", pattern, err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := spec.Load(bytes.NewReader(text), "fuzz.yaml")
		if err != nil {
			var faults *spec.Errors
			if fault.CodeOf(err) != fault.SpecInvalid || !errors.As(err, &faults) || len(faults.Faults) == 0 {
				t.Fatalf("refused without a reason: %v", err)
			}
			for _, f := range faults.Faults {
				if f.Message == "" || f.Line < 0 || f.Line > bytes.Count(text, []byte("\n"))+bytes.Count(text, []byte("\r"))+1 {
					t.Fatalf("fault %+v", f)
				}
			}
			return
		}
		if err := c.Validate(); err != nil {
			t.Fatalf("loaded, but not valid: %v", err)
		}
		written, err := spec.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := spec.Load(bytes.NewReader(written), "again.yaml")
		if err != nil {
			t.Fatalf("%v\n%s", err, written)
		}
		if diff := cmp.Diff(c, again, sameAddresses); diff != "" {
			t.Fatalf("Load(Marshal(c)) differs, -c +again:\n%s", diff)
		}
	})
}
