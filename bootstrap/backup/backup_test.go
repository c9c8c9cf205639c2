package backup

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// snapshot is larger than what age seals at once, so that a file has several sealed parts.
var snapshot = bytes.Repeat([]byte("0123456789abcdef etcd "), 10_000)

func contents() Contents {
	return Contents{
		Manifest: Manifest{Made: time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC), Cluster: "docs", ClusterID: "id",
			Data: Data{Revision: 7}, Kinds: []Kind{{Version: "v1", Resource: "pods", Kind: "Pod", Objects: 3}, {Group: "apps", Version: "v1", Resource: "deployments"}}},
		Spec:     []byte("name: docs\n"),
		Files:    []File{{"/etc/kubernetes/pki/ca.key", []byte("key")}, {"/etc/kubernetes/pki/etcd/ca.key", []byte("etcd")}},
		Snapshot: bytes.NewReader(snapshot), SnapshotSize: int64(len(snapshot)),
	}
}

func key(t *testing.T) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func written(t *testing.T, c Contents, to ...age.Recipient) []byte {
	t.Helper()
	var file bytes.Buffer
	if err := Write(&file, c, to...); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	first, second := key(t), key(t)
	file := written(t, contents(), first.Recipient(), second.Recipient())
	for _, id := range []*age.X25519Identity{first, second} {
		var got bytes.Buffer
		b, err := Read(bytes.NewReader(file), &got, id)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), snapshot) || string(b.Spec) != "name: docs\n" || len(b.Files) != 2 ||
			string(b.Files["/etc/kubernetes/pki/etcd/ca.key"]) != "etcd" {
			t.Errorf("%v with %d files, %d bytes of snapshot", b, len(b.Files), got.Len())
		}
		if kinds, objects := b.Manifest.Count(); kinds != 1 || objects != 3 {
			t.Errorf("%d objects of %d kinds", objects, kinds)
		}
		m, err := ReadManifest(bytes.NewReader(file), id)
		if err != nil || m.Cluster != "docs" || m.Data.Revision != 7 || m.Format != Format || len(m.Entries) != 3 {
			t.Errorf("%+v, %v", m, err)
		}
	}
	for _, secret := range []string{"etcd", "ca.key", "docs"} {
		if bytes.Contains(file, []byte(secret)) {
			t.Errorf("the file shows %q", secret)
		}
	}
}

func TestPassphrase(t *testing.T) {
	r, err := PassphraseRecipient([]byte("correct horse"))
	if err != nil {
		t.Fatal(err)
	}
	r.(*age.ScryptRecipient).SetWorkFactor(10)
	file := written(t, contents(), r)
	for phrase, want := range map[string]fault.Code{"correct horse": "", "wrong horse": fault.BackupRefused} {
		id, err := PassphraseIdentity([]byte(phrase))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Read(bytes.NewReader(file), io.Discard, id); fault.CodeOf(err) != want {
			t.Errorf("%s: %v", phrase, err)
		}
	}
	if _, err := PassphraseRecipient(nil); fault.CodeOf(err) != fault.Usage {
		t.Errorf("an empty passphrase: %v", err)
	}
	if _, err := PassphraseIdentity(nil); fault.CodeOf(err) != fault.Usage {
		t.Errorf("an empty passphrase: %v", err)
	}
}

// A file that lost its end anywhere, or has one bit flipped anywhere, is refused.
func TestDamage(t *testing.T) {
	id := key(t)
	file := written(t, contents(), id.Recipient())
	const step = 17
	for n := 0; n < len(file); n += step {
		if b, err := Read(bytes.NewReader(file[:n]), io.Discard, id); fault.CodeOf(err) != fault.BackupRefused || fault.RemedyOf(err) == "" || b != nil {
			t.Fatalf("%d of %d bytes: %v", n, len(file), err)
		}
		flipped := bytes.Clone(file)
		flipped[n] ^= 1
		if b, err := Read(bytes.NewReader(flipped), io.Discard, id); fault.CodeOf(err) != fault.BackupRefused || b != nil {
			t.Fatalf("bit flipped in byte %d of %d: %v", n, len(file), err)
		}
	}
	if _, err := Read(bytes.NewReader(append(bytes.Clone(file), 0)), io.Discard, id); fault.CodeOf(err) != fault.BackupRefused {
		t.Errorf("one byte more: %v", err)
	}
}

func TestWrongKey(t *testing.T) {
	file := written(t, contents(), key(t).Recipient())
	for name, read := range map[string]func(io.Reader, age.Identity) error{
		"read":     func(r io.Reader, id age.Identity) error { _, err := Read(r, io.Discard, id); return err },
		"manifest": func(r io.Reader, id age.Identity) error { _, err := ReadManifest(r, id); return err },
	} {
		err := read(bytes.NewReader(file), key(t))
		if fault.CodeOf(err) != fault.BackupRefused || !strings.Contains(fault.RemedyOf(err), "--identity") {
			t.Errorf("%s: %v (%s)", name, err, fault.RemedyOf(err))
		}
	}
}

// An archive that was sealed well, but is no whole backup, is refused, too.
func TestOtherArchives(t *testing.T) {
	good := func() *archiver { return &archiver{} }
	for name, make := range map[string]func(*archiver) error{
		"nothing":        func(*archiver) error { return nil },
		"no manifest":    func(a *archiver) error { return a.add(specName, 0, strings.NewReader("")) },
		"another format": func(a *archiver) error { return a.json(manifestName, Manifest{Format: Format + 1}) },
		"no checksums":   func(a *archiver) error { return a.json(manifestName, Manifest{Format: Format}) },
		"no snapshot": func(a *archiver) error {
			return errors.Join(a.json(manifestName, Manifest{Format: Format}), a.json(sumsName, a.sums))
		},
		"an unknown entry":   func(a *archiver) error { return withEntry(a, "../evil") },
		"a path that climbs": func(a *archiver) error { return withEntry(a, filesDir+"/etc/../../evil") },
		"an entry twice":     func(a *archiver) error { return withEntry(a, manifestName) },
		"other checksums": func(a *archiver) error {
			return errors.Join(a.json(manifestName, Manifest{Format: Format}), a.add(specName, 0, strings.NewReader("")), a.json(sumsName, []Entry{}))
		},
		"something after the end": func(a *archiver) error {
			c := contents()
			return errors.Join(a.all(c), a.add("more", 0, strings.NewReader("")))
		},
		"an entry that is not its manifest's": func(a *archiver) error {
			return errors.Join(a.json(manifestName, Manifest{Format: Format, Entries: []Entry{{Name: specName, Size: 1}}}),
				a.add(specName, 0, strings.NewReader("")), a.add(snapshotName, 0, strings.NewReader("")), a.json(sumsName, a.sums))
		},
	} {
		t.Run(name, func(t *testing.T) {
			id := key(t)
			var file bytes.Buffer
			sealed, err := age.Encrypt(&file, id.Recipient())
			if err != nil {
				t.Fatal(err)
			}
			packed, err := zstd.NewWriter(sealed)
			if err != nil {
				t.Fatal(err)
			}
			a := good()
			a.tar = tar.NewWriter(packed)
			if err := errors.Join(make(a), a.tar.Close(), packed.Close(), sealed.Close()); err != nil {
				t.Fatal(err)
			}
			if _, err := Read(&file, io.Discard, id); fault.CodeOf(err) != fault.BackupRefused {
				t.Errorf("%v", err)
			}
		})
	}
}

func withEntry(a *archiver, name string) error {
	return errors.Join(a.json(manifestName, Manifest{Format: Format}), a.add(name, 0, strings.NewReader("")), a.json(sumsName, a.sums))
}

// What cannot be written to the end is told, and no backup.
func TestBrokenSnapshot(t *testing.T) {
	id := key(t)
	broken := errors.New("connection lost")
	for name, change := range map[string]func(*Contents){
		"too short": func(c *Contents) { c.SnapshotSize++ },
		"too long":  func(c *Contents) { c.SnapshotSize-- },
		"an error":  func(c *Contents) { c.Snapshot = io.MultiReader(strings.NewReader("x"), failing{broken}) },
	} {
		c := contents()
		change(&c)
		var file bytes.Buffer
		if err := Write(&file, c, id.Recipient()); err == nil || name == "an error" && !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := Read(&file, io.Discard, id); fault.CodeOf(err) != fault.BackupRefused {
			t.Errorf("%s, read: %v", name, err)
		}
	}
	if _, err := Read(bytes.NewReader(written(t, contents(), id.Recipient())), failing{broken}, id); !errors.Is(err, broken) {
		t.Errorf("a disk that is full: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error)  { return 0, f.err }
func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestKeys(t *testing.T) {
	k, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	to, err := ParseRecipients([]string{k.Recipient})
	if err != nil {
		t.Fatal(err)
	}
	with, err := ReadIdentities(bytes.NewReader(k.Identity))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Read(bytes.NewReader(written(t, contents(), to...)), io.Discard, with...); err != nil {
		t.Error(err)
	}
	secret := strings.Split(string(k.Identity), "\n")[1]
	for _, bad := range []string{"", "age1x", k.Recipient + "\n" + k.Recipient} {
		if _, err := ParseRecipients([]string{bad}); fault.CodeOf(err) != fault.Usage {
			t.Errorf("recipient %q: %v", bad, err)
		}
	}
	if _, err := ReadIdentities(strings.NewReader(secret + "X")); fault.CodeOf(err) != fault.Usage || strings.Contains(err.Error(), secret) {
		t.Errorf("a damaged identity: %v", err)
	}
	if _, err := ReadRecipients(strings.NewReader("# nobody\n")); fault.CodeOf(err) != fault.Usage {
		t.Errorf("a file without keys: %v", err)
	}
	if got := fmt.Sprintf("%v %+v", contents().Files[0], Backup{Files: map[string][]byte{"x": []byte("hidden")}}); strings.Contains(got, "hidden") || strings.Contains(got, "key[") {
		t.Errorf("%s", got)
	}
}
