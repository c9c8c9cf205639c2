package main

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/etcdctl/v3/ctlv3"
	etcdutlcmd "go.etcd.io/etcd/etcdutl/v3/etcdutl"
	"go.etcd.io/etcd/pkg/v3/cobrautl"
	"go.etcd.io/etcd/server/v3/etcdmain"

	"github.com/kubewright/kubewright/cmd/kube/etcdfence"
)

func etcd() { etcdmain.Main(os.Args) }

func etcdctl() { ctlv3.MustStart() }

// etcdFence becomes etcd as a member runs it: only as long as it is one. It is started anew
// under its own name, by which people look for it.
func etcdFence() {
	argv := append([]string{"etcd"}, etcdfence.Main()...)
	self, err := os.Executable()
	if err == nil {
		err = syscall.Exec(filepath.Join(filepath.Dir(self), "etcd"), argv, os.Environ())
	}
	fmt.Fprintln(os.Stderr, "etcd-fence: start etcd:", err)
	os.Exit(1)
}

// etcdutl assembles the command tree of upstream's etcdutl, whose own root is
// in a main package and cannot be imported.
func etcdutl() {
	root := &cobra.Command{
		Use:        "etcdutl",
		Short:      "An administrative command line tool for etcd3.",
		SuggestFor: []string{"etcdutl"},
	}
	root.PersistentFlags().DurationVar(&etcdutlcmd.FlockTimeout, "timeout", 10*time.Second,
		"time to wait to obtain a file lock on db file, 0 to block indefinitely")
	root.PersistentFlags().StringVarP(&etcdutlcmd.OutputFormat, "write-out", "w", "simple",
		"set the output format (fields, json, protobuf, simple, table)")
	root.AddCommand(
		etcdutlcmd.NewDefragCommand(),
		etcdutlcmd.NewSnapshotCommand(),
		etcdutlcmd.NewHashKVCommand(),
		etcdutlcmd.NewVersionCommand(),
		etcdutlcmd.NewCompletionCommand(),
		etcdutlcmd.NewMigrateCommand(),
	)
	root.SetHelpTemplate(`{{.UsageString}}`)
	if err := root.Execute(); err != nil {
		cobrautl.ExitWithError(cobrautl.ExitError, err)
	}
}
