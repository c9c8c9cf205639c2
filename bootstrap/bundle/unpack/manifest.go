// Package unpack is the host's end of a bundle: the stream that a bundle is
// sent as, and how it becomes a version directory. It is linked into a small
// program that is itself sent to the host, so it imports nothing but the
// standard library and zstd.
package unpack

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
)

// ManifestName is the file in a version directory that holds its manifest. It
// is written last, so a directory that has it is complete.
const ManifestName = "manifest.json"

// Manifest lists every file and link of a version directory but itself.
type Manifest struct {
	Files []File `json:"files"` // sorted by path
}

// File is one regular file or symbolic link.
type File struct {
	Path   string      `json:"path"`             // relative to the version directory, with slashes
	Mode   fs.FileMode `json:"mode,omitempty"`   // permission bits, as a decimal number in JSON; 0 for a link
	Size   int64       `json:"size,omitempty"`   // in bytes; 0 for a link
	SHA256 string      `json:"sha256,omitempty"` // in hex; "" for a link
	Link   string      `json:"link,omitempty"`   // the name of a file in the same directory; "" for a file
}

// Encode returns the manifest's one JSON form, ending in a newline.
func (m Manifest) Encode() ([]byte, error) {
	data, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	return append(data, '\n'), nil
}

// ParseManifest reads a manifest and refuses one that could lead out of its
// directory: paths are local and clean, each comes once, and a link names a
// regular file beside it.
func ParseManifest(data []byte) (Manifest, error) {
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return Manifest{}, fmt.Errorf("parse manifest: %w", err)
	}
	regular := make(map[string]bool, len(m.Files))
	for i, f := range m.Files {
		if !filepath.IsLocal(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "." || f.Path == ManifestName {
			return Manifest{}, fmt.Errorf("manifest: %q is no path inside the directory", f.Path)
		}
		if i > 0 && m.Files[i-1].Path >= f.Path {
			return Manifest{}, fmt.Errorf("manifest: %s is not in order", f.Path)
		}
		if f.Link != "" {
			continue
		}
		sum, err := hex.DecodeString(f.SHA256)
		if err != nil || len(sum) != 32 || f.Size < 0 || f.Mode != f.Mode.Perm() {
			return Manifest{}, fmt.Errorf("manifest: %s has no valid size, mode and SHA-256", f.Path)
		}
		regular[f.Path] = true
	}
	for _, f := range m.Files {
		if f.Link != "" && (path.Base(f.Link) != f.Link || !regular[path.Join(path.Dir(f.Path), f.Link)]) {
			return Manifest{}, fmt.Errorf("manifest: %s links to %q, which is no file beside it", f.Path, f.Link)
		}
	}
	return m, nil
}

// Bytes returns the size of all files together.
func (m Manifest) Bytes() int64 {
	var n int64
	for _, f := range m.Files {
		n += f.Size
	}
	return n
}
