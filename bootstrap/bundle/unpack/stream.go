package unpack

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
)

// A stream is a sequence of frames: one line of JSON, then as many bytes as it
// says. The first frame is the manifest, the last is the end; in between come
// layers, and files to take over from a directory that is there already:
//
//	{"kind":"manifest","digest":"sha256:...","size":3021}\n <3021 bytes>
//	{"kind":"layer","digest":"sha256:...","size":46170512}\n <46170512 bytes>
//	{"kind":"reuse","from":"v1.37.1-0123456789ab","paths":["cni/bridge"]}\n
//	{"kind":"end"}\n

// Kind of a frame.
type Kind string

const (
	KindManifest Kind = "manifest" // a Manifest in its canonical form
	KindLayer    Kind = "layer"    // a zstd tar of files that the manifest lists
	KindReuse    Kind = "reuse"    // files to be linked from a directory beside this one; no bytes
	KindEnd      Kind = "end"      // nothing is missing; no bytes
)

// Frame heads the bytes of one frame.
type Frame struct {
	Kind   Kind     `json:"kind"`
	Digest string   `json:"digest,omitempty"` // "sha256:" and hex, of the bytes that follow
	Size   int64    `json:"size,omitempty"`   // how many bytes follow
	From   string   `json:"from,omitempty"`   // reuse: the directory's name, no path
	Paths  []string `json:"paths,omitempty"`  // reuse: the files, as the manifest names them
}

const (
	maxHeader   = 64 << 10 // a frame's line; a reuse frame's paths fill some 1 KiB
	maxManifest = 1 << 20
)

// StreamError is a stream that is cut short, altered, or not what it says.
type StreamError struct{ Err error }

func (e *StreamError) Error() string { return "stream refused: " + e.Err.Error() }
func (e *StreamError) Unwrap() error { return e.Err }

func refuse(format string, args ...any) error {
	return &StreamError{Err: fmt.Errorf(format, args...)}
}

// WriteFrame writes a frame's line.
func WriteFrame(w io.Writer, f Frame) error {
	line, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("encode frame: %w", err)
	}
	if _, err := w.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("send %s frame: %w", f.Kind, err)
	}
	return nil
}

// readFrame reads a frame's line. The end of the stream is an error: a whole
// one says where it ends.
func readFrame(r *bufio.Reader) (Frame, error) {
	line, err := r.ReadSlice('\n')
	switch {
	case errors.Is(err, io.EOF):
		return Frame{}, refuse("it ends before its end frame: %w", io.ErrUnexpectedEOF)
	case errors.Is(err, bufio.ErrBufferFull):
		return Frame{}, refuse("a frame's line is longer than %d bytes", maxHeader)
	case err != nil:
		return Frame{}, fmt.Errorf("read frame: %w", err)
	}
	var f Frame
	if err := json.Unmarshal(line, &f); err != nil {
		return Frame{}, refuse("a frame's line is no JSON: %w", err)
	}
	if f.Size < 0 {
		return Frame{}, refuse("a %s frame has size %d", f.Kind, f.Size)
	}
	return f, nil
}

// body reads the bytes of one frame and, at their end, proves the digest: the
// last Read returns io.EOF only if all were there and hash to it.
type body struct {
	frame Frame
	from  io.Reader
	left  int64
	hash  hash.Hash
}

func newBody(f Frame, from io.Reader) *body {
	return &body{frame: f, from: from, left: f.Size, hash: sha256.New()}
}

func (b *body) Read(p []byte) (int, error) {
	if b.left == 0 {
		if got := "sha256:" + hex.EncodeToString(b.hash.Sum(nil)); got != b.frame.Digest {
			return 0, refuse("a %s has digest %s, announced as %s", b.frame.Kind, got, b.frame.Digest)
		}
		return 0, io.EOF
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.from.Read(p)
	b.hash.Write(p[:n])
	b.left -= int64(n)
	if errors.Is(err, io.EOF) {
		if b.left > 0 {
			return n, refuse("it ends %d bytes before the end of a %s: %w", b.left, b.frame.Kind, io.ErrUnexpectedEOF)
		}
		err = nil
	}
	return n, err
}
