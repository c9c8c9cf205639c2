package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kubewright/kubewright/bootstrap/bundle/unpack"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/version"
)

var programNames = []string{
	"kube", "pause", "probe", "unbundle", "containerd-shim-runc-v2", "runc", "bridge", "host-local", "loopback", "portmap",
}

// fakePrograms writes a stand-in for every compiled program into a new directory.
func fakePrograms(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for i, name := range programNames {
		content := strings.Repeat(fmt.Sprintf("program %s %d\n", name, i), 20*(i+1))
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func fakeContents(dir string) contents {
	return compiled(dir, "amd64", version.List{
		{Name: version.KubernetesName, Version: "v1.37.2", Module: "k8s.io/kubernetes"},
		{Name: version.KubewrightName, Version: "v0.1.0", Module: "github.com/kubewright/kubewright"},
	})
}

func assembleFake(t *testing.T, c contents) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "out", "fake.kwb")
	if err := assemble(t.Context(), c, path, t.TempDir(), nil); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustOpen(t *testing.T, path string) *Bundle {
	t.Helper()
	b, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func wantRefused(t *testing.T, err error) {
	t.Helper()
	if got := fault.CodeOf(err); got != fault.BundleRefused {
		t.Errorf("error is %v (code %q), want a %s", err, got, fault.BundleRefused)
	}
}

func TestSameContentsSameBytes(t *testing.T) {
	first, second := fakePrograms(t), fakePrograms(t)
	long := time.Unix(1e9, 0)
	for _, name := range programNames { // only names and bytes count
		path := filepath.Join(second, name)
		if err := errors.Join(os.Chtimes(path, long, long), os.Chmod(path, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	a, errA := os.ReadFile(assembleFake(t, fakeContents(first)))
	b, errB := os.ReadFile(assembleFake(t, fakeContents(second)))
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Error("two bundles of the same contents differ")
	}

	if err := os.WriteFile(filepath.Join(second, "runc"), []byte("another runc"), 0o700); err != nil {
		t.Fatal(err)
	}
	one, other := mustOpen(t, assembleFake(t, fakeContents(first))), mustOpen(t, assembleFake(t, fakeContents(second)))
	if one.Digest() == other.Digest() || one.Name() == other.Name() {
		t.Error("another runc gives the same digest")
	}
	for i, l := range one.Layers() {
		if same := l.Digest == other.Layers()[i].Digest; same != (l.Name != "runtime") {
			t.Errorf("layer %s: equal is %v after runc changed", l.Name, same)
		}
	}
}

func TestAssembleLeavesNothingHalf(t *testing.T) {
	dir := fakePrograms(t)
	out := filepath.Join(t.TempDir(), "b.kwb")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := assemble(ctx, fakeContents(dir), out, t.TempDir(), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled assembly returns %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "runc")); err != nil {
		t.Fatal(err)
	}
	if err := assemble(t.Context(), fakeContents(dir), out, t.TempDir(), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("assembly without runc returns %v", err)
	}
	left, err := os.ReadDir(filepath.Dir(out))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestRoundTrip(t *testing.T) {
	programs := fakePrograms(t)
	b := mustOpen(t, assembleFake(t, fakeContents(programs)))
	if err := b.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	into := filepath.Join(t.TempDir(), "opt", b.Name())
	var stream bytes.Buffer
	var sent, total int64
	if err := b.Stream(&stream, func(s, n int64) { sent, total = s, n }); err != nil {
		t.Fatal(err)
	}
	if sent != total || total == 0 {
		t.Errorf("progress ended at %d of %d", sent, total)
	}
	if err := unpack.Unpack(&stream, into); err != nil {
		t.Fatal(err)
	}

	// The listing is true, complete, and stands in the directory.
	got := listing(t, into)
	manifest, err := os.ReadFile(filepath.Join(into, unpack.ManifestName))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(manifest, b.Manifest()) {
		t.Errorf("manifest.json is %s, want %s", manifest, b.Manifest())
	}
	if d := cmp.Diff(b.Files(), got); d != "" {
		t.Errorf("version directory (-manifest +disk):\n%s", d)
	}
	var unpacked int64
	for _, l := range b.Layers() {
		unpacked += l.UnpackedSize
	}
	if inspected := b.Inspect(); inspected.UnpackedSize != unpacked || len(inspected.Files) != len(got) {
		t.Errorf("inspection says %d bytes and %d files, want %d and %d", inspected.UnpackedSize, len(inspected.Files), unpacked, len(got))
	}

	for name, read := range map[string]func() ([]byte, error){"unbundle": b.Unbundler, "probe": b.Probe} {
		program, err := read()
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join(programs, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(program, want) {
			t.Errorf("the program %s is not the one put in", name)
		}
	}
}

// listing reads a directory the way a manifest describes it.
func TestExtract(t *testing.T) {
	programs := fakePrograms(t)
	b := mustOpen(t, assembleFake(t, fakeContents(programs)))
	want, err := os.ReadFile(filepath.Join(programs, "kube"))
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := b.Extract("bin/kube", &got); err != nil || !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%d bytes, %v", got.Len(), err)
	}
	for _, name := range []string{"bin/absent", "bin/etcd"} { // the second is a link
		wantRefused(t, b.Extract(name, io.Discard))
	}
}

func listing(t *testing.T, dir string) []unpack.File {
	t.Helper()
	var out []unpack.File
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == unpack.ManifestName {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f := unpack.File{Path: filepath.ToSlash(name)}
		if info.Mode().Type() == fs.ModeSymlink {
			f.Link, err = os.Readlink(path)
		} else {
			var data []byte
			data, err = os.ReadFile(path)
			sum := sha256.Sum256(data)
			f.Mode, f.Size, f.SHA256 = info.Mode(), info.Size(), hex.EncodeToString(sum[:])
		}
		out = append(out, f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestIdentity(t *testing.T) {
	b := mustOpen(t, assembleFake(t, fakeContents(fakePrograms(t))))
	if got, want := b.Name(), "v1.37.2-"+strings.TrimPrefix(b.Digest(), "sha256:")[:12]; got != want {
		t.Errorf("name is %s, want %s", got, want)
	}
	if b.Version() != "v1.37.2" || b.Arch() != "amd64" {
		t.Errorf("it is %s for %s", b.Version(), b.Arch())
	}
	if err := b.CheckArch("amd64"); err != nil {
		t.Error(err)
	}
	wantRefused(t, b.CheckArch("arm64"))
	if _, err := json.Marshal(b.Inspect()); err != nil {
		t.Error(err)
	}
}

func TestImageArchive(t *testing.T) {
	programs := fakePrograms(t)
	b := mustOpen(t, assembleFake(t, fakeContents(programs)))
	if len(b.Images()) != 1 || b.Images()[0].Ref != PauseImage {
		t.Fatalf("images are %v", b.Images())
	}
	archive, err := b.Images()[0].Archive()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for r := tar.NewReader(archive); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[header.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(files[indexFile], &index); err != nil {
		t.Fatal(err)
	}
	if len(index.Manifests) != 1 || index.Manifests[0].Annotations[annotationImage] != PauseImage {
		t.Fatalf("index is %s", files[indexFile])
	}
	var manifest v1.Manifest
	if err := json.Unmarshal(files[blobDir+index.Manifests[0].Digest.Hex], &manifest); err != nil {
		t.Fatal(err)
	}
	var conf v1.ConfigFile
	if err := json.Unmarshal(files[blobDir+manifest.Config.Digest.Hex], &conf); err != nil {
		t.Fatal(err)
	}
	if conf.Config.User != pauseUser || cmp.Diff(conf.Config.Entrypoint, []string{"/pause"}) != "" || conf.Architecture != "amd64" {
		t.Errorf("configuration is %+v", conf)
	}
	if _, ok := files[blobDir+manifest.Layers[0].Digest.Hex]; !ok || len(files) != 5 {
		t.Errorf("archive holds %d files, its layer: %v", len(files), ok)
	}
}

// TestDamage flips one bit in every byte and cuts the file at every length: each
// is refused by Open or Verify, and never anything but a refusal.
func TestDamage(t *testing.T) {
	whole, err := os.ReadFile(assembleFake(t, fakeContents(fakePrograms(t))))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "damaged.kwb")
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close() //nolint:errcheck // a test's scratch file
	check := func(what string, at int) {
		t.Helper()
		b, err := Open(path)
		if err == nil {
			err = errors.Join(b.Verify(t.Context()), b.Close())
		}
		var f *fault.Fault
		if !errors.As(err, &f) || f.Code != fault.BundleRefused || f.Remedy == "" {
			t.Errorf("%s %d of %d: error is %v, want a refusal with a remedy", what, at, len(whole), err)
		}
	}
	write := func(at int, data ...byte) {
		t.Helper()
		if _, err := file.WriteAt(data, int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	for at, good := range whole {
		write(at, good^1<<(at%8))
		check("bit flipped at", at)
		write(at, good)
	}
	write(len(whole), 0)
	check("a byte more than", len(whole))
	write(len(whole), make([]byte, 512)...)
	check("a block more than", len(whole))
	write(len(whole), whole...)
	check("another bundle after", len(whole))
	for at := len(whole) - 1; at >= 0; at-- {
		if at%61 != 0 && at < len(whole)-1100 { // every length near the archive's end
			continue
		}
		if err := file.Truncate(int64(at)); err != nil {
			t.Fatal(err)
		}
		check("cut at", at)
	}
}

func TestRefusesWhatIsNoBundle(t *testing.T) {
	_, err := Open(filepath.Join(t.TempDir(), "absent.kwb"))
	wantRefused(t, err)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error is %v, want fs.ErrNotExist in it", err)
	}
	_, err = Open(t.TempDir())
	wantRefused(t, err)
}

// TestForeignLayouts: archives that are well-formed, but not what Build makes.
func TestForeignLayouts(t *testing.T) {
	c := fakeContents(fakePrograms(t))
	b := mustOpen(t, assembleFake(t, c))
	var blobs []blob
	for digest, at := range b.blobs {
		blobs = append(blobs, blob{digest: digest, size: at.size, part: io.NewSectionReader(b.file, at.off, at.size)})
	}
	for name, l := range map[string]layout{
		"surplus blob":    {index: b.index, blobs: append([]blob{blobOf([]byte("surplus"))}, blobs...)},
		"missing blobs":   {index: b.index, blobs: blobs[1:]},
		"empty index":     {index: []byte("{}"), blobs: blobs},
		"index reordered": {index: append([]byte(" "), b.index...), blobs: blobs},
		"version changed": {index: bytes.ReplaceAll(b.index, []byte("v1.37.2"), []byte("v1.37.3")), blobs: blobs},
	} {
		t.Run(name, func(t *testing.T) {
			for _, blob := range blobs {
				if _, err := blob.part.Seek(0, io.SeekStart); err != nil {
					t.Fatal(err)
				}
			}
			path := filepath.Join(t.TempDir(), "foreign.kwb")
			if err := writeFile(path, l.writeTo); err != nil {
				t.Fatal(err)
			}
			_, err := Open(path)
			wantRefused(t, err)
		})
	}
}

// TestDamageWhileReading: a bundle that goes bad after Open is found by whoever
// reads it, and its stream is one that the host refuses.
func TestDamageWhileReading(t *testing.T) {
	path := assembleFake(t, fakeContents(fakePrograms(t)))
	b := mustOpen(t, path)
	layer := b.Layers()[1]
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	at := b.blobs[layer.descriptor.Digest]
	_, err = file.WriteAt([]byte{0xff, 0, 0xff}, at.off+at.size/2)
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}

	r, err := layer.Open()
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(io.Discard, r)
	wantRefused(t, err)
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	wantRefused(t, b.Verify(t.Context()))
	var stream bytes.Buffer
	wantRefused(t, b.Stream(&stream, nil))
	into := filepath.Join(t.TempDir(), b.Name())
	var refused *unpack.StreamError
	if err := unpack.Unpack(&stream, into); !errors.As(err, &refused) {
		t.Errorf("unpacking says %v", err)
	}
}

func TestVerifyStops(t *testing.T) {
	b := mustOpen(t, assembleFake(t, fakeContents(fakePrograms(t))))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Verify(ctx); !errors.Is(err, context.Canceled) || fault.CodeOf(err) == fault.BundleRefused {
		t.Errorf("canceled verification returns %v", err)
	}
}

// TestReuse upgrades a directory: what has not changed is linked, not sent.
func TestReuse(t *testing.T) {
	programs := fakePrograms(t)
	old := mustOpen(t, assembleFake(t, fakeContents(programs)))
	if err := os.WriteFile(filepath.Join(programs, "kube"), []byte("kube, the next version"), 0o700); err != nil {
		t.Fatal(err)
	}
	next := mustOpen(t, assembleFake(t, fakeContents(programs)))

	opt := t.TempDir()
	var stream bytes.Buffer
	if err := old.Stream(&stream, nil); err != nil {
		t.Fatal(err)
	}
	if err := unpack.Unpack(&stream, filepath.Join(opt, old.Name())); err != nil {
		t.Fatal(err)
	}
	var total int64
	if err := next.StreamReusing(&stream, old.Name(), old.Manifest(), func(_, n int64) { total = n }); err != nil {
		t.Fatal(err)
	}
	if want := next.Layers()[0].Size; total != want {
		t.Errorf("%d bytes are sent, want the kube layer's %d", total, want)
	}
	sent := bytes.Clone(stream.Bytes())
	if err := unpack.Unpack(&stream, filepath.Join(opt, next.Name())); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(next.Files(), listing(t, filepath.Join(opt, next.Name()))); d != "" {
		t.Errorf("upgraded directory (-manifest +disk):\n%s", d)
	}

	// A file that is no longer what the old manifest says is not taken over.
	if err := os.WriteFile(filepath.Join(opt, old.Name(), "cni", "portmap"), bytes.Repeat([]byte("x"), 3), 0o755); err != nil {
		t.Fatal(err)
	}
	var refused *unpack.StreamError
	if err := unpack.Unpack(bytes.NewReader(sent), filepath.Join(opt, "third")); !errors.As(err, &refused) {
		t.Errorf("a changed file is taken over: %v", err)
	}
}

func TestBuildForAnotherArchitecture(t *testing.T) {
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	_, err := Build(t.Context(), Options{Dir: "../..", Arch: other}, nil)
	if got := fault.CodeOf(err); got != fault.Usage {
		t.Errorf("error is %v (code %q), want %q", err, got, fault.Usage)
	}
}

func TestToolchain(t *testing.T) {
	tool := toolchain{dir: filepath.Join("..", ".."), arch: runtime.GOARCH}
	components, err := tool.components(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := components.Of(version.GoName); !strings.HasPrefix(got, "go1.") {
		t.Errorf("go is %q", got)
	}
	_, err = tool.run(t.Context(), false, "build", "./no/such/package")
	if err == nil || !strings.Contains(err.Error(), "no/such/package") {
		t.Errorf("error of a failed build is %v, want the command's words in it", err)
	}
}

func TestStampsAreUpstreamsVersions(t *testing.T) {
	got := strings.Join(stamps(version.List{
		{Name: "kubernetes", Version: "v1.37.2"}, {Name: "containerd", Version: "v2.4.2"},
		{Name: "cni-plugins", Version: "v1.9.1"}, {Name: "coredns", Version: "v1.15.0"}, {Name: "flannel", Version: "v0.28.10"},
	}), "\n")
	for _, want := range []string{
		"-X k8s.io/component-base/version.gitVersion=v1.37.2",
		"-X k8s.io/component-base/version.gitMajor=1",
		"-X k8s.io/component-base/version.gitMinor=37",
		"-X k8s.io/client-go/pkg/version.gitVersion=v1.37.2",
		"-X github.com/containerd/containerd/v2/version.Version=v2.4.2",
		"-X github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion=v1.9.1",
		"-X github.com/flannel-io/flannel/pkg/version.Version=v0.28.10",
	} {
		if !strings.Contains(got+"\n", want+"\n") {
			t.Errorf("no stamp %s in:\n%s", want, got)
		}
	}
}
