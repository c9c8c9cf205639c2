package census

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/kubewright/kubewright/bootstrap/backup"
)

// object is one of any kind.
type object map[string]any

// api is an API server with one page of discovery per path, and lists.
func api(t *testing.T) (*rest.Config, *[]string) {
	t.Helper()
	group := func(name string, versions ...string) metav1.APIGroup {
		g := metav1.APIGroup{Name: name}
		for _, v := range versions {
			g.Versions = append(g.Versions, metav1.GroupVersionForDiscovery{GroupVersion: name + "/" + v, Version: v})
		}
		g.PreferredVersion = g.Versions[0]
		return g
	}
	resources := func(gv string, all ...metav1.APIResource) metav1.APIResourceList {
		return metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: gv, APIResources: all}
	}
	res := func(name, kind, hash string, verbs ...string) metav1.APIResource {
		return metav1.APIResource{Name: name, Kind: kind, Verbs: verbs, StorageVersionHash: hash}
	}
	list := func(kind string, items ...object) object {
		return object{"apiVersion": "v1", "kind": kind, "metadata": object{}, "items": items}
	}
	pages := map[string]any{
		"/api": metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"}},
		"/apis": metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}, Groups: []metav1.APIGroup{
			group("events.k8s.io", "v1"), group("example.com", "v2", "v1"), group("metrics.k8s.io", "v1beta1"), group("broken.example.com", "v1")}},
		"/api/v1": resources("v1", res("pods", "Pod", "p", "list", "get"), res("pods/log", "Pod", "", "get"), res("events", "Event", "e", "list"),
			res("bindings", "Binding", "", "create"), res("componentstatuses", "ComponentStatus", "", "list")),
		"/apis/events.k8s.io/v1":       resources("events.k8s.io/v1", res("events", "Event", "e", "list")),
		"/apis/example.com/v2":         resources("example.com/v2", res("widgets", "Widget", "w", "list")),
		"/apis/example.com/v1":         resources("example.com/v1", res("widgets", "Widget", "w", "list")),
		"/apis/metrics.k8s.io/v1beta1": resources("metrics.k8s.io/v1beta1", res("nodes", "NodeMetrics", "m", "list")),
		"/apis/apiregistration.k8s.io/v1/apiservices": list("APIServiceList",
			object{"metadata": object{"name": "v1."}, "spec": object{"version": "v1"}},
			object{"metadata": object{"name": "v1.broken.example.com"}, "spec": object{"group": "broken.example.com", "version": "v1", "service": object{"name": "b"}}},
			object{"metadata": object{"name": "v1beta1.metrics.k8s.io"}, "spec": object{"group": "metrics.k8s.io", "version": "v1beta1", "service": object{"name": "m"}}}),
		"/apis/apiextensions.k8s.io/v1/customresourcedefinitions": list("CustomResourceDefinitionList",
			object{"metadata": object{"name": "widgets.example.com"}, "spec": object{"group": "example.com", "names": object{"plural": "widgets"},
				"versions": []object{{"name": "v2", "served": true, "storage": false}, {"name": "v1", "served": true, "storage": true}}}}),
	}
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/api/v1/pods" {
			asked = append(asked, r.URL.RawQuery)
			page := metav1.PartialObjectMetadataList{TypeMeta: metav1.TypeMeta{Kind: "PartialObjectMetadataList", APIVersion: "meta.k8s.io/v1"}}
			n := 2
			if r.URL.Query().Get("continue") == "" {
				page.Continue, n = "more", 500
			}
			page.Items = make([]metav1.PartialObjectMetadata, n)
			json.NewEncoder(w).Encode(page) //nolint:errcheck // the client would tell
			return
		}
		page, ok := pages[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":503}`)
			return
		}
		json.NewEncoder(w).Encode(page) //nolint:errcheck // the client would tell
	}))
	t.Cleanup(server.Close)
	return &rest.Config{Host: server.URL, QPS: -1}, &asked
}

// Each store once, in the version that it has there; nothing that is made up, or another server's.
func TestKinds(t *testing.T) {
	cfg, _ := api(t)
	got, err := Kinds(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	want := []backup.Kind{
		{Version: "v1", Resource: "events", Kind: "Event"},
		{Version: "v1", Resource: "pods", Kind: "Pod"},
		{Group: "example.com", Version: "v1", Resource: "widgets", Kind: "Widget"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// All pages of one revision are counted; what cannot be listed is an error.
func TestCount(t *testing.T) {
	cfg, asked := api(t)
	got, err := Count(t.Context(), cfg, []backup.Kind{{Version: "v1", Resource: "pods", Kind: "Pod"}}, 42)
	if err != nil || got[0].Objects != 502 {
		t.Errorf("%v, %v", got, err)
	}
	if len(*asked) != 2 || !strings.Contains((*asked)[0], "resourceVersion=42&resourceVersionMatch=Exact") || strings.Contains((*asked)[1], "resourceVersion") {
		t.Errorf("asked: %q", *asked)
	}
	if _, err := Count(t.Context(), cfg, []backup.Kind{{Version: "v1", Resource: "secrets"}}, 42); err == nil || !strings.Contains(err.Error(), "secrets at revision 42") {
		t.Errorf("%v", err)
	}
}
