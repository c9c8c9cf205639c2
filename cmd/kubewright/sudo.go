package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host/sshhost"
)

// readSudoPassword gets the password for sudo from the user, nil if that was not asked for.
func (a *app) readSudoPassword() (*sshhost.SudoPassword, error) {
	if !a.askSudo {
		return nil, nil //nolint:nilnil // no password is what sudo is used with then
	}
	line, err := a.readSecret("password for sudo on the hosts")
	if err != nil {
		return nil, err
	}
	return sshhost.NewSudoPassword(line)
}

// readSecret asks for what on the terminal; if standard input is none, its next line is taken.
func (a *app) readSecret(what string) ([]byte, error) {
	if f, ok := a.stdin.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return a.readHidden(int(f.Fd()), what)
	}
	return a.readLine(what)
}

// readHidden asks on the terminal and reads a line without showing it. A signal
// ends the program with the terminal as it was.
func (a *app) readHidden(terminal int, what string) ([]byte, error) {
	before, err := term.GetState(terminal)
	if err != nil {
		return nil, fmt.Errorf("ask for the %s: %w", what, err)
	}
	line, interrupted, err := answer(func() ([]byte, error) {
		fmt.Fprint(a.stderr, what+": ")
		return term.ReadPassword(terminal)
	})
	defer fmt.Fprintln(a.stderr) // the user's Enter was not shown either
	switch {
	case interrupted:
		return nil, errors.Join(
			fault.New(fault.Interrupted, "", "interrupted at the question for the %s", what),
			term.Restore(terminal, before))
	case err != nil && !errors.Is(err, io.EOF):
		return nil, fmt.Errorf("ask for the %s: %w", what, err)
	}
	return line, nil
}

// readLine reads a line byte by byte: what follows it is not the secret's.
func (a *app) readLine(what string) ([]byte, error) {
	var line []byte
	for b := make([]byte, 1); ; {
		n, err := a.stdin.Read(b)
		if n == 1 && b[0] != '\n' {
			line = append(line, b[0])
			continue
		}
		if n == 1 || errors.Is(err, io.EOF) {
			return bytes.TrimSuffix(line, []byte("\r")), nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the %s from standard input: %w", what, err)
		}
	}
}
