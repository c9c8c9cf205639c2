package main

import (
	"context"
	"os"

	_ "k8s.io/client-go/plugin/pkg/client/auth" // kubectl's credential plugins
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/logs/json/register"          // --logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // client-go's metrics
	_ "k8s.io/component-base/metrics/prometheus/version"  // kubernetes_build_info
	kubectlcmd "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserverapp "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanagerapp "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxyapp "k8s.io/kubernetes/cmd/kube-proxy/app"
	schedulerapp "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubeletapp "k8s.io/kubernetes/cmd/kubelet/app"
)

func apiserver()         { os.Exit(cli.Run(apiserverapp.NewAPIServerCommand())) }
func controllerManager() { os.Exit(cli.Run(controllermanagerapp.NewControllerManagerCommand())) }
func scheduler()         { os.Exit(cli.Run(schedulerapp.NewSchedulerCommand())) }
func kubelet()           { os.Exit(cli.Run(kubeletapp.NewKubeletCommand(context.Background()))) }
func proxy()             { os.Exit(cli.Run(proxyapp.NewProxyCommand())) }

// kubectl is upstream's main: verbosity is wanted while the command tree is
// still being built (plugins, kuberc), errors are printed in kubectl's own way.
func kubectl() {
	logs.GlogSetter(kubectlcmd.GetLogVerbosity(os.Args)) //nolint:errcheck // upstream's main ignores it too
	if err := cli.RunNoErrOutput(kubectlcmd.NewDefaultKubectlCommand()); err != nil {
		kubectlutil.CheckErr(err)
	}
}
