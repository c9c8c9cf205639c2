package main

import (
	"bytes"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

func TestSudoPasswordFromInput(t *testing.T) {
	in := strings.NewReader("sesame\r\napiVersion: x\n")
	a := &app{stdin: in, askSudo: true}
	if line, err := a.readLine("password"); err != nil || string(line) != "sesame" {
		t.Errorf("%q, %v", line, err)
	}
	if rest, err := io.ReadAll(in); err != nil || string(rest) != "apiVersion: x\n" {
		t.Errorf("it left %q, %v", rest, err)
	}
	a = &app{stdin: strings.NewReader("no newline"), askSudo: true}
	if line, err := a.readLine("password"); err != nil || string(line) != "no newline" {
		t.Errorf("%q, %v", line, err)
	}
	a = &app{stdin: strings.NewReader(""), askSudo: true}
	if _, err := a.readSudoPassword(); fault.CodeOf(err) != fault.Usage {
		t.Errorf("no line at all: %v", err)
	}
	a = &app{stdin: unread{t}}
	if p, err := a.readSudoPassword(); p != nil || err != nil {
		t.Errorf("not asked for: %v, %v", p, err)
	}
}

// unread must not be read.
type unread struct{ t *testing.T }

func (n unread) Read([]byte) (int, error) {
	n.t.Error("standard input was read")
	return 0, io.EOF
}

// On a terminal the question is seen, and the answer is not.
func TestSudoPasswordFromTerminal(t *testing.T) {
	master, terminal := openTerminal(t)
	var asked bytes.Buffer
	a := &app{stdin: terminal, stderr: &asked, askSudo: true}
	before, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	// An answer that comes before the question would be shown: the terminal's echo is off first.
	go func() {
		for {
			now, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
			if err != nil || now.Lflag&unix.ECHO == 0 {
				master.WriteString("sesame\n") //nolint:errcheck // the reader would wait for ever
				return
			}
		}
	}()
	line, err := a.readHidden(int(terminal.Fd()), "password for sudo")
	if err != nil || string(line) != "sesame" {
		t.Errorf("%q, %v", line, err)
	}
	if !strings.Contains(asked.String(), "password for sudo") || strings.Contains(asked.String(), "sesame") {
		t.Errorf("it said %q", &asked)
	}
	after, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil || *after != *before {
		t.Errorf("the terminal was left in another mode: %v", err)
	}
	terminal.WriteString("end") //nolint:errcheck // read below
	shown := make([]byte, 64)
	if n, err := master.Read(shown); err != nil || strings.Contains(string(shown[:n]), "sesame") {
		t.Errorf("the terminal showed %q, %v", shown[:n], err)
	}
}

// Ctrl-C at the question ends the program, and leaves the terminal as it was.
func TestSudoPasswordInterrupted(t *testing.T) {
	_, terminal := openTerminal(t)
	before, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	a := &app{stdin: terminal, stderr: io.Discard, askSudo: true}
	go func() {
		for {
			now, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
			if err != nil || now.Lflag&unix.ECHO == 0 { // by then it listens for signals
				syscall.Kill(os.Getpid(), syscall.SIGINT) //nolint:errcheck // the reader would wait for ever
				return
			}
		}
	}()
	if _, err := a.readSudoPassword(); fault.CodeOf(err) != fault.Interrupted {
		t.Errorf("%v", err)
	}
	after, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil || *after != *before {
		t.Errorf("the terminal was left in another mode: %v", err)
	}
}

// openTerminal makes a pseudo-terminal.
func openTerminal(t *testing.T) (master, terminal *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	return master, terminal
}
