// Package bundle makes, reads and verifies bundles: all that hosts need for one
// Kubernetes version and architecture, in one file.
//
// A bundle is a tar of an OCI image layout. Its first manifest is an artifact
// that holds the binaries: the listing of the version directory, the program
// that unpacks it, the one that preflight sends, and zstd layers split so that an upgrade sends little again.
// The others are container images. Every byte of the file follows from the
// contents: the tar's order, times and modes are fixed, the blobs are named by
// their digests, and index.json is a function of the blobs. So two builds of one
// tree are equal, and a flipped bit anywhere is found.
package bundle

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kubewright/kubewright/bootstrap/version"
)

const (
	// artifactType marks the manifest that holds the binaries.
	artifactType = "application/vnd.kubewright.bundle.v1"

	mediaConfig   types.MediaType = "application/vnd.kubewright.bundle.config.v1+json"
	mediaManifest types.MediaType = "application/vnd.kubewright.bundle.manifest.v1+json" // unpack.Manifest
	mediaUnbundle types.MediaType = "application/vnd.kubewright.unbundle.v1+zstd"        // the program, compressed
	mediaProbe    types.MediaType = "application/vnd.kubewright.probe.v1+zstd"           // likewise

	layoutFile    = "oci-layout"
	layoutContent = `{"imageLayoutVersion":"1.0.0"}`
	indexFile     = "index.json"
	blobDir       = "blobs/sha256/"

	// OS is what every bundle is for.
	OS = "linux"

	annotationArch    = "kubewright.dev/architecture"
	annotationVersion = "kubewright.dev/version." // and the component's name
	annotationTitle   = "org.opencontainers.image.title"
	annotationRelease = "org.opencontainers.image.version"
	annotationRef     = "org.opencontainers.image.ref.name"
	annotationImage   = "io.containerd.image.name" // the whole reference, for `ctr images import`
)

// config is the artifact's config blob: what the bundle says of itself.
type config struct {
	Architecture string       `json:"architecture"`
	OS           string       `json:"os"`
	Components   version.List `json:"components"`
	Layers       []layerInfo  `json:"layers"` // in the order of the manifest's
	Images       []imageInfo  `json:"images"`
}

type layerInfo struct {
	Name     string   `json:"name"`
	Unpacked int64    `json:"unpacked"` // size of its files together, in bytes
	Paths    []string `json:"paths"`    // its files and links, as the manifest names them
}

type imageInfo struct {
	Ref      string        `json:"ref"`
	Manifest v1.Descriptor `json:"manifest"`
}

// renderIndex returns index.json: a function of the artifact's manifest (of which
// only digest and size count) and config, so that a reader who has verified
// those two can tell whether index.json is what it should be.
func renderIndex(artifact v1.Descriptor, c config) ([]byte, error) {
	platform := &v1.Platform{OS: c.OS, Architecture: c.Architecture}
	annotations := map[string]string{
		annotationArch:    c.Architecture,
		annotationRelease: c.Components.Of(version.KubernetesName),
	}
	for _, component := range c.Components {
		annotations[annotationVersion+component.Name] = component.Version
	}
	manifests := []v1.Descriptor{{
		MediaType: types.OCIManifestSchema1, Digest: artifact.Digest, Size: artifact.Size,
		ArtifactType: artifactType, Platform: platform,
		Annotations: map[string]string{annotationRef: "components"},
	}}
	for _, image := range c.Images {
		manifests = append(manifests, imageDescriptor(image, platform))
	}
	return encode(v1.IndexManifest{
		SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: manifests, Annotations: annotations,
	})
}

func imageDescriptor(image imageInfo, platform *v1.Platform) v1.Descriptor {
	d := image.Manifest
	d.Platform = platform
	_, tag, _ := strings.Cut(image.Ref, ":")
	d.Annotations = map[string]string{annotationImage: image.Ref, annotationRef: tag}
	return d
}

// encode is the one JSON form of everything in a bundle.
func encode(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	return data, nil
}

// blob is content by its digest: in memory, in a part of a file, or in a file.
type blob struct {
	digest v1.Hash
	size   int64
	data   []byte
	part   *io.SectionReader
	file   string
}

func blobOf(data []byte) blob {
	sum := sha256.Sum256(data)
	return blob{digest: hashOf(sum[:]), size: int64(len(data)), data: data}
}

func (b blob) open() (io.ReadCloser, error) {
	switch {
	case b.file != "":
		return os.Open(b.file)
	case b.part != nil:
		return io.NopCloser(b.part), nil
	default:
		return io.NopCloser(bytes.NewReader(b.data)), nil
	}
}

func (b blob) descriptor(media types.MediaType) v1.Descriptor {
	return v1.Descriptor{MediaType: media, Digest: b.digest, Size: b.size}
}

func hashOf(sha256sum []byte) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sha256sum)}
}

// layout is the content of an image layout, to be written as a tar.
type layout struct {
	index []byte
	blobs []blob
}

// writeTo writes the layout in its one form: the two files that say what it is,
// then the blobs by name, each once.
func (l layout) writeTo(w io.Writer) error {
	archive := tar.NewWriter(w)
	files := []struct {
		name string
		blob blob
	}{{layoutFile, blobOf([]byte(layoutContent))}, {indexFile, blobOf(l.index)}}
	blobs := slices.Clone(l.blobs)
	slices.SortFunc(blobs, func(a, b blob) int { return cmp.Compare(a.digest.Hex, b.digest.Hex) })
	blobs = slices.CompactFunc(blobs, func(a, b blob) bool { return a.digest == b.digest })
	for _, b := range blobs {
		files = append(files, struct {
			name string
			blob blob
		}{blobDir + b.digest.Hex, b})
	}
	for _, f := range files {
		if err := archive.WriteHeader(layoutHeader(f.name, f.blob.size)); err != nil {
			return fmt.Errorf("write %s: %w", f.name, err)
		}
		if err := copyBlob(archive, f.blob); err != nil {
			return fmt.Errorf("write %s: %w", f.name, err)
		}
	}
	if err := archive.Close(); err != nil {
		return fmt.Errorf("end archive: %w", err)
	}
	return nil
}

func copyBlob(w io.Writer, b blob) error {
	r, err := b.open()
	if err != nil {
		return err
	}
	defer r.Close() //nolint:errcheck // only read from
	_, err = io.Copy(w, r)
	return err
}

// layoutHeader is the tar header of every file of a layout. Names are shorter
// than 100 and blobs than 8 GiB, so it is one block of 512 bytes.
func layoutHeader(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, Format: tar.FormatUSTAR}
}
