package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/kubewright/kubewright/bootstrap/probe"
)

// missing tries what a node needs of its kernel. Trying loads modules as the
// node itself would, and what is built in counts.
func missing() []probe.Missing {
	tries := []struct {
		feature string
		try     func() error
	}{
		{"overlay", tryOverlay},
		{"bridge", tryLink(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "kwprobe0"}})},
		{"veth", tryLink(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "kwprobe0"}, PeerName: "kwprobe1"})},
		{"vxlan", tryLink(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "kwprobe0"}, VxlanId: 1, Port: 8472})},
		{"bridge-netfilter", tryBridgeNetfilter},
		{"nftables", tryNftables},
		{"seccomp", trySeccomp},
		{"cgroup-controllers", tryCgroups},
		{"namespaces", tryNamespaces},
	}
	var mu sync.Mutex
	var all []probe.Missing
	var done sync.WaitGroup
	for _, t := range tries {
		done.Go(func() {
			if err := t.try(); err != nil {
				mu.Lock()
				defer mu.Unlock()
				all = append(all, probe.Missing{Feature: t.feature, Why: err.Error()})
			}
		})
	}
	done.Wait()
	slices.SortFunc(all, func(a, b probe.Missing) int { return cmp.Compare(a.Feature, b.Feature) })
	return all
}

// apart runs f on a thread with namespaces of its own, which end with the thread.
func apart(flags int, f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(flags); err != nil {
			result <- fmt.Errorf("unshare: %w", err)
			return
		}
		result <- f()
	}()
	return <-result
}

func tryLink(link netlink.Link) func() error {
	return func() error {
		return apart(unix.CLONE_NEWNET, func() error { return netlink.LinkAdd(link) })
	}
}

// tryOverlay mounts one on a memory file system, as overlays cannot be on each other.
func tryOverlay() error {
	return apart(unix.CLONE_NEWNS, func() error {
		const base = "/tmp"
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make mounts private: %w", err)
		}
		if err := unix.Mount("tmpfs", base, "tmpfs", 0, ""); err != nil {
			return fmt.Errorf("mount tmpfs: %w", err)
		}
		for _, dir := range []string{"lower", "upper", "work", "merged"} {
			if err := os.Mkdir(filepath.Join(base, dir), 0o700); err != nil {
				return err
			}
		}
		if err := unix.Mount("overlay", base+"/merged", "overlay", 0, "lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work"); err != nil {
			return fmt.Errorf("mount overlay: %w", err)
		}
		return nil
	})
}

// tryBridgeNetfilter looks for the setting, or for a module that would bring it:
// nothing but modprobe loads that one.
func tryBridgeNetfilter() error {
	if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); err == nil {
		return nil
	}
	if out, err := exec.Command("modprobe", "--dry-run", "br_netfilter").CombinedOutput(); err != nil {
		return fmt.Errorf("modprobe br_netfilter: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// tryNftables makes a table like kube-proxy's: a chain that translates addresses.
func tryNftables() error {
	return apart(unix.CLONE_NEWNET, func() error {
		own, err := netns.Get()
		if err != nil {
			return err
		}
		defer own.Close() //nolint:errcheck // it ends with the process
		conn, err := nftables.New(nftables.WithNetNSFd(int(own)))
		if err != nil {
			return err
		}
		table := conn.AddTable(&nftables.Table{Name: "kwprobe", Family: nftables.TableFamilyIPv4})
		conn.AddChain(&nftables.Chain{Name: "nat", Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
		return conn.Flush()
	})
}

// trySeccomp asks for a filter without giving one: a kernel that has filters
// fails on the address, one that has not on the question.
func trySeccomp() error {
	err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, 0, 0, 0)
	if errors.Is(err, unix.EFAULT) || errors.Is(err, unix.EACCES) {
		return nil
	}
	return fmt.Errorf("set a filter: %w", err)
}

// tryCgroups looks for the controllers that the kubelet and runc use.
func tryCgroups() error {
	needed := []string{"cpu", "cpuset", "memory", "pids"}
	var have []string
	unified, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	switch {
	case err == nil:
		have = strings.Fields(string(unified))
	case errors.Is(err, fs.ErrNotExist): // version 1: a line for each, with its name first and whether it is on last
		table, err := os.ReadFile("/proc/cgroups")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(table)) {
			if fields := strings.Fields(line); len(fields) == 4 && fields[3] == "1" {
				have = append(have, fields[0])
			}
		}
	default:
		return err
	}
	var absent []string
	for _, name := range needed {
		if !slices.Contains(have, name) {
			absent = append(absent, name)
		}
	}
	if len(absent) > 0 {
		return fmt.Errorf("no %s", strings.Join(absent, ", "))
	}
	return nil
}

func tryNamespaces() error {
	return apart(unix.CLONE_NEWNS|unix.CLONE_NEWNET|unix.CLONE_NEWIPC|unix.CLONE_NEWUTS|unix.CLONE_NEWPID, func() error { return nil })
}
