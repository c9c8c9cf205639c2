package main

import "github.com/kubewright/kubewright/cmd/kube/vip"

func vipMain() { vip.Main() }
