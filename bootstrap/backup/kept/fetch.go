package kept

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
)

// Source is a host whose files can be had without being held in memory.
type Source interface {
	host.Reader
	// CopyFile writes a file's content to w as it comes. When ctx ends nothing more is
	// written; the error wraps ctx's cause.
	CopyFile(ctx context.Context, path string, w io.Writer) error
}

// Fetch writes a host's backup to w and returns its SHA-256. What was written is all of
// it only if there is no error: the host's own digest of its file is asked for, and has to be
// that of what arrived.
func Fetch(ctx context.Context, from Source, dir string, f File, w io.Writer) (string, error) {
	name := path.Join(dir, f.Name)
	sum := sha256.New()
	if err := from.CopyFile(ctx, name, io.MultiWriter(w, sum)); err != nil {
		return "", err
	}
	got := hex.EncodeToString(sum.Sum(nil))
	out, err := from.Query(ctx, "sha256sum", "--", name)
	if err != nil {
		return "", fmt.Errorf("digest of %s: %w", name, err)
	}
	digest, _, _ := strings.Cut(strings.TrimPrefix(string(out), `\`), " ") // the mark of a name that is quoted
	if digest != got {
		return "", fault.New(fault.BackupRefused, "run the same command again", "%s arrived with SHA-256 %s, and is %s on the host", name, got, digest)
	}
	return got, nil
}
