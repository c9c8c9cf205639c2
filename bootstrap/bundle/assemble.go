package bundle

import (
	"archive/tar"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/kubewright/kubewright/bootstrap/bundle/unpack"
	"github.com/kubewright/kubewright/bootstrap/version"
)

// contents is what goes into a bundle.
type contents struct {
	arch       string
	components version.List
	layers     []layerFiles
	unbundler  string // path of the program that unpacks
	probe      string // path of the program that preflight sends to hosts
	pause      string // path of the pause program
}

// layerFiles is one layer of the version directory.
type layerFiles struct {
	name  string
	files map[string]string // path in the version directory -> path of the file it is made from
	links map[string]string // path in the version directory -> name of the file beside it
}

const (
	// window is how far back the compressor finds a match, and so what a host's
	// decoder needs in memory. 32 MiB: 0.4 MB smaller than the level's own 8 MiB;
	// 64 MiB saves 0.07 MB more.
	window = 32 << 20
	// level is zstd's best in Go: 46.2 MB in 11 s for cmd/kube, where the one below
	// takes 49.8 MB in 2 s. Bundles are built seldom and sent to every host.
	level = zstd.SpeedBestCompression

	fileMode = 0o755 // of all files: they are programs
)

// assemble writes the bundle of c to path, atomically. Blobs are collected in
// work, a directory of the caller's that may be thrown away afterwards.
func assemble(ctx context.Context, c contents, path, work string, progress Progress) error {
	var (
		layers  = make([]layerBlob, len(c.layers))
		helpers helperBlobs
		pause   image
	)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(concurrentCompressions)
	for i, files := range c.layers {
		group.Go(func() (err error) {
			defer progress.begin("compress " + files.name)(&err)
			layers[i], err = compressLayer(ctx, files, work)
			return err
		})
	}
	group.Go(func() (err error) {
		pause, err = pauseImage(ctx, c.arch, c.pause, work)
		return err
	})
	for _, helper := range []struct {
		from string
		into *blob
	}{{c.unbundler, &helpers.unbundler}, {c.probe, &helpers.probe}} {
		group.Go(func() (err error) {
			*helper.into, err = compressBlob(ctx, work, func(w io.Writer) error {
				return copyFile(w, helper.from)
			})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}

	l, err := compose(c, layers, helpers, []image{pause})
	if err != nil {
		return err
	}
	return writeFile(path, l.writeTo)
}

// concurrentCompressions bounds memory: each holds some hundred MiB at this
// level. It does not change a byte, as every blob is compressed by itself.
const concurrentCompressions = 2

// helperBlobs are the programs that run on hosts for the installer alone.
type helperBlobs struct{ unbundler, probe blob }

// compose makes the layout of finished blobs.
func compose(c contents, layers []layerBlob, helpers helperBlobs, images []image) (layout, error) {
	conf := config{Architecture: c.arch, OS: OS, Components: c.components}
	var tree unpack.Manifest
	for _, l := range layers {
		tree.Files = append(tree.Files, l.files...)
	}
	slices.SortFunc(tree.Files, func(a, b unpack.File) int { return cmp.Compare(a.Path, b.Path) })
	listing, err := tree.Encode()
	if err != nil {
		return layout{}, err
	}
	if _, err := unpack.ParseManifest(listing); err != nil {
		return layout{}, fmt.Errorf("compose bundle: %w", err)
	}

	listingBlob := blobOf(listing)
	manifest := v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: artifactType,
		Layers: []v1.Descriptor{
			titled(listingBlob.descriptor(mediaManifest), unpack.ManifestName),
			titled(helpers.unbundler.descriptor(mediaUnbundle), "unbundle"),
			titled(helpers.probe.descriptor(mediaProbe), "probe"),
		},
	}
	out := layout{blobs: []blob{listingBlob, helpers.unbundler, helpers.probe}}
	for _, l := range layers {
		info := layerInfo{Name: l.name}
		for _, f := range l.files {
			info.Paths = append(info.Paths, f.Path)
			info.Unpacked += f.Size
		}
		conf.Layers = append(conf.Layers, info)
		manifest.Layers = append(manifest.Layers, titled(l.descriptor(types.OCILayerZStd), l.name))
		out.blobs = append(out.blobs, l.blob)
	}
	for _, i := range images {
		conf.Images = append(conf.Images, imageInfo{Ref: i.ref, Manifest: i.manifest.descriptor(types.OCIManifestSchema1)})
		out.blobs = append(out.blobs, i.manifest, i.config, i.layer)
	}

	configData, err := encode(conf)
	if err != nil {
		return layout{}, err
	}
	configBlob := blobOf(configData)
	manifest.Config = configBlob.descriptor(mediaConfig)
	manifestData, err := encode(manifest)
	if err != nil {
		return layout{}, err
	}
	manifestBlob := blobOf(manifestData)
	out.blobs = append(out.blobs, configBlob, manifestBlob)
	out.index, err = renderIndex(manifestBlob.descriptor(types.OCIManifestSchema1), conf)
	return out, err
}

func titled(d v1.Descriptor, title string) v1.Descriptor {
	d.Annotations = map[string]string{annotationTitle: title}
	return d
}

// layerBlob is a compressed layer with what is in it, sorted by path.
type layerBlob struct {
	blob
	name  string
	files []unpack.File
}

// compressLayer makes a zstd tar of a layer's files. It holds no directories
// and no owners: whoever unpacks it knows them.
func compressLayer(ctx context.Context, l layerFiles, work string) (layerBlob, error) {
	out := layerBlob{name: l.name}
	for path := range l.files {
		out.files = append(out.files, unpack.File{Path: path, Mode: fileMode})
	}
	for path, target := range l.links {
		out.files = append(out.files, unpack.File{Path: path, Link: target})
	}
	slices.SortFunc(out.files, func(a, b unpack.File) int { return cmp.Compare(a.Path, b.Path) })

	var err error
	out.blob, err = compressBlob(ctx, work, func(w io.Writer) error {
		archive := tar.NewWriter(w)
		for i := range out.files {
			f := &out.files[i]
			if f.Link != "" {
				header := &tar.Header{Typeflag: tar.TypeSymlink, Name: f.Path, Linkname: f.Link, Mode: 0o777, Format: tar.FormatUSTAR}
				if err := archive.WriteHeader(header); err != nil {
					return err
				}
				continue
			}
			f.Size, f.SHA256, err = addFile(archive, f.Path, l.files[f.Path])
			if err != nil {
				return err
			}
		}
		return archive.Close()
	})
	if err != nil {
		return layerBlob{}, fmt.Errorf("compress layer %s: %w", l.name, err)
	}
	return out, nil
}

// addFile adds the file at from as an executable and returns its size and
// SHA-256 in hex.
func addFile(archive *tar.Writer, name, from string) (int64, string, error) {
	file, err := os.Open(from)
	if err != nil {
		return 0, "", err
	}
	defer file.Close() //nolint:errcheck // only read from
	info, err := file.Stat()
	if err != nil {
		return 0, "", err
	}
	if err := archive.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Size: info.Size(), Mode: fileMode, Format: tar.FormatUSTAR,
	}); err != nil {
		return 0, "", err
	}
	sum := sha256.New()
	if _, err := io.Copy(archive, io.TeeReader(file, sum)); err != nil {
		return 0, "", err
	}
	return info.Size(), hex.EncodeToString(sum.Sum(nil)), nil
}

// compressBlob compresses what fill writes into a new file in work. One
// goroutine compresses, so the bytes do not depend on the machine.
func compressBlob(ctx context.Context, work string, fill func(io.Writer) error) (blob, error) {
	file, err := os.CreateTemp(work, "blob-*")
	if err != nil {
		return blob{}, err
	}
	defer file.Close() //nolint:errcheck // closed below when it matters
	out := &hashWriter{to: file, sum: sha256.New()}
	encoder, err := zstd.NewWriter(out, zstd.WithEncoderLevel(level), zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return blob{}, err
	}
	if err := fill(contextWriter{ctx, encoder}); err != nil {
		return blob{}, err
	}
	if err := errors.Join(encoder.Close(), file.Close()); err != nil {
		return blob{}, err
	}
	return blob{digest: hashOf(out.sum.Sum(nil)), size: out.n, file: file.Name()}, nil
}

type hashWriter struct {
	to  io.Writer
	sum hash.Hash
	n   int64
}

func (w *hashWriter) Write(p []byte) (int, error) {
	n, err := w.to.Write(p)
	w.sum.Write(p[:n])
	w.n += int64(n)
	return n, err
}

// contextWriter ends a long write soon after its context.
type contextWriter struct {
	ctx context.Context
	to  io.Writer
}

func (w contextWriter) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.to.Write(p)
}

func copyFile(w io.Writer, from string) error {
	file, err := os.Open(from)
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // only read from
	_, err = io.Copy(w, readerOnly{file})
	return err
}

// readerOnly hides a file's WriteTo, so that io.Copy writes in small pieces.
type readerOnly struct{ io.Reader }

// writeFile makes path of what fill writes: complete or not at all.
func writeFile(path string, fill func(io.Writer) error) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Close(), os.Remove(file.Name()))
		}
	}()
	if err := fill(file); err != nil {
		return fmt.Errorf("write bundle %s: %w", path, err)
	}
	if err := errors.Join(file.Chmod(0o644), file.Sync()); err != nil {
		return fmt.Errorf("write bundle %s: %w", path, err)
	}
	if err := os.Rename(file.Name(), path); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	if err := file.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
		return fmt.Errorf("write bundle %s: %w", path, err)
	}
	return nil
}
