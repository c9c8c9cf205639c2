// Command unbundle runs on a host and makes a version directory of the stream
// on its standard input. It is sent to the host with the bundle.
//
//	unbundle --into /opt/kubewright/v1.37.2-0123456789ab <stream
//
// It says nothing when all went well. Otherwise it leaves no trace of the
// directory, writes one line of JSON to standard error and exits with one of
// package unpack's statuses.
package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/kubewright/kubewright/bootstrap/bundle/unpack"
)

func main() {
	if len(os.Args) != 3 || os.Args[1] != "--into" || os.Args[2] == "" {
		os.Exit(report(unpack.StatusUsage, errors.New("usage: unbundle --into DIRECTORY <stream")))
	}
	os.Exit(run(os.Args[2]))
}

func run(into string) int {
	// A reader that can be interrupted: a signal ends the wait for input, and
	// then Unpack cleans up as for any other failure.
	if err := syscall.SetNonblock(syscall.Stdin, true); err != nil {
		return report(unpack.StatusFailed, err)
	}
	stdin := os.NewFile(uintptr(syscall.Stdin), "standard input")
	signal.Ignore(syscall.SIGPIPE) // the sender left: still clean up
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-stop
		stdin.SetReadDeadline(time.Now()) //nolint:errcheck // a plain file never waits
	}()

	err := unpack.Unpack(stdin, into)
	var refused *unpack.StreamError
	switch {
	case err == nil:
		return 0
	case errors.Is(err, os.ErrDeadlineExceeded):
		return report(unpack.StatusSignaled, err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return report(unpack.StatusNoSpace, err)
	case errors.As(err, &refused):
		return report(unpack.StatusRefused, err)
	default:
		return report(unpack.StatusFailed, err)
	}
}

// report writes the line that says why, and returns status.
func report(status int, err error) int {
	line := struct {
		Status int    `json:"status"`
		Error  string `json:"error"`
	}{status, err.Error()}
	json.NewEncoder(os.Stderr).Encode(line) //nolint:errcheck // there is nowhere else to say it
	return status
}
