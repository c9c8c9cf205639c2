package e2e

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// testImage is what test pods are made of: Debian's static busybox and our own
// box. Hosts pull nothing.
const testImage = "kubewright.dev/busybox:test"

// applets are the names that busybox is linked to.
const applets = "cat dd echo env grep hostname httpd ls md5sum mkdir rm sh sleep tar touch"

// boxProgram builds our own program for test pods.
func boxProgram(t testing.TB) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "box")
	build := exec.CommandContext(t.Context(), "go", "build", "-ldflags=-s -w", "-o", path, "./box")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build box: %v\n%s", err, out)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// podImage is the image as a tar that `ctr images import` reads.
func podImage(t testing.TB) []byte {
	t.Helper()
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("run `make packages` first: %v", err)
	}
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	add := func(h *tar.Header, content []byte) {
		h.Size = int64(len(content))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	add(&tar.Header{Typeflag: tar.TypeDir, Name: "bin/", Mode: 0o755}, nil)
	add(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil)
	add(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, program)
	add(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/box", Mode: 0o755}, boxProgram(t))
	for _, a := range strings.Fields(applets) {
		add(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + a, Linkname: "busybox", Mode: 0o777}, nil)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(files.Bytes())), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{OS: "linux", Architecture: "amd64",
		Config: v1.Config{Env: []string{"PATH=/bin"}}, RootFS: mustConfig(t, image).RootFS})
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.NewTag(testImage)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := tarball.Write(ref, image, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func mustConfig(t testing.TB, image v1.Image) *v1.ConfigFile {
	t.Helper()
	c, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// importImage has the test image in the store of every host of the lab.
func (e *env) importImage(t testing.TB) {
	t.Helper()
	image := podImage(t)
	for _, h := range e.lab.Hosts() {
		var out bytes.Buffer
		status, err := e.lab.Exec(t.Context(), h.Name, []string{"/opt/kubewright/current/bin/ctr", "-n", "k8s.io", "images", "import", "-"},
			bytes.NewReader(image), &out, &out)
		if err != nil || status != 0 {
			t.Fatalf("%s: import the test image: exit %d, %v\n%s", h.Name, status, err, out.String())
		}
	}
}
