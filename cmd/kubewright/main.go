// Command kubewright makes Kubernetes clusters of bare hosts over SSH.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/kubewright/kubewright/bootstrap"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host/sshhost"
	"github.com/kubewright/kubewright/bootstrap/version"
	"github.com/kubewright/kubewright/cmd/kubewright/ui"
	"github.com/kubewright/kubewright/lab"
)

func main() {
	lab.MaybeInit() // a host of the lab begins as this program
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// app is what the commands share: where they write, and the flags of all of them.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	output     string // how progress is shown
	sshConfig  string
	knownHosts []string
	acceptNew  bool
	askSudo    bool
	sudo       func() (*sshhost.SudoPassword, error) // asks on the first call
	kubeconfig string
	bundlePath string
	specPath   string
	reportPath string
	ignore     ignored
	verify     bool               // print the proof of a reset
	restore    *bootstrap.Restore // what the restore command opened
}

// run is the whole program but its exit.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr}
	a.sudo = sync.OnceValues(a.readSudoPassword)
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(context.Background())
	var exit *exitStatus
	if errors.As(err, &exit) {
		return exit.status
	}
	if err != nil {
		a.renderError(err)
	}
	return fault.Exit(err)
}

// exitStatus is the status of a command that was run for the user, whose output says it all.
type exitStatus struct{ status int }

func (e *exitStatus) Error() string { return "exit status" }

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "kubewright",
		Short: "Make Kubernetes clusters of bare hosts over SSH",
		Long: "kubewright turns bare Linux hosts into a Kubernetes cluster over SSH, from one self-contained\n" +
			"bundle: no internet on the hosts, no registry, no resident agent.",
		Version:       version.Kubewright,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return usage(c, err) })
	flags := root.PersistentFlags()
	flags.StringVarP(&a.output, "output", "o", "auto", "how to show progress and results: auto, plain, jsonl (status, doctor, drill, etcd, backup list, verify and show, version, inspect, preflight: json)")
	flags.StringVarP(&a.sshConfig, "ssh-config", "F", "", "ssh_config file to use instead of the user's and the system's")
	flags.StringArrayVar(&a.knownHosts, "known-hosts", nil, "known_hosts file to use instead of ssh_config's (repeatable)")
	flags.BoolVar(&a.acceptNew, "accept-new-host-keys", false, "trust the key of a host that is met for the first time, and remember it")
	flags.BoolVar(&a.askSudo, "ask-sudo-password", false, "ask once for the password that sudo wants on the hosts; if standard input is no terminal, its first line is taken")
	flags.StringVar(&a.kubeconfig, "kubeconfig", defaultKubeconfig(), "the user's kubeconfig")
	root.PersistentPreRun = func(*cobra.Command, []string) { // a saved plan is carried out in another folder, too
		if abs, err := filepath.Abs(a.kubeconfig); err == nil && a.kubeconfig != "" {
			a.kubeconfig = abs
		}
	}
	for _, g := range []struct {
		title    string
		commands []*cobra.Command
	}{
		{"Make and change a cluster:", []*cobra.Command{
			a.reported(a.initCommand(a.run)), a.reported(a.joinCommand(a.run)), a.reported(a.removeCommand(a.run)),
			a.reported(a.applyCommand(a.run)), a.reported(a.resetCommand(a.run)), a.reported(a.undoCommand(a.run))}},
		{"See first:", []*cobra.Command{a.prints(a.preflightCommand()), a.planCommand(), a.prints(a.diffCommand())}},
		{"Look at a live cluster:", []*cobra.Command{
			a.prints(a.statusCommand()), a.prints(a.doctorCommand()), a.prints(a.explainCommand()), a.prints(a.supportCommand()), a.kubectlCommand()}},
		{"Keep it alive:", []*cobra.Command{
			a.etcdCommand(), a.backupCommand(), a.reported(a.restoreCommand(a.run)), a.reported(a.recoverCommand(a.run)), a.drillCommand()}},
		{"What hosts are made from:", []*cobra.Command{a.bundleCommand(), a.labCommand(), a.prints(a.versionCommand())}},
	} {
		root.AddGroup(&cobra.Group{ID: g.title, Title: g.title})
		for _, c := range g.commands {
			c.GroupID = g.title
			root.AddCommand(c)
		}
	}
	wrapArgs(root)
	return root
}

// usage turns an error about flags or arguments into a fault.
func usage(c *cobra.Command, err error) error {
	return &fault.Fault{Code: fault.Usage, Err: err, Remedy: "see `" + c.CommandPath() + " --help`"}
}

// wrapArgs makes the errors of argument counts and of unknown commands faults too.
func wrapArgs(c *cobra.Command) {
	check := c.Args
	if check == nil {
		check = cobra.ArbitraryArgs
	}
	if c.HasSubCommands() && !c.Runnable() {
		check = cobra.NoArgs // an argument would be a command that there is not
		c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	}
	c.Args = func(c *cobra.Command, args []string) error {
		err := check(c, args)
		if err == nil {
			return nil
		}
		if !c.HasSubCommands() {
			err = fmt.Errorf("%w; its form is: %s", err, c.UseLine())
		}
		return usage(c, err)
	}
	for _, sub := range c.Commands() {
		wrapArgs(sub)
	}
}

// prints refuses ways of showing a result that a command does not have, before it does anything.
func (a *app) prints(c *cobra.Command) *cobra.Command {
	c.PreRunE = func(*cobra.Command, []string) error {
		if slices.Contains([]string{outputAuto, outputPlain, "json"}, a.output) {
			return nil
		}
		return fault.New(fault.Usage, "use auto, plain or json", "--output %s is not a way to show a result", a.output)
	}
	return c
}

func (a *app) renderError(err error) { ui.RenderError(a.stderr, err, isTerminal(a.stderr)) }

// interruptible returns a context and a channel. The first signal closes the
// channel, which asks for an end between two steps; the second ends the context.
func interruptible(ctx context.Context, notice func(string)) (context.Context, <-chan struct{}, func()) {
	ctx, cancel := context.WithCancel(ctx)
	stop := make(chan struct{})
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		select {
		case <-signals:
			notice("stopping after the steps under way; press Ctrl-C again to abort at once")
			close(stop)
		case <-ctx.Done():
			return
		}
		select {
		case <-signals:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, stop, func() { signal.Stop(signals); cancel() }
}

// untilSignal runs f in a context that ends with the first Ctrl-C or SIGTERM, so that it
// cleans up.
func untilSignal(ctx context.Context, f func(context.Context) error) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := f(ctx)
	if isAborted(ctx, err) {
		return fault.New(fault.Interrupted, "run the same command again", "interrupted: %w", err)
	}
	return err
}

func isTerminalIn(r io.Reader) bool {
	f, ok := r.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func defaultKubeconfig() string {
	if list := os.Getenv("KUBECONFIG"); list != "" {
		first, _, _ := strings.Cut(list, string(os.PathListSeparator))
		return first
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return home + "/.kube/config"
}
