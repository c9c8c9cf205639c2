package bootstrap

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kubewright/kubewright/bootstrap/certs"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

const (
	keysFile   = "/etc/kubernetes/keys/encryption.yaml"
	policyFile = "/etc/kubernetes/audit.yaml"
	keys       = "the keys of an admin"
)

// What a cluster makes itself is not looked for before it is there.
func TestAdminFilesOf(t *testing.T) {
	c := &spec.Cluster{APIServer: spec.APIServer{Component: spec.Component{ExtraArgs: map[string]string{
		"encryption-provider-config": certs.Dir + "/keys.yaml", "oidc-ca-file": certs.Dir + "/ca.crt",
	}}}}
	if got := fmt.Sprint(adminFilesOf(c)); got != "["+certs.Dir+"/keys.yaml (the API server's --encryption-provider-config)]" {
		t.Error(got)
	}
}

func TestRefuseFiles(t *testing.T) {
	c := &spec.Cluster{APIServer: spec.APIServer{Component: spec.Component{ExtraArgs: map[string]string{"encryption-provider-config": keysFile}}}}
	for name, tc := range map[string]struct {
		from, other string // the file's content, "" if there is none
		change      func(*Target)
		want        []string // nil: not refused
	}{
		"the other gets it":         {keys, "", nil, nil},
		"both have it":              {keys, keys, nil, nil},
		"nobody has it":             {"", "", nil, []string{"cp1: preflight: there is no " + keysFile + " (the API server's --encryption-provider-config)", "put the file there"}},
		"it is missing where it is": {"", keys, nil, []string{"cp1: preflight: there is no " + keysFile}},
		"another one":               {keys, "others", nil, []string{"cp2: preflight: " + keysFile + " (the API server's --encryption-provider-config) is another file than on cp1", "remove it from cp2"}},
		"another one, where keys are being changed": {keys, "others", func(t *Target) { t.HasAPI = true }, nil},
		"another one on a worker":                   {keys, "others", func(t *Target) { t.Wish.Role = spec.WorkerRole }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			target := func(name, content string) Target {
				s := hosttest.NewSim(t, name)
				if content != "" {
					s.Put(keysFile, content, 0o600)
				}
				return Target{Wish: spec.Host{Name: name, Role: spec.ControlPlaneRole}, Host: s}
			}
			from, other := target("cp1", tc.from), target("cp2", tc.other)
			if tc.change != nil {
				tc.change(&other)
			}
			err := RefuseFiles(t.Context(), c, from, []Target{from, other})
			if tc.want == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if fault.CodeOf(err) != fault.HostUnsuitable {
				t.Fatalf("it is %s: %v", fault.CodeOf(err), err)
			}
			for _, want := range tc.want {
				if said := err.Error() + "; " + fault.RemedyOf(err); !strings.Contains(said, want) {
					t.Errorf("%s\ndoes not say %q", said, want)
				}
			}
			if strings.Contains(err.Error(), keys) {
				t.Errorf("it tells the keys: %v", err)
			}
		})
	}
}

// An admin's file is on every control-plane host that joins before its API server starts, as it is on the first one;
// nobody else sees what is in it, and a reset takes it away.
func TestAdminFilesOfMembers(t *testing.T) {
	bubble(t, 1, testBundle(t), t.TempDir(), func(t *testing.T, w *world) {
		run := func(v verb) {
			t.Helper()
			if _, err := w.run(v); err != nil {
				t.Fatal(err)
			}
			w.rest()
		}
		run(initOne)
		w.machines[0].Put(keysFile, keys, 0o644)
		record, err := w.store().Get(configMapResource, metav1.NamespaceSystem, "kubewright")
		if err != nil {
			t.Fatal(err)
		}
		changed := record.DeepCopyObject().(*corev1.ConfigMap)
		changed.Data["cluster.yaml"] = strings.Replace(changed.Data["cluster.yaml"], "apiServer:\n", "apiServer:\n  extraArgs: {encryption-provider-config: "+keysFile+"}\n", 1)
		if err := w.store().Update(configMapResource, changed, metav1.NamespaceSystem); err != nil {
			t.Fatal(err)
		}
		at := map[string][]string{}
		for _, s := range w.preview(t, joinMembers) {
			at[s.Lane] = append(at[s.Lane], s.Step)
			for _, c := range s.Diff {
				if strings.Contains(fmt.Sprintf("%v %+v", c, c.After), keys) || c.After != nil && c.After.Text == keys {
					t.Errorf("the plan tells the keys: %v", c)
				}
			}
		}
		if diff := cmp.Diff([]string{"pki/read", "apiserver/read-files"}, at["h1"]); diff != "" {
			t.Errorf("h1: -want +got:\n%s", diff)
		}
		order := strings.Join(at["h2"], " ")
		if write := strings.Index(order, "apiserver/write-files"); write < 0 || write > strings.Index(order, "controlplane/start") {
			t.Errorf("h2: %s", order)
		}
		run(joinMembers)
		for _, m := range w.machines[1:3] {
			if got, ok := m.Get(keysFile); !ok || got != keys {
				t.Errorf("%s has %q", m.Name(), got)
			}
		}
		if left := changes(w.preview(t, joinMembers)); len(left) > 0 {
			t.Errorf("left to do: %v", left)
		}
		w.machines[1].Put(keysFile, "keys that the admin changes, host by host", 0o600)
		if left := changes(w.preview(t, joinMembers)); len(left) > 0 {
			t.Errorf("it would take back what the admin changed: %v", left)
		}
		run(verb{name: "reset", hosts: []int{3}})
		if _, ok := w.machines[2].Get(keysFile); ok {
			t.Error("h3 still has the keys")
		}
	})
}

// Without the file anywhere it is not left to an API server that does not start.
func TestTakeFilesThatNobodyHas(t *testing.T) {
	take := takeFiles{[]spec.APIServerFile{{Flag: "audit-policy-file", Path: policyFile}}, plan.Of("files", adminContents{keysFile: []byte(keys)})}
	if _, err := take.Check(t.Context(), hosttest.NewSim(t, "cp2")); fault.CodeOf(err) != fault.HostUnsuitable || !strings.Contains(err.Error(), policyFile) {
		t.Error(err)
	}
	if text := fmt.Sprint(take.contents.Get()); strings.Contains(text, keys) {
		t.Errorf("it shows the keys: %s", text)
	}
}
