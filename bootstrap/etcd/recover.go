package etcd

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/v3"

	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

const (
	// copyPrefix begins the names of folders with the data as they were before a recovery.
	copyPrefix = DataDir + "-before-recover-"
	// forceDir has a drop-in of etcd's unit as long as it is told to start alone. It is below
	// /run: a host that loses its power in the middle starts etcd as ever.
	forceDir  = "/run/systemd/system/etcd.service.d"
	forceFile = forceDir + "/kubewright-recover.conf"
)

// Recover makes the member on a host the only one, with the data that it has, when too
// many others are lost for ever. What it had agreed to with them stays; what it had not is gone.
type Recover struct {
	PKI  string // folder of the health check client's certificate on the host
	Copy string // folder for a copy of its data as they are now: CopyFor; "" if none is needed
}

var _ plan.Action[host.Reader, host.Host] = Recover{}

// CopyFor is where the copy of a host's data is kept: the same folder however often a
// recovery is broken off and begun again. Of a host that was recovered it is the last one, "" if it has none.
func CopyFor(ctx context.Context, r host.Reader, pki string) (string, error) {
	members, err := ownMembers(ctx, r, pki)
	if err == nil && len(members) > 1 {
		status, err := ownStatus(ctx, r, pki)
		if err != nil {
			return "", err
		}
		// Without a quorum nothing is applied any more.
		return copyPrefix + strconv.FormatUint(status.RaftAppliedIndex, 10), nil
	}
	stopped := err != nil // by an earlier run, that made the copy or was about to
	names, err := r.ReadDir(ctx, path.Dir(copyPrefix))
	if err != nil {
		return "", err
	}
	var made []string
	for _, n := range names {
		if strings.HasPrefix(n, path.Base(copyPrefix)) && !strings.HasSuffix(n, partialCopy) {
			made = append(made, path.Join(path.Dir(copyPrefix), n))
		}
	}
	if len(made) == 0 {
		if !stopped {
			return "", nil
		}
		return copyPrefix + time.Now().UTC().Format("20060102T150405Z"), nil
	}
	found, err := r.Stat(ctx, made...)
	if err != nil {
		return "", err
	}
	return slices.MaxFunc(found, func(a, b host.File) int { return a.ModTime.Compare(b.ModTime) }).Path, nil
}

const partialCopy = ".partial"

// ownTime bounds a question to the host's own member.
const ownTime = 5 * time.Second

func ownStatus(ctx context.Context, r host.Reader, pki string) (*clientv3.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, ownTime)
	defer cancel()
	client, err := Connect(ctx, r, pki)
	if err != nil {
		return nil, err
	}
	defer client.Close() //nolint:errcheck // only read through
	return client.Status(ctx, own)
}

// ownMembers are the members as the host's own one remembers them.
func ownMembers(ctx context.Context, r host.Reader, pki string) ([]*etcdserverpb.Member, error) {
	ctx, cancel := context.WithTimeout(ctx, ownTime)
	defer cancel()
	client, err := Connect(ctx, r, pki)
	if err != nil {
		return nil, err
	}
	defer client.Close() //nolint:errcheck // only read through
	list, err := client.MemberList(ctx, clientv3.WithSerializable())
	if err != nil {
		return nil, err
	}
	return list.Members, nil
}

// alone tells whether the host's member is the only one, and leads.
func (a Recover) alone(ctx context.Context, r host.Reader) bool {
	members, err := ownMembers(ctx, r, a.PKI)
	if err != nil || len(members) != 1 {
		return false
	}
	status, err := ownStatus(ctx, r, a.PKI)
	return err == nil && status.Leader == members[0].ID
}

// Check finds nothing to do where the member is alone, and would start as ever.
func (a Recover) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	paths := []string{forceFile}
	if a.Copy != "" {
		paths = append(paths, a.Copy)
	}
	found, err := r.Stat(ctx, paths...)
	if err != nil {
		return nil, err
	}
	if !found[0].Exists && a.alone(ctx, r) {
		return nil, nil
	}
	var diff plan.Diff
	if a.Copy != "" && !found[1].Exists {
		diff = append(diff, plan.Change{Verb: plan.Create, Kind: plan.ObjectFile, Object: a.Copy, Detail: "copy of " + DataDir,
			After:  &plan.State{Mode: "drwx------", Later: true},
			Brings: plan.Objects(plan.ObjectFile, a.Copy+partialCopy)})
	}
	return append(diff, plan.Change{Verb: plan.Start, Kind: plan.ObjectUnit, Object: Unit, Detail: "restart: as the only member"}), nil
}

// Apply copies the data while etcd is stopped, starts it once as the only member, and
// then again as ever.
func (a Recover) Apply(ctx context.Context, h host.Host) error {
	if err := a.keep(ctx, h); err != nil {
		return err
	}
	sd := h.Systemd()
	if !a.alone(ctx, h) {
		plan.Report(ctx, "starting etcd as the only member")
		if err := h.WriteFile(ctx, forceFile, strings.NewReader("[Service]\nEnvironment=ETCD_FORCE_NEW_CLUSTER=true\n"), host.Meta{Mode: 0o644}); err != nil {
			return err
		}
		if err := sd.Reload(ctx); err != nil {
			return err
		}
		if err := sd.Restart(ctx, Unit); err != nil {
			return err
		}
		if err := a.settle(ctx, h); err != nil {
			return err
		}
	}
	if err := h.Remove(ctx, forceDir); err != nil {
		return err
	}
	if err := sd.Reload(ctx); err != nil {
		return err
	}
	plan.Report(ctx, "starting etcd as ever")
	if err := sd.Restart(ctx, Unit); err != nil {
		return err
	}
	return a.settle(ctx, h)
}

// keep makes the copy, unless an earlier run did.
func (a Recover) keep(ctx context.Context, h host.Host) error {
	if a.Copy == "" {
		return nil
	}
	found, err := h.Stat(ctx, a.Copy)
	if err != nil || found[0].Exists {
		return err
	}
	plan.Report(ctx, "copying the data to "+a.Copy)
	if err := h.Systemd().Stop(ctx, Unit); err != nil {
		return err
	}
	if err := h.Remove(ctx, a.Copy+partialCopy); err != nil {
		return err
	}
	for _, argv := range [][]string{
		{"cp", "-a", "--reflink=auto", DataDir, a.Copy + partialCopy},
		{"chmod", "0700", a.Copy + partialCopy}, // all Secrets are in it, whoever may look into the original
		{"mv", "-T", a.Copy + partialCopy, a.Copy},
	} {
		if _, err := h.Run(ctx, host.Command{Argv: argv}); err != nil {
			return err
		}
	}
	return nil
}

// settle waits until the member is alone and leads.
func (a Recover) settle(ctx context.Context, h host.Host) error {
	tick := time.NewTicker(recoverPoll)
	defer tick.Stop()
	for !a.alone(ctx, h) {
		plan.Report(ctx, "waits for etcd to be its own leader")
		select {
		case <-ctx.Done():
			return fmt.Errorf("etcd as the only member: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
	return nil
}

// recoverPoll is how often the member is asked.
const recoverPoll = 200 * time.Millisecond
