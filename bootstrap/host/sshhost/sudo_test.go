package sshhost

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
)

// fakeSudo treats its standard streams as sudo 1.9 does: the prompt goes to
// standard error, and the password is read byte by byte from standard input, of
// which the command gets the rest. Its sudoers file sets what a case is about.
// Each run and each attempt is noted.
const fakeSudo = `#!/bin/bash
cd "$(dirname "$0")" || exit 1
echo "$*" >>argv
while :; do
	case $1 in
	-n) never=yes ;;
	-S | -k) ;;
	-p) prompt=$2; shift ;;
	--) shift; break ;;
	*) echo "fake sudo: $1 is not scripted" >&2; exit 1 ;;
	esac
	shift
done
tries=3
. ./sudoers
refuse() { echo "sudo: $1" >&2; exit 1; }
[ -z "$requiretty" ] || refuse "sorry, you must have a tty to run sudo"
if [ -z "$nopasswd" ]; then
	[ -z "$never" ] || refuse "a password is required"
	[ -z "$lecture" ] || printf 'We trust you have received the usual lecture.\n\n' >&2
	left=$tries
	until [ "$answer" = "$password" ]; do
		[ "$left" -eq "$tries" ] || echo "Sorry, try again." >&2
		[ "$left" -gt 0 ] || refuse "$tries incorrect password attempts"
		printf %s "$prompt" >&2
		IFS= read -r answer || refuse "no password was provided"
		echo "${!#}" >>attempts
		left=$((left - 1))
	done
	[ -z "$stranger" ] || refuse "user is not in the sudoers file"
fi
exec "$@"
`

// sudoServer is a server whose sudo is the fake with these lines of sudoers.
func sudoServer(t *testing.T, sudoers string) server {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "sudo"), []byte(fakeSudo), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "sudoers"), sudoers)
	s := newServer(t, "SetEnv PATH="+dir+":/usr/bin:/bin")
	s.know(t)
	s.sudo = dir
	return s
}

// noted is how many lines the fake sudo noted in a file of its own.
func (s server) noted(t *testing.T, file string) int {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(s.sudo, file))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return bytes.Count(content, []byte("\n"))
}

const rightPassword = `it's "right" \n`

func newPassword(t *testing.T, text string) *SudoPassword {
	t.Helper()
	p, err := NewSudoPassword(host.Secret(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestSudoPassword(t *testing.T) {
	const needed = `password='it'\''s "right" \n'` + "\n"
	for name, c := range map[string]struct {
		sudoers  string
		asks     bool   // the flag was given
		password string // "" for the right one
		attempts int    // at login
		refused  []string
	}{
		"no password needed, none given":   {sudoers: "nopasswd=yes"},
		"no password needed, one given":    {sudoers: "nopasswd=yes", asks: true},
		"needed, none given":               {sudoers: needed, refused: []string{"without a password", "--ask-sudo-password", "NOPASSWD"}},
		"needed and given":                 {sudoers: needed, asks: true, attempts: 1},
		"after a lecture":                  {sudoers: needed + "lecture=yes", asks: true, attempts: 1},
		"wrong":                            {sudoers: needed, asks: true, password: "wrong", attempts: 1, refused: []string{"tried once", "no password was provided", "ssh -t root@one"}},
		"wrong, and sudo asks only once":   {sudoers: needed + "tries=1", asks: true, password: "wrong", attempts: 1, refused: []string{"tried once", "1 incorrect password"}},
		"right, but nothing is allowed":    {sudoers: needed + "stranger=yes", asks: true, attempts: 1, refused: []string{"not in the sudoers file"}},
		"sudo wants a terminal":            {sudoers: needed + "requiretty=yes", asks: true, refused: []string{"must have a tty", "requiretty"}},
		"sudo wants a terminal, no flag":   {sudoers: "nopasswd=yes\nrequiretty=yes", refused: []string{"must have a tty"}},
		"a program that is no sudo at all": {sudoers: "exit 127", asks: true, refused: []string{"has no sudo"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := sudoServer(t, c.sudoers)
			cfg := Config{alwaysSudo: true}
			password := c.password
			if password == "" {
				password = rightPassword
			}
			if c.asks {
				cfg.SudoPassword = newPassword(t, password)
			}
			h, err := dial(t, "one", s.config(t, "one"), cfg)
			if c.refused != nil {
				wantFault(t, err, fault.SudoRefused, append(c.refused, "127.0.0.1", "root")...)
				if got := s.noted(t, "attempts"); got != c.attempts {
					t.Errorf("%d attempts, want %d", got, c.attempts)
				}
				if strings.Contains(fmt.Sprintf("%v %+v", err, fault.RemedyOf(err)), password) {
					t.Errorf("the error tells the password: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			usesSudo(t, h)
			if got := s.noted(t, "attempts"); (got > 0) != (c.attempts > 0) {
				t.Errorf("%d attempts", got)
			}
			if argv, err := os.ReadFile(filepath.Join(s.sudo, "argv")); err != nil || bytes.Contains(argv, []byte(password)) {
				t.Errorf("the password is in argv (%v):\n%s", err, argv)
			}
		})
	}
}

// usesSudo proves that commands get all of their input and nothing else, and
// that files, and the end of commands that are given up, go through sudo too.
func usesSudo(t *testing.T, h *Host) {
	t.Helper()
	large := strings.Repeat("a line of input\n", 100_000)
	for _, in := range []string{"", "in", large} {
		out, err := h.Run(t.Context(), host.Command{Argv: []string{"cat"}, Stdin: strings.NewReader(in)})
		if err != nil || string(out) != in {
			t.Errorf("%d bytes came back as %d, %v", len(in), len(out), err)
		}
	}
	if out, err := h.Query(t.Context(), "cat"); err != nil || len(out) > 0 {
		t.Errorf("without input: %q, %v", out, err)
	}
	var all sync.WaitGroup
	for range 2 * maxSessions {
		all.Go(func() {
			if _, err := h.Query(t.Context(), "true"); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	var exit *host.ExitError
	if _, err := h.Query(t.Context(), "sh", "-c", "echo why >&2; exit 3"); !errors.As(err, &exit) || exit.Status != 3 || exit.Stderr != "why\n" || fault.CodeOf(err) == fault.SudoRefused {
		t.Errorf("%+v, %v", exit, err)
	}
	// What a command says is not sudo's question.
	if out, err := h.Run(t.Context(), host.Command{Argv: []string{"sh", "-c", "echo " + promptMark + " >&2; cat"}, Stdin: strings.NewReader("in")}); err != nil || string(out) != "in" {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := h.ReadFile(t.Context(), "/etc/passwd"); err != nil {
		t.Error(err)
	}
}

// A password that is not valid any more is not tried again and again.
func TestSudoPasswordChanged(t *testing.T) {
	s := sudoServer(t, "password=first")
	h, err := dial(t, "one", s.config(t, "one"), Config{alwaysSudo: true, SudoPassword: newPassword(t, "first")})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(s.sudo, "sudoers"), "password=second")
	in := strings.NewReader("for the command alone\nnot for sudo\n")
	_, err = h.Run(t.Context(), host.Command{Argv: []string{"cat"}, Stdin: in})
	wantFault(t, err, fault.SudoRefused, "tried once")
	if int64(in.Len()) != in.Size() {
		t.Errorf("%d of %d bytes of the command's input were sent", in.Size()-int64(in.Len()), in.Size())
	}
	_, err = h.start("cat")
	wantFault(t, err, fault.SudoRefused, "tried once")
	attempts, err := os.ReadFile(filepath.Join(s.sudo, "attempts"))
	if got := strings.Count(string(attempts), "cat\n"); err != nil || got != 2 {
		t.Errorf("%d attempts for two commands, %v", got, err)
	}
}

// An account that many hosts share is not locked by a wrong password.
func TestSudoPasswordTriedOnce(t *testing.T) {
	const hosts = 5
	servers := make([]server, hosts)
	for i := range servers {
		servers[i] = sudoServer(t, "password=right")
	}
	servers[0] = sudoServer(t, "nopasswd=yes")
	attempts := func() (n int) {
		for _, s := range servers {
			n += s.noted(t, "attempts")
		}
		return n
	}
	dialAll := func(password string) []error {
		shared := newPassword(t, password)
		failed := make([]error, hosts)
		var all sync.WaitGroup
		for i, s := range servers {
			all.Go(func() {
				_, failed[i] = dial(t, "one", s.config(t, "one"), Config{alwaysSudo: true, SudoPassword: shared})
			})
		}
		all.Wait()
		return failed
	}
	failed := dialAll("wrong")
	if got := attempts(); got != 1 {
		t.Errorf("%d attempts with a wrong password", got)
	}
	told := 0
	for i, err := range failed[1:] {
		wantFault(t, err, fault.SudoRefused, "once")
		if strings.Contains(err.Error(), "was not given the password") {
			told++
		}
		if i == 0 && failed[0] != nil && fault.CodeOf(failed[0]) != fault.SudoRefused {
			t.Error(failed[0])
		}
	}
	if told != hosts-2 {
		t.Errorf("%d hosts were spared, want %d", told, hosts-2)
	}
	for _, err := range dialAll("right") {
		if err != nil {
			t.Error(err)
		}
	}
}

func TestBadSudoPassword(t *testing.T) {
	for _, text := range []string{"", "two\nlines", "nul\x00", strings.Repeat("x", maxPassword+1)} {
		_, err := NewSudoPassword(host.Secret(text))
		wantFault(t, err, fault.Usage)
		if text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("the error tells the password: %v", err)
		}
	}
}
