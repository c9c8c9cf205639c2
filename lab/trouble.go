package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// Trouble is what is wrong with a lab's last host, to see what others make of
// it. The hosts before it are well.
type Trouble struct {
	// ClockAhead is by how much its clock is ahead, a second or more. A namespace
	// has no clock of its own, so this is libfaketime's: it shows in what root runs
	// by ssh and that is linked to the C library, such as date and the times of
	// files over SFTP. Programs of Go, services, sudo's commands and Exec have the true time.
	ClockAhead time.Duration `json:"clockAhead,omitempty"`
	// Swap makes /proc/swaps list some. There is none: it would be the outer machine's.
	Swap bool `json:"swap,omitempty"`
	// FullDisk leaves 16 MiB, in memory, for each of /var/lib/containerd,
	// /var/lib/kubelet and /var/lib/etcd. They are empty again after a power cut.
	FullDisk bool `json:"fullDisk,omitempty"`
	// EtcdDisk is how many MiB /var/lib/etcd has on a file system of its own, in memory,
	// which can be filled. It is empty again after a power cut.
	EtcdDisk int `json:"etcdDisk,omitempty"`
	// SlowDisk is how much longer fsync and fdatasync of a file below /var/lib/etcd
	// take. Writes to a file that was opened with O_DSYNC are not slowed.
	SlowDisk time.Duration `json:"slowDisk,omitempty"`
	// DropUDP is a port to which its own firewall lets no datagram in.
	DropUDP uint16 `json:"dropUDP,omitempty"`
}

// String says what is wrong, for people.
func (o Trouble) String() string {
	var all []string
	if o.ClockAhead != 0 {
		all = append(all, fmt.Sprintf("a clock %s ahead", o.ClockAhead))
	}
	if o.Swap {
		all = append(all, "swap")
	}
	if o.FullDisk {
		all = append(all, "a full disk")
	}
	if o.EtcdDisk != 0 {
		all = append(all, fmt.Sprintf("%d MiB for etcd", o.EtcdDisk))
	}
	if o.SlowDisk != 0 {
		all = append(all, fmt.Sprintf("a disk %s slow", o.SlowDisk))
	}
	if o.DropUDP != 0 {
		all = append(all, fmt.Sprintf("a firewall that drops UDP %d", o.DropUDP))
	}
	return strings.Join(all, ", ")
}

func (o Trouble) check() error {
	const longest = time.Minute // a systemd that waits longer for its disk gives units up
	const largest = 1 << 10     // it is in memory
	disks := 0
	for _, disk := range []bool{o.FullDisk, o.EtcdDisk != 0, o.SlowDisk != 0} {
		if disk {
			disks++
		}
	}
	switch {
	case o.ClockAhead < 0 || o.ClockAhead%time.Second != 0:
		return fault.New(fault.Usage, "", "a clock is ahead by whole seconds, not %s", o.ClockAhead)
	case o.SlowDisk < 0 || o.SlowDisk > longest:
		return fault.New(fault.Usage, "", "a disk is slow by up to %s, not %s", longest, o.SlowDisk)
	case o.EtcdDisk < 0 || o.EtcdDisk > largest:
		return fault.New(fault.Usage, "", "a disk for etcd has up to %d MiB, not %d", largest, o.EtcdDisk)
	case disks > 1:
		return fault.New(fault.Usage, "", "a disk is slow, full or etcd's own, one of them")
	}
	return nil
}

// trouble is what is wrong with a host.
func (s *state) trouble(h *hostState) Trouble {
	if h.Number != len(s.Hosts) {
		return Trouble{}
	}
	return s.Options.Trouble
}

// files are those on the disk of a host that has this trouble.
func (o Trouble) files() []diskFile {
	var files []diskFile
	text := func(path, content string) {
		files = append(files, diskFile{Path: path, Content: []byte(content), Mode: 0o644})
	}
	if o.ClockAhead != 0 {
		text("/etc/ssh/sshd_config.d/clock.conf", fmt.Sprintf(
			"Match User root\nSetEnv LD_PRELOAD=/usr/$LIB/faketime/libfaketime.so.1 FAKETIME=+%d FAKETIME_DONT_FAKE_MONOTONIC=1\n",
			o.ClockAhead/time.Second))
	}
	if o.DropUDP != 0 {
		text("/etc/nftables.conf", fmt.Sprintf(
			"table inet firewall {\n\tchain input {\n\t\ttype filter hook input priority filter; policy accept;\n\t\tudp dport %d drop\n\t}\n}\n", o.DropUDP))
		text("/etc/systemd/system/sysinit.target.d/firewall.conf", "[Unit]\nWants=nftables.service\n")
	}
	return files
}

// swaps is a /proc/swaps with a gigabyte. swapoff finds no such device.
const swaps = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/lab-swap                           partition\t1048572\t\t0\t\t-2\n"

// swapsFile is where in its folder a host has it.
const swapsFile = "swaps"

// room is what a full disk has.
const room = "16m"

// mountTrouble mounts, over what a well host has, what makes it troubled.
func mountTrouble(o *bootOrders) error {
	if o.Swaps != "" {
		if err := mount(o.Swaps, filepath.Join(o.Root, "proc/swaps"), "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	const safe = unix.MS_NOSUID | unix.MS_NODEV
	if o.FullDisk {
		for _, b := range o.Binds {
			if err := mount("tmpfs", filepath.Join(o.Root, b.Target), "tmpfs", safe, "mode=755,size="+room); err != nil {
				return err
			}
		}
	}
	if o.EtcdDisk != 0 {
		return mount("tmpfs", filepath.Join(o.Root, etcdFolder), "tmpfs", safe, fmt.Sprintf("mode=700,size=%dm", o.EtcdDisk))
	}
	if !o.SlowDisk {
		return nil
	}
	defer syscall.Close(extraFD) // the server has it too
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0,allow_other,default_permissions", extraFD, syscall.S_IFDIR)
	return mount("lab-disk", filepath.Join(o.Root, etcdFolder), "fuse", safe, options)
}

// etcdFolder is the one of dataFolders that a slow disk, or one of its own, is mounted on.
const etcdFolder = "/var/lib/etcd"

const (
	fuseDevice = "/dev/fuse"
	diskMember = "disk-" // in the lab's cgroups
)

// diskOrders are what a diskStage gets. extraFD is the fuse device, which is mounted.
type diskOrders struct {
	Dir   string // what the disk holds
	Fsync time.Duration
}

// startDisk starts the process that is a host's slow disk. It waits for its
// orders until the host has mounted it.
func (l *Lab) startDisk(h *hostState, device *os.File) (*stage, error) {
	if err := makeCgroups(l.trees, l.state.Name, diskMember+h.Name); err != nil {
		return nil, err
	}
	// Not bound to a context: it outlives the caller.
	s, err := startStage(context.Background(), diskStage, 0, []*os.File{device}, func(cmd *exec.Cmd) {
		cmd.SysProcAttr.Setsid = true
	})
	if err != nil {
		return nil, err
	}
	if err := enterCgroups(l.trees, l.state.Name, diskMember+h.Name, s.cmd.Process.Pid); err != nil {
		s.abandon()
		return nil, err
	}
	return s, nil
}

// serveDisk is a slow disk until it is unmounted, which is when its host ends.
func serveDisk() (int, error) {
	o, err := orders[diskOrders]()
	if err != nil {
		return 0, err
	}
	unix.Umask(0)
	root, err := fs.NewLoopbackRoot(o.Dir)
	if err != nil {
		return 0, fmt.Errorf("open disk: %w", err)
	}
	second := time.Second // nobody else changes what is on the disk
	options := &fs.Options{AttrTimeout: &second, EntryTimeout: &second}
	disk := fs.NewNodeFS(&slowNode{root.(*fs.LoopbackNode), o.Fsync}, options)
	server, err := fuse.NewServer(disk, "/dev/fd/"+strconv.Itoa(extraFD), &options.MountOptions)
	if err != nil {
		return 0, fmt.Errorf("serve disk: %w", err)
	}
	report(stageDone)
	syscall.Close(reportFD)
	server.Serve()
	return 0, nil
}

// slowNode is a file or folder on a slow disk.
type slowNode struct {
	*fs.LoopbackNode
	fsync time.Duration
}

var (
	_ fs.NodeWrapChilder = (*slowNode)(nil)
	_ fs.NodeFsyncer     = (*slowNode)(nil)
)

func (n *slowNode) WrapChild(_ context.Context, child fs.InodeEmbedder) fs.InodeEmbedder {
	return &slowNode{child.(*fs.LoopbackNode), n.fsync}
}

func (n *slowNode) Fsync(ctx context.Context, f fs.FileHandle, flags uint32) syscall.Errno {
	select {
	case <-time.After(n.fsync):
	case <-ctx.Done(): // whoever waits was killed
		return syscall.EINTR
	}
	if file, ok := f.(fs.FileFsyncer); ok {
		return file.Fsync(ctx, flags)
	}
	return syscall.ENOTSUP
}

// openFuse opens a file system that is yet to be mounted and served.
func openFuse() (*os.File, error) {
	device, err := os.OpenFile(fuseDevice, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fault.New(fault.HostUnsuitable, "modprobe fuse", "a slow disk needs FUSE, which this machine lacks: %w", err)
	}
	return device, err
}
