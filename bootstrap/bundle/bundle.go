package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/kubewright/kubewright/bootstrap/bundle/unpack"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/version"
)

const (
	remedy = "build it again with `kubewright bundle build`, or copy it again from where it is whole"

	maxJSON    = 1 << 20  // of index.json and every JSON blob; they are some KiB
	maxProgram = 16 << 20 // of a program for the installer alone, unpacked
)

// Bundle is an open bundle. Its methods may be called at once by many.
type Bundle struct {
	path     string
	file     *os.File
	size     int64
	index    []byte
	config   config
	blobs    map[v1.Hash]section // all that the file holds
	listing  v1.Descriptor
	unbundle v1.Descriptor
	probe    v1.Descriptor
	layers   []Layer
	images   []Image
	tree     unpack.Manifest
	manifest []byte // tree's JSON
}

// section is where a blob stands in the file.
type section struct{ off, size int64 }

// Layer is a part of the version directory: a zstd tar.
type Layer struct {
	Name         string
	Digest       string // "sha256:" and hex, of the compressed bytes
	Size         int64  // compressed, in bytes
	UnpackedSize int64  // of its files together, in bytes
	Paths        []string

	bundle     *Bundle
	descriptor v1.Descriptor
}

// Open reads what a bundle says of itself, some KiB, and checks that: the
// listing of its blobs, that none is missing, cut short or surplus, and the
// digests of all that it has read. The large blobs are checked by Verify, or as
// they are read. A file that is no whole bundle is a fault.BundleRefused.
func Open(path string) (_ *Bundle, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fault.New(fault.BundleRefused, "make one with `kubewright bundle build`, or name another file", "open bundle: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Close())
		}
	}()
	b := &Bundle{path: path, file: file}
	if err := b.readArchive(); err != nil {
		return nil, b.refuse(err)
	}
	if err := b.readIndex(); err != nil {
		return nil, b.refuse(err)
	}
	return b, nil
}

// Close closes the file. Readers that are still open fail.
func (b *Bundle) Close() error { return b.file.Close() }

func (b *Bundle) refuse(err error) error {
	var f *fault.Fault
	if errors.As(err, &f) {
		return err
	}
	return fault.New(fault.BundleRefused, remedy, "bundle %s: %w", b.path, err)
}

// readArchive finds the files of the layout in the tar and reads index.json.
func (b *Bundle) readArchive() error {
	info, err := b.file.Stat()
	if err != nil {
		return err
	}
	b.size = info.Size()
	b.blobs = make(map[v1.Hash]section)
	whole := io.NewSectionReader(b.file, 0, b.size)
	archive := tar.NewReader(whole)
	for n := 0; ; n++ {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) && n > 1 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("it is cut short or no bundle: %w", err)
		}
		off, err := whole.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		at := section{off, header.Size}
		digest, isBlob := strings.CutPrefix(header.Name, blobDir)
		switch {
		case n == 0 && header.Name == layoutFile:
			data, err := b.read(at)
			if err != nil || string(data) != layoutContent {
				return fmt.Errorf("its %s is not %s", layoutFile, layoutContent)
			}
		case n == 1 && header.Name == indexFile:
			if b.index, err = b.read(at); err != nil {
				return fmt.Errorf("read %s: %w", indexFile, err)
			}
		case n > 1 && isBlob:
			hash := v1.Hash{Algorithm: "sha256", Hex: digest}
			if _, twice := b.blobs[hash]; twice {
				return fmt.Errorf("it holds %s twice", hash)
			}
			b.blobs[hash] = at
		default:
			return fmt.Errorf("it holds %q, which is no part of a bundle", header.Name)
		}
	}
}

// read returns a small section of the file.
func (b *Bundle) read(at section) ([]byte, error) {
	if at.size > maxJSON {
		return nil, fmt.Errorf("%d bytes are too many", at.size)
	}
	data := make([]byte, at.size)
	if _, err := b.file.ReadAt(data, at.off); err != nil {
		return nil, err
	}
	return data, nil
}

// readIndex follows index.json to everything else.
func (b *Bundle) readIndex() error {
	var index v1.IndexManifest
	if err := json.Unmarshal(b.index, &index); err != nil {
		return fmt.Errorf("parse %s: %w", indexFile, err)
	}
	if len(index.Manifests) == 0 || index.Manifests[0].ArtifactType != artifactType {
		return fmt.Errorf("its %s does not start with a %s", indexFile, artifactType)
	}
	var artifact v1.Manifest
	if err := b.parse(index.Manifests[0], &artifact); err != nil {
		return err
	}
	if err := b.parse(artifact.Config, &b.config); err != nil {
		return err
	}
	want, err := renderIndex(index.Manifests[0], b.config)
	if err != nil {
		return err
	}
	if !bytes.Equal(b.index, want) {
		return fmt.Errorf("its %s is not the one of its blobs", indexFile)
	}

	used := map[v1.Hash]bool{index.Manifests[0].Digest: true, artifact.Config.Digest: true}
	const listings = 3 // the manifest and the two programs come before the layers
	if len(artifact.Layers) != listings+len(b.config.Layers) ||
		artifact.Layers[0].MediaType != mediaManifest || artifact.Layers[1].MediaType != mediaUnbundle ||
		artifact.Layers[2].MediaType != mediaProbe {
		return errors.New("its layers are not the ones of its configuration")
	}
	b.listing, b.unbundle, b.probe = artifact.Layers[0], artifact.Layers[1], artifact.Layers[2]
	for i, d := range artifact.Layers[listings:] {
		if d.MediaType != types.OCILayerZStd {
			return fmt.Errorf("layer %s has media type %s", d.Digest, d.MediaType)
		}
		info := b.config.Layers[i]
		b.layers = append(b.layers, Layer{
			Name: info.Name, Digest: d.Digest.String(), Size: d.Size, UnpackedSize: info.Unpacked, Paths: info.Paths,
			bundle: b, descriptor: d,
		})
	}
	for _, info := range b.config.Images {
		var manifest v1.Manifest
		if err := b.parse(info.Manifest, &manifest); err != nil {
			return err
		}
		image := Image{Ref: info.Ref, bundle: b, info: info,
			contents: append([]v1.Descriptor{info.Manifest, manifest.Config}, manifest.Layers...)}
		for _, d := range image.contents {
			image.Size += d.Size
			if _, err := b.find(d); err != nil {
				return err
			}
			used[d.Digest] = true
		}
		b.images = append(b.images, image)
	}
	for _, d := range artifact.Layers {
		if _, err := b.find(d); err != nil {
			return err
		}
		used[d.Digest] = true
	}
	for digest := range b.blobs {
		if !used[digest] {
			return fmt.Errorf("it holds %s, which nothing names", digest)
		}
	}
	if b.manifest, err = b.blob(b.listing); err != nil {
		return err
	}
	b.tree, err = unpack.ParseManifest(b.manifest)
	return err
}

// find returns where the described blob stands.
func (b *Bundle) find(d v1.Descriptor) (section, error) {
	at, ok := b.blobs[d.Digest]
	if !ok {
		return section{}, fmt.Errorf("it lacks %s", d.Digest)
	}
	if at.size != d.Size {
		return section{}, fmt.Errorf("%s has %d bytes instead of %d", d.Digest, at.size, d.Size)
	}
	return at, nil
}

// open returns a reader of a blob that proves its digest at the end.
func (b *Bundle) open(d v1.Descriptor) (io.Reader, error) {
	at, err := b.find(d)
	if err != nil {
		return nil, b.refuse(err)
	}
	return &provingReader{from: io.NewSectionReader(b.file, at.off, at.size), bundle: b, want: d.Digest, sum: sha256.New()}, nil
}

// blob returns a blob's bytes, verified.
func (b *Bundle) blob(d v1.Descriptor) ([]byte, error) {
	r, err := b.open(d)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// parse reads a JSON blob, verified.
func (b *Bundle) parse(d v1.Descriptor, into any) error {
	if d.Size > maxJSON {
		return fmt.Errorf("%s: %d bytes are too many", d.Digest, d.Size)
	}
	data, err := b.blob(d)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("parse %s: %w", d.Digest, err)
	}
	return nil
}

// provingReader returns io.EOF only after bytes that have the wanted digest.
type provingReader struct {
	from   io.Reader
	bundle *Bundle
	want   v1.Hash
	sum    hash.Hash
}

func (r *provingReader) Read(p []byte) (int, error) {
	n, err := r.from.Read(p)
	r.sum.Write(p[:n])
	if errors.Is(err, io.EOF) {
		if got := hashOf(r.sum.Sum(nil)); got != r.want {
			return n, r.bundle.refuse(fmt.Errorf("it is altered: %s has digest %s", r.want, got))
		}
	} else if err != nil {
		return n, r.bundle.refuse(fmt.Errorf("read %s: %w", r.want, err))
	}
	return n, err
}

// Verify reads the whole file and proves every byte of it: blobs by their
// digests, all else by being what this package writes. Anything amiss is a
// fault.BundleRefused.
func (b *Bundle) Verify(ctx context.Context) error {
	expected := layout{index: b.index}
	for digest, at := range b.blobs {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("verify bundle %s: %w", b.path, err)
		}
		r, err := b.open(v1.Descriptor{Digest: digest, Size: at.size})
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			return err
		}
		expected.blobs = append(expected.blobs, blob{digest: digest, size: at.size, part: io.NewSectionReader(b.file, at.off, at.size)})
	}
	// The blobs are right. Headers, padding and the archive's end are, if the
	// same blobs written anew give the same file.
	same := &comparer{with: io.NewSectionReader(b.file, 0, b.size), ctx: ctx}
	if err := expected.writeTo(same); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("verify bundle %s: %w", b.path, ctx.Err())
		}
		return b.refuse(err)
	}
	if same.n != b.size {
		return b.refuse(fmt.Errorf("it has %d bytes after its end", b.size-same.n))
	}
	return nil
}

// comparer fails a write that differs from what it reads.
type comparer struct {
	with   io.Reader
	ctx    context.Context
	n      int64
	buffer []byte
}

func (c *comparer) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	if cap(c.buffer) < len(p) {
		c.buffer = make([]byte, len(p))
	}
	got := c.buffer[:len(p)]
	if _, err := io.ReadFull(c.with, got); err != nil {
		return 0, fmt.Errorf("it is cut short at byte %d: %w", c.n, err)
	}
	if !bytes.Equal(got, p) {
		return 0, fmt.Errorf("it is altered near byte %d", c.n)
	}
	c.n += int64(len(p))
	return len(p), nil
}

// Path returns the file that was opened.
func (b *Bundle) Path() string { return b.path }

// Size returns the file's size in bytes.
func (b *Bundle) Size() int64 { return b.size }

// Digest returns what the bundle is known by: "sha256:" and the hex SHA-256 of
// its index.json, which names everything in it.
func (b *Bundle) Digest() string { return blobOf(b.index).digest.String() }

// Version returns the Kubernetes version, v1.37.2.
func (b *Bundle) Version() string { return b.config.Components.Of(version.KubernetesName) }

// Name returns the name of the version directory on hosts, v1.37.2-0123456789ab:
// the Kubernetes version and the first 12 digits of the digest.
func (b *Bundle) Name() string {
	return b.Version() + "-" + blobOf(b.index).digest.Hex[:12]
}

// Arch returns the architecture of the hosts it is for, as Go names it.
func (b *Bundle) Arch() string { return b.config.Architecture }

// Components returns the versions of what is in it.
func (b *Bundle) Components() version.List { return b.config.Components }

// Layers returns the layers of the version directory.
func (b *Bundle) Layers() []Layer { return b.layers }

// Images returns the container images.
func (b *Bundle) Images() []Image { return b.images }

// Manifest returns the version directory's manifest.json, byte for byte as it
// stands on a host when the directory is complete.
func (b *Bundle) Manifest() []byte { return b.manifest }

// Files returns what Manifest says: every file and link of the version
// directory but manifest.json itself, sorted by path.
func (b *Bundle) Files() []unpack.File { return b.tree.Files }

// CheckArch returns a fault.BundleRefused if the bundle is for another
// architecture than arch, a name as Go has it: amd64, arm64.
func (b *Bundle) CheckArch(arch string) error {
	if arch == b.Arch() {
		return nil
	}
	return fault.New(fault.BundleRefused, "give a bundle that was built for "+arch,
		"bundle %s: it is for %s hosts, not for %s", b.path, b.Arch(), arch)
}

// Open returns the layer as it is, compressed. The reader ends with a
// fault.BundleRefused instead of io.EOF if the bytes are not the layer's.
func (l Layer) Open() (io.ReadCloser, error) {
	r, err := l.bundle.open(l.descriptor)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(r), nil
}

// Unbundler returns the program that unpacks a stream on a host.
func (b *Bundle) Unbundler() ([]byte, error) { return b.program("unbundle", b.unbundle) }

// Probe returns the program that preflight sends to hosts.
func (b *Bundle) Probe() ([]byte, error) { return b.program("probe", b.probe) }

// Extract writes one file of the version directory to w, for a use other than on a
// host: "bin/kube". What was written is the file only if the error is nil.
func (b *Bundle) Extract(name string, w io.Writer) error {
	for _, l := range b.layers {
		if !slices.Contains(l.Paths, name) {
			continue
		}
		compressed, err := l.Open()
		if err != nil {
			return err
		}
		decoder, err := zstd.NewReader(compressed, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(unpack.MaxWindow))
		if err != nil {
			return fmt.Errorf("decompress layer %s: %w", l.Name, err)
		}
		defer decoder.Close()
		archive := tar.NewReader(decoder)
		found := false
		for {
			header, err := archive.Next()
			if errors.Is(err, io.EOF) { // the layer was read to its end: its digest is proven
				break
			}
			if err != nil {
				return b.refuse(fmt.Errorf("read layer %s: %w", l.Name, err))
			}
			if header.Name != name || header.Typeflag != tar.TypeReg {
				continue
			}
			found = true
			if _, err := io.Copy(w, archive); err != nil {
				return fmt.Errorf("extract %s: %w", name, err)
			}
		}
		if _, err := io.Copy(io.Discard, decoder); err != nil {
			return b.refuse(fmt.Errorf("read layer %s: %w", l.Name, err))
		}
		if found {
			return nil
		}
	}
	return b.refuse(fmt.Errorf("it holds no file %s", name))
}

func (b *Bundle) program(name string, d v1.Descriptor) ([]byte, error) {
	compressed, err := b.open(d)
	if err != nil {
		return nil, err
	}
	decoder, err := zstd.NewReader(compressed, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(unpack.MaxWindow))
	if err != nil {
		return nil, fmt.Errorf("decompress %s: %w", name, err)
	}
	defer decoder.Close()
	program, err := io.ReadAll(io.LimitReader(decoder, maxProgram+1))
	if err != nil {
		return nil, b.refuse(fmt.Errorf("decompress %s: %w", name, err))
	}
	if len(program) > maxProgram {
		return nil, b.refuse(fmt.Errorf("%s is larger than %d bytes", name, maxProgram))
	}
	return program, nil
}
