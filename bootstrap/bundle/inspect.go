package bundle

import (
	"github.com/kubewright/kubewright/bootstrap/bundle/unpack"
	"github.com/kubewright/kubewright/bootstrap/version"
)

// Inspection is what a bundle says of itself. Sizes are in bytes.
type Inspection struct {
	Path         string         `json:"path"`
	Name         string         `json:"name"`
	Digest       string         `json:"digest"`
	Kubernetes   string         `json:"kubernetes"`
	OS           string         `json:"os"`
	Architecture string         `json:"architecture"`
	Size         int64          `json:"size"`         // of the file
	UnpackedSize int64          `json:"unpackedSize"` // of the version directory
	Components   version.List   `json:"components"`
	Layers       []LayerSummary `json:"layers"`
	Images       []ImageSummary `json:"images"`
	Files        []unpack.File  `json:"files"`
}

// LayerSummary describes a layer.
type LayerSummary struct {
	Name         string `json:"name"`
	Digest       string `json:"digest"`
	Size         int64  `json:"size"`
	UnpackedSize int64  `json:"unpackedSize"`
}

// ImageSummary describes a container image.
type ImageSummary struct {
	Ref    string `json:"ref"`
	Digest string `json:"digest"` // of its manifest
	Size   int64  `json:"size"`
}

// Inspect returns what the bundle says of itself.
func (b *Bundle) Inspect() Inspection {
	out := Inspection{
		Path: b.path, Name: b.Name(), Digest: b.Digest(), Kubernetes: b.Version(), OS: b.config.OS, Architecture: b.Arch(),
		Size: b.size, UnpackedSize: b.tree.Bytes(), Components: b.Components(), Files: b.Files(),
	}
	for _, l := range b.layers {
		out.Layers = append(out.Layers, LayerSummary{Name: l.Name, Digest: l.Digest, Size: l.Size, UnpackedSize: l.UnpackedSize})
	}
	for _, i := range b.images {
		out.Images = append(out.Images, ImageSummary{Ref: i.Ref, Digest: i.info.Manifest.Digest.String(), Size: i.Size})
	}
	return out
}
