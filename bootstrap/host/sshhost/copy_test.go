package sshhost

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// writer is a function that is written to.
type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

func TestCopyFile(t *testing.T) {
	h := connect(t)
	name := filepath.Join(t.TempDir(), "large")
	content := make([]byte, 9<<20+17)
	rand.Read(content) //nolint:errcheck // it never fails
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := h.CopyFile(t.Context(), name, &got); err != nil || !bytes.Equal(got.Bytes(), content) {
		t.Errorf("%d of %d bytes, %v", got.Len(), len(content), err)
	}
	if err := h.CopyFile(t.Context(), name+"-absent", io.Discard); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}

	full := errors.New("no room")
	if err := h.CopyFile(t.Context(), name, writer(func([]byte) (int, error) { return 0, full })); !errors.Is(err, full) {
		t.Errorf("where it cannot be written: %v", err)
	}

	torn := errors.New("torn")
	ctx, cancel := context.WithCancelCause(t.Context())
	returned, late := false, false
	err := h.CopyFile(ctx, name, writer(func(p []byte) (int, error) {
		late = late || returned
		cancel(torn)
		return len(p), nil
	}))
	returned = true
	if !errors.Is(err, torn) {
		t.Errorf("broken off: %v", err)
	}
	if _, err := h.Stat(t.Context(), name); err != nil || late { // the connection goes on
		t.Errorf("afterwards: %v, written to late: %t", err, late)
	}
}
