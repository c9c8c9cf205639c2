package pki_test

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/pki"
)

// written is what is on a host after the first n files of b were written over old.
func written(old map[string][]byte, b *pki.Bundle, n int) map[string][]byte {
	files := maps.Clone(old)
	if files == nil {
		files = map[string][]byte{}
	}
	for _, f := range b.Files()[:n] {
		files[f.Name] = f.Content
	}
	return files
}

func TestFiles(t *testing.T) {
	b := newBundle(t)
	var names, private []string
	for _, f := range b.Files() {
		names = append(names, f.Name)
		if f.Private {
			private = append(private, f.Name)
		}
		if len(f.Content) == 0 {
			t.Errorf("%s is empty", f.Name)
		}
	}
	if diff := cmp.Diff(pki.FileNames(), names); diff != "" {
		t.Errorf("FileNames and Files differ:\n%s", diff)
	}
	golden(t, "files.golden", strings.Join(names, "\n")+"\n")
	for _, name := range names {
		if strings.HasSuffix(name, ".key") != slices.Contains(private, name) {
			t.Errorf("%s: private %v", name, slices.Contains(private, name))
		}
	}
}

// A run that is killed after any of its writes is taken up by the next one,
// which keeps what was whole and ends with a whole bundle.
func TestCompleteAfterInterruption(t *testing.T) {
	b := newBundle(t)
	files := b.Files()
	for n := range len(files) + 1 {
		before := written(nil, b, n)
		again, err := pki.LoadBundle(before)
		if err != nil {
			t.Fatalf("after %d files: %v", n, err)
		}
		if _, err := again.Complete(inputs, now); err != nil {
			t.Fatalf("after %d files: %v", n, err)
		}
		after := written(before, again, len(files))
		whole, err := pki.LoadBundle(after)
		if err != nil {
			t.Fatalf("after %d files and another run: %v", n, err)
		}
		made, err := whole.Complete(inputs, now)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range made {
			if !slices.ContainsFunc(pki.Table(inputs), func(c pki.Cert) bool { return c.Name == name && c.Kubeconfig != "" }) {
				t.Errorf("after %d files and another run, %s had to be made", n, name)
			}
		}
		for i, f := range files[:n] {
			// Only a key without its certificate may be lost.
			if cut := i == n-1 && f.Private && f.Name != "sa.key"; !cut && string(after[f.Name]) != string(f.Content) {
				t.Errorf("after %d files, another run replaced %s", n, f.Name)
			}
		}
	}
}

// The same while certificates are renewed: a new key beside an old certificate
// is found out.
func TestRenewAfterInterruption(t *testing.T) {
	old := newBundle(t)
	total := len(old.Files())
	later := now.Add(pki.LeafLife - 24*time.Hour)
	renewed, err := pki.LoadBundle(written(nil, old, total))
	if err != nil {
		t.Fatal(err)
	}
	made, err := renewed.Complete(inputs, later)
	if err != nil {
		t.Fatal(err)
	}
	if want := len(pki.Table(inputs)); len(made) != want {
		t.Fatalf("made %q, want all %d certificates and no authority", made, want)
	}
	for n := range total + 1 {
		b, err := pki.LoadBundle(written(written(nil, old, total), renewed, n))
		if err != nil {
			t.Fatalf("after %d files: %v", n, err)
		}
		if _, err := b.Complete(inputs, later); err != nil {
			t.Fatalf("after %d files: %v", n, err)
		}
		for _, c := range pki.Table(inputs) {
			if reasons := pki.Check(b.Pairs[c.Name], c, b.Authorities[c.CA].Cert, later); len(reasons) > 0 {
				t.Errorf("after %d files: %s: %q", n, c.Name, reasons)
			}
		}
	}
}

// A name more in the API server's certificate renews that one alone.
func TestCompleteChangedInputs(t *testing.T) {
	b := newBundle(t)
	in := inputs
	in.ExtraSANs = append(slices.Clone(in.ExtraSANs), "lb.example.com")
	made, err := b.Complete(in, now)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{pki.APIServer}, made); diff != "" {
		t.Errorf("-want +made:\n%s", diff)
	}
}

func TestLoadBundleRefuses(t *testing.T) {
	b := newBundle(t)
	for name, test := range map[string]struct {
		change func(map[string][]byte)
		want   string
	}{
		"authority gone":    {func(f map[string][]byte) { delete(f, "ca.crt") }, "ca.crt is missing, but there is apiserver.crt"},
		"its key gone":      {func(f map[string][]byte) { delete(f, "etcd/ca.key") }, "there is etcd/ca.crt, but not its key"},
		"damaged":           {func(f map[string][]byte) { f["ca.crt"] = []byte("x") }, "load authority ca: no PEM certificate found"},
		"key of another":    {func(f map[string][]byte) { f["ca.key"] = f["etcd/ca.key"] }, "load authority ca: the key is not the certificate's"},
		"token key damaged": {func(f map[string][]byte) { f["sa.key"] = []byte("x") }, "load service account key: no PEM private key found"},
		"leaf in its place": {func(f map[string][]byte) { f["ca.crt"], f["ca.key"] = f["apiserver.crt"], f["apiserver.key"] }, "is not an authority's"},
	} {
		t.Run(name, func(t *testing.T) {
			files := written(nil, b, len(b.Files()))
			test.change(files)
			if _, err := pki.LoadBundle(files); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
