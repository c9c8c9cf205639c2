package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// bootOrders is all that a host's first process must know to become its init.
type bootOrders struct {
	Hostname    string
	Lower       string      // the root file system that the host is a clone of
	Upper, Work string      // overlayfs: the host's own disk
	Root        string      // where the clone is mounted before it becomes the root
	Recipe      string      // what recipeFile in the new root must hold
	Binds       []bindMount // from outside the overlay
	Swaps       string      // file in the place of /proc/swaps, if there is one
	FullDisk    bool        // instead of Binds
	EtcdDisk    int         // MiB of one for etcdFolder; 0: its bind
	SlowDisk    bool        // extraFD is the fuse device of one for etcdFolder
	Hierarchies []hierarchy
}

type bindMount struct {
	Source string // folder outside
	Target string // folder in the host
}

// devices of a host that must be there, and those that it gets if the machine has them.
func requiredDevices() []string { return []string{"null", "zero", "full", "random", "urandom", "tty"} }
func optionalDevices() []string { return []string{"kmsg", "fuse", "net/tun"} }

// searchPath is the PATH of a host's processes.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

const overlayMagic = 0x794c7630 // statfs's f_type, OVERLAYFS_SUPER_MAGIC

// bootHost turns the process, the first one in fresh namespaces, into the host's
// init. It does not go on after any failure: beyond it, /sbin/init is the outer machine's.
func bootHost() (int, error) {
	o, err := orders[bootOrders]()
	if err != nil {
		return 0, err
	}
	// The cgroup namespace is the one thing here that belongs to a thread; the
	// thread that execs is the one that stays.
	runtime.LockOSThread()
	unix.Umask(0)
	outer, err := os.Stat("/")
	if err != nil {
		return 0, err
	}
	for _, step := range []struct {
		what string
		do   func(*bootOrders) error
	}{
		{"make mounts private", func(*bootOrders) error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") }},
		{"mount root", mountRoot},
		{"mount kernel file systems", mountKernel},
		{"make devices", makeDevices},
		{"mount cgroups", mountCgroups},
		{"mount data folders", mountBinds},
		{"mount trouble", mountTrouble},
		{"change root", changeRoot},
		{"check root", func(o *bootOrders) error { return checkRoot(o, outer) }},
		{"share mounts", func(*bootOrders) error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "") }},
		{"set host name", func(o *bootOrders) error { return unix.Sethostname([]byte(o.Hostname)) }},
		// A new network namespace starts with the outer one's settings: a bare host forwards nothing.
		{"turn off forwarding", func(*bootOrders) error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0) }},
	} {
		if err := step.do(&o); err != nil {
			return 0, fmt.Errorf("%s: %w", step.what, err)
		}
	}
	unix.Umask(0o022)
	report(stageDone)
	const initPath = "/sbin/init"
	err = syscall.Exec(initPath, []string{initPath}, []string{
		"container=kubewright-lab",
		"PATH=" + searchPath,
	})
	return 0, fmt.Errorf("exec %s: %w", initPath, err)
}

func mountRoot(o *bootOrders) error {
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", o.Lower, o.Upper, o.Work)
	return mount("overlay", o.Root, "overlay", 0, options)
}

func mountKernel(o *bootOrders) error {
	const safe = unix.MS_NOSUID | unix.MS_NODEV
	for _, m := range []struct {
		kind, dir string
		flags     uintptr
		options   string
	}{
		{"proc", "proc", safe | unix.MS_NOEXEC, ""},
		{"sysfs", "sys", safe | unix.MS_NOEXEC, ""},
		{"tmpfs", "dev", unix.MS_NOSUID, "mode=755,size=64k"},
		{"devpts", "dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5"},
		{"tmpfs", "dev/shm", safe, "mode=1777"},
		{"tmpfs", "run", safe, "mode=755"},
		{"tmpfs", "tmp", safe, "mode=1777"},
	} {
		dir := filepath.Join(o.Root, m.dir)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := mount(m.kind, dir, m.kind, m.flags, m.options); err != nil {
			return err
		}
	}
	return nil
}

// makeDevices makes the host's device files with the numbers that the outer
// machine's have.
func makeDevices(o *bootOrders) error {
	dev := filepath.Join(o.Root, "dev")
	clone := func(name string) error {
		var st unix.Stat_t
		if err := unix.Stat("/dev/"+name, &st); err != nil {
			return &fs.PathError{Op: "stat", Path: "/dev/" + name, Err: err}
		}
		path := filepath.Join(dev, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := unix.Mknod(path, st.Mode, int(st.Rdev)); err != nil {
			return &fs.PathError{Op: "mknod", Path: path, Err: err}
		}
		return nil
	}
	for _, name := range requiredDevices() {
		if err := clone(name); err != nil {
			return err
		}
	}
	for _, name := range optionalDevices() {
		if err := clone(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for name, target := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd",
		"stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, filepath.Join(dev, name)); err != nil {
			return err
		}
	}
	return nil
}

// mountCgroups shows the host, as the roots of the trees, the groups that it was put in.
func mountCgroups(o *bootOrders) error {
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	top := filepath.Join(o.Root, cgroupRoot)
	if len(o.Hierarchies) > 1 || o.Hierarchies[0].Folder != "" {
		if err := mount("tmpfs", top, "tmpfs", flags, "mode=755"); err != nil {
			return err
		}
	}
	for _, h := range o.Hierarchies {
		dir := filepath.Join(top, h.Folder)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		kind := "cgroup"
		if h.V2 {
			kind = "cgroup2"
		}
		if err := mount(kind, dir, kind, flags, strings.Join(h.Options, ",")); err != nil {
			return err
		}
		// Programs look for cpu and cpuacct where "cpu,cpuacct" is mounted.
		if names := strings.Split(h.Folder, ","); len(names) > 1 {
			for _, name := range names {
				if err := os.Symlink(h.Folder, filepath.Join(top, name)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func mountBinds(o *bootOrders) error {
	for _, b := range o.Binds {
		target := filepath.Join(o.Root, b.Target)
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := mount(b.Source, target, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

// changeRoot stacks the new root over the old one and lets go of the latter
// (pivot_root(2), "pivot_root(".", ".")").
func changeRoot(o *bootOrders) error {
	if err := os.Chdir(o.Root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root %s: %w", o.Root, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount old root: %w", err)
	}
	return os.Chdir("/")
}

// checkRoot makes sure, by device, kind and content, that what /sbin/init now
// means is the host's and that its process is the first of its namespace.
func checkRoot(o *bootOrders, outer fs.FileInfo) error {
	root, err := os.Stat("/")
	if err != nil {
		return err
	}
	if os.SameFile(root, outer) || root.Sys().(*syscall.Stat_t).Dev == outer.Sys().(*syscall.Stat_t).Dev {
		return errors.New("/ is still the outer machine's")
	}
	var st unix.Statfs_t
	if err := unix.Statfs("/", &st); err != nil {
		return fmt.Errorf("statfs /: %w", err)
	}
	if int64(st.Type) != overlayMagic {
		return fmt.Errorf("/ is a file system of type %#x, not the host's overlay", st.Type)
	}
	marker, err := os.ReadFile(recipeFile)
	if err != nil {
		return err
	}
	if !bytes.Equal(bytes.TrimSpace(marker), []byte(o.Recipe)) {
		return fmt.Errorf("%s is not %s", recipeFile, o.Recipe)
	}
	if pid := os.Getpid(); pid != 1 {
		return fmt.Errorf("process id is %d in the host, not 1", pid)
	}
	return nil
}

func mount(source, target, kind string, flags uintptr, options string) error {
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		return &fs.PathError{Op: "mount " + kind, Path: target, Err: err}
	}
	return nil
}
