package version_test

import (
	"encoding/json"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/semver"

	"github.com/kubewright/kubewright/bootstrap/version"
)

func TestComponentsOfThisTree(t *testing.T) {
	list, err := version.Components()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range list {
		names = append(names, c.Name)
		if c.Name != version.GoName && !semver.IsValid(c.Version) {
			t.Errorf("%s has version %q, want a semantic version", c.Name, c.Version)
		}
	}
	want := []string{"kubernetes", "etcd", "containerd", "runc", "cni-plugins", "coredns", "flannel", "kubewright", "go"}
	if d := cmp.Diff(want, names); d != "" {
		t.Errorf("components (-want +got):\n%s", d)
	}
	if got := list.Of(version.GoName); got != runtime.Version() {
		t.Errorf("go is %s, want %s", got, runtime.Version())
	}
	if got := list.Of("absent"); got != "" {
		t.Errorf("absent component has version %q", got)
	}
	out, err := json.Marshal(list[0])
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(out), `{"name":"kubernetes","version":"v1.`) {
		t.Errorf("JSON is %s", out)
	}
}

const complete = `module example.com/m
go 1.26
require (
	k8s.io/kubernetes v1.2.3
	go.etcd.io/etcd/server/v3 v3.0.1
	github.com/containerd/containerd/v2 v2.0.1
	github.com/opencontainers/runc v1.0.1
	github.com/containernetworking/plugins v1.0.2
	github.com/coredns/coredns v1.0.3
	github.com/flannel-io/flannel v0.0.1
)
`

func TestParseFollowsReplacements(t *testing.T) {
	for _, tc := range []struct{ name, replace, want, err string }{
		{name: "none", want: "v1.2.3"},
		{name: "any version", replace: "replace k8s.io/kubernetes => k8s.io/kubernetes v1.2.4", want: "v1.2.4"},
		{name: "this version", replace: "replace k8s.io/kubernetes v1.2.3 => example.com/fork v1.2.5", want: "v1.2.5"},
		{name: "another version", replace: "replace k8s.io/kubernetes v1.0.0 => example.com/fork v1.2.5", want: "v1.2.3"},
		{name: "a folder", replace: "replace k8s.io/kubernetes => ../kubernetes", err: "has no version"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			list, err := version.Parse(complete+tc.replace+"\n", "go1.26.0")
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("error is %v, want one saying %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := list.Of(version.KubernetesName); got != tc.want {
				t.Errorf("kubernetes is %s, want %s", got, tc.want)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"not a go.mod":    "hello",
		"no module":       "go 1.26\n",
		"missing require": strings.Replace(complete, "k8s.io/kubernetes v1.2.3", "", 1),
	} {
		t.Run(name, func(t *testing.T) {
			if list, err := version.Parse(text, "go1.26.0"); err == nil {
				t.Errorf("accepted: %v", list)
			}
		})
	}
}
