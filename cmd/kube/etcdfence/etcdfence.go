// Package etcdfence stands before etcd on a control-plane host: a member that was taken out of
// its cluster for ever while its host was off must not come back with the data that it had. Two
// such members of three would be a quorum: a second cluster, with the first one's certificates.
//
// Before etcd starts on data that are there, the other control-plane hosts are asked who is a
// member. Only an answer that a quorum stands for counts. If there is one, and this member is
// not in it, its data folder is fenced: it stays for those who want to look into it, and etcd
// does not start on it again, whoever is there to be asked. If nobody answers, etcd starts: a
// cluster whose hosts were all off has to come up.
//
// docs/decisions/0017-fencing.md says what this does not prevent.
package etcdfence

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// Status is the exit status of a fenced member: its unit is not to be started again by itself.
	Status = 78
	// File, in the data folder, says since when and why it is fenced.
	File = "FENCED"
)

// force is the setting that makes etcd a cluster of its own with its data, for `kubewright recover`.
const force = "ETCD_FORCE_NEW_CLUSTER"

// askTime bounds the question to all others.
const askTime = 2 * time.Second

// options are the command line: the fence's own, and what it takes from etcd's.
type options struct {
	servers string        // file with the control-plane hosts, as apilb remembers them
	wait    time.Duration // for all answers

	name, dataDir, peerURL string
	caFile                 string
	certFile, keyFile      string
}

// Main guards etcd, and returns its command line: what follows "--". It ends the program if
// etcd must not start.
func Main() []string {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil)).With("component", "etcd-fence")
	o, etcd, err := parse(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(0)
	case err != nil:
		log.Error(err.Error())
		os.Exit(2)
	}
	var fenced *fencedError
	member, err := guard(context.Background(), o, log)
	switch {
	case member:
		// A recovery that was broken off, and whose quorum has come back, is over.
		if err := os.Unsetenv(force); err != nil {
			log.Error(err.Error())
			os.Exit(1)
		}
	case errors.As(err, &fenced):
		log.Error("etcd is fenced and does not start: " + fenced.reason)
		os.Exit(Status)
	case err != nil: // it is not known to be out: etcd says itself what is wrong with its data
		log.Warn("etcd starts without having been asked for: " + err.Error())
	}
	return etcd
}

func parse(args []string, stderr io.Writer) (o options, etcd []string, err error) {
	own := flag.NewFlagSet("etcd-fence", flag.ContinueOnError)
	own.SetOutput(stderr)
	own.StringVar(&o.servers, "servers", "", "file with the control-plane hosts, as apilb remembers them")
	own.DurationVar(&o.wait, "wait", askTime, "how long the others are waited for")
	own.Usage = func() {
		fmt.Fprintln(stderr, "usage: etcd-fence --servers FILE -- ETCD-FLAG...\nruns etcd, unless it was taken out of its cluster")
		own.PrintDefaults()
	}
	if err := own.Parse(args); err != nil {
		return o, nil, err
	}
	etcd = own.Args()
	given := map[string]string{}
	for _, arg := range etcd {
		if name, value, ok := strings.Cut(strings.TrimLeft(arg, "-"), "="); ok {
			given[name] = value
		}
	}
	for name, to := range map[string]*string{"name": &o.name, "data-dir": &o.dataDir, "initial-advertise-peer-urls": &o.peerURL,
		"peer-trusted-ca-file": &o.caFile, "peer-cert-file": &o.certFile, "peer-key-file": &o.keyFile} {
		if *to = given[name]; *to == "" {
			return o, nil, fmt.Errorf("etcd's command line has no --%s=VALUE", name)
		}
	}
	return o, etcd, nil
}

// fencedError says why etcd must not start.
type fencedError struct{ reason string }

func (e *fencedError) Error() string { return e.reason }

// guard tells whether a quorum has the member, and returns a *fencedError if etcd must not start on its
// data. Any other error is of what could not be looked at.
func guard(ctx context.Context, o options, log *slog.Logger) (member bool, err error) {
	mark := filepath.Join(o.dataDir, File)
	if content, err := os.ReadFile(mark); err == nil {
		reason, _, _ := strings.Cut(string(content), "\n")
		return false, &fencedError{reason}
	}
	if _, err := os.Stat(filepath.Join(o.dataDir, "member")); errors.Is(err, os.ErrNotExist) {
		return false, nil // it comes to its data by those that let it in
	}
	self, err := identify(o.dataDir)
	if err != nil {
		return false, fmt.Errorf("the member's identity: %w", err)
	}
	others := neighbours(o, log)
	if len(others) == 0 {
		return false, nil
	}
	credentials, err := load(o)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.wait)
	defer cancel()
	member, verdict := ask(ctx, self, others, credentials, log)
	if verdict == "" {
		return member, nil
	}
	if err := fence(mark, verdict, o.name); err != nil {
		log.Error("the fence cannot be written down: " + err.Error())
	}
	return false, &fencedError{verdict}
}

// fence marks a data folder for good.
func fence(mark, reason, name string) error {
	text := fmt.Sprintf("%s\nFenced on %s, before etcd member %s started. The data are as they were.\n"+
		"To make the host a node again: kubewright reset HOST, then kubewright join HOST --control-plane.\n",
		reason, time.Now().UTC().Format(time.RFC3339), name)
	f, err := os.CreateTemp(filepath.Dir(mark), "."+File+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // gone after the rename
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), mark)
}
