package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/lab"
)

func (a *app) labCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "lab",
		Short: "Make disposable hosts on this machine, to try kubewright on",
		Long: "A lab is a set of hosts made of namespaces: systemd, sshd, a network of its own, no way to the internet.\n" +
			"Their names are LAB-1, LAB-2, ...; `kubewright ... -F $(kubewright lab ssh-config LAB) LAB-1` reaches them.",
	}
	c.AddCommand(a.labCreate(), a.labList(), a.labSSH(), a.labExec(), a.labDestroy(),
		a.labPower("kill", "Cut the power of hosts", func(c *cobra.Command, l *lab.Lab, host string) error { return l.Kill(c.Context(), host) }),
		a.labPower("start", "Turn hosts on again", func(c *cobra.Command, l *lab.Lab, host string) error { return l.Start(c.Context(), host) }),
		a.labPartition(), a.labHeal(), a.labSSHConfig())
	return c
}

func (a *app) labCreate() *cobra.Command {
	var o lab.Options
	c := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a lab, or complete one that is there",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			o.Name = args[0]
			l, err := lab.Create(c.Context(), o, func(text string) { fmt.Fprintln(a.stderr, text) })
			if err != nil {
				return err
			}
			fmt.Fprintln(a.stdout, l.SSHConfig())
			return nil
		},
	}
	c.Flags().IntVar(&o.Hosts, "hosts", 3, "how many hosts")
	c.Flags().BoolVar(&o.NATNIC, "nat-nic", false, "give every host a first NIC as Vagrant does: 10.0.2.15, with the default route")
	c.Flags().StringVar(&o.Rate, "rate", "", "limit of each host's link in each direction, e.g. 100mbit")
	c.Flags().IntVar(&o.MTU, "mtu", 0, "MTU of the lab's network (default 1500)")
	c.Flags().BoolVar(&o.SameMachineID, "same-machine-id", false, "give all hosts one machine-id, as clones of a disk have")
	c.Flags().BoolVar(&o.Bastion, "bastion", false, "let this machine reach the first host alone, and the others by ProxyJump through it")
	c.Flags().DurationVar(&o.Trouble.ClockAhead, "clock-ahead", 0, "set the last host's clock ahead, as far as date in a root login shows it, e.g. 10m")
	c.Flags().BoolVar(&o.Trouble.Swap, "swap", false, "let the last host's /proc/swaps list some swap")
	c.Flags().BoolVar(&o.Trouble.FullDisk, "full-disk", false, "leave 16 MiB for each of the last host's /var/lib/{containerd,kubelet,etcd}")
	c.Flags().IntVar(&o.Trouble.EtcdDisk, "etcd-disk", 0, "give the last host's /var/lib/etcd a file system of its own, in memory, of so many MiB")
	c.Flags().DurationVar(&o.Trouble.SlowDisk, "slow-disk", 0, "make fsync below the last host's /var/lib/etcd take longer, e.g. 100ms")
	c.Flags().Uint16Var(&o.Trouble.DropUDP, "drop-udp", 0, "let the last host's firewall drop what comes to a UDP port, e.g. 8472")
	return c
}

func (a *app) labList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the labs of this machine and their hosts",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			labs, err := lab.List()
			if err != nil {
				return err
			}
			t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "LAB\tHOST\tADDRESS\tPOWER")
			for _, l := range labs {
				for _, h := range l.Hosts() {
					power := "off"
					if h.PID != 0 {
						power = "on"
					}
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", l.Name(), h.Name, h.Address, power)
				}
			}
			return t.Flush()
		},
	}
}

func (a *app) labSSH() *cobra.Command {
	return &cobra.Command{
		Use:   "ssh NAME HOST [COMMAND...]",
		Short: "Open a shell on a host with ssh",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			l, err := lab.Open(args[0])
			if err != nil {
				return err
			}
			ssh := exec.CommandContext(c.Context(), "ssh", append([]string{"-F", l.SSHConfig()}, args[1:]...)...)
			ssh.Stdin, ssh.Stdout, ssh.Stderr = a.stdin, a.stdout, a.stderr
			return ended(ssh.Run())
		},
	}
}

// ended turns a command's exit status into this program's.
func ended(err error) error {
	if exit, ok := err.(*exec.ExitError); ok {
		return &exitStatus{exit.ExitCode()}
	}
	return err
}

func (a *app) labExec() *cobra.Command {
	return &cobra.Command{
		Use:   "exec NAME HOST -- COMMAND...",
		Short: "Run a command on a host as root, without its network or sshd",
		Args:  cobra.MinimumNArgs(3),
		RunE: func(c *cobra.Command, args []string) error {
			l, err := lab.Open(args[0])
			if err != nil {
				return err
			}
			status, err := l.Exec(c.Context(), args[1], args[2:], a.stdin, a.stdout, a.stderr)
			if err != nil {
				return err
			}
			if status != 0 {
				return &exitStatus{status}
			}
			return nil
		},
	}
}

func (a *app) labDestroy() *cobra.Command {
	return &cobra.Command{
		Use:   "destroy NAME...",
		Short: "Destroy labs, leaving nothing behind",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			for _, name := range args {
				if err := lab.Destroy(c.Context(), name); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func (a *app) labPower(verb, short string, do func(*cobra.Command, *lab.Lab, string) error) *cobra.Command {
	return &cobra.Command{
		Use:   verb + " NAME HOST...",
		Short: short,
		Args:  cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			l, err := lab.Open(args[0])
			if err != nil {
				return err
			}
			hosts := args[1:]
			faults := make([]error, len(hosts))
			var all sync.WaitGroup
			for i, host := range hosts { // at once: one may wait for another's etcd, and none for one that does not come up
				all.Go(func() { faults[i] = do(c, l, host) })
			}
			all.Wait()
			return errors.Join(faults...)
		},
	}
}

func (a *app) labPartition() *cobra.Command {
	return &cobra.Command{
		Use:   "partition NAME HOST OTHER",
		Short: "Cut the network between two hosts; * as OTHER is all of them",
		Args:  cobra.ExactArgs(3),
		RunE: func(c *cobra.Command, args []string) error {
			l, err := lab.Open(args[0])
			if err != nil {
				return err
			}
			return l.Partition(c.Context(), args[1], args[2])
		},
	}
}

func (a *app) labHeal() *cobra.Command {
	return &cobra.Command{
		Use:   "heal NAME",
		Short: "End all partitions",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			l, err := lab.Open(args[0])
			if err != nil {
				return err
			}
			return l.Heal(c.Context())
		},
	}
}

func (a *app) labSSHConfig() *cobra.Command {
	return &cobra.Command{
		Use:   "ssh-config NAME",
		Short: "Print the path of a lab's ssh_config, for ssh -F and kubewright -F",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := lab.Open(args[0])
			if err != nil {
				return err
			}
			if _, err := os.Stat(l.SSHConfig()); err != nil {
				return fault.New(fault.Usage, "complete it with `kubewright lab create "+args[0]+"`", "lab %s is not complete: %w", args[0], err)
			}
			fmt.Fprintln(a.stdout, l.SSHConfig())
			return nil
		},
	}
}
