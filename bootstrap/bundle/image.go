package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	// PauseImage is the one image in a bundle: the sandbox of every pod, and the
	// root file system of pods that run the host's own binaries (CoreDNS, overlay).
	// Its tag counts changes of what the image promises, not Kubernetes versions:
	// while an upgrade is under way, one DaemonSet names one image on old and new
	// nodes alike, and none of them can pull it.
	PauseImage = "kubewright.dev/pause:v1"

	pauseUser = "65535:65535"
	pausePath = "pause"
)

// image is a container image of one layer.
type image struct {
	ref      string
	manifest blob
	config   blob
	layer    blob
}

// pauseImage makes an image that holds program as /pause and nothing else.
func pauseImage(ctx context.Context, arch, program, work string) (image, error) {
	diff := sha256.New()
	layer, err := compressBlob(ctx, work, func(w io.Writer) error {
		archive := tar.NewWriter(io.MultiWriter(w, diff))
		if _, _, err := addFile(archive, pausePath, program); err != nil {
			return err
		}
		return archive.Close()
	})
	if err != nil {
		return image{}, fmt.Errorf("make image %s: %w", PauseImage, err)
	}
	conf, err := encode(v1.ConfigFile{
		Architecture: arch, OS: OS,
		Config: v1.Config{User: pauseUser, Entrypoint: []string{"/" + pausePath}},
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{hashOf(diff.Sum(nil))}},
	})
	if err != nil {
		return image{}, err
	}
	out := image{ref: PauseImage, config: blobOf(conf), layer: layer}
	manifest, err := encode(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1,
		Config: out.config.descriptor(types.OCIConfigJSON),
		Layers: []v1.Descriptor{layer.descriptor(types.OCILayerZStd)},
	})
	if err != nil {
		return image{}, err
	}
	out.manifest = blobOf(manifest)
	return out, nil
}

// Image is a container image in a bundle.
type Image struct {
	Ref  string // as pods name it
	Size int64  // of its blobs together, compressed, in bytes

	bundle   *Bundle
	info     imageInfo
	contents []v1.Descriptor // manifest, config and layers
}

// Archive returns the image by itself as a tar of an OCI image layout, which is
// what `ctr images import -` reads. Images are small: it is made in memory.
func (i Image) Archive() (io.Reader, error) {
	out := layout{}
	for _, d := range i.contents {
		data, err := i.bundle.blob(d)
		if err != nil {
			return nil, err
		}
		out.blobs = append(out.blobs, blobOf(data))
	}
	conf := i.bundle.config
	var err error
	out.index, err = encode(v1.IndexManifest{
		SchemaVersion: 2, MediaType: types.OCIImageIndex,
		Manifests: []v1.Descriptor{imageDescriptor(i.info, &v1.Platform{OS: conf.OS, Architecture: conf.Architecture})},
	})
	if err != nil {
		return nil, err
	}
	var buffer bytes.Buffer
	if err := out.writeTo(&buffer); err != nil {
		return nil, fmt.Errorf("image %s: %w", i.Ref, err)
	}
	return &buffer, nil
}
