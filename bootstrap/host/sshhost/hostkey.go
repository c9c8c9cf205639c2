package sshhost

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// hostKeys verifies the key of one host. There is no way to turn it off.
type hostKeys struct {
	check     ssh.HostKeyCallback
	name      string // host:port as known_hosts lists it
	remember  string // file that a new key is added to, "" if there is none
	acceptNew bool

	// What became of the check, for ssh's error loses the type of it.
	verified bool
	refusal  error
}

// newHostKeys reads the known_hosts files of a host; one that is absent is empty.
func newHostKeys(e endpoint, acceptNew bool) (*hostKeys, error) {
	k := &hostKeys{name: e.known(), acceptNew: acceptNew}
	if len(e.userKnown) > 0 {
		k.remember = e.userKnown[0]
	}
	var err error
	k.check, err = readKnownHosts(slices.Concat(e.userKnown, e.otherKnown))
	return k, err
}

func readKnownHosts(files []string) (ssh.HostKeyCallback, error) {
	present := slices.DeleteFunc(slices.Clone(files), func(file string) bool {
		_, err := os.Stat(file)
		return errors.Is(err, os.ErrNotExist)
	})
	check, err := knownhosts.New(present...)
	if err != nil {
		return nil, fault.New(fault.Usage, "repair the file", "read known host keys: %w", err)
	}
	return check, nil
}

// algorithms is what to ask the server for: first the kinds of key that are
// known of it, so that it does not show another one that nobody can judge.
func (k *hostKeys) algorithms() []string {
	supported := ssh.SupportedAlgorithms().HostKeys
	var unknown *knownhosts.KeyError
	if !errors.As(k.check(k.name, noAddr{}, noKey{}), &unknown) {
		return supported
	}
	var known []string
	for _, want := range unknown.Want {
		kinds := []string{want.Key.Type()}
		if kinds[0] == ssh.KeyAlgoRSA {
			kinds = []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
		}
		for _, kind := range kinds {
			if !slices.Contains(known, kind) && slices.Contains(supported, kind) {
				known = append(known, kind)
			}
		}
	}
	return append(known, slices.DeleteFunc(supported, func(kind string) bool { return slices.Contains(known, kind) })...)
}

// verify is the ssh.HostKeyCallback.
func (k *hostKeys) verify(_ string, remote net.Addr, key ssh.PublicKey) error {
	k.refusal = k.judge(remote, key)
	k.verified = k.refusal == nil
	return k.refusal
}

func (k *hostKeys) judge(remote net.Addr, key ssh.PublicKey) error {
	err := k.check(k.name, remote, key)
	var mismatch *knownhosts.KeyError
	var revoked *knownhosts.RevokedError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &revoked):
		return fault.New(fault.HostKeyChanged, "ask the host's admin for its new key",
			"the host key of %s is revoked at %s:%d (%s)", k.name, revoked.Revoked.Filename, revoked.Revoked.Line, ssh.FingerprintSHA256(key))
	case !errors.As(err, &mismatch):
		return fmt.Errorf("verify the host key of %s: %w", k.name, err)
	case len(mismatch.Want) > 0:
		known := mismatch.Want[0]
		for _, want := range mismatch.Want {
			if want.Key.Type() == key.Type() {
				known = want
				break
			}
		}
		return fault.New(fault.HostKeyChanged,
			fmt.Sprintf("if the host was reinstalled: ssh-keygen -f %s -R %s", quote(known.Filename), quote(knownhosts.Normalize(k.name))),
			"the host key of %s changed: it is now %s %s, but %s:%d has %s %s; someone may be between",
			k.name, key.Type(), ssh.FingerprintSHA256(key), known.Filename, known.Line, known.Key.Type(), ssh.FingerprintSHA256(known.Key))
	case !k.acceptNew:
		return fault.New(fault.HostKeyUnknown,
			"compare the fingerprint with the host's (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then add --accept-new-host-keys",
			"the host key of %s is not known: %s %s", k.name, key.Type(), ssh.FingerprintSHA256(key))
	case k.remember == "":
		return fault.New(fault.Usage, "name a file with --known-hosts", "no known_hosts file to remember the key of %s in", k.name)
	default:
		return remember(k.remember, k.name, remote, key)
	}
}

// remember adds a key to a known_hosts file, which it makes if need be. Several
// processes may do so at once: the file is locked, and read again under the lock.
func remember(file, name string, remote net.Addr, key ssh.PublicKey) (err error) {
	defer func() {
		if err != nil && fault.CodeOf(err) == fault.Internal {
			err = fmt.Errorf("remember the host key of %s: %w", name, err)
		}
	}()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }() // which unlocks it
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", file, err)
	}
	check, err := readKnownHosts([]string{file})
	if err != nil {
		return err
	}
	if check(name, remote, key) == nil {
		return nil
	}
	line := knownhosts.Line([]string{name}, key) + "\n"
	if end, err := f.Seek(0, io.SeekEnd); err == nil && end > 0 {
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, end-1); err != nil {
			return err
		}
		if last[0] != '\n' {
			line = "\n" + line
		}
	}
	_, err = f.WriteString(line)
	return err
}

// noKey is a key that no known_hosts file has: asking for it tells which are there.
type noKey struct{}

func (noKey) Type() string                        { return "none" }
func (noKey) Marshal() []byte                     { return nil }
func (noKey) Verify([]byte, *ssh.Signature) error { return errors.New("no key") }

// noAddr is an address that no known_hosts file has.
type noAddr struct{}

func (noAddr) Network() string { return "tcp" }
func (noAddr) String() string  { return "0.0.0.0:0" }
