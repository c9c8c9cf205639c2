package main

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/bootstrap/spec"
)

// The page that is committed is the one that the types make.
func TestPageIsFresh(t *testing.T) {
	want, err := generate("../..", "../../../../testdata/specs/valid")
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../../../docs/spec.md")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("docs/spec.md is stale, run `go generate ./bootstrap/spec`; -generated +committed:\n%s", diff)
	}
}

// What the comments call a default is what Default fills in, and the other way round.
func TestDefaultsAreTrue(t *testing.T) {
	src, err := parse("../..")
	if err != nil {
		t.Fatal(err)
	}
	tables, err := src.tables("Cluster")
	if err != nil {
		t.Fatal(err)
	}
	c := spec.Cluster{Hosts: []spec.Host{{}}, Backup: spec.Backup{Schedule: "daily"}} // else there is none
	c.Default()
	c.Backup.Schedule = ""
	values := map[string]reflect.Value{
		"Cluster": reflect.ValueOf(c), "Host": reflect.ValueOf(c.Hosts[0]), "Network": reflect.ValueOf(c.Network),
		"ControlPlane": reflect.ValueOf(c.ControlPlane), "APIServer": reflect.ValueOf(c.APIServer),
		"Component": reflect.ValueOf(c.Etcd), "Kubelet": reflect.ValueOf(c.Kubelet),
		"Endpoint": reflect.ValueOf(c.ControlPlaneEndpoint), "Backup": reflect.ValueOf(c.Backup),
	}
	for _, table := range tables {
		value, ok := values[table.name]
		if !ok {
			t.Errorf("nothing is known of the defaults of %s", table.name)
			continue
		}
		for _, field := range table.fields {
			v := value.FieldByNameFunc(func(name string) bool { return strings.EqualFold(name, field.name) })
			if v.IsZero() || v.Kind() == reflect.Struct && !isText(v) || v.Kind() == reflect.Slice {
				continue // no default that is a value, or that of its parts
			}
			got := fmt.Sprint(v.Interface())
			if field.name == "apiVersion" || field.name == "kind" {
				continue // must be given in a file
			}
			if first, _, _ := strings.Cut(field.def, " for "); first != got {
				t.Errorf("%s.%s: the comment says %q, Default says %q", table.name, field.name, field.def, got)
			}
		}
	}
}

func isText(v reflect.Value) bool {
	_, ok := v.Interface().(fmt.Stringer)
	return ok
}
