// Package lab makes disposable hosts on one Linux machine: an overlay clone of
// a small Debian with systemd and sshd, in namespaces and cgroups of its own,
// on a network without a way out. They boot in about two seconds, and again by
// themselves after a reboot, can lose their power and each other, and leave nothing
// behind when they are destroyed.
//
// It must be run as root. Nothing is mounted in the outer machine's mount
// namespace and no rule is added to its firewall; of a running lab it sees one
// interface, a folder per cgroup hierarchy, the processes, and the lab's folder.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// Options of a lab.
type Options struct {
	// Name of the lab; hosts are called NAME-1, NAME-2, ...
	Name string `json:"name"`
	// Hosts is how many there are, at least 1.
	Hosts int `json:"hosts"`
	// NATNIC adds what Vagrant gives its machines: eth0 is 10.0.2.15/24 on every
	// host, with the default route, and leads nowhere; eth1 is the lab's network.
	NATNIC bool `json:"natNIC,omitempty"`
	// Rate limits each host's link in each direction, as tc writes it: "100mbit".
	Rate string `json:"rate,omitempty"`
	// MTU of the lab's network. Default: 1500.
	MTU int `json:"mtu,omitempty"`
	// SameMachineID gives all hosts one machine-id, as clones of a disk have.
	SameMachineID bool `json:"sameMachineID,omitempty"`
	// Bastion lets the outer machine reach the first host alone; the ssh_config
	// has it as the ProxyJump of the others.
	Bastion bool `json:"bastion,omitempty"`
	// Trouble of the last host.
	Trouble Trouble `json:"trouble,omitzero"`
}

const defaultMTU = 1500

// String says the options without the name, for people.
func (o Options) String() string {
	s := fmt.Sprintf("%d hosts, MTU %d", o.Hosts, o.MTU)
	if o.NATNIC {
		s += ", a NAT NIC"
	}
	if o.Rate != "" {
		s += ", " + o.Rate
	}
	if o.SameMachineID {
		s += ", one machine-id"
	}
	if o.Bastion {
		s += ", a bastion"
	}
	if o.Trouble != (Trouble{}) {
		s += ", the last with " + o.Trouble.String()
	}
	return s
}

func (o *Options) check() error {
	if err := checkName(o.Name); err != nil {
		return err
	}
	if o.Hosts < 1 || o.Hosts > maxHosts {
		return fault.New(fault.Usage, "", "a lab has 1 to %d hosts, not %d", maxHosts, o.Hosts)
	}
	const minMTU, maxMTU = 576, 65521 // of IPv4's hosts; of a bridge on veths
	if o.MTU == 0 {
		o.MTU = defaultMTU
	}
	if o.MTU < minMTU || o.MTU > maxMTU {
		return fault.New(fault.Usage, "", "a lab's MTU is %d to %d, not %d", minMTU, maxMTU, o.MTU)
	}
	if o.Rate != "" {
		if _, err := parseRate(o.Rate); err != nil {
			return err
		}
	}
	return o.Trouble.check()
}

// Lab is one that exists. Its methods may be called at once; those that change
// it wait for each other, also across processes.
type Lab struct {
	dir   string
	trees []hierarchy

	mu    sync.Mutex // guards state
	state *state
	// changing is the order of those that change the lab within this program.
	changing sync.Mutex
}

// Host is one host of a lab.
type Host struct {
	Name    string
	Address netip.Addr // in the lab's network
	PID     int        // of its init, as seen from outside; 0: it has no power
	Running bool
}

// Create makes a lab and returns when all its hosts are up. If there is one of
// that name it starts what does not run of it; one that was left half-made is
// made anew, one with other options is a fault.
func Create(ctx context.Context, o Options, progress func(string)) (*Lab, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if err := errors.Join(checkRootUser(), requireTools("nft", "nsenter")); err != nil {
		return nil, err
	}
	unlock, err := lockLab(ctx, o.Name)
	if err != nil {
		return nil, fmt.Errorf("create lab %s: %w", o.Name, err)
	}
	defer unlock()
	l, err := create(ctx, o, progress)
	if err != nil {
		os.Remove(filepath.Join(stateRoot, o.Name)) //nolint:errcheck // it only goes if there is nothing in it yet
		return nil, fmt.Errorf("create lab %s: %w", o.Name, err)
	}
	return l, nil
}

func create(ctx context.Context, o Options, progress func(string)) (*Lab, error) {
	start := time.Now()
	old, err := readState(o.Name)
	if err == nil && !old.Complete {
		progress("removing what an unfinished create left")
		if err := remove(ctx, o.Name, false); err != nil {
			return nil, err
		}
		err = fs.ErrNotExist
	}
	var l *Lab
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if l, err = newLab(ctx, o, progress); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	case old.Options != o:
		return nil, fault.New(fault.Usage, "kubewright lab destroy "+o.Name, "there is one with other options: %s", old.Options)
	default:
		if l, err = open(old); err != nil {
			return nil, err
		}
	}
	if ok, err := l.running(); err != nil {
		return nil, err
	} else if ok {
		progress("all hosts run")
		return l, nil
	}
	if err := l.startAll(ctx, progress); err != nil {
		return nil, err
	}
	if err := l.update(func(s *state) { s.Complete = true }); err != nil {
		return nil, err
	}
	progress(fmt.Sprintf("ready in %s", timeSince(start)))
	return l, nil
}

// newLab writes down a new lab and prepares the disks of its hosts.
func newLab(ctx context.Context, o Options, progress func(string)) (*Lab, error) {
	rootfs, err := BuildRootfs(ctx, progress)
	if err != nil {
		return nil, err
	}
	st, err := newState(ctx, o, rootfs)
	if err != nil {
		return nil, err
	}
	progress("network " + st.Subnet.String())
	l, err := open(st)
	if err != nil {
		return nil, err
	}
	disks, err := writeAccess(st)
	if err != nil {
		return nil, err
	}
	for i := range st.Hosts {
		if err := l.writeDisk(&st.Hosts[i], disks[i]); err != nil {
			return nil, fmt.Errorf("write disk of %s: %w", st.Hosts[i].Name, err)
		}
	}
	progress("disks written")
	return l, nil
}

func checkRootUser() error {
	if os.Geteuid() != 0 {
		return fault.New(fault.HostUnsuitable, "run it with sudo", "a lab needs root on this machine")
	}
	return nil
}

// Open returns the lab of that name; a fault with code Usage if there is none.
func Open(name string) (*Lab, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	st, err := readState(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Usage, "kubewright lab list", "there is no lab %s", name)
	} else if err != nil {
		return nil, err
	}
	return open(st)
}

func open(st *state) (*Lab, error) {
	trees, err := machineHierarchies()
	if err != nil {
		return nil, err
	}
	return &Lab{dir: st.dir(), trees: trees, state: st}, nil
}

// List returns all labs by name, those included that a killed create left half-made.
func List() ([]*Lab, error) {
	all, err := labNames()
	if err != nil {
		return nil, err
	}
	var labs []*Lab
	for _, name := range all {
		st, err := readState(name)
		if errors.Is(err, fs.ErrNotExist) { // destroyed meanwhile
			continue
		} else if err != nil {
			return nil, err
		}
		l, err := open(st)
		if err != nil {
			return nil, err
		}
		labs = append(labs, l)
	}
	return labs, nil
}

// Name of the lab.
func (l *Lab) Name() string { return filepath.Base(l.dir) }

// Dir is the lab's folder.
func (l *Lab) Dir() string { return l.dir }

// Gateway is the address that this machine has in the lab's network.
func (l *Lab) Gateway() netip.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.gateway()
}

// Hosts of the lab in the order of their numbers, as they are now.
func (l *Lab) Hosts() []Host {
	st, err := readState(l.Name()) // another process may have changed it
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		st = l.state
	}
	all := make([]Host, len(st.Hosts))
	for i, h := range st.Hosts {
		all[i] = Host{Name: h.Name, Address: h.Address}
		if h.Init.alive() {
			all[i].PID, all[i].Running = h.Init.PID, true
		}
	}
	return all
}

// running tells whether the lab's network and all its hosts are there.
func (l *Lab) running() (bool, error) {
	if ok, err := l.switchUp(); err != nil || !ok {
		return false, err
	}
	for _, h := range l.Hosts() {
		if !h.Running {
			return false, nil
		}
	}
	return true, nil
}

// change runs do with the lab locked and its state as it is on disk.
func (l *Lab) change(ctx context.Context, do func() error) error {
	l.changing.Lock()
	defer l.changing.Unlock()
	unlock, err := lock(ctx, l.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Usage, "kubewright lab list", "there is no lab %s any more", l.Name())
	} else if err != nil {
		return err
	}
	defer unlock()
	if err := l.reread(); err != nil {
		return err
	}
	return do()
}

// reread takes the state from disk: another process may have changed it.
func (l *Lab) reread() error {
	st, err := readState(l.Name())
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = st
	return nil
}

// update changes the state and writes it down. The lab is locked.
func (l *Lab) update(change func(*state)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(l.state)
	return l.state.write()
}

func (l *Lab) noHost(name string) error {
	return fault.New(fault.Usage, "kubewright lab list", "lab %s has no host %q", l.Name(), name)
}

// Destroy ends a lab and removes all of it, however much of it there is. That
// there is none is no error.
func Destroy(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := checkRootUser(); err != nil {
		return err
	}
	unlock, err := lock(ctx, filepath.Join(stateRoot, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // its folder is the last of a lab that goes
	} else if err != nil {
		return fmt.Errorf("destroy lab %s: %w", name, err)
	}
	defer unlock()
	if err := remove(ctx, name, true); err != nil {
		return fmt.Errorf("destroy lab %s: %w", name, err)
	}
	return nil
}

// remove removes a lab that is locked, its folder too if all is true. The state
// goes last, so that a remove that was cut short can be done again.
func remove(ctx context.Context, name string, all bool) error {
	trees, err := machineHierarchies()
	if err != nil {
		return err
	}
	// Every process of a lab was in its cgroups before it did anything.
	if err := clearCgroups(ctx, trees, name, ""); err != nil {
		return err
	}
	if err := removeEmptyFolder(ctx, trees); err != nil {
		return err
	}
	outside, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("remove network: %w", err)
	}
	defer outside.Close()
	if err := deleteLink(outside, uplinkName(name)); err != nil {
		return fmt.Errorf("remove network: %w", err)
	}
	dir := filepath.Join(stateRoot, name)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == stateFile {
			continue
		}
		if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	if err := os.Remove(filepath.Join(dir, stateFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !all {
		return nil
	}
	return os.Remove(dir)
}

// removeEmptyFolder removes the cgroup folder of all labs if none is left,
// while no other lab can be about to use it.
func removeEmptyFolder(ctx context.Context, trees []hierarchy) error {
	unlock, err := lock(ctx, stateRoot)
	if err != nil {
		return err
	}
	defer unlock()
	return removeCgroupFolder(trees)
}
