package pki

import (
	"errors"
	"fmt"
	"time"
)

// Bundle is all keys and certificates of a control-plane node. The zero value
// is one in which everything is still to be made.
type Bundle struct {
	Authorities    map[string]*Authority // by name: CA, EtcdCA, FrontProxyCA
	Pairs          map[string]Pair       // by Cert.Name
	ServiceAccount ServiceAccountKey
}

// File is one file of a bundle.
type File struct {
	Name    string // below the PKI folder
	Content Secret
	Private bool // for its owner only (0600); otherwise for everyone to read (0644)
}

// Names of the service account key's files.
const (
	serviceAccountKeyFile = "sa.key"
	serviceAccountPubFile = "sa.pub"
)

// NewBundle makes everything anew.
func NewBundle(in Inputs, now time.Time) (*Bundle, error) {
	b := &Bundle{}
	if _, err := b.Complete(in, now); err != nil {
		return nil, err
	}
	return b, nil
}

// FileNames lists the files that LoadBundle wants to see and Files writes.
func FileNames() []string {
	names := CommonFiles()
	for _, c := range Table(Inputs{}) {
		if c.File != "" {
			names = append(names, c.File+".key", c.File+".crt")
		}
	}
	return names
}

// CommonFiles lists those of them that every control-plane node of a cluster has alike.
func CommonFiles() []string {
	var names []string
	for _, name := range Authorities() {
		names = append(names, name+".key", name+".crt")
	}
	return append(names, serviceAccountKeyFile, serviceAccountPubFile)
}

// LoadBundle returns the bundle that the files make, given by their name below
// the PKI folder. What is absent, or was left half-written by a run that was
// killed, is left for Complete to make. An authority that is damaged, or whose
// key is gone, is an error: a new one in its place would cut off everything
// that trusts the old one. Kubeconfigs are the caller's to read; their pairs go
// into Pairs.
func LoadBundle(files map[string][]byte) (*Bundle, error) {
	b := &Bundle{Authorities: map[string]*Authority{}, Pairs: map[string]Pair{}}
	var errs []error
	for _, c := range Table(Inputs{}) {
		// A certificate is written after its key: without one, the key is of no use.
		pair := Pair{Cert: files[c.File+".crt"], Key: files[c.File+".key"]}
		if c.File != "" && len(pair.Cert) > 0 && len(pair.Key) > 0 {
			b.Pairs[c.Name] = pair
		}
	}
	for _, name := range Authorities() {
		pair := Pair{Cert: files[name+".crt"], Key: files[name+".key"]}
		switch {
		case len(pair.Cert) == 0:
			for _, c := range Table(Inputs{}) {
				if _, ok := b.Pairs[c.Name]; ok && c.CA == name {
					errs = append(errs, fmt.Errorf("load authority %s: %s.crt is missing, but there is %s.crt, which it signed", name, name, c.File))
					break
				}
			}
		case len(pair.Key) == 0:
			errs = append(errs, fmt.Errorf("load authority %s: there is %s.crt, but not its key %s.key", name, name, name))
		default:
			authority, err := LoadAuthority(name, pair)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			b.Authorities[name] = authority
		}
	}
	if key := files[serviceAccountKeyFile]; len(key) > 0 {
		loaded, err := LoadServiceAccountKey(key)
		if err != nil {
			errs = append(errs, err)
		}
		b.ServiceAccount = loaded
	}
	return b, errors.Join(errs...)
}

// Complete makes what the bundle lacks: authorities and the service account key
// that are absent, and certificates that are absent or that Check finds wanting.
// It returns the names of what it made, in the order of making.
func (b *Bundle) Complete(in Inputs, now time.Time) (made []string, err error) {
	if b.Authorities == nil {
		b.Authorities = map[string]*Authority{}
	}
	if b.Pairs == nil {
		b.Pairs = map[string]Pair{}
	}
	for _, name := range Authorities() {
		if b.Authorities[name] != nil {
			continue
		}
		if b.Authorities[name], err = NewAuthority(name, now); err != nil {
			return made, err
		}
		made = append(made, name)
	}
	if len(b.ServiceAccount.Private) == 0 {
		if b.ServiceAccount, err = NewServiceAccountKey(); err != nil {
			return made, err
		}
		made = append(made, serviceAccountKeyFile)
	}
	for _, c := range Table(in) {
		authority := b.Authorities[c.CA]
		if len(Check(b.Pairs[c.Name], c, authority.Cert, now)) == 0 {
			continue
		}
		if b.Pairs[c.Name], err = authority.Issue(c, now); err != nil {
			return made, err
		}
		made = append(made, c.Name)
	}
	return made, nil
}

// Files returns the files of a complete bundle in the order in which they must
// be written: authorities before what they signed, and each key before its
// certificate, so that LoadBundle can tell where a killed run stopped.
func (b *Bundle) Files() []File {
	var files []File
	add := func(name string, pair Pair) {
		files = append(files,
			File{Name: name + ".key", Content: pair.Key, Private: true},
			File{Name: name + ".crt", Content: pair.Cert})
	}
	for _, name := range Authorities() {
		add(name, b.Authorities[name].Pair())
	}
	files = append(files,
		File{Name: serviceAccountKeyFile, Content: b.ServiceAccount.Private, Private: true},
		File{Name: serviceAccountPubFile, Content: b.ServiceAccount.Public})
	for _, c := range Table(Inputs{}) {
		if c.File != "" {
			add(c.File, b.Pairs[c.Name])
		}
	}
	return files
}
