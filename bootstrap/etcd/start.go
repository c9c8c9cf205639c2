package etcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/kubewright/kubewright/bootstrap/file"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// Founding is the initial cluster of the first member: itself.
func Founding(in Inputs) string { return in.NodeName + "=" + PeerURL(in.Address) }

const (
	// memberDir is what a member that has data has.
	memberDir = DataDir + "/member"
	// A member's log comes after its database: one that finds nobody to get its data from has made
	// an empty database by then, and tries again with it.
	memberDatabase = memberDir + "/snap"
	memberLog      = memberDir + "/wal"
)

// HasData tells whether a host has the data of a member. What a member leaves that never came to any is none.
func HasData(ctx context.Context, r host.Reader) (bool, error) {
	found, err := r.Stat(ctx, memberDir, memberDatabase, memberLog)
	if err != nil {
		return false, err
	}
	return found[0].Exists && (found[2].Exists || !found[1].Exists), nil
}

// Start says how a member without data comes to some: it founds a new cluster, or
// gets them from the members that let it in. What is said once stays: a member that
// has data does not ask again, whoever came or went meanwhile. But one that has founded
// its cluster is told, without New, not to do so again: an empty cluster in place of its lost data would have
// the certificates of the one that goes on without it.
type Start struct {
	Cluster *plan.Value[string] // name=peerURL,... of all members, this one included
	New     bool                // it founds the cluster
}

var _ plan.Action[host.Reader, host.Host] = Start{}

func (a Start) put(cluster string) file.Put {
	state := "existing"
	if a.New {
		state = "new"
	}
	return file.Put{Files: []file.Wish{{Path: environmentFile, Mode: 0o644, Content: fmt.Appendf(nil,
		"# Written by kubewright: read by a member that has no data yet.\nETCD_INITIAL_CLUSTER=%s\n%s%s\n", cluster, stateSetting, state)}}}
}

const stateSetting = "ETCD_INITIAL_CLUSTER_STATE="

// Joined tells whether the member of a host was told to found no cluster: it has founded one, or was let into one.
func Joined(ctx context.Context, r host.Reader) (bool, error) {
	said, err := r.ReadFile(ctx, environmentFile)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return bytes.Contains(said, []byte(stateSetting+"existing\n")), err
}

// settled tells that nothing is left to be said.
func (a Start) settled(ctx context.Context, r host.Reader) (bool, error) {
	has, err := HasData(ctx, r)
	if err != nil || !has {
		return false, err
	}
	found, err := r.Stat(ctx, environmentFile)
	switch {
	case err != nil || !found[0].Exists:
		return false, err
	case a.New:
		return true, nil
	}
	said, err := r.ReadFile(ctx, environmentFile)
	return !bytes.Contains(said, []byte(stateSetting+"new\n")), err
}

func (a Start) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	if done, err := a.settled(ctx, r); err != nil || done {
		return nil, err
	}
	cluster, err := a.Cluster.Known()
	if err != nil {
		return nil, err
	}
	return a.put(cluster).Check(ctx, r)
}

// Foresee is said before the members have let it in.
func (a Start) Foresee() plan.Diff {
	return plan.Diff{{Verb: plan.Create, Kind: plan.ObjectFile, Object: environmentFile, After: &plan.State{Mode: "-rw-r--r--", Later: true}}}
}

func (a Start) Apply(ctx context.Context, h host.Host) error {
	return a.put(a.Cluster.Get()).Apply(ctx, h)
}
