package backup

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

const (
	maxSmall   = 16 << 20 // of an entry that is read into memory; they are some KiB
	maxEntries = 4096
	maxWindow  = 64 << 20 // of the decompressor, in bytes of memory
)

// Backup is a backup that was read and proven, but for the snapshot, which is large.
type Backup struct {
	Manifest Manifest
	Spec     []byte
	Files    map[string][]byte // by their absolute path on the host; most are secret
	Snapshot Entry
}

// Format names the backup: its files are secret.
func (b Backup) Format(s fmt.State, _ rune) {
	fmt.Fprintf(s, "backup of %s at revision %d", b.Manifest.Cluster, b.Manifest.Data.Revision)
}

// Read decrypts a whole backup, proves every byte of it, and writes etcd's snapshot to
// snapshot as it comes. Only when Read returns nil is what was written there all of it.
// A file that is cut short, altered, no backup, or locked for the identities is a fault.BackupRefused.
func Read(r io.Reader, snapshot io.Writer, with ...age.Identity) (*Backup, error) {
	d, err := open(r, with)
	if err != nil {
		return nil, err
	}
	defer d.close()
	b := &Backup{Manifest: d.manifest, Files: map[string][]byte{}}
	for {
		name, err := d.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if name == snapshotName {
			out := &remembering{to: snapshot}
			if err := d.copy(out); err != nil {
				if out.err != nil {
					return nil, fmt.Errorf("write the snapshot: %w", out.err)
				}
				return nil, err
			}
			b.Snapshot = d.sums[len(d.sums)-1]
			continue
		}
		var content bytes.Buffer
		if err := d.copy(&content); err != nil {
			return nil, err
		}
		switch on := hostPath(name); {
		case name == specName:
			b.Spec = content.Bytes()
		case on != "" && path.Clean(on) == on:
			b.Files[on] = content.Bytes()
		default:
			return nil, refuse("it holds %q, which is no part of a backup", name)
		}
	}
	if b.Spec == nil || b.Snapshot.Name == "" {
		return nil, refuse("it lacks %s or %s", specName, snapshotName)
	}
	return b, nil
}

// ReadManifest decrypts the beginning of a backup: what it says is in it.
func ReadManifest(r io.Reader, with ...age.Identity) (Manifest, error) {
	d, err := open(r, with)
	if err != nil {
		return Manifest{}, err
	}
	d.close()
	return d.manifest, nil
}

const (
	remedyWhole = "copy it again from where it is whole, or take an older backup"
	remedyKey   = "give the identity file of one of its recipients (--identity), or its passphrase (--passphrase)"
)

func refuse(format string, args ...any) error {
	return fault.New(fault.BackupRefused, remedyWhole, "read backup: "+format, args...)
}

// decoder walks through the entries.
type decoder struct {
	sealed   *source
	packed   *zstd.Decoder
	tar      *tar.Reader
	manifest Manifest
	header   *tar.Header
	sums     []Entry // of what was read
}

// open decrypts and reads the manifest.
func open(r io.Reader, with []age.Identity) (*decoder, error) {
	plain, err := age.Decrypt(r, with...)
	var locked *age.NoIdentityMatchError
	if errors.As(err, &locked) {
		return nil, fault.New(fault.BackupRefused, remedyKey, "read backup: none of the given keys opens it")
	}
	if err != nil {
		return nil, refuse("it is cut short, altered or no backup: %w", err)
	}
	d := &decoder{sealed: &source{from: plain}}
	if d.packed, err = zstd.NewReader(d.sealed, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow)); err != nil {
		return nil, fmt.Errorf("decompress backup: %w", err)
	}
	d.tar = tar.NewReader(d.packed)
	if err := d.readManifest(); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func (d *decoder) close() { d.packed.Close() }

func (d *decoder) readManifest() error {
	name, err := d.next()
	if errors.Is(err, io.EOF) || err == nil && name != manifestName {
		return refuse("it does not begin with %s", manifestName)
	}
	if err != nil {
		return err
	}
	var content bytes.Buffer
	if err := d.copy(&content); err != nil {
		return err
	}
	if err := json.Unmarshal(content.Bytes(), &d.manifest); err != nil {
		return refuse("parse %s: %w", manifestName, err)
	}
	if d.manifest.Format != Format {
		return fault.New(fault.BackupRefused, "use the release of kubewright that made it, or a newer one",
			"read backup: it has format %d, and this release reads %d", d.manifest.Format, Format)
	}
	return nil
}

// next goes to the next entry, of which no two have one name. io.EOF means that all
// entries were read and proven, and that the file ends there.
func (d *decoder) next() (string, error) {
	header, err := d.tar.Next()
	if errors.Is(err, io.EOF) && d.sealed.err == nil {
		return "", refuse("it ends without %s", sumsName)
	}
	if err != nil {
		return "", d.blame(err)
	}
	d.header = header
	twice := slices.ContainsFunc(d.sums, func(e Entry) bool { return e.Name == header.Name })
	if header.Typeflag != tar.TypeReg || twice || len(d.sums) >= maxEntries || header.Name != snapshotName && header.Size > maxSmall {
		return "", refuse("it holds %q, which is no part of a backup", header.Name)
	}
	if header.Name == sumsName {
		return "", d.end()
	}
	return header.Name, nil
}

// copy writes the current entry to w and keeps its digest.
func (d *decoder) copy(w io.Writer) error {
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(w, sum), d.tar); err != nil {
		return d.blame(err)
	}
	e := Entry{Name: d.header.Name, Size: d.header.Size, SHA256: hex.EncodeToString(sum.Sum(nil))}
	d.sums = append(d.sums, e)
	return nil
}

// end compares what was read with the checksums, and reads to the end of the file:
// that alone shows that it was not cut short. It returns io.EOF if all is well.
func (d *decoder) end() error {
	var content bytes.Buffer
	if _, err := io.Copy(&content, d.tar); err != nil {
		return d.blame(err)
	}
	var want []Entry
	if err := json.Unmarshal(content.Bytes(), &want); err != nil {
		return refuse("parse %s: %w", sumsName, err)
	}
	if !slices.Equal(want, d.sums) {
		return refuse("its entries are not those of its %s", sumsName)
	}
	for _, e := range d.manifest.Entries {
		if !slices.Contains(d.sums, e) {
			return refuse("%s is not what its manifest says", e.Name)
		}
	}
	if _, err := d.tar.Next(); !errors.Is(err, io.EOF) {
		return refuse("it goes on after %s", sumsName)
	}
	for _, rest := range []io.Reader{d.packed, d.sealed} {
		if n, err := io.Copy(io.Discard, rest); err != nil {
			return d.blame(err)
		} else if n > 0 {
			return refuse("it goes on after its end")
		}
	}
	return io.EOF
}

// blame is the error to report for one of the archive's: if the file cannot be
// decrypted any further, that is why.
func (d *decoder) blame(err error) error {
	if d.sealed.err != nil {
		err = d.sealed.err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return refuse("it is cut short: %w", err)
	}
	return refuse("it is cut short or altered: %w", err)
}

// source remembers the error that ended a reader.
type source struct {
	from io.Reader
	err  error // nil at io.EOF
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.from.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// remembering keeps the error of a writer, to tell it from those of the reader it is fed from.
type remembering struct {
	to  io.Writer
	err error
}

func (r *remembering) Write(p []byte) (int, error) {
	n, err := r.to.Write(p)
	if err != nil {
		r.err = err
	}
	return n, err
}
