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
	line, interrupted, err := answer(func() ([]byte, error) {
		fmt.Fprintf(a.stdout, "%s\n%s: ", what, question)
		return a.readLine("answer")
	})
	switch said := strings.TrimSpace(string(line)); {
	case interrupted:
		fmt.Fprintln(a.stdout)
		return false, fault.New(fault.Interrupted, "", "interrupted at the question; nothing was changed")
	case err == nil && said != word:
		return false, fault.New(fault.Usage, "give the same command again, and answer "+word, "the answer was %q, not %q: nothing was changed", said, word)
	}
	return err == nil, err
}

// answer is what ask returns, unless a signal comes first: a program that was told to end does not wait for Enter.
func answer(ask func() ([]byte, error)) (line []byte, interrupted bool, err error) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	type result struct {
		line []byte
		err  error
	}
	asked := make(chan result, 1)
	go func() {
		line, err := ask()
		asked <- result{line, err}
	}()
	select {
	case r := <-asked:
		return r.line, false, r.err
	case <-signals:
		return nil, true, nil
	}
}
