package journal

import (
	"context"
	"errors"
	"io/fs"
	"path"

	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// groupRoot has the control groups: of version 1 a folder per hierarchy, of version 2 the groups themselves.
const groupRoot = "/sys/fs/cgroup"

// listGroups are the control groups that a slice has, one per hierarchy. systemd knows those of
// the hierarchies that it uses; in the others, of version 1, whoever made them has to remove them.
func listGroups(ctx context.Context, r host.Reader, slice string) ([]string, error) {
	hierarchies, err := folders(ctx, r, groupRoot)
	if err != nil {
		return nil, err
	}
	candidates := []string{path.Join(groupRoot, slice)}
	for _, h := range hierarchies {
		if path.Base(h) != slice {
			candidates = append(candidates, path.Join(h, slice))
		}
	}
	return host.Directories(ctx, r, candidates)
}

// folders are those in a folder; links, as those from cpu to cpu,cpuacct, are none.
func folders(ctx context.Context, r host.Reader, dir string) ([]string, error) {
	names, err := r.ReadDir(ctx, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for i, n := range names {
		names[i] = path.Join(dir, n)
	}
	return host.Directories(ctx, r, names)
}

// removeGroups removes the groups of slices that were stopped, those below them first. The
// kernel refuses to remove one with a process in it.
func removeGroups(ctx context.Context, h host.Host, all []difference) error {
	for _, d := range only(all, plan.ObjectSlice) {
		groups := surplus(d.is.Names, d.was.Names)
		if len(groups) == 0 || d.was.Exists {
			continue
		}
		argv := append(append([]string{"find"}, groups...), "-depth", "-type", "d", "-delete")
		if _, err := h.Run(ctx, host.Command{Argv: argv}); err != nil {
			return err
		}
	}
	return nil
}
