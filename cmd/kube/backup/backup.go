// Package backup is the component that a control-plane host's timer starts: it makes one
// backup of the cluster, proves that it can be read back, and removes the oldest ones.
//
// Of several control-plane hosts only the one whose etcd member leads makes one: a
// backup is of the whole cluster. The host has public keys only. To prove what it wrote
// all the same, it encrypts to one more key, which lives in its memory and ends with it.
package backup

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"filippo.io/age"

	"github.com/kubewright/kubewright/bootstrap/backup"
	"github.com/kubewright/kubewright/bootstrap/backup/take"
	"github.com/kubewright/kubewright/bootstrap/host/localhost"
	"github.com/kubewright/kubewright/bootstrap/version"
)

// options are the command line.
type options struct {
	dir        string
	keep       int
	recipients list
}

// list is a flag that may be given again and again.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(v string) error { *l = append(*l, v); return nil }

func parse(args []string, usage io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("backup", flag.ContinueOnError)
	flags.SetOutput(usage)
	flags.StringVar(&o.dir, "dir", "", "folder for the backups")
	flags.IntVar(&o.keep, "keep", 0, "how many of them to keep")
	flags.Var(&o.recipients, "recipient", "public key that may open them, age1... (repeatable)")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("unknown argument %q", flags.Arg(0))
	case o.dir == "" || o.keep < 1 || len(o.recipients) == 0:
		return o, errors.New("--dir, --keep and --recipient are needed")
	}
	return o, nil
}

// Main makes one backup and exits. What it says on standard output is the unit's log.
func Main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	said, err := run(ctx, os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "backup:", err)
		os.Exit(1)
	}
	fmt.Println(said)
}

func run(ctx context.Context, args []string) (said string, err error) {
	o, err := parse(args, os.Stderr)
	if err != nil {
		return "", err
	}
	to, err := backup.ParseRecipients(o.recipients)
	if err != nil {
		return "", err
	}
	name, err := os.Hostname()
	if err != nil {
		return "", err
	}
	here := localhost.New(name)
	leader, leads, err := take.Leader(ctx, here)
	if err != nil {
		return "", err
	}
	if !leads {
		return "nothing to do: etcd's leader is " + leader + ", where the backup is made", nil
	}
	folder, err := openFolder(o.dir)
	if err != nil {
		return "", err
	}
	defer folder.close()
	contents, err := take.From(ctx, here, take.Signature{By: "kubewright-backup@" + name, Kubewright: version.Kubewright})
	if err != nil {
		return "", err
	}
	defer contents.Close()
	m := contents.Manifest
	made, err := folder.store(contents.Contents, to)
	if err != nil {
		return "", err
	}
	removed, err := folder.prune(m.Cluster, made, o.keep)
	if err != nil {
		return "", err
	}
	kinds, objects := m.Count()
	return fmt.Sprintf("%s: %d bytes, read back and proven: cluster %s at revision %d, %d objects of %d kinds; %d older removed",
		made.path, made.size, m.Cluster, m.Data.Revision, objects, kinds, removed), nil
}

// witness is a further key of the kind of the others, by which a file is read back. age
// does not mix those that withstand quantum computers with those that do not.
func witness(to []age.Recipient) (age.Recipient, age.Identity, error) {
	for _, r := range to {
		if _, ok := r.(*age.HybridRecipient); ok {
			id, err := age.GenerateHybridIdentity()
			if err != nil {
				return nil, nil, err
			}
			return id.Recipient(), id, nil
		}
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, nil, err
	}
	return id.Recipient(), id, nil
}
