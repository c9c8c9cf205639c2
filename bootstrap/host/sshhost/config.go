package sshhost

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kevinburke/ssh_config"
	"github.com/kubewright/kubewright/bootstrap/fault"
)

// target is a host as the admin wrote it: [user@]host[:port], where host is a
// Host of ssh_config, a host name or an address, IPv6 with a port in brackets.
type target struct {
	user string // "" if not written
	host string
	port string // "" if not written
}

func parseTarget(s string) (target, error) {
	var t target
	rest := s
	if at := strings.LastIndexByte(s, '@'); at >= 0 {
		t.user, rest = s[:at], s[at+1:]
		if t.user == "" {
			return t, fault.New(fault.Usage, "write [user@]host[:port]", "%q has no user before the @", s)
		}
	}
	t.host = rest
	switch {
	case strings.HasPrefix(rest, "["):
		inner, after, closed := strings.Cut(rest[1:], "]")
		t.host = inner
		if port, ok := strings.CutPrefix(after, ":"); ok {
			t.port = port
		} else if !closed || after != "" {
			return t, fault.New(fault.Usage, "write [address]:port", "%q is no host", s)
		}
	case strings.Count(rest, ":") == 1: // more are a bare IPv6 address
		t.host, t.port, _ = strings.Cut(rest, ":")
	}
	if t.host == "" || strings.HasPrefix(t.host, "-") {
		return t, fault.New(fault.Usage, "write [user@]host[:port]", "%q names no host", s)
	}
	if t.port == "" && !strings.HasSuffix(rest, ":") {
		return t, nil
	}
	if n, err := strconv.ParseUint(t.port, 10, 16); err != nil || n == 0 {
		return t, fault.New(fault.Usage, "ports are from 1 to 65535", "%q has no valid port", s)
	}
	return t, nil
}

// endpoint is where and how one SSH connection is made: a target after the
// user's ssh_config was applied to it.
type endpoint struct {
	written  target // as the admin wrote it
	hostName string // what is dialed
	port     string
	user     string

	identities     []string // key files that are named; empty: the defaults
	identitiesOnly bool     // only those keys of the agent that are named
	agent          string   // the agent's socket, "" for none

	keyName    string   // what known_hosts knows the host by, if not by hostName
	userKnown  []string // known_hosts files of the user; new keys go to the first
	otherKnown []string // known_hosts files that are only read

	jumps []string // hosts to go through, nearest to us first
}

// addr is what is dialed, host:port with IPv6 in brackets.
func (e endpoint) addr() string { return joinHostPort(e.hostName, e.port) }

// known is the name and port that known_hosts lists the host under.
func (e endpoint) known() string {
	if e.keyName != "" {
		return joinHostPort(e.keyName, defaultPort)
	}
	return e.addr()
}

// login is user@host, as messages name it.
func (e endpoint) login() string { return e.user + "@" + e.hostName }

func joinHostPort(host, port string) string {
	if strings.Contains(host, ":") {
		return "[" + host + "]:" + port
	}
	return host + ":" + port
}

const defaultPort = "22"

// resolver applies ssh_config files; the first that sets a value wins, as in OpenSSH.
type resolver struct {
	files []*ssh_config.Config
	home  string
	user  string // who runs this process
	agent string // $SSH_AUTH_SOCK
}

// newResolver reads file, or the user's and the system's ssh_config if it is "".
func newResolver(file string) (*resolver, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return nil, fmt.Errorf("find ssh_config: %w", err)
	}
	r := &resolver{home: home, user: os.Getenv("USER"), agent: os.Getenv("SSH_AUTH_SOCK")}
	if r.user == "" {
		if me, err := user.Current(); err == nil {
			r.user = me.Username
		}
	}
	if file != "" {
		config, err := readConfig(file)
		if err != nil {
			return nil, fault.New(fault.Usage, "name a readable ssh_config with -F", "read ssh_config: %w", err)
		}
		r.files = append(r.files, config)
		return r, nil
	}
	for _, name := range []string{filepath.Join(home, ".ssh/config"), "/etc/ssh/ssh_config"} {
		config, err := readConfig(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fault.New(fault.Usage, "name another ssh_config with -F", "read ssh_config: %w", err)
		}
		r.files = append(r.files, config)
	}
	return r, nil
}

func readConfig(name string) (*ssh_config.Config, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	config, err := ssh_config.Decode(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return config, nil
}

// get returns the first value of key for a host, "" if there is none.
func (r *resolver) get(host, key string) string {
	if all := r.all(host, key); len(all) > 0 {
		return all[0]
	}
	return ""
}

// all returns every value of key for a host, without the quotes around it.
func (r *resolver) all(host, key string) []string {
	var values []string
	for _, f := range r.files {
		found, _ := f.GetAll(host, key) // it fails only on node types that the parser does not make
		for _, v := range found {
			values = append(values, strings.Trim(v, `"`))
		}
	}
	return values
}

// resolve finds out how to reach a target.
func (r *resolver) resolve(t target) (endpoint, error) {
	get := func(key string) string { return r.get(t.host, key) }
	e := endpoint{
		written: t, port: first(t.port, get("Port"), defaultPort),
		user:           first(t.user, get("User"), r.user),
		identitiesOnly: strings.EqualFold(get("IdentitiesOnly"), "yes"),
		keyName:        get("HostKeyAlias"),
	}
	e.hostName = first(strings.NewReplacer("%%", "%", "%h", t.host, "%n", t.host).Replace(get("HostName")), t.host)

	for _, file := range r.all(t.host, "IdentityFile") {
		if file = r.expand(file, e); file != "none" && !slices.Contains(e.identities, file) {
			e.identities = append(e.identities, file)
		}
	}
	switch agent := get("IdentityAgent"); agent {
	case "", "SSH_AUTH_SOCK", "$SSH_AUTH_SOCK":
		e.agent = r.agent
	case "none":
	default:
		e.agent = r.expand(agent, e)
	}
	e.userKnown = r.expandAll(first(get("UserKnownHostsFile"), "~/.ssh/known_hosts ~/.ssh/known_hosts2"), e)
	e.otherKnown = r.expandAll(first(get("GlobalKnownHostsFile"), "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"), e)

	if jump := get("ProxyJump"); jump != "" && !strings.EqualFold(jump, "none") {
		for hop := range strings.SplitSeq(jump, ",") {
			e.jumps = append(e.jumps, strings.TrimSpace(hop))
		}
	} else if command := get("ProxyCommand"); jump == "" && command != "" && !strings.EqualFold(command, "none") {
		return e, fault.New(fault.Usage, "use ProxyJump, or name another ssh_config with -F",
			"ssh_config has a ProxyCommand for %s, which is not supported", t.host)
	}
	if e.user == "" {
		return e, fault.New(fault.Usage, "write user@"+t.host, "no user to log in as on %s", t.host)
	}
	return e, nil
}

// expandAll splits a list of files and expands each; "none" is no file.
func (r *resolver) expandAll(list string, e endpoint) []string {
	var files []string
	for word := range strings.FieldsSeq(list) {
		if file := r.expand(strings.Trim(word, `"`), e); file != "none" {
			files = append(files, file)
		}
	}
	return files
}

// expand replaces a leading ~ and the tokens of ssh_config(5) that stand for
// what is known before connecting.
func (r *resolver) expand(file string, e endpoint) string {
	if rest, ok := strings.CutPrefix(file, "~/"); ok {
		file = filepath.Join(r.home, rest)
	}
	return strings.NewReplacer("%%", "%", "%h", e.hostName, "%n", e.written.host,
		"%p", e.port, "%r", e.user, "%d", r.home, "%u", r.user).Replace(file)
}

// first returns the first value that is not empty.
func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
