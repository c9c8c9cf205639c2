package plan

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"unicode/utf8"
)

// maxText is how much of a file is shown as text; a longer one has a digest only.
const maxText = 64 << 10

// FileState is the state of a regular file. What others than its owner may not
// read is taken for a secret: only its digest is told.
func FileState(mode fs.FileMode, content []byte) *State {
	s := &State{Mode: mode.String(), Digest: Digest(content), Content: content}
	if mode&0o004 != 0 && len(content) <= maxText && utf8.Valid(content) && !bytes.ContainsRune(content, 0) {
		s.Text = string(content)
	}
	return s
}

// Digest is sha256:HEX of content.
func Digest(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}
