package etcd

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"strconv"
	"strings"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/install"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// Source gives a snapshot of etcd, as etcd itself sends it.
type Source interface {
	// WriteSnapshot writes it to w, any number of times. What was written is a snapshot
	// only if it returns nil.
	WriteSnapshot(ctx context.Context, w io.Writer) error
}

// Bump is by how much the revision of restored data is put forward. Whatever survived the
// loss of the cluster (kubelets, apilb, controllers' caches) has seen revisions that the
// snapshot has not, and would wait for ever for the next one, or take old data for new. No
// cluster writes so much between a backup and its loss; and all that was before is marked as
// compacted, so that everybody has to list anew.
const Bump = 1_000_000_000

const (
	// originName, among the data of a member, says which snapshot they came from.
	originName = "restored-from"
	// CountFile, beside it, is what was counted in them: who asks later finds their first revision gone.
	CountFile = memberDir + "/restored-count.json"
	// restoreDir is where data are made, beside where they will be.
	restoreDir   = DataDir + "/.restore"
	snapshotFile = restoreDir + "/snapshot.db"
	restoredData = restoreDir + "/data"
)

// Restore has a host without data have those of a snapshot, as the only member of a new
// cluster of etcd's.
type Restore struct {
	Member Inputs
	From   Source
	Origin string // what the snapshot is known by, one line: its SHA-256
	Detail string // what it is, for people
}

var _ plan.Action[host.Reader, host.Host] = Restore{}

// Origin is what the snapshot is known by that a host's data came from, "" if they came
// from none.
func Origin(ctx context.Context, r host.Reader) (string, error) {
	content, err := r.ReadFile(ctx, memberDir+"/"+originName)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(content)), err
}

// Check refuses data of any other origin with a fault.HostTaken.
func (a Restore) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	found, err := r.Stat(ctx, memberDir, restoreDir)
	if err != nil {
		return nil, err
	}
	if found[0].Exists {
		origin, err := Origin(ctx, r)
		if err != nil {
			return nil, err
		}
		if origin != a.Origin {
			return nil, fault.New(fault.HostTaken, "reset the host first: kubewright reset "+r.Name()+" --force", "it has data of etcd that are not of this backup: %s", memberDir)
		}
		if !found[1].Exists {
			return nil, nil
		}
		return plan.Diff{{Verb: plan.Delete, Kind: plan.ObjectFile, Object: restoreDir, Detail: "left by a run that was broken off",
			Before: &plan.State{Mode: found[1].Mode.String()}}}, nil
	}
	return plan.Diff{{Verb: plan.Create, Kind: plan.ObjectFile, Object: memberDir, Detail: a.Detail,
		After:  &plan.State{Mode: (fs.ModeDir | 0o700).String(), Later: true},
		Brings: plan.Objects(plan.ObjectFile, DataDir)}}, nil
}

// Apply streams the snapshot to the host, has etcd's own tool make the data, and gives
// them their name at once when they are whole. The snapshot is removed in any case.
func (a Restore) Apply(ctx context.Context, h host.Host) (err error) {
	diff, err := a.Check(ctx, h)
	if err != nil {
		return err
	}
	if err := h.Remove(ctx, restoreDir); err != nil || len(diff) == 1 && diff[0].Verb == plan.Delete {
		return err
	}
	defer func() { err = errors.Join(err, h.Remove(context.WithoutCancel(ctx), restoreDir)) }()
	for _, dir := range []string{DataDir, restoreDir} {
		if err := h.Mkdir(ctx, dir, host.Meta{Mode: 0o700}); err != nil {
			return err
		}
	}
	plan.Report(ctx, "sending the snapshot")
	if err := a.send(ctx, h); err != nil {
		return err
	}
	plan.Report(ctx, "making the data")
	name, peer := a.Member.NodeName, PeerURL(a.Member.Address)
	if _, err := h.Run(ctx, host.Command{Argv: []string{install.Bin("etcdutl"), "snapshot", "restore", snapshotFile,
		"--data-dir", restoredData, "--name", name, "--initial-cluster", name + "=" + peer, "--initial-advertise-peer-urls", peer,
		// Members of the cluster that was lost do not take this one for theirs.
		"--initial-cluster-token", "restored-" + a.Origin,
		"--bump-revision", strconv.Itoa(Bump), "--mark-compacted"}}); err != nil {
		return err
	}
	if err := h.WriteFile(ctx, restoredData+"/member/"+originName, strings.NewReader(a.Origin+"\n"), host.Meta{Mode: 0o600}); err != nil {
		return err
	}
	_, err = h.Run(ctx, host.Command{Argv: []string{"mv", "-T", restoredData + "/member", memberDir}})
	return err
}

func (a Restore) send(ctx context.Context, h host.Host) error {
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(a.From.WriteSnapshot(ctx, pw)) }() // io.EOF only if it is whole
	err := h.WriteFile(ctx, snapshotFile, pr, host.Meta{Mode: 0o600})
	pr.CloseWithError(errors.New("the host reads no more"))
	return err
}
