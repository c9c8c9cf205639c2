package sshhost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// keyring is the keys to log in with, best first, and why others are not among them.
type keyring struct {
	signers []ssh.Signer
	offered []string // what each signer is, as messages name it
	unused  []string // key files that could not be used, with the reason
	agent   net.Conn // nil without an agent
}

func (k *keyring) close() {
	if k.agent != nil {
		k.agent.Close() //nolint:errcheck // nothing is left to be written
	}
}

// identity is a key file: its public half may be known where the private one is locked.
type identity struct {
	file   string
	public ssh.PublicKey // nil if unknown
	signer ssh.Signer    // nil if it cannot be used from the file
	reason string        // why not
}

// openKeyring collects the keys of an endpoint: those of the agent that are
// named, the agent's others unless IdentitiesOnly, then key files.
func openKeyring(ctx context.Context, e endpoint, home string) *keyring {
	k := &keyring{}
	files, named := e.identities, true
	if len(files) == 0 {
		named = false
		for _, name := range []string{"id_ed25519", "id_ecdsa", "id_rsa"} {
			files = append(files, filepath.Join(home, ".ssh", name))
		}
	}
	var identities []identity
	for _, file := range files {
		id, err := readIdentity(file)
		if errors.Is(err, fs.ErrNotExist) && !named {
			continue
		}
		if err != nil {
			id.reason = err.Error()
		}
		identities = append(identities, id)
	}

	held := k.askAgent(ctx, e.agent)
	var others []ssh.Signer
	for _, signer := range held {
		if !slices.ContainsFunc(identities, func(id identity) bool { return sameKey(id.public, signer.PublicKey()) }) {
			others = append(others, signer)
		}
	}
	var fromFiles []identity
	for _, id := range identities { // in the order they are named
		at := slices.IndexFunc(held, func(s ssh.Signer) bool { return sameKey(id.public, s.PublicKey()) })
		if at < 0 {
			fromFiles = append(fromFiles, id)
			continue
		}
		k.offer(held[at], id.file+" (agent)")
	}
	if !e.identitiesOnly {
		for _, signer := range others {
			k.offer(signer, "agent's "+ssh.FingerprintSHA256(signer.PublicKey()))
		}
	}
	for _, id := range fromFiles {
		if id.signer == nil {
			k.unused = append(k.unused, id.file+": "+id.reason)
			continue
		}
		k.offer(id.signer, id.file)
	}
	return k
}

func (k *keyring) offer(s ssh.Signer, name string) {
	k.signers = append(k.signers, s)
	k.offered = append(k.offered, name)
}

// askAgent returns the agent's keys; an agent that does not answer has none.
func (k *keyring) askAgent(ctx context.Context, socket string) []ssh.Signer {
	if socket == "" {
		return nil
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		k.unused = append(k.unused, "agent: "+err.Error())
		return nil
	}
	k.agent = conn
	stop := context.AfterFunc(ctx, func() { conn.Close() }) //nolint:errcheck // it ends what reads from it
	defer stop()
	signers, err := agent.NewClient(conn).Signers()
	if err != nil {
		k.unused = append(k.unused, "agent: "+err.Error())
	}
	return signers
}

// readIdentity reads a private key, or a public key that selects one of the agent's.
func readIdentity(file string) (identity, error) {
	id := identity{file: file}
	content, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) { // the private half may be in the agent alone
		if id.public = readPublic(file + ".pub"); id.public != nil {
			id.reason = "only its .pub is here, and the agent does not have it"
			return id, nil
		}
	}
	if err != nil {
		return id, err
	}
	id.signer, err = ssh.ParsePrivateKey(content)
	if err == nil {
		id.public = id.signer.PublicKey()
		return id, nil
	}
	if locked := (*ssh.PassphraseMissingError)(nil); errors.As(err, &locked) {
		id.public, id.reason = locked.PublicKey, "has a passphrase: ssh-add it to the agent"
		if id.public == nil {
			id.public = readPublic(file + ".pub")
		}
		return id, nil
	}
	if public, _, _, _, notPublic := ssh.ParseAuthorizedKey(content); notPublic == nil {
		id.public, id.reason = public, "is a public key, and the agent does not have its private half"
		return id, nil
	}
	return id, err
}

// readPublic reads a .pub file, nil if there is none that can be read.
func readPublic(file string) ssh.PublicKey {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	public, _, _, _, err := ssh.ParseAuthorizedKey(content)
	if err != nil {
		return nil
	}
	return public
}

func sameKey(a, b ssh.PublicKey) bool {
	return a != nil && b != nil && bytes.Equal(a.Marshal(), b.Marshal())
}

// refused is the fault of a server that took none of the keys.
func (k *keyring) refused(e endpoint, err error) error {
	offered := "no key to offer"
	if len(k.offered) > 0 {
		offered = "offered " + strings.Join(k.offered, ", ")
	}
	if len(k.unused) > 0 {
		offered += "; not usable: " + strings.Join(k.unused, ", ")
	}
	port := ""
	if e.port != defaultPort {
		port = "-p " + e.port + " "
	}
	return fault.New(fault.AuthRefused,
		fmt.Sprintf("ssh-copy-id %s%s, or name the right key as IdentityFile in the ssh_config (-F)", port, e.login()),
		"%s did not let %s in (%s): %w", e.addr(), e.login(), offered, err)
}
