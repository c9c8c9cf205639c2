package addons_test

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/kubewright/kubewright/addons"
)

var update = flag.Bool("update", false, "write the golden files")

func inputs() addons.Inputs {
	return addons.Inputs{
		PauseImage:   "kubewright.dev/pause:v1",
		BinDir:       "/opt/kubewright/current/bin",
		Server:       "https://192.0.2.10:6443",
		PodCIDR:      netip.MustParsePrefix("10.244.0.0/16"),
		Backend:      "vxlan",
		DNSIP:        netip.MustParseAddr("10.96.0.10"),
		DNSDomain:    "cluster.local",
		DNSReplicas:  1,
		AdminGroup:   "kubewright:cluster-admins",
		KubeletUser:  "kube-apiserver-kubelet-client",
		JoiningGroup: "system:bootstrappers:kubewright:default-node-token",
		RemovedNodes: "kubewright-removed",
	}
}

// variants are the inputs that every addon is rendered with, by name.
func variants() map[string]addons.Inputs {
	upstream := inputs()
	upstream.UpstreamDNS = []string{"192.0.2.53", "192.0.2.54"}
	upstream.DNSReplicas = 2
	upstream.Backend = "host-gw"
	upstream.Server = "https://192.0.2.10:443"
	return map[string]addons.Inputs{"isolated": inputs(), "upstream": upstream}
}

// Every folder with a manifest is in All, and the other way round.
func TestAllIsComplete(t *testing.T) {
	files, err := filepath.Glob("*/manifest.yaml.tmpl")
	if err != nil {
		t.Fatal(err)
	}
	var folders, listed []string
	for _, f := range files {
		folders = append(folders, filepath.Dir(f))
	}
	for _, a := range addons.All() {
		listed = append(listed, string(a))
	}
	slices.Sort(listed)
	if diff := cmp.Diff(folders, listed); diff != "" {
		t.Errorf("folders (-) and All (+) differ:\n%s", diff)
	}
}

func TestManifest(t *testing.T) {
	for name, in := range variants() {
		for _, a := range addons.All() {
			t.Run(string(a)+"/"+name, func(t *testing.T) {
				got, err := a.Manifest(in)
				if err != nil {
					t.Fatal(err)
				}
				golden := filepath.Join("testdata", string(a)+"-"+name+".yaml")
				if *update {
					if err := os.WriteFile(golden, got, 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(golden)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(string(want), string(got)); diff != "" {
					t.Errorf("-golden +rendered (go test -update writes it):\n%s", diff)
				}
			})
		}
	}
}

// typed decodes an object strictly: a field that its Kubernetes type does not
// have is an error, as is one that is there twice.
func typed(t *testing.T, o *unstructured.Unstructured) runtime.Object {
	t.Helper()
	strict := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	text, err := o.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	out, _, err := strict.Decode(text, nil, nil)
	if err != nil {
		t.Fatalf("%s %s: %v", o.GetKind(), o.GetName(), err)
	}
	return out
}

// Every document is an object of its Kubernetes type, and says whose it is. Ports
// name their protocol: server-side apply takes two that do not for one.
func TestObjects(t *testing.T) {
	for name, in := range variants() {
		for _, a := range addons.All() {
			t.Run(string(a)+"/"+name, func(t *testing.T) {
				objects, err := a.Objects(in)
				if err != nil {
					t.Fatal(err)
				}
				text, err := a.Manifest(in)
				if err != nil {
					t.Fatal(err)
				}
				if docs := bytes.Count(text, []byte("\n---\n")) + 1; len(objects) != docs {
					t.Fatalf("%d objects of %d documents", len(objects), docs)
				}
				for _, o := range objects {
					if got := o.GetLabels()["app.kubernetes.io/managed-by"]; got != "kubewright" {
						t.Errorf("%s %s: managed by %q", o.GetKind(), o.GetName(), got)
					}
					switch typed := typed(t, o).(type) {
					case *corev1.Service:
						for _, p := range typed.Spec.Ports {
							if p.Protocol == "" || p.Name == "" {
								t.Errorf("Service %s: port %+v", typed.Name, p)
							}
						}
					case *appsv1.Deployment:
						for _, p := range typed.Spec.Template.Spec.Containers[0].Ports {
							if p.Protocol == "" {
								t.Errorf("Deployment %s: port %+v", typed.Name, p)
							}
						}
					}
				}
			})
		}
	}
}

// find returns the one object of type T of an addon.
func find[T runtime.Object](t *testing.T, a addons.Addon, in addons.Inputs) T {
	t.Helper()
	objects, err := a.Objects(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if found, ok := typed(t, o).(T); ok {
			return found
		}
	}
	t.Fatalf("addon %s has none", a)
	panic("unreachable")
}

// Pods run the host's binaries and pull nothing: hosts have no registry.
func TestPods(t *testing.T) {
	in := inputs()
	for name, pod := range map[string]corev1.PodSpec{
		"overlay": find[*appsv1.DaemonSet](t, addons.Overlay, in).Spec.Template.Spec,
		"coredns": find[*appsv1.Deployment](t, addons.CoreDNS, in).Spec.Template.Spec,
	} {
		for _, c := range pod.Containers {
			if c.Image != in.PauseImage || c.ImagePullPolicy != corev1.PullNever {
				t.Errorf("%s: image %s, %s", name, c.Image, c.ImagePullPolicy)
			}
			if c.SecurityContext.Privileged != nil {
				t.Errorf("%s is privileged", name)
			}
			bin := slices.IndexFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == "bin" })
			if bin < 0 || !c.VolumeMounts[bin].ReadOnly || !strings.HasPrefix(c.Command[0], c.VolumeMounts[bin].MountPath+"/") {
				t.Errorf("%s: command %s and mounts %v", name, c.Command[0], c.VolumeMounts)
			}
		}
		for _, v := range pod.Volumes {
			if v.Name == "bin" && v.HostPath.Path != in.BinDir {
				t.Errorf("%s: binaries from %s", name, v.HostPath.Path)
			}
		}
	}
}

// Without a resolver forward fails to start. It is given addresses, not the host's
// resolv.conf: that of another node may be empty.
func TestUpstreamDNS(t *testing.T) {
	in := inputs()
	for _, resolvers := range [][]string{nil, {"192.0.2.53"}} {
		upstream := resolvers != nil
		in.UpstreamDNS = resolvers
		corefile := find[*corev1.ConfigMap](t, addons.CoreDNS, in).Data["Corefile"]
		for _, plugin := range []string{"forward", "loop"} {
			if got := strings.Contains(corefile, "    "+plugin); got != upstream {
				t.Errorf("upstream %v: %s is there: %v", upstream, plugin, got)
			}
		}
	}
}

func TestUnknownAddon(t *testing.T) {
	if _, err := addons.Addon("nothing").Objects(inputs()); err == nil {
		t.Error("no error")
	}
}
