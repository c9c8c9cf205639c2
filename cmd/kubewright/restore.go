package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/kubewright/kubewright/bootstrap"
	"github.com/kubewright/kubewright/bootstrap/backup"
	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

func (a *app) restoreCommand(do doer) *cobra.Command {
	var with identityFlags
	var controlPlane, workers []string
	var noWorkers, force bool
	c := &cobra.Command{
		Use:   "restore FILE --hosts HOST,... | -f cluster.yaml",
		Short: "Make the cluster of a backup again, on the same or on other hosts",
		Long: "restore makes the control plane of a backup anew on hosts that belong to no cluster: with its authorities, its data, its\n" +
			"name and the files of yours that flags of its API server name. The first of --hosts gets the data, the others join it. Workers\n" +
			"that are still there keep running and are led to the new hosts: those of the backup that SSH reaches, or those of --workers.\n" +
			"With -f the hosts are those of a file, which has to be of the same cluster. In the end all objects are counted, and compared\n" +
			"with the backup. The old control plane has to be down; those of its hosts that are not among the new ones have to stay off,\n" +
			"or be reset.",
		Example: "  kubewright restore prod.kwbackup --identity backup.key --hosts cp4,cp5,cp6\n" +
			"  kubewright restore prod.kwbackup --identity backup.key -f cluster.yaml",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if (a.specPath == "") == (len(controlPlane) == 0) {
				return usage(c, fmt.Errorf("name the control-plane hosts with --hosts, or a cluster file with -f"))
			}
			if a.specPath != "" && (len(workers) > 0 || noWorkers) {
				return usage(c, fmt.Errorf("with -f, the file says which workers there are"))
			}
			keys, err := with.read(a)
			if err != nil {
				return err
			}
			r, err := openRestore(args[0], keys)
			if err != nil {
				return err
			}
			wish, err := a.restoredWish(c.Context(), r, controlPlane, workers, noWorkers)
			if err != nil {
				return err
			}
			a.restore = r
			return do(c.Context(), bootstrap.Request{Verb: verbRestore, Spec: wish, Hosts: controlPlaneFirst(wish.Hosts),
				ID: r.Backup.Manifest.ClusterID, Force: force})
		},
	}
	a.addRunFlags(c.Flags())
	with.add(c.Flags())
	c.Flags().StringSliceVar(&controlPlane, "hosts", nil, "control-plane hosts, the first one first")
	c.Flags().StringSliceVar(&workers, "workers", nil, "workers to lead to the new control plane (default: those of the backup that are reached)")
	c.Flags().BoolVar(&noWorkers, "no-workers", false, "leave all workers as they are; join them later")
	c.Flags().BoolVar(&force, "force", false, "restore although an API server of the backup's cluster still answers")
	return c
}

// backupFile is a backup on this machine's disk, with what opens it.
type backupFile struct {
	path string
	keys []age.Identity
}

var _ etcd.Source = backupFile{}

// WriteSnapshot decrypts the file once more: the plain snapshot never is on this disk.
func (f backupFile) WriteSnapshot(_ context.Context, w io.Writer) error {
	_, err := f.read(w)
	return err
}

func (f backupFile) read(snapshot io.Writer) (*backup.Backup, error) {
	file, err := openBackup(f.path)
	if err != nil {
		return nil, err
	}
	defer file.Close() //nolint:errcheck // only read from
	return backup.Read(file, snapshot, f.keys...)
}

// openRestore reads and proves a whole backup, before any host is touched.
func openRestore(path string, keys []age.Identity) (*bootstrap.Restore, error) {
	file := backupFile{path, keys}
	b, err := file.read(io.Discard)
	if err != nil {
		return nil, err
	}
	r := bootstrap.NewRestore(b, file)
	return r, r.Complete()
}

// restoredWish is the cluster of the file, or that of the backup on other hosts.
func (a *app) restoredWish(ctx context.Context, r *bootstrap.Restore, controlPlane, workers []string, noWorkers bool) (*spec.Cluster, error) {
	if a.specPath != "" {
		wish, err := a.loadSpec()
		if err != nil {
			return nil, err
		}
		return wish, r.Changeable(wish)
	}
	if len(workers) == 0 && !noWorkers {
		workers = a.answering(ctx, r.Backup.Manifest.ClusterID, slices.DeleteFunc(r.Workers(), func(w string) bool { return slices.Contains(controlPlane, w) }))
	}
	return r.Wish(controlPlane, workers)
}

// answering are the hosts that SSH reaches and that are the cluster's still; the others are told.
func (a *app) answering(ctx context.Context, clusterID string, names []string) []string {
	var mu sync.Mutex
	var there []string
	var all sync.WaitGroup
	for _, h := range a.reach(ctx, names) {
		all.Go(func() {
			mu.Lock()
			defer mu.Unlock()
			if h.Err != nil {
				fmt.Fprintf(a.stderr, "worker %s is not reached, and left as it is: %v\n", h.Name, h.Err)
				return
			}
			if c, ok := h.Reader.(io.Closer); ok {
				defer c.Close() //nolint:errcheck // nothing is left to be written
			}
			switch claimed, err := claim.Read(ctx, h.Reader); {
			case err != nil:
				fmt.Fprintf(a.stderr, "worker %s is left as it is: %v\n", h.Name, err)
			case claimed == nil || claimed.ClusterID != clusterID:
				fmt.Fprintf(a.stderr, "worker %s is not the cluster's any more, and left as it is: kubewright join %s takes it in again\n", h.Name, h.Name)
			default:
				there = append(there, h.Name)
			}
		})
	}
	all.Wait()
	slices.Sort(there)
	return there
}

// findRestored looks whether the backup can be restored on the targets.
func (w *work) findRestored(ctx context.Context, r *bootstrap.Restore) (err error) {
	if r == nil {
		return fault.New(fault.Usage, "run `kubewright restore` with the file and the key instead", "a saved plan cannot open a backup")
	}
	m := r.Backup.Manifest
	if err := sameVersion(cluster.Record{Bundle: m.Bundle}, w.bundle); err != nil {
		return err
	}
	for _, t := range w.targets {
		if t.Claim != nil && (t.Claim.ClusterID != m.ClusterID || t.Claim.Role != string(t.Wish.Role)) {
			return t.Claim.Taken(t.Wish.Name)
		}
	}
	if w.targets, err = r.Resume(ctx, w.targets); err != nil {
		return err
	}
	if err := r.RefuseFiles(ctx, w.Spec, w.targets); err != nil {
		return err
	}
	if serving := r.OldServers(ctx, w.Spec, w.targets); len(serving) > 0 && !w.Force {
		return fault.New(fault.Usage, "switch them off, or reset their hosts; with --force there will be two clusters of one name that fight over the workers",
			"the cluster is not lost: its API server still answers on %s", strings.Join(serving, ", "))
	}
	return nil
}

// tellReplaced says what becomes of the hosts whose place the restored control plane takes.
func tellReplaced(w *work, notice func(string)) {
	if w.restore == nil {
		return
	}
	for _, line := range w.restore.Advice(w.targets) {
		notice(line)
	}
}

// tellRestored says what was counted, and returns what of it is not as in the backup.
func tellRestored(r *bootstrap.Restore, notice func(string)) error {
	if r == nil || !r.Counted.IsSet() {
		return nil
	}
	m, got := r.Backup.Manifest, r.Counted.Get()
	var differ []string
	objects := 0
	for i, k := range m.Kinds {
		objects += got.Kinds[i].Objects
		if n := got.Kinds[i].Objects; n != k.Objects {
			differ = append(differ, fmt.Sprintf("%s: %d, not %d", k.Name(), n, k.Objects))
		}
	}
	switch {
	case len(differ) == 0:
		kinds, _ := m.Count()
		notice(fmt.Sprintf("restored: all %d objects of %d kinds, as in the backup", objects, kinds))
		return nil
	case got.Late != "":
		notice(fmt.Sprintf("restored: %d objects; %s, so these kinds differ: %s", objects, got.Late, strings.Join(differ, "; ")))
		return nil
	}
	return fault.New(fault.BackupDiffers, "look at these kinds; the cluster runs, and the backup can be restored again elsewhere",
		"the restored cluster is not what the backup's manifest says: %s", strings.Join(differ, "; "))
}
