package sshhost

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/kubewright/kubewright/bootstrap/fault"
)

func TestParseTarget(t *testing.T) {
	for in, want := range map[string]target{
		"node":               {host: "node"},
		"a@node":             {user: "a", host: "node"},
		"a@b@node:22":        {user: "a@b", host: "node", port: "22"},
		"10.0.0.1:2222":      {host: "10.0.0.1", port: "2222"},
		"fd00::1":            {host: "fd00::1"},
		"a@[fd00::1]":        {user: "a", host: "fd00::1"},
		"a@[fd00::1%eth0]:5": {user: "a", host: "fd00::1%eth0", port: "5"},
	} {
		got, err := parseTarget(in)
		if err != nil || got != want {
			t.Errorf("parseTarget(%q) = %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, bad := range []string{"", "@node", "node:", "node:0", "node:65536", "node:ssh", "a@", "[fd00::1", "[fd00::1]x", "-oProxyCommand=x", ":22"} {
		if got, err := parseTarget(bad); fault.CodeOf(err) != fault.Usage {
			t.Errorf("parseTarget(%q) = %+v, %v; want a usage fault", bad, got, err)
		}
	}
}

func TestResolve(t *testing.T) {
	config := `
User everyone

Host web
	HostName web.example.com
	Port 2200
	User deploy
	IdentityFile ~/.ssh/first
	IdentityFile "%d/keys/%r@%h:%p"
	IdentitiesOnly yes
	UserKnownHostsFile ~/.ssh/a /etc/b
	ProxyJump gate,admin@inner:2022

Host *.short
	HostName %h.example.com
	GlobalKnownHostsFile none
	HostKeyAlias shared

Host command
	ProxyCommand nc %h %p

Host direct
	ProxyJump none
	ProxyCommand nc %h %p
	IdentityAgent none
	UserKnownHostsFile none
`
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, []byte(strings.Replace(config, "User everyone\n", "", 1)+"\nHost *\n\tUser everyone\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := newResolver(file)
	if err != nil {
		t.Fatal(err)
	}
	r.home, r.user, r.agent = "/home/me", "me", "/run/agent"
	defaults := endpoint{
		port: "22", user: "everyone", agent: "/run/agent",
		userKnown:  []string{"/home/me/.ssh/known_hosts", "/home/me/.ssh/known_hosts2"},
		otherKnown: []string{"/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"},
	}
	for name, want := range map[string]func(e *endpoint){
		"plain": func(e *endpoint) { e.hostName = "plain" },
		"root@plain:99": func(e *endpoint) {
			e.hostName, e.user, e.port = "plain", "root", "99"
		},
		"web": func(e *endpoint) {
			e.hostName, e.port, e.user = "web.example.com", "2200", "deploy"
			e.identities = []string{"/home/me/.ssh/first", "/home/me/keys/deploy@web.example.com:2200"}
			e.identitiesOnly = true
			e.userKnown = []string{"/home/me/.ssh/a", "/etc/b"}
			e.jumps = []string{"gate", "admin@inner:2022"}
		},
		"x.short": func(e *endpoint) {
			e.hostName, e.keyName, e.otherKnown = "x.short.example.com", "shared", nil
		},
		"direct": func(e *endpoint) { e.hostName, e.agent, e.userKnown = "direct", "", nil },
	} {
		t.Run(name, func(t *testing.T) {
			parsed, err := parseTarget(name)
			if err != nil {
				t.Fatal(err)
			}
			got, err := r.resolve(parsed)
			if err != nil {
				t.Fatal(err)
			}
			expected := defaults
			expected.userKnown, expected.otherKnown = slices.Clone(defaults.userKnown), slices.Clone(defaults.otherKnown)
			expected.written = parsed
			want(&expected)
			if diff := cmp.Diff(expected, got, cmp.AllowUnexported(endpoint{}, target{}), cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, err := r.resolve(target{host: "command"}); fault.CodeOf(err) != fault.Usage {
		t.Errorf("ProxyCommand: %v", err)
	}
	if _, err := newResolver(file + ".absent"); fault.CodeOf(err) != fault.Usage {
		t.Errorf("absent file: %v", err)
	}
}

func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		argv []string
		want string
	}{
		{[]string{"ls", "-l", "/etc/x.conf"}, "ls -l /etc/x.conf"},
		{[]string{"echo", ""}, "echo ''"},
		{[]string{"echo", "a b"}, "echo 'a b'"},
		{[]string{"echo", "it's"}, `echo 'it'\''s'`},
		{[]string{"echo", "$HOME `id` \"x\" \\ ; & | > <"}, "echo '$HOME `id` \"x\" \\ ; & | > <'"},
		{[]string{"echo", "*", "~", "a=b", "#", "!x"}, "echo '*' '~' a=b '#' '!x'"},
		{[]string{"echo", "two\nlines"}, "echo 'two\nlines'"},
		{[]string{"echo", "käse"}, "echo 'käse'"},
	} {
		got, err := commandLine(c.argv...)
		if err != nil || got != c.want {
			t.Errorf("commandLine(%q) = %s, %v; want %s", c.argv, got, err, c.want)
		}
	}
	if _, err := commandLine("echo", "a\x00b"); err == nil {
		t.Error("a NUL was let through")
	}
}
