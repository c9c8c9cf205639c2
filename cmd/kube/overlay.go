package main

import "github.com/kubewright/kubewright/cmd/kube/overlay"

func overlayMain() { overlay.Main() }
