package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host/sshhost"
)

// readSudoPassword gets the password for sudo from the user, nil if that was not asked for.
func (a *app) readSudoPassword() (*sshhost.SudoPassword, error) {
	if !a.askSudo {
		return nil, nil //nolint:nilnil // no password is what sudo is used with then
	}
	read := a.readLine
	if f, ok := a.stdin.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		read = func() ([]byte, error) { return a.readHidden(int(f.Fd())) }
	}
	line, err := read()
	if err != nil {
		return nil, err
	}
	return sshhost.NewSudoPassword(line)
}

// readHidden asks on the terminal and reads a line without showing it. A signal
// ends the program with the terminal as it was.
func (a *app) readHidden(terminal int) ([]byte, error) {
	before, err := term.GetState(terminal)
	if err != nil {
		return nil, fmt.Errorf("ask for the password for sudo: %w", err)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	type result struct {
		line []byte
		err  error
	}
	read := make(chan result, 1)
	fmt.Fprint(a.stderr, "password for sudo on the hosts: ")
	go func() {
		line, err := term.ReadPassword(terminal)
		read <- result{line, err}
	}()
	defer fmt.Fprintln(a.stderr) // the user's Enter was not shown either
	select {
	case r := <-read:
		if r.err != nil && !errors.Is(r.err, io.EOF) {
			return nil, fmt.Errorf("ask for the password for sudo: %w", r.err)
		}
		return r.line, nil
	case <-signals:
		return nil, errors.Join(
			fault.New(fault.Interrupted, "", "interrupted at the question for the password for sudo"),
			term.Restore(terminal, before))
	}
}

// readLine reads a line byte by byte: what follows it is not the password's.
func (a *app) readLine() ([]byte, error) {
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
			return nil, fmt.Errorf("read the password for sudo from standard input: %w", err)
		}
	}
}
