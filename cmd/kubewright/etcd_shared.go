package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kubewright/kubewright/bootstrap"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/kubeconfig"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// untilSignal runs f in a context that ends with the first Ctrl-C or SIGTERM, so that it
// cleans up.
func untilSignal(ctx context.Context, f func(context.Context) error) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := f(ctx)
	if isAborted(ctx, err) {
		return fault.New(fault.Interrupted, "run the same command again", "interrupted: %w", err)
	}
	return err
}

// controlPlaneHosts are those of the cluster in the kubeconfig, by the names that SSH knows them by.
func (a *app) controlPlaneHosts(ctx context.Context) ([]string, error) {
	_, access, err := kubeconfig.Access(a.kubeconfig, "")
	if err != nil {
		return nil, err
	}
	asking, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	hosts, err := bootstrap.ControlPlaneHosts(asking, cluster.New(plan.Of("the admin's access", access), nil))
	if err != nil {
		return nil, fault.New(fault.ClusterMissing, "name a control-plane host: the API is then reached through it", "cluster at %s: %w", access.Server, err)
	}
	if len(hosts) == 0 {
		return nil, fault.New(fault.ClusterMissing, "name a control-plane host", "the cluster at %s does not say how its control-plane hosts are reached", access.Server)
	}
	return hosts, nil
}

func exists(file string) error {
	return fault.New(fault.Usage, "name another file, or replace it with --force", "%s: %w", file, fs.ErrExist)
}

// renameNew gives a file its name, if no other has it.
func renameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // NFS: then as well as one can look
		if _, err := os.Lstat(to); err == nil {
			return exists(to)
		}
		return os.Rename(from, to)
	}
	if errors.Is(err, fs.ErrExist) {
		return exists(to)
	}
	return err
}
