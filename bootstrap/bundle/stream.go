package bundle

import (
	"fmt"
	"io"
	"slices"

	"github.com/kubewright/kubewright/bootstrap/bundle/unpack"
)

// Stream sends the version directory as the stream that unbundle unpacks on a
// host. progress, if not nil, hears how many of the layers' bytes were sent and
// how many there are. An altered bundle is a fault.BundleRefused, and what was
// sent until then a stream that unbundle refuses.
func (b *Bundle) Stream(w io.Writer, progress func(sent, total int64)) error {
	return b.StreamReusing(w, "", nil, progress)
}

// StreamReusing is Stream for a host that has another version already: layers
// whose files all stand in the version directory named from (a name beside the
// new one, no path), as manifest, its manifest.json, says, are not sent again
// but linked. A manifest that cannot be read counts as empty.
func (b *Bundle) StreamReusing(w io.Writer, from string, manifest []byte, progress func(sent, total int64)) error {
	var have []unpack.File
	if other, err := unpack.ParseManifest(manifest); err == nil {
		have = other.Files
	}
	var total int64
	var send []Layer
	var reuse []string
	for _, l := range b.layers {
		if b.standsIn(have, l) {
			reuse = append(reuse, l.Paths...)
			continue
		}
		send = append(send, l)
		total += l.Size
	}

	if err := unpack.WriteFrame(w, unpack.Frame{
		Kind: unpack.KindManifest, Digest: b.listing.Digest.String(), Size: b.listing.Size,
	}); err != nil {
		return err
	}
	if _, err := w.Write(b.manifest); err != nil {
		return fmt.Errorf("send manifest: %w", err)
	}
	if len(reuse) > 0 {
		if err := unpack.WriteFrame(w, unpack.Frame{Kind: unpack.KindReuse, From: from, Paths: reuse}); err != nil {
			return err
		}
	}
	meter := &meter{to: w, total: total, report: progress}
	for _, l := range send {
		if err := l.send(w, meter); err != nil {
			return err
		}
	}
	return unpack.WriteFrame(w, unpack.Frame{Kind: unpack.KindEnd})
}

func (l Layer) send(w io.Writer, meter *meter) error {
	if err := unpack.WriteFrame(w, unpack.Frame{Kind: unpack.KindLayer, Digest: l.Digest, Size: l.Size}); err != nil {
		return err
	}
	r, err := l.Open()
	if err != nil {
		return err
	}
	defer r.Close() //nolint:errcheck // only read from
	if _, err := io.CopyBuffer(meter, readerOnly{r}, make([]byte, sendChunk)); err != nil {
		return fmt.Errorf("send layer %s: %w", l.Name, err)
	}
	return nil
}

const sendChunk = 256 << 10 // progress is told once per chunk

// standsIn tells whether have lists every file of a layer as this bundle does.
func (b *Bundle) standsIn(have []unpack.File, l Layer) bool {
	for _, path := range l.Paths {
		same := func(f unpack.File) bool { return f.Path == path }
		i, j := slices.IndexFunc(b.tree.Files, same), slices.IndexFunc(have, same)
		if i < 0 || j < 0 || b.tree.Files[i] != have[j] {
			return false
		}
	}
	return true
}

// meter counts what goes through it.
type meter struct {
	to          io.Writer
	sent, total int64
	report      func(sent, total int64)
}

func (m *meter) Write(p []byte) (int, error) {
	n, err := m.to.Write(p)
	m.sent += int64(n)
	if m.report != nil {
		m.report(m.sent, m.total)
	}
	return n, err
}
