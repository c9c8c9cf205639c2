package main

import (
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// TestAgrees: the word alone lets it be done, and Ctrl-C does not wait for Enter.
func TestAgrees(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(terminal *os.File)
		want   bool
		code   fault.Code
	}{
		"the word":    {answer: typed("prod\n"), want: true},
		"another one": {answer: typed("yes\n"), code: fault.Usage},
		"Enter":       {answer: typed("\n"), code: fault.Usage},
		"Ctrl-C": {answer: func(*os.File) {
			syscall.Kill(os.Getpid(), syscall.SIGINT) //nolint:errcheck // the question would wait for ever
		}, code: fault.Interrupted},
	} {
		t.Run(name, func(t *testing.T) {
			master, terminal := openTerminal(t)
			a := &app{stdin: terminal, stdout: terminal, stderr: io.Discard}
			go func() {
				for said := ""; !strings.Contains(said, "Type its name: "); {
					b := make([]byte, 256)
					n, err := master.Read(b)
					if err != nil {
						return
					}
					said += string(b[:n])
				}
				c.answer(master)
			}()
			got, err := a.agrees("cluster prod goes", "Type its name", "prod")
			if got != c.want || c.code == "" && err != nil || c.code != "" && fault.CodeOf(err) != c.code {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
	if got, err := (&app{stdin: unread{t}, stdout: io.Discard}).agrees("it goes", "Type yes", "yes"); got || err != nil {
		t.Errorf("nobody there: %v, %v", got, err)
	}
}

func typed(answer string) func(*os.File) {
	return func(master *os.File) { master.WriteString(answer) } //nolint:errcheck // the question would wait for ever
}
