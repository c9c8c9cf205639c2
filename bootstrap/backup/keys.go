package backup

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// ParseRecipients reads public keys as age-keygen writes them, age1..., one each.
func ParseRecipients(keys []string) ([]age.Recipient, error) {
	var all []age.Recipient
	for _, k := range keys {
		found, err := age.ParseRecipients(strings.NewReader(k))
		if err != nil || len(found) != 1 {
			return nil, fault.New(fault.Usage, "give the public key that `kubewright backup keygen` or age-keygen printed",
				"recipient %q is no age public key", k)
		}
		all = append(all, found...)
	}
	return all, nil
}

// ReadRecipients reads a file of public keys, one a line; # begins a comment.
func ReadRecipients(r io.Reader) ([]age.Recipient, error) {
	all, err := age.ParseRecipients(r)
	if err != nil {
		return nil, fault.New(fault.Usage, "write one public key (age1...) a line", "recipients: %w", err)
	}
	return all, nil
}

// ReadIdentities reads a file of private keys as age-keygen writes it. Errors never quote it.
func ReadIdentities(r io.Reader) ([]age.Identity, error) {
	all, err := age.ParseIdentities(r)
	if err != nil {
		return nil, fault.New(fault.Usage, "give the file that `kubewright backup keygen` or age-keygen wrote", "identities: %w", err)
	}
	return all, nil
}

// errEmpty is of a passphrase that would protect nothing.
var errEmpty = errors.New("the passphrase is empty")

// PassphraseRecipient encrypts by a passphrase. age takes it as the only recipient.
func PassphraseRecipient(phrase []byte) (age.Recipient, error) {
	if len(phrase) == 0 {
		return nil, fault.New(fault.Usage, "give one", "%w", errEmpty)
	}
	return age.NewScryptRecipient(string(phrase))
}

// PassphraseIdentity decrypts by a passphrase.
func PassphraseIdentity(phrase []byte) (age.Identity, error) {
	if len(phrase) == 0 {
		return nil, fault.New(fault.Usage, "give the one that the backup was made with", "%w", errEmpty)
	}
	return age.NewScryptIdentity(string(phrase))
}

// Key is a new pair for backups.
type Key struct {
	Recipient string // public: age1...
	Identity  []byte // the file that opens what is encrypted to Recipient; secret
}

// NewKey makes a pair, in the form that age-keygen has it.
func NewKey() (Key, error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return Key{}, fmt.Errorf("make a key: %w", err)
	}
	public := id.Recipient().String()
	return Key{Recipient: public, Identity: []byte("# public key: " + public + "\n" + id.String() + "\n")}, nil
}
