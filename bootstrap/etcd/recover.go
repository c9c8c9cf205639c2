package etcd

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

const (
	// copyPrefix begins the names of folders with the data as they were before a recovery.
	copyPrefix = DataDir + "-before-recover-"
	// forceDir has a drop-in of etcd's unit as long as it is told to start alone, which forceOnce does: systemd reads that
	// at each start, and takes it away when the start is over. Whoever starts etcd after that, if a recovery was broken
	// off and others have joined meanwhile, does not tear it away from them. All of it is below /run: a host that loses
	// its power in the middle starts etcd as ever.
	forceDir  = "/run/systemd/system/etcd.service.d"
	forceFile = forceDir + "/kubewright-recover.conf"
	forceOnce = "/run/kubewright-recover.env"
	dropIn    = "[Service]\nEnvironmentFile=-" + forceOnce + "\nExecStartPost=-/bin/rm -f " + forceOnce + "\n"
)

// Recover makes the member on a host the only one, with the data that it has, when too
// many others are lost for ever. What it had agreed to with them stays; what it had not is gone.
type Recover struct {
	Self Self   // the member, without the others
	Copy string // folder for a copy of its data as they are now: CopyFor; "" if none is needed
}

var _ plan.Action[host.Reader, host.Host] = Recover{}

// CopyFor is where the copy of a host's data is kept: the same folder however often a
// recovery is broken off and begun again. Of a host that was recovered it is the last one, "" if it has none.
func CopyFor(ctx context.Context, r host.Reader, self Self) (string, error) {
	begun, made, err := copies(ctx, r)
	if err != nil {
		return "", err
	}
	view, err := self.Look(ctx, r)
	switch {
	case begun != "":
		return begun, nil
	case err == nil && len(view.Members) > 1: // without a quorum nothing is applied any more
		return copyPrefix + strconv.FormatUint(view.Applied, 10), nil
	case len(made) > 0: // by an earlier run
		found, err := r.Stat(ctx, made...)
		if err != nil {
			return "", err
		}
		return slices.MaxFunc(found, func(a, b host.File) int { return a.ModTime.Compare(b.ModTime) }).Path, nil
	case err == nil:
		return "", nil
	}
	return copyPrefix + time.Now().UTC().Format("20060102T150405Z"), nil // it does not run
}

// copies are those that are whole, and the one that was only begun, "" if there is none.
func copies(ctx context.Context, r host.Reader) (begun string, made []string, err error) {
	names, err := r.ReadDir(ctx, path.Dir(copyPrefix))
	if err != nil {
		return "", nil, err
	}
	for _, n := range names {
		if !strings.HasPrefix(n, path.Base(copyPrefix)) {
			continue
		}
		if whole, partial := strings.CutSuffix(n, partialCopy); partial {
			begun = path.Join(path.Dir(copyPrefix), whole)
		} else {
			made = append(made, path.Join(path.Dir(copyPrefix), n))
		}
	}
	return begun, made, nil
}

const partialCopy = ".partial"

// alone tells whether the host's member is the only one, and leads.
func (a Recover) alone(ctx context.Context, r host.Reader) bool {
	view, err := a.Self.Look(ctx, r)
	return err == nil && len(view.Members) == 1 && view.Leader == view.Members[0]
}

// Check finds nothing to do where the member is alone, and would start as ever.
func (a Recover) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	paths := []string{forceDir, forceOnce}
	if a.Copy != "" {
		paths = append(paths, a.Copy)
	}
	found, err := r.Stat(ctx, paths...)
	if err != nil {
		return nil, err
	}
	if !found[0].Exists && !found[1].Exists && a.alone(ctx, r) {
		return nil, nil
	}
	var diff plan.Diff
	if a.Copy != "" && !found[2].Exists {
		diff = append(diff, plan.Change{Verb: plan.Create, Kind: plan.ObjectFile, Object: a.Copy, Detail: "copy of " + DataDir,
			After:  &plan.State{Mode: "drwx------", Later: true},
			Brings: plan.Objects(plan.ObjectFile, a.Copy+partialCopy)})
	}
	return append(diff, plan.Change{Verb: plan.Start, Kind: plan.ObjectUnit, Object: Unit, Detail: "restart: as the only member",
		Brings: plan.Objects(plan.ObjectFile, forceDir, forceFile, forceOnce)}), nil
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
		if err := h.WriteFile(ctx, forceFile, strings.NewReader(dropIn), host.Meta{Mode: 0o644}); err != nil {
			return err
		}
		if err := sd.Reload(ctx); err != nil {
			return err
		}
		if err := h.WriteFile(ctx, forceOnce, strings.NewReader("ETCD_FORCE_NEW_CLUSTER=true\n"), host.Meta{Mode: 0o600}); err != nil {
			return err
		}
		if err := sd.Restart(ctx, Unit); err != nil {
			return err
		}
		if err := a.settle(ctx, h); err != nil {
			return err
		}
	}
	if err := h.Remove(ctx, forceOnce, forceDir); err != nil {
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

// keep makes the copy, unless an earlier run did. Its folder is there before etcd stops: who comes later, and finds
// no member to ask, goes on with it. All Secrets are in it, whoever may look into the original.
func (a Recover) keep(ctx context.Context, h host.Host) error {
	if a.Copy == "" {
		return nil
	}
	found, err := h.Stat(ctx, a.Copy)
	if err != nil || found[0].Exists {
		return err
	}
	plan.Report(ctx, "copying the data to "+a.Copy)
	partial := a.Copy + partialCopy
	if err := h.Mkdir(ctx, partial, host.Meta{Mode: 0o700}); err != nil {
		return err
	}
	if err := h.Systemd().Stop(ctx, Unit); err != nil {
		return err
	}
	copied := path.Join(partial, path.Base(memberDir))
	if err := h.Remove(ctx, copied); err != nil {
		return err
	}
	if _, err := h.Run(ctx, host.Command{Argv: []string{"cp", "-a", "--reflink=auto", memberDir, copied}}); err != nil {
		return err
	}
	_, err = h.Run(ctx, host.Command{Argv: []string{"mv", "-T", partial, a.Copy}})
	return err
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
