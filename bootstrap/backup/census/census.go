// Package census counts the objects of a cluster through its API, at one revision, so
// that two clusters which should have the same objects can be compared.
package census

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"golang.org/x/sync/errgroup"

	"github.com/kubewright/kubewright/bootstrap/backup"
)

const (
	pageSize = 500 // objects per call
	atOnce   = 4   // calls
)

// Kinds are the resources whose objects the API server keeps in etcd, sorted, each once
// and in the version that needs no conversion, with no objects counted. Those of other
// API servers (aggregated ones) have a store of their own, which is not in a backup.
func Kinds(ctx context.Context, cfg *rest.Config) ([]backup.Kind, error) {
	elsewhere, err := aggregated(ctx, cfg)
	if err != nil {
		return nil, err
	}
	stored, err := storedVersions(ctx, cfg)
	if err != nil {
		return nil, err
	}
	client, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return nil, err
	}
	// Only the older form of discovery tells how a resource is stored.
	lists, err := client.WithLegacyWithContext(ctx).ServerPreferredResourcesWithContext(ctx)
	if err = withoutGroups(err, elsewhere); err != nil {
		return nil, fmt.Errorf("list the kinds of the API: %w", err)
	}
	var kinds []backup.Kind
	type storage struct{ name, hash string }
	seen := map[storage]bool{}
	for _, l := range lists {
		gv, err := schema.ParseGroupVersion(l.GroupVersion)
		if err != nil {
			return nil, fmt.Errorf("list the kinds of the API: %w", err)
		}
		if elsewhere[gv] {
			continue
		}
		for _, r := range l.APIResources {
			// One without a hash is made up when it is asked for. Two groups that serve one
			// store, as for events, have the same hash.
			at := storage{r.Name, r.StorageVersionHash}
			if at.hash == "" || seen[at] || !slices.Contains(r.Verbs, "list") {
				continue
			}
			seen[at] = true
			k := backup.Kind{Group: gv.Group, Version: gv.Version, Resource: r.Name, Kind: r.Kind}
			if v, ok := stored[gv.WithResource(r.Name).GroupResource()]; ok {
				k.Version = v
			}
			kinds = append(kinds, k)
		}
	}
	slices.SortFunc(kinds, func(a, b backup.Kind) int { return cmp.Compare(a.Name(), b.Name()) })
	return kinds, nil
}

// withoutGroups is err without what it says of groups that others serve.
func withoutGroups(err error, others map[schema.GroupVersion]bool) error {
	failed, ok := discovery.GroupDiscoveryFailedErrorGroups(err)
	if !ok {
		return err
	}
	var ours []error
	for gv, err := range failed {
		if !others[gv] {
			ours = append(ours, fmt.Errorf("%s: %w", gv, err))
		}
	}
	return errors.Join(ours...)
}

// aggregated are the versions that the API server only passes on.
func aggregated(ctx context.Context, cfg *rest.Config) (map[schema.GroupVersion]bool, error) {
	all, err := list(ctx, cfg, schema.GroupVersionResource{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"})
	if err != nil {
		return nil, err
	}
	passed := map[schema.GroupVersion]bool{}
	for _, o := range all {
		spec, _, _ := unstructured.NestedMap(o.Object, "spec")
		if spec["service"] == nil {
			continue
		}
		group, _, _ := unstructured.NestedString(spec, "group")
		version, _, _ := unstructured.NestedString(spec, "version")
		passed[schema.GroupVersion{Group: group, Version: version}] = true
	}
	return passed, nil
}

// storedVersions are those in which custom resources are stored, where they are served:
// asked for in another one, a webhook may have to convert them, and that runs in no copy.
func storedVersions(ctx context.Context, cfg *rest.Config) (map[schema.GroupResource]string, error) {
	all, err := list(ctx, cfg, schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	if err != nil {
		return nil, err
	}
	stored := map[schema.GroupResource]string{}
	for _, o := range all {
		group, _, _ := unstructured.NestedString(o.Object, "spec", "group")
		plural, _, _ := unstructured.NestedString(o.Object, "spec", "names", "plural")
		versions, _, _ := unstructured.NestedSlice(o.Object, "spec", "versions")
		for _, v := range versions {
			fields, _ := v.(map[string]any)
			if fields["storage"] == true && fields["served"] == true {
				stored[schema.GroupResource{Group: group, Resource: plural}], _, _ = unstructured.NestedString(fields, "name")
			}
		}
	}
	return stored, nil
}

func list(ctx context.Context, cfg *rest.Config, of schema.GroupVersionResource) ([]unstructured.Unstructured, error) {
	client, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	all, err := client.Resource(of).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", of.GroupResource(), err)
	}
	return all.Items, nil
}

// Count returns kinds with the number of objects that each has at the revision, which
// must not be compacted yet. The server reads and decodes every object for that, so it
// fails if one cannot be decrypted.
func Count(ctx context.Context, cfg *rest.Config, kinds []backup.Kind, revision int64) ([]backup.Kind, error) {
	quiet := rest.CopyConfig(cfg)
	quiet.WarningHandler = rest.NoWarnings{} // of deprecated kinds, which have objects, too
	client, err := metadata.NewForConfig(quiet)
	if err != nil {
		return nil, err
	}
	counted := slices.Clone(kinds)
	calls, ctx := errgroup.WithContext(ctx)
	calls.SetLimit(atOnce)
	for i := range counted {
		calls.Go(func() (err error) {
			counted[i].Objects, err = count(ctx, client, counted[i], revision)
			return err
		})
	}
	return counted, calls.Wait()
}

func count(ctx context.Context, client metadata.Interface, k backup.Kind, revision int64) (n int, err error) {
	of := client.Resource(schema.GroupVersionResource{Group: k.Group, Version: k.Version, Resource: k.Resource})
	page := metav1.ListOptions{Limit: pageSize, ResourceVersion: fmt.Sprint(revision), ResourceVersionMatch: metav1.ResourceVersionMatchExact}
	for {
		got, err := of.List(ctx, page)
		if err != nil {
			return 0, fmt.Errorf("list %s at revision %d: %w", k.Name(), revision, err)
		}
		n += len(got.Items)
		if got.Continue == "" {
			return n, nil
		}
		page = metav1.ListOptions{Limit: pageSize, Continue: got.Continue}
	}
}
