package main

import (
	"os"
	"sync"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/rest"
	kubectlcmd "k8s.io/kubectl/pkg/cmd"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"

	"github.com/kubewright/kubewright/bootstrap/kubeconfig"
)

// kubectlCommand is upstream's kubectl, for workstations that have none.
func (a *app) kubectlCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "kubectl ARG...",
		Short:              "Upstream's kubectl, of the version that the cluster runs",
		DisableFlagParsing: true, // all flags are kubectl's own
		RunE: func(c *cobra.Command, args []string) error {
			flags := genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag()
			// It, too, gets to the cluster when one API server is dead. Asked once: kubectl makes many clients.
			serving := sync.OnceValue(func() string {
				cfg, err := flags.ToRawKubeConfigLoader().ClientConfig()
				if err != nil {
					return ""
				}
				raw, err := flags.ToRawKubeConfigLoader().RawConfig()
				if err != nil {
					return ""
				}
				return kubeconfig.Serving(c.Context(), &raw, cfg)
			})
			flags.WrapConfigFn = func(cfg *rest.Config) *rest.Config {
				if server := serving(); server != "" {
					cfg.Host = server
				}
				return cfg
			}
			// Its own errors print and exit as kubectl's do: it is kubectl.
			k := kubectlcmd.NewKubectlCommand(kubectlcmd.KubectlOptions{
				Arguments:   append([]string{"kubectl"}, args...),
				ConfigFlags: flags,
				IOStreams:   genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr},
			})
			k.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: c.CommandPath()} // what its messages tell to run
			k.SetArgs(args)
			k.SilenceErrors, k.SilenceUsage = true, true
			cmdutil.CheckErr(k.ExecuteContext(c.Context()))
			return nil
		},
	}
}
