package main

import "github.com/kubewright/kubewright/cmd/kube/backup"

func backupMain() { backup.Main() }
