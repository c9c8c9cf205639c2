package main

import (
	"os"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	kubectlcmd "k8s.io/kubectl/pkg/cmd"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"
)

// kubectlCommand is upstream's kubectl, for workstations that have none.
func (a *app) kubectlCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "kubectl ARG...",
		Short:              "Upstream's kubectl, of the version that the cluster runs",
		DisableFlagParsing: true, // all flags are kubectl's own
		RunE: func(c *cobra.Command, args []string) error {
			// Its own errors print and exit as kubectl's do: it is kubectl.
			k := kubectlcmd.NewKubectlCommand(kubectlcmd.KubectlOptions{
				Arguments:   append([]string{"kubectl"}, args...),
				ConfigFlags: genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag(),
				IOStreams:   genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr},
			})
			k.SetArgs(args)
			k.SilenceErrors, k.SilenceUsage = true, true
			cmdutil.CheckErr(k.ExecuteContext(c.Context()))
			return nil
		},
	}
}
