package main

import "github.com/kubewright/kubewright/cmd/kube/apilb"

func apilbMain() { apilb.Main() }
