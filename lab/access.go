package lab

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"
)

// What a lab's folder holds for ssh.
const (
	sshConfigFile  = "ssh_config"
	knownHostsFile = "known_hosts"
	keyFile        = "id_ed25519" // with its .pub
)

// newKey returns an ed25519 key pair as OpenSSH writes it.
func newKey(comment string) (private, public []byte, err error) {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key of %s: %w", comment, err)
	}
	block, err := ssh.MarshalPrivateKey(priv, comment)
	if err != nil {
		return nil, nil, fmt.Errorf("make key of %s: %w", comment, err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		return nil, nil, fmt.Errorf("make key of %s: %w", comment, err)
	}
	return pem.EncodeToMemory(block), ssh.MarshalAuthorizedKey(key), nil
}

// writeAccess makes the keys of a lab and of its hosts, and what ssh needs to
// use them before any host has booted. It returns the files that belong on the
// disk of each host, in the order of the hosts.
func writeAccess(s *state) ([][]diskFile, error) {
	private, public, err := newKey("kubewright lab " + s.Name)
	if err != nil {
		return nil, err
	}
	var knownHosts strings.Builder
	disks := make([][]diskFile, len(s.Hosts))
	var id [16]byte // a host's machine id
	for i := range s.Hosts {
		h := &s.Hosts[i]
		hostPrivate, hostPublic, err := newKey(h.Name)
		if err != nil {
			return nil, err
		}
		if i == 0 || !s.Options.SameMachineID {
			if _, err := rand.Read(id[:]); err != nil {
				return nil, fmt.Errorf("make machine id of %s: %w", h.Name, err)
			}
		}
		knownHosts.WriteString(knownHost(h, hostPublic))
		disks[i] = []diskFile{
			{Path: keysFile, Content: public, Mode: 0o644},
			{Path: hostKeyFile, Content: hostPrivate, Mode: 0o600},
			{Path: hostKeyFile + ".pub", Content: hostPublic, Mode: 0o644},
			{Path: "/etc/machine-id", Content: []byte(hex.EncodeToString(id[:]) + "\n"), Mode: 0o444},
			{Path: "/etc/hostname", Content: []byte(h.Name + "\n"), Mode: 0o644},
			{Path: "/etc/hosts", Content: []byte(hostsTable(s)), Mode: 0o644},
		}
		disks[i] = append(disks[i], s.trouble(h).files()...)
	}
	dir := s.dir()
	for _, f := range []diskFile{
		{Path: keyFile, Content: private, Mode: 0o600},
		{Path: keyFile + ".pub", Content: public, Mode: 0o644},
		{Path: knownHostsFile, Content: []byte(knownHosts.String()), Mode: 0o644},
		{Path: sshConfigFile, Content: []byte(sshConfig(s)), Mode: 0o644},
	} {
		if err := writeFile(filepath.Join(dir, f.Path), f.Content, f.Mode); err != nil {
			return nil, fmt.Errorf("write %s of lab %s: %w", f.Path, s.Name, err)
		}
	}
	return disks, nil
}

// sshConfig lets `ssh -F` reach each host by its name.
func sshConfig(s *state) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Hosts of kubewright lab %s.\n", s.Name)
	for i := range s.Hosts {
		h := &s.Hosts[i]
		fmt.Fprintf(&b, "\nHost %s\n\tHostName %s\n\tUser root\n", h.Name, h.Address)
		fmt.Fprintf(&b, "\tIdentityFile %s\n\tIdentitiesOnly yes\n", filepath.Join(s.dir(), keyFile))
		fmt.Fprintf(&b, "\tUserKnownHostsFile %s\n\tStrictHostKeyChecking yes\n", filepath.Join(s.dir(), knownHostsFile))
		if !s.reached(h) {
			fmt.Fprintf(&b, "\tProxyJump %s\n", s.Hosts[0].Name)
		}
	}
	return b.String()
}

// knownHost is a host's line in known_hosts, by name and by address.
func knownHost(h *hostState, public []byte) string {
	fields := strings.Fields(string(public)) // type, key, comment
	return fmt.Sprintf("%s,%s %s %s\n", h.Name, h.Address, fields[0], fields[1])
}

// hostsTable is the /etc/hosts of every host of a lab.
func hostsTable(s *state) string {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
	for i := range s.Hosts {
		fmt.Fprintf(&b, "%s %s\n", s.Hosts[i].Address, s.Hosts[i].Name)
	}
	return b.String()
}

// SSHConfig is the path of a file that makes `ssh -F` and kubewright's -F reach the hosts by name.
func (l *Lab) SSHConfig() string { return filepath.Join(l.dir, sshConfigFile) }

// KnownHosts is the path of a known_hosts with the hosts' keys, by name and by address.
func (l *Lab) KnownHosts() string { return filepath.Join(l.dir, knownHostsFile) }

// Key is the path of the private key that root, admin (sudo without password),
// ops (sudo with SudoPassword) and nosudo (sudo asks for one that nobody has) of
// every host accept.
func (l *Lab) Key() string { return filepath.Join(l.dir, keyFile) }
