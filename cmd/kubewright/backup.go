package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"filippo.io/age"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kubewright/kubewright/bootstrap/backup"
	"github.com/kubewright/kubewright/bootstrap/backup/take"
	"github.com/kubewright/kubewright/bootstrap/backup/trial"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/version"
)

func (a *app) backupCommand() *cobra.Command {
	var file string
	var force bool
	var to recipientFlags
	c := &cobra.Command{
		Use:   "backup [HOST...] -o FILE",
		Short: "Write one encrypted file from which the cluster can be rebuilt",
		Long: "backup streams etcd's snapshot, all keys of the control plane, the files of yours that flags of the API server name\n" +
			"(such as --encryption-provider-config and --audit-policy-file), the cluster's record and a count of all objects at one\n" +
			"revision into one file that is encrypted on the way (age): nothing of it comes to this machine's disk in the clear.\n" +
			"It goes through a healthy control-plane host of the cluster in the kubeconfig; name hosts if the API does not answer.\n" +
			"Encrypt to public keys (`kubewright backup keygen`), and keep the private one where the cluster is not. Prove the file with\n" +
			"`kubewright backup verify`.",
		Example: "  kubewright backup keygen backup.key\n  kubewright backup -o prod.kwbackup --recipient age1...\n  kubewright backup verify prod.kwbackup --identity backup.key",
		RunE: func(c *cobra.Command, hosts []string) error {
			if file == "" {
				return usage(c, errors.New("name the file to write with -o"))
			}
			recipients, err := to.read(a)
			if err != nil {
				return err
			}
			return untilSignal(c.Context(), func(ctx context.Context) error { return a.backup(ctx, hosts, file, force, recipients) })
		},
	}
	c.Flags().StringVarP(&file, "output", "o", "", "file to write")
	c.Flags().BoolVar(&force, "force", false, "replace a file that is there")
	to.add(c.Flags())
	c.AddCommand(a.prints(a.backupVerify()), a.prints(a.backupShow()), a.backupKeygen(), a.prints(a.backupList()), a.backupFetch())
	return c
}

// recipientFlags say who can open what is written.
type recipientFlags struct {
	keys, files []string
	passphrase  bool
}

func (f *recipientFlags) add(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.keys, "recipient", nil, "public key that the file is encrypted to, age1... (repeatable)")
	flags.StringArrayVar(&f.files, "recipients-file", nil, "file with such keys, one a line (repeatable)")
	flags.BoolVar(&f.passphrase, "passphrase", false, "encrypt by a passphrase instead, which is asked for; if standard input is no terminal, its next line is taken")
}

func (f *recipientFlags) read(a *app) ([]age.Recipient, error) {
	all, err := backup.ParseRecipients(f.keys)
	if err != nil {
		return nil, err
	}
	for _, name := range f.files {
		content, err := os.ReadFile(name)
		if err != nil {
			return nil, fault.New(fault.Usage, "name a file with public keys", "--recipients-file: %w", err)
		}
		more, err := backup.ReadRecipients(bytes.NewReader(content))
		if err != nil {
			return nil, err
		}
		all = append(all, more...)
	}
	switch {
	case f.passphrase && len(all) > 0:
		return nil, fault.New(fault.Usage, "give keys or --passphrase", "a file that a passphrase opens can have no other recipients")
	case f.passphrase:
		phrase, err := a.readPassphrase()
		if err != nil {
			return nil, err
		}
		r, err := backup.PassphraseRecipient(phrase)
		return []age.Recipient{r}, err
	case len(all) == 0:
		return nil, fault.New(fault.Usage, "make a key with `kubewright backup keygen` and give its public half with --recipient, or use --passphrase",
			"a backup holds all keys of the cluster: say who may open it")
	}
	return all, nil
}

// readPassphrase asks for a new passphrase, twice where nobody sees what is typed.
func (a *app) readPassphrase() ([]byte, error) {
	first, err := a.readSecret("passphrase of the backup")
	if err != nil || !isTerminalIn(a.stdin) {
		return first, err
	}
	again, err := a.readSecret("the same again")
	if err == nil && !bytes.Equal(first, again) {
		err = fault.New(fault.Usage, "run the command again", "the two passphrases are not the same")
	}
	return first, err
}

// identityFlags say by what a file is opened.
type identityFlags struct {
	files      []string
	passphrase bool
}

func (f *identityFlags) add(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.files, "identity", nil, "file with the private key that opens the backup (repeatable)")
	flags.BoolVar(&f.passphrase, "passphrase", false, "open it by a passphrase, which is asked for; if standard input is no terminal, its next line is taken")
}

func (f *identityFlags) read(a *app) ([]age.Identity, error) {
	var all []age.Identity
	for _, name := range f.files {
		content, err := os.ReadFile(name)
		if err != nil {
			return nil, fault.New(fault.Usage, "name the file with the private key", "--identity: %w", err)
		}
		more, err := backup.ReadIdentities(bytes.NewReader(content))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, more...)
	}
	if f.passphrase {
		phrase, err := a.readSecret("passphrase of the backup")
		if err != nil {
			return nil, err
		}
		id, err := backup.PassphraseIdentity(phrase)
		if err != nil {
			return nil, err
		}
		all = append(all, id)
	}
	if len(all) == 0 {
		return nil, fault.New(fault.Usage, "give --identity FILE, or --passphrase", "nothing was given that opens the backup")
	}
	return all, nil
}

// backup writes a backup through the first control-plane host that can give one.
func (a *app) backup(ctx context.Context, hosts []string, file string, force bool, to []age.Recipient) error {
	if _, err := os.Lstat(file); err == nil && !force {
		return exists(file)
	}
	if len(hosts) == 0 {
		var err error
		if hosts, err = a.controlPlaneHosts(ctx); err != nil {
			return err
		}
	}
	began := time.Now()
	var refused []error
	for _, name := range hosts {
		m, err := a.backupFrom(ctx, name, file, force, to)
		if err == nil {
			return a.tellBackup(m, file, time.Since(began))
		}
		refused = append(refused, fault.At(name, "backup", err))
		if ctx.Err() != nil || errors.Is(err, fs.ErrExist) {
			break
		}
	}
	return errors.Join(refused...)
}

func (a *app) backupFrom(ctx context.Context, name, file string, force bool, to []age.Recipient) (backup.Manifest, error) {
	h, err := a.dial(ctx, name)
	if err != nil {
		return backup.Manifest{}, err
	}
	defer h.Close() //nolint:errcheck // nothing is left to be written
	contents, err := take.From(ctx, h, take.Signature{By: signature(), Kubewright: version.Kubewright})
	if err != nil {
		return backup.Manifest{}, err
	}
	defer contents.Close()
	return contents.Manifest, writeWhole(file, force, func(w io.Writer) error { return backup.Write(w, contents.Contents, to...) })
}

func (a *app) tellBackup(m backup.Manifest, file string, took time.Duration) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	kinds, objects := m.Count()
	_, err = fmt.Fprintf(a.stdout, "%s  %.1f MB: cluster %s at revision %d, %d objects of %d kinds, from %s in %s\nprove it: kubewright backup verify %s --identity KEY-FILE\n",
		file, float64(info.Size())/1e6, m.Cluster, m.Data.Revision, objects, kinds, m.From, took.Round(100*time.Millisecond), file)
	return err
}

// writeWhole has a file written that only the user may read: all of it, on the disk, or
// nothing. Without force, one that is there stays.
func writeWhole(name string, force bool, write func(io.Writer) error) error {
	dir := filepath.Dir(name)
	f, err := os.CreateTemp(dir, ".kubewright-*") // 0600
	if err != nil {
		return fault.New(fault.Usage, "name a file in a folder that you may write to", "%w", err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // gone after the rename
	if err := errors.Join(write(f), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if force {
		err = os.Rename(f.Name(), name)
	} else {
		err = renameNew(f.Name(), name)
	}
	if err != nil {
		return err
	}
	parent, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(parent.Sync(), parent.Close())
}

func (a *app) backupVerify() *cobra.Command {
	var with identityFlags
	var scratch string
	c := &cobra.Command{
		Use:   "verify FILE",
		Short: "Boot a backup on this machine's loopback and count what it serves",
		Long: "verify decrypts a backup, proves every byte of it, and boots the bundle's etcd and API server with its data and keys on\n" +
			"127.0.0.1. Then it compares: etcd's own hash of the data, the number of its keys, and the objects of every kind through the API, all\n" +
			"at the revision of the manifest. It needs no root and no host. The plain data is kept in memory (XDG_RUNTIME_DIR or\n" +
			"/dev/shm), in a folder for you alone that is removed at the end, also after Ctrl-C; a run that was killed is cleaned up after by the next.\n" +
			"The exit status is 24 if anything differs.",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			keys, err := with.read(a)
			if err != nil {
				return err
			}
			return untilSignal(c.Context(), func(ctx context.Context) error { return a.verifyBackup(ctx, args[0], keys, scratch) })
		},
	}
	with.add(c.Flags())
	c.Flags().StringVar(&a.bundlePath, "bundle", "", "bundle whose programs are booted (default: beside the program, or in ./dist)")
	c.Flags().StringVar(&scratch, "scratch", "", "folder for the decrypted data while it is verified, if memory has no room for it (default: in memory)")
	return c
}

func (a *app) verifyBackup(ctx context.Context, file string, keys []age.Identity, scratch string) error {
	f, err := openBackup(file)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read from
	b, err := a.usableBundle(ctx)
	if err != nil {
		return err
	}
	defer b.Close() //nolint:errcheck // only read from
	began := time.Now()
	result, err := trial.Run(ctx, trial.Inputs{File: f, Keys: keys, Bundle: b, Scratch: scratch,
		Progress: func(next string) {
			fmt.Fprintf(a.stderr, "%6.1fs  %s\n", time.Since(began).Seconds(), next)
		}})
	if err != nil {
		return err
	}
	if a.output == "json" {
		err = writeJSON(a.stdout, verified(result))
	} else {
		err = renderTrial(a.stdout, result)
	}
	if err == nil && !result.Equal() {
		return fault.New(fault.BackupDiffers, "take a new backup; keep this one until that is verified",
			"%s: the cluster made from it is not what its manifest says", file)
	}
	return err
}

func openBackup(file string) (*os.File, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fault.New(fault.BackupRefused, "name the file that `kubewright backup` wrote", "%w", err)
	}
	return f, nil
}

// verification is what `backup verify -o json` prints.
type verification struct {
	Manifest backup.Manifest `json:"manifest"`
	Bundle   string          `json:"bundle"` // that served
	Equal    bool            `json:"equal"`
	Hash     bool            `json:"hashEqual"`
	Keys     int64           `json:"keys"`
	Kinds    []verifiedKind  `json:"kinds"`
}

type verifiedKind struct {
	Name     string `json:"name"`
	Backup   int    `json:"backup"`
	Restored int    `json:"restored"`
}

func verified(r *trial.Result) verification {
	v := verification{Manifest: r.Manifest, Bundle: r.Bundle, Equal: r.Equal(), Hash: r.HashEqual, Keys: r.Keys}
	for _, k := range r.Kinds {
		v.Kinds = append(v.Kinds, verifiedKind{k.Name(), k.Objects, k.Restored})
	}
	return v
}

// renderTrial prints what was counted. Kinds without objects, here and there, are only counted.
func renderTrial(w io.Writer, r *trial.Result) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "KIND\tBACKUP\tRESTORED")
	empty := 0
	for _, k := range r.Kinds {
		mark := ""
		if k.Objects != k.Restored {
			mark = "\tDIFFERS"
		}
		if k.Objects == 0 && k.Restored == 0 {
			empty++
			continue
		}
		fmt.Fprintf(t, "%s\t%d\t%d%s\n", k.Name(), k.Objects, k.Restored, mark)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	m := r.Manifest
	hash := "equal, byte for byte"
	if !r.HashEqual {
		hash = "DIFFERS"
	}
	fmt.Fprintf(w, "(%d more kinds have no objects)\n\netcd's keys at revision %d: %d in the backup, %d restored\netcd's hash of the data: %s\n",
		empty, m.Data.Revision, m.Data.Keys, r.Keys, hash)
	if r.Bundle != m.Bundle {
		fmt.Fprintf(w, "served by bundle %s; the backup was made with %s\n", r.Bundle, m.Bundle)
	}
	verdict := "does NOT give the cluster that it was made from"
	if r.Equal() {
		verdict = "can be restored"
	}
	_, err := fmt.Fprintf(w, "\nbackup of cluster %s, made %s by %s: it %s\n", m.Cluster, m.Made.Format(time.RFC3339), m.By, verdict)
	return err
}

func (a *app) backupShow() *cobra.Command {
	var with identityFlags
	c := &cobra.Command{
		Use:   "show FILE",
		Short: "Print what a backup says is in it",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			keys, err := with.read(a)
			if err != nil {
				return err
			}
			f, err := openBackup(args[0])
			if err != nil {
				return err
			}
			defer f.Close() //nolint:errcheck // only read from
			m, err := backup.ReadManifest(f, keys...)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return writeJSON(a.stdout, m)
			}
			return renderManifest(a.stdout, m)
		},
	}
	with.add(c.Flags())
	return c
}

func renderManifest(w io.Writer, m backup.Manifest) error {
	kinds, objects := m.Count()
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "cluster\t%s (%s)\nmade\t%s by %s with kubewright %s\nfrom\t%s\nKubernetes\t%s\netcd\t%s\nbundle\t%s\nrevision\t%d\nobjects\t%d of %d kinds, %d keys\n",
		m.Cluster, m.ClusterID, m.Made.Format(time.RFC3339), m.By, m.Kubewright, m.From, m.Kubernetes, m.Etcd, m.Bundle, m.Data.Revision, objects, kinds, m.Data.Keys)
	for _, n := range m.Nodes {
		role := "worker"
		if n.ControlPlane {
			role = "control-plane"
		}
		fmt.Fprintf(t, "node\t%s  %s  %s  %s\n", n.Name, role, n.Address, n.Host)
	}
	for _, e := range m.Entries {
		fmt.Fprintf(t, "entry\t%s  %d bytes\n", e.Name, e.Size)
	}
	return t.Flush()
}

func (a *app) backupKeygen() *cobra.Command {
	return &cobra.Command{
		Use:   "keygen FILE",
		Short: "Make a key pair for backups",
		Long: "keygen writes the private key to FILE, for you alone to read, and prints the public one, for --recipient. It is what\n" +
			"age-keygen does. Keep the file where the cluster's hosts cannot reach it: it opens every backup made to the public key.",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if _, err := os.Lstat(args[0]); err == nil {
				return fault.New(fault.Usage, "name another file: a key that is lost opens no backup any more", "%s: %w", args[0], fs.ErrExist)
			}
			key, err := backup.NewKey()
			if err != nil {
				return err
			}
			if err := writeWhole(args[0], false, func(w io.Writer) error {
				_, err := w.Write(key.Identity)
				return err
			}); err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.stdout, strings.TrimSpace(key.Recipient))
			return err
		},
	}
}
