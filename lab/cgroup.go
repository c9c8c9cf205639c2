package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

const (
	cgroupRoot   = "/sys/fs/cgroup" // outside as well as in a host
	cgroupFolder = "kubewright-lab" // in each hierarchy; below it a folder per lab, below that one per host
	// execFolder takes commands run in a host where version 2's rule forbids
	// processes in a group that has groups below it.
	execFolder = "lab-exec"
	// cgroupDeadline bounds the wait for killed processes to leave.
	cgroupDeadline = 20 * time.Second
)

// hierarchy is one mounted cgroup tree of the outer machine.
type hierarchy struct {
	Dir     string   // where it is mounted outside
	Folder  string   // below cgroupRoot: "cpu,cpuacct", "unified", "" on a version 2 machine
	Options []string // version 1's mount options: controllers, or "none", "name=systemd"
	V2      bool
}

// hierarchies reads the trees below cgroupRoot from a /proc/self/mountinfo: one
// per version 1 controller set and "unified" (hybrid), or a single one (version 2).
func hierarchies(mountinfo string) []hierarchy {
	var all []hierarchy
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 3 {
			continue
		}
		dir, kind := left[4], right[0]
		folder, below := strings.CutPrefix(dir, cgroupRoot)
		if !below || (kind != "cgroup" && kind != "cgroup2") {
			continue
		}
		h := hierarchy{Dir: dir, Folder: strings.TrimPrefix(folder, "/"), V2: kind == "cgroup2"}
		if !h.V2 {
			h.Options = controllers(right[2])
		}
		if !slices.ContainsFunc(all, func(o hierarchy) bool {
			return o.V2 == h.V2 && slices.Equal(o.Options, h.Options)
		}) {
			all = append(all, h)
		}
	}
	return all
}

// controllers picks from a version 1 superblock's options those which name the
// hierarchy: the others are settings of it that a second mount must not repeat.
func controllers(options string) []string {
	var out []string
	for option := range strings.SplitSeq(options, ",") {
		switch name, _, setting := strings.Cut(option, "="); {
		case name == "name":
			out = append(out, "none", option)
		case setting:
		case slices.Contains([]string{"rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods"}, name):
		default:
			out = append(out, option)
		}
	}
	return out
}

func machineHierarchies() ([]hierarchy, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	all := hierarchies(string(b))
	if len(all) == 0 {
		return nil, fault.New(fault.HostUnsuitable, "mount cgroups below "+cgroupRoot, "no cgroup hierarchy below %s", cgroupRoot)
	}
	return all, nil
}

// makeCgroups makes the group of one member of a lab in every hierarchy.
func makeCgroups(all []hierarchy, lab, member string) error {
	for _, h := range all {
		dir := h.Dir
		for _, name := range []string{cgroupFolder, lab, member} {
			// A host on a version 2 machine gets every controller there is: its
			// systemd and kubelet cannot take one that was not handed down.
			if h.V2 && h.Folder == "" {
				handDown(dir)
			}
			dir = filepath.Join(dir, name)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make cgroup: %w", err)
			}
			if slices.Contains(h.Options, "cpuset") {
				if err := inheritCPUs(dir); err != nil {
					return fmt.Errorf("make cgroup: %w", err)
				}
			}
		}
	}
	return nil
}

// handDown enables each controller for the groups below dir. One that refuses
// (cpu, with real-time processes about) is left out, as systemd does.
func handDown(dir string) {
	available, _ := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	for _, c := range strings.Fields(string(available)) {
		os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0) //nolint:errcheck // see above
	}
}

// inheritCPUs copies what a version 1 cpuset must have before it takes a process.
func inheritCPUs(dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		own, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(own)) != "" {
			continue
		}
		parent, err := os.ReadFile(filepath.Join(filepath.Dir(dir), name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), parent, 0); err != nil {
			return err
		}
	}
	return nil
}

// enterCgroups puts a process into the group of a member, in every hierarchy.
func enterCgroups(all []hierarchy, lab, member string, pid int) error {
	for _, h := range all {
		dir := filepath.Join(h.Dir, cgroupFolder, lab, member)
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("enter cgroup: %w", err)
		}
	}
	return nil
}

// enterExecCgroups puts a process beside those of a running host.
func enterExecCgroups(all []hierarchy, lab, host string, pid int) error {
	for _, h := range all {
		dir := filepath.Join(h.Dir, cgroupFolder, lab, host)
		if h.V2 {
			dir = filepath.Join(dir, execFolder)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make cgroup: %w", err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("enter cgroup: %w", err)
		}
	}
	return nil
}

// clearCgroups kills every process in the groups of a lab, or of one member of
// it if member is not "", and removes the groups. Groups that are not there are no error.
func clearCgroups(ctx context.Context, all []hierarchy, lab, member string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, cgroupDeadline,
		fault.New(fault.Timeout, "", "processes did not end within %s", cgroupDeadline))
	defer cancel()
	for {
		left := 0
		for _, h := range all {
			n, err := killBelow(filepath.Join(h.Dir, cgroupFolder, lab, member))
			if err != nil {
				return fmt.Errorf("clear cgroups of lab %s: %w", lab, err)
			}
			left += n
		}
		if left == 0 {
			break
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("clear cgroups of lab %s: %d processes left: %w", lab, left, err)
		}
	}
	for _, h := range all {
		if err := removeCgroup(ctx, filepath.Join(h.Dir, cgroupFolder, lab, member)); err != nil {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
	return nil
}

// killBelow sends SIGKILL to every process in a group and in those below it,
// and returns how many there were.
func killBelow(dir string) (int, error) {
	count := 0
	for _, group := range groups(dir) {
		b, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
		if gone(err) || errors.Is(err, unix.EOPNOTSUPP) { // a threaded group: its processes are in the parent's list
			continue
		} else if err != nil {
			return 0, err
		}
		for _, field := range strings.Fields(string(b)) {
			pid, err := strconv.Atoi(field)
			if err != nil || pid <= 1 || pid == os.Getpid() {
				return 0, fmt.Errorf("process %s in %s is none of a lab's", field, group)
			}
			count++
			if err := killMember(pid, group); err != nil {
				return 0, err
			}
		}
	}
	return count, nil
}

// killMember kills a process that was just seen in a group, unless its pid is
// another process's by now.
func killMember(pid int, group string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // gone, or no process but a thread
		return nil
	} else if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	b, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
	if gone(err) || (err == nil && !slices.Contains(strings.Fields(string(b)), strconv.Itoa(pid))) {
		return nil
	} else if err != nil {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	return nil
}

// removeCgroup removes an empty group with those below it. The kernel reports a
// group busy until the last of its processes is reaped: that is waited for.
func removeCgroup(ctx context.Context, dir string) error {
	all := groups(dir)
	slices.Reverse(all) // children before parents
	for _, group := range all {
		for {
			err := unix.Rmdir(group)
			if err == nil || errors.Is(err, unix.ENOENT) {
				break
			}
			if !errors.Is(err, unix.EBUSY) {
				return &fs.PathError{Op: "rmdir", Path: group, Err: err}
			}
			if err := pause(ctx); err != nil {
				return &fs.PathError{Op: "rmdir", Path: group, Err: err}
			}
		}
	}
	return nil
}

// removeCgroupFolder removes the folder of all labs if this was the last one.
func removeCgroupFolder(all []hierarchy) error {
	for _, h := range all {
		dir := filepath.Join(h.Dir, cgroupFolder)
		err := unix.Rmdir(dir)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
		}
	}
	return nil
}

// groups lists a group and those below it, parents first; nil if it is not there.
func groups(dir string) []string {
	var all []string
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error { //nolint:errcheck // groups vanish while one looks
		if err == nil && d.IsDir() {
			all = append(all, path)
		}
		return nil
	})
	return all
}

// gone tells whether reading a file of a group failed because the group was removed.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }

// pause is the step between two looks at a condition that the kernel has no
// event for. It returns the cause when ctx has ended.
func pause(ctx context.Context) error {
	const step = 10 * time.Millisecond
	timer := time.NewTimer(step)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
