package main

import (
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// agrees says on the terminal what cannot be taken back, and waits for the word that lets it be done. It is
// false where nobody is there to be asked. Any other answer is a fault.Usage, a signal a fault.Interrupted: the run
// has not begun, and is not to wait for Enter.
func (a *app) agrees(what, question, word string) (bool, error) {
	if !isTerminal(a.stdout) || !isTerminalIn(a.stdin) {
		return false, nil
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	type result struct {
		line []byte
		err  error
	}
	read := make(chan result, 1)
	fmt.Fprintf(a.stdout, "%s\n%s: ", what, question)
	go func() {
		line, err := a.readLine("answer")
		read <- result{line, err}
	}()
	select {
	case r := <-read:
		answer := strings.TrimSpace(string(r.line))
		if r.err == nil && answer != word {
			return false, fault.New(fault.Usage, "give the same command again, and answer "+word, "the answer was %q, not %q: nothing was changed", answer, word)
		}
		return r.err == nil, r.err
	case <-signals:
		fmt.Fprintln(a.stdout)
		return false, fault.New(fault.Interrupted, "", "interrupted at the question; nothing was changed")
	}
}
