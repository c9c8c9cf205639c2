package unpack_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/kubewright/kubewright/bootstrap/bundle/unpack"
)

// entry is one thing in a layer, as an honest or a hostile sender would put it.
type entry struct {
	name, content, link string
	kind                byte // of package tar; 0: a file, or a link if link is set
}

var tree = []entry{
	{name: "bin/containerd", link: "kube"},
	{name: "bin/kube", content: strings.Repeat("the components\n", 50)},
	{name: "cni/bridge", content: "the bridge plugin"},
}

func sum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

func layer(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	encoder, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	archive := tar.NewWriter(encoder)
	for _, e := range entries {
		header := &tar.Header{Typeflag: tar.TypeReg, Name: e.name, Linkname: e.link, Size: int64(len(e.content)), Mode: 0o755, Format: tar.FormatUSTAR}
		if e.link != "" {
			header.Typeflag = tar.TypeSymlink
		}
		if e.kind != 0 {
			header.Typeflag = e.kind
		}
		if err := archive.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(archive, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(archive.Close(), encoder.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func manifestOf(entries ...entry) unpack.Manifest {
	var m unpack.Manifest
	for _, e := range entries {
		f := unpack.File{Path: e.name, Link: e.link}
		if e.link == "" {
			f.Mode, f.Size, f.SHA256 = 0o755, int64(len(e.content)), sum([]byte(e.content))
		}
		m.Files = append(m.Files, f)
	}
	return m
}

func frame(t *testing.T, w io.Writer, f unpack.Frame, body []byte) {
	t.Helper()
	if body != nil {
		f.Digest, f.Size = "sha256:"+sum(body), int64(len(body))
	}
	if err := unpack.WriteFrame(w, f); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
}

// stream returns what a sender of the layers would send.
func stream(t *testing.T, m unpack.Manifest, layers ...[]byte) []byte {
	t.Helper()
	listing, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	frame(t, &out, unpack.Frame{Kind: unpack.KindManifest}, listing)
	for _, l := range layers {
		frame(t, &out, unpack.Frame{Kind: unpack.KindLayer}, l)
	}
	frame(t, &out, unpack.Frame{Kind: unpack.KindEnd}, nil)
	return out.Bytes()
}

func whole(t *testing.T) []byte {
	t.Helper()
	return stream(t, manifestOf(tree...), layer(t, tree[:2]...), layer(t, tree[2]))
}

// snapshot maps every path below dir to mode and content.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content := ""
		switch info.Mode().Type() {
		case 0:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content = string(data)
		case fs.ModeSymlink:
			if content, err = os.Readlink(path); err != nil {
				return err
			}
		}
		name, err := filepath.Rel(dir, path)
		out[name] = fmt.Sprintf("%s %s", info.Mode(), content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func wantSame(t *testing.T, what string, want, got map[string]string) {
	t.Helper()
	if !maps.Equal(want, got) {
		t.Errorf("%s: %v\nwant %v", what, got, want)
	}
}

func TestUnpack(t *testing.T) {
	old := syscall.Umask(0o077) // as hardened hosts have it
	defer syscall.Umask(old)
	into := filepath.Join(t.TempDir(), "opt", "v1")
	if err := unpack.Unpack(bytes.NewReader(whole(t)), into); err != nil {
		t.Fatal(err)
	}
	listing, err := manifestOf(tree...).Encode()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		".":              "drwxr-xr-x ",
		"bin":            "drwxr-xr-x ",
		"bin/containerd": "Lrwxrwxrwx kube",
		"bin/kube":       "-rwxr-xr-x " + tree[1].content,
		"cni":            "drwxr-xr-x ",
		"cni/bridge":     "-rwxr-xr-x " + tree[2].content,
		"manifest.json":  "-rw-r--r-- " + string(listing),
	}
	wantSame(t, "version directory", want, snapshot(t, into))

	// Again, over a directory that has been damaged, with leftovers of runs that died.
	for _, path := range []string{into + "/cni/bridge", into + ".partial/bin/kube", into + ".old/x"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("damaged"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unpack.Unpack(bytes.NewReader(whole(t)), into); err != nil {
		t.Fatal(err)
	}
	wantSame(t, "repaired directory", want, snapshot(t, into))
	wantOnly(t, filepath.Dir(into), "v1")
}

// wantOnly checks the names in a directory.
func wantOnly(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, names) {
		t.Errorf("%s holds %v, want %v", dir, got, names)
	}
}

// TestDamagedStreams cuts the stream at every length and flips a bit in every
// byte. A refusal leaves what was there before; and nothing but the true
// directory is ever made (JSON's keys may change their case unharmed).
func TestDamagedStreams(t *testing.T) {
	good := whole(t)
	dir := t.TempDir()
	into := filepath.Join(dir, "v1")
	if err := unpack.Unpack(bytes.NewReader(good), into); err != nil {
		t.Fatal(err)
	}
	want := snapshot(t, into)
	if err := os.RemoveAll(into); err != nil {
		t.Fatal(err)
	}

	for length := range good {
		var refused *unpack.StreamError
		if err := unpack.Unpack(bytes.NewReader(good[:length]), into); !errors.As(err, &refused) {
			t.Errorf("cut at %d of %d: error is %v, want a StreamError", length, len(good), err)
		}
		wantOnly(t, dir)
	}
	accepted := 0
	for at := range good {
		damaged := bytes.Clone(good)
		damaged[at] ^= 1 << (at % 8)
		err := unpack.Unpack(bytes.NewReader(damaged), into)
		var refused *unpack.StreamError
		if err == nil {
			accepted++
			wantSame(t, fmt.Sprintf("bit flipped at %d", at), want, snapshot(t, into))
			if err := os.RemoveAll(into); err != nil {
				t.Fatal(err)
			}
		} else if !errors.As(err, &refused) {
			t.Errorf("flipped at %d of %d: error is %v, want a StreamError", at, len(good), err)
		}
		wantOnly(t, dir)
	}
	if accepted > 20 {
		t.Errorf("%d of %d flipped streams gave a directory", accepted, len(good))
	}
}

func TestFailureLeavesOlderDirectory(t *testing.T) {
	dir := t.TempDir()
	into := filepath.Join(dir, "v1")
	good := whole(t)
	if err := unpack.Unpack(bytes.NewReader(good), into); err != nil {
		t.Fatal(err)
	}
	want := snapshot(t, into)
	if err := unpack.Unpack(bytes.NewReader(good[:len(good)-1]), into); err == nil {
		t.Error("a stream without its last byte is accepted")
	}
	wantSame(t, "older directory", want, snapshot(t, into))
	wantOnly(t, dir, "v1")
}

// TestHostileStreams: senders that try to reach out of the directory, or to put
// into it what the manifest does not list.
func TestHostileStreams(t *testing.T) {
	a := entry{name: "bin/a", content: "a"}
	listed := func(files ...unpack.File) unpack.Manifest { return unpack.Manifest{Files: files} }
	fileA := manifestOf(a).Files[0]
	for name, data := range map[string][]byte{
		"path above":             stream(t, listed(unpack.File{Path: "../a", Mode: 0o755, SHA256: fileA.SHA256}), layer(t, entry{name: "../a"})),
		"absolute path":          stream(t, listed(unpack.File{Path: "/etc/passwd", Mode: 0o755, SHA256: fileA.SHA256}), layer(t, entry{name: "/etc/passwd"})),
		"path not clean":         stream(t, listed(unpack.File{Path: "bin//a", Mode: 0o755, SHA256: fileA.SHA256})),
		"link above":             stream(t, listed(fileA, unpack.File{Path: "bin/b", Link: "../../etc"})),
		"absolute link":          stream(t, listed(fileA, unpack.File{Path: "bin/b", Link: "/etc/passwd"})),
		"link to nothing":        stream(t, listed(fileA, unpack.File{Path: "bin/b", Link: "c"})),
		"link to a link":         stream(t, listed(fileA, unpack.File{Path: "bin/b", Link: "a"}, unpack.File{Path: "bin/c", Link: "b"})),
		"set-user-id mode":       stream(t, listed(unpack.File{Path: "bin/a", Mode: fs.ModeSetuid | 0o755, SHA256: fileA.SHA256})),
		"manifest in manifest":   stream(t, listed(unpack.File{Path: "manifest.json", Mode: 0o755, SHA256: fileA.SHA256})),
		"listed twice":           stream(t, listed(fileA, fileA)),
		"not listed":             stream(t, manifestOf(a), layer(t, a, entry{name: "bin/b"})),
		"above, not listed":      stream(t, manifestOf(a), layer(t, entry{name: "../b"})),
		"came twice":             stream(t, manifestOf(a), layer(t, a), layer(t, a)),
		"came never":             stream(t, manifestOf(a)),
		"another size":           stream(t, manifestOf(a), layer(t, entry{name: "bin/a", content: "aa"})),
		"link instead of file":   stream(t, manifestOf(a), layer(t, entry{name: "bin/a", link: "b"})),
		"device instead of file": stream(t, manifestOf(a), layer(t, entry{name: "bin/a", kind: tar.TypeChar})),
		"hard link":              stream(t, manifestOf(a), layer(t, entry{name: "bin/a", link: "/etc/passwd", kind: tar.TypeLink})),
		"no zstd":                stream(t, manifestOf(a), []byte("plain")),
		"no manifest":            []byte(`{"kind":"end"}` + "\n"),
		"unknown frame":          append(bytes.TrimSuffix(stream(t, manifestOf(a), layer(t, a)), []byte(`{"kind":"end"}`+"\n")), `{"kind":"exec"}`+"\n"...),
		"endless line":           bytes.Repeat([]byte("x"), 1<<20),
		"reuse from above":       reusing(t, "..", a),
		"reuse from a path":      reusing(t, "a/b", a),
		"reuse from nowhere":     reusing(t, "", a),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var refused *unpack.StreamError
			if err := unpack.Unpack(bytes.NewReader(data), filepath.Join(dir, "v1")); !errors.As(err, &refused) {
				t.Errorf("error is %v, want a StreamError", err)
			}
			wantOnly(t, dir)
		})
	}
}

// reusing returns a stream that takes its one file from another directory.
func reusing(t *testing.T, from string, e entry) []byte {
	t.Helper()
	listing, err := json.Marshal(manifestOf(e))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	frame(t, &out, unpack.Frame{Kind: unpack.KindManifest}, listing)
	frame(t, &out, unpack.Frame{Kind: unpack.KindReuse, From: from, Paths: []string{e.name}}, nil)
	frame(t, &out, unpack.Frame{Kind: unpack.KindEnd}, nil)
	return out.Bytes()
}

// TestLaterRunTakesOver: a run whose connection hangs does not stop the next
// one, nor spoil its work when it wakes.
func TestLaterRunTakesOver(t *testing.T) {
	dir := t.TempDir()
	into := filepath.Join(dir, "v1")
	good := whole(t)
	for name, rest := range map[string][]byte{"dies": nil, "goes on": good[len(good)/2:]} {
		t.Run(name, func(t *testing.T) {
			reader, writer := io.Pipe()
			first := make(chan error, 1)
			go func() { first <- unpack.Unpack(reader, into) }()
			if _, err := writer.Write(good[:len(good)/2]); err != nil { // returns when all of it was read
				t.Fatal(err)
			}
			if err := unpack.Unpack(bytes.NewReader(good), into); err != nil {
				t.Fatal(err)
			}
			want := snapshot(t, into)
			go func() {
				writer.Write(rest) //nolint:errcheck // the hung run may not want it any more
				writer.Close()     //nolint:errcheck // never fails
			}()
			if err := <-first; err == nil {
				t.Error("the run that was taken over says it made the directory")
			}
			reader.Close() //nolint:errcheck // never fails
			wantSame(t, "later run's directory", want, snapshot(t, into))
			wantOnly(t, dir, "v1")
		})
	}
}
