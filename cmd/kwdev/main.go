package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/kubewright/kubewright/bootstrap"
	"github.com/kubewright/kubewright/bootstrap/bundle"
	"github.com/kubewright/kubewright/bootstrap/host/sshhost"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
	"github.com/kubewright/kubewright/lab"
)

func main() {
	lab.MaybeInit()
	t0 := time.Now()
	if os.Args[1] == "lab" {
		ctx := context.Background()
		if err := lab.Destroy(ctx, os.Args[2]); err != nil {
			panic(err)
		}
		fmt.Println("destroyed", time.Since(t0))
		if len(os.Args) > 3 {
			return
		}
		l, err := lab.Create(ctx, lab.Options{Name: os.Args[2], Hosts: 3}, func(s string) { fmt.Println(time.Since(t0), s) })
		if err != nil {
			panic(err)
		}
		fmt.Println(l.SSHConfig(), time.Since(t0))
		return
	}
	if os.Args[1] == "build" {
		b, err := bundle.Build(context.Background(), bundle.Options{Dir: ".", Out: "/tmp/kw/bundle.kwb"}, nil)
		if err != nil {
			panic(err)
		}
		fmt.Println(b.Name(), b.Size(), time.Since(t0))
		return
	}
	b, err := bundle.Open("/tmp/kw/bundle.kwb")
	if err != nil {
		panic(err)
	}
	wish := &spec.Cluster{Name: "dev"}
	for i, n := range os.Args[1:] {
		h := spec.Host{Name: n, Role: spec.WorkerRole}
		if i == 0 {
			h.Role = spec.ControlPlaneRole
		}
		wish.Hosts = append(wish.Hosts, h)
	}
	wish.Default()
	if err := wish.Validate(); err != nil {
		panic(err)
	}
	targets, err := bootstrap.Connect(context.Background(), wish.Hosts, func(ctx context.Context, h spec.Host) (bootstrap.Connection, error) {
		c, err := sshhost.Dial(ctx, h.Name, sshhost.Config{ConfigFile: "/var/lib/kubewright-lab/dev/ssh_config"})
		if err != nil {
			return bootstrap.Connection{}, err
		}
		return bootstrap.Connection{Host: c, Reached: c.ServerAddr()}, nil
	})
	if err != nil {
		panic(err)
	}
	id := "devid"
	lanes, err := bootstrap.PlanInit(bootstrap.Init{Cluster: wish, ID: id, Targets: targets, Bundle: b, Kubeconfig: "/tmp/kwdev/kubeconfig"})
	if err != nil {
		panic(err)
	}
	n, err := plan.Run(context.Background(), plan.Options{Emit: func(e plan.Event) {
		if e.Kind == "skipped" || e.Bytes > 0 && e.Bytes < e.Total {
			return
		}
		fmt.Printf("%6.2f %-12s %-10s %-26s %s %v %v\n", time.Since(t0).Seconds(), e.Lane, e.Kind, e.Step, e.Text, e.Diff, e.Err)
	}}, lanes...)
	fmt.Println(n, err, time.Since(t0))
}
