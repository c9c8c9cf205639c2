package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// bootDeadline is many times what a boot takes on a machine that does nothing else.
const bootDeadline = 90 * time.Second

const sshPort = "22"

// What a host's folder holds.
const (
	upperFolder = "upper"   // its disk: what differs from the root file system
	workFolder  = "work"    // overlayfs's own
	rootFolder  = "root"    // where its root is mounted, in its namespace only
	dataFolder  = "data"    // a folder for each of dataFolders
	consoleFile = "console" // what its first process had to say
)

// writeDisk makes the disk of a host, with nothing on it but the files.
func (l *Lab) writeDisk(h *hostState, files []diskFile) error {
	dir := l.state.hostDir(h)
	for _, name := range []string{upperFolder, workFolder, rootFolder} {
		if err := mkdirs(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	for _, folder := range dataFolders() {
		if err := mkdirs(dataDir(dir, folder)); err != nil {
			return err
		}
	}
	if l.state.trouble(h).Swap {
		if err := writeFile(filepath.Join(dir, swapsFile), []byte(swaps), 0o444); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := writeBelow(filepath.Join(dir, upperFolder), f); err != nil {
			return err
		}
	}
	return nil
}

// dataDir is where outside the overlay a data folder of a host is.
func dataDir(hostDir, folder string) string {
	return filepath.Join(hostDir, dataFolder, filepath.Base(folder))
}

// Start boots a host that has no power, with the disk, addresses and identity
// that it had, and returns when it is up. It is no error if it runs.
func (l *Lab) Start(ctx context.Context, host string) error {
	ctx, cancel := bootContext(ctx)
	defer cancel()
	var h hostState
	err := l.change(ctx, func() error {
		found, ok := l.state.host(host)
		if !ok {
			return l.noHost(host)
		}
		if err := l.ensureSwitch(ctx); err != nil {
			return err
		}
		if err := l.boot(ctx, found); err != nil {
			return err
		}
		h = *found
		return nil
	})
	if err == nil {
		err = l.waitReady(ctx, h)
	}
	if err != nil {
		return fmt.Errorf("start %s: %w", host, err)
	}
	return nil
}

// Kill takes the power from a host: every process in it ends at once, without
// notice, and its mounts with it. What it wrote to its disk stays. It is no
// error if it has no power.
func (l *Lab) Kill(ctx context.Context, host string) error {
	err := l.change(ctx, func() error {
		h, ok := l.state.host(host)
		if !ok {
			return l.noHost(host)
		}
		// First who would boot it again.
		if err := clearCgroups(ctx, l.trees, l.state.Name, powerMember+h.Name); err != nil {
			return err
		}
		return l.halt(ctx, h)
	})
	if err != nil {
		return fmt.Errorf("kill %s: %w", host, err)
	}
	return nil
}

// startAll boots every host that does not run, all at once.
func (l *Lab) startAll(ctx context.Context, progress func(string)) error {
	ctx, cancel := bootContext(ctx)
	defer cancel()
	if err := l.ensureSwitch(ctx); err != nil {
		return err
	}
	progress("switch made")
	var (
		done   sync.WaitGroup
		failed = make([]error, len(l.state.Hosts))
		tell   sync.Mutex // progress is called by one at a time
	)
	say := func(text string) {
		tell.Lock()
		defer tell.Unlock()
		progress(text)
	}
	for i := range l.state.Hosts {
		done.Go(func() {
			h := &l.state.Hosts[i]
			start := time.Now()
			say(h.Name + ": power on")
			err := l.boot(ctx, h)
			if err == nil {
				say(h.Name + ": booting")
				err = l.waitReady(ctx, *h)
			}
			if err != nil {
				failed[i] = fmt.Errorf("start %s: %w", h.Name, err)
				return
			}
			say(fmt.Sprintf("%s: up in %s", h.Name, timeSince(start)))
		})
	}
	done.Wait()
	return errors.Join(failed...)
}

func bootContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, bootDeadline, fault.New(fault.Timeout, "", "not up after %s", bootDeadline))
}

// boot makes the host's namespaces, cgroups and interfaces and lets its init
// go. The lab is locked and its switch there.
func (l *Lab) boot(ctx context.Context, h *hostState) error {
	if h.Init.alive() {
		return nil
	}
	if _, err := os.Stat(l.state.Rootfs); err != nil {
		return fault.New(fault.HostUnsuitable, "kubewright lab destroy "+l.state.Name, "its root file system is gone: %w", err)
	}
	if err := raiseLimits(); err != nil {
		return err
	}
	// What is left of a host that lost its power in another way than Kill.
	if err := l.halt(ctx, h); err != nil {
		return err
	}
	if l.state.Options.NATNIC {
		err := l.startHolder(routerMember+h.Name, "kubewright-lab: router of "+h.Name, func(p process) error {
			return l.update(func(*state) { h.Router = p })
		})
		if err != nil {
			return fmt.Errorf("make router: %w", err)
		}
	}
	slow := l.state.trouble(h).SlowDisk
	if slow == 0 {
		return l.startInit(h)
	}
	device, err := openFuse()
	if err != nil {
		return err
	}
	defer device.Close()
	disk, err := l.startDisk(h, device)
	if err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	if err := l.startInit(h, device); err != nil {
		disk.abandon()
		return err
	}
	disk.reap()
	return release(disk, diskOrders{Dir: dataDir(l.state.hostDir(h), etcdFolder), Fsync: slow})
}

// startInit makes the host's namespaces and lets its init go. The further files
// are for its set-up.
func (l *Lab) startInit(h *hostState, further ...*os.File) error {
	if err := makeCgroups(l.trees, l.state.Name, h.Name); err != nil {
		return err
	}
	dir := l.state.hostDir(h)
	console, err := os.OpenFile(filepath.Join(dir, consoleFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer console.Close()
	s, p, err := l.startHost(h, append([]*os.File{console}, further...))
	if err != nil {
		return err
	}
	err = enterCgroups(l.trees, l.state.Name, h.Name, p.PID)
	if err == nil {
		err = l.update(func(*state) { h.Init = p })
	}
	if err == nil {
		err = l.attach(h)
	}
	if err != nil {
		s.abandon()
		return err
	}
	s.reap()
	return release(s, l.bootOrders(h))
}

func (l *Lab) bootOrders(h *hostState) bootOrders {
	dir := l.state.hostDir(h)
	o := bootOrders{
		Hostname:    h.Name,
		Lower:       l.state.Rootfs,
		Upper:       filepath.Join(dir, upperFolder),
		Work:        filepath.Join(dir, workFolder),
		Root:        filepath.Join(dir, rootFolder),
		Recipe:      filepath.Base(l.state.Rootfs),
		Hierarchies: l.trees,
		FullDisk:    l.state.trouble(h).FullDisk,
		EtcdDisk:    l.state.trouble(h).EtcdDisk,
		SlowDisk:    l.state.trouble(h).SlowDisk != 0,
	}
	if l.state.trouble(h).Swap {
		o.Swaps = filepath.Join(dir, swapsFile)
	}
	for _, folder := range dataFolders() {
		o.Binds = append(o.Binds, bindMount{Source: dataDir(dir, folder), Target: folder})
	}
	return o
}

// halt ends all of a host but its disk, and who boots it again.
func (l *Lab) halt(ctx context.Context, h *hostState) error {
	// The end of its init is the end of every process in its namespace; the
	// cgroups have those that only visited.
	if err := h.Init.kill(ctx); err != nil {
		return err
	}
	for _, member := range []string{h.Name, routerMember + h.Name, diskMember + h.Name} {
		if err := clearCgroups(ctx, l.trees, l.state.Name, member); err != nil {
			return err
		}
	}
	if err := l.detach(h); err != nil {
		return err
	}
	if h.Init.PID == 0 && h.Router.PID == 0 {
		return nil
	}
	return l.update(func(*state) { h.Init, h.Router = process{}, process{} })
}

// waitReady returns when a host answers ssh and systemd has started all that it
// should. A unit that failed is an error with its name, and one that does not come to its end
// in time one with its job.
func (l *Lab) waitReady(ctx context.Context, h hostState) error {
	err := l.awaitReady(ctx, h)
	if err != nil && h.Init.alive() && fault.CodeOf(context.Cause(ctx)) == fault.Timeout {
		return l.starting(ctx, h)
	}
	return err
}

func (l *Lab) awaitReady(ctx context.Context, h hostState) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { // a host that dies is not waited for
		for h.Init.alive() {
			if pause(ctx) != nil {
				return
			}
		}
		cancel(fault.New(fault.StepFailed, "", "its init ended: %s", l.console(&h)))
	}()
	l.mu.Lock()
	reached := l.state.reached(&h)
	l.mu.Unlock()
	if reached { // of another, systemd's word is enough: it waits for sshd to listen
		if err := waitSSH(ctx, h.Address); err != nil {
			return err
		}
	}
	for {
		var out bytes.Buffer
		status, err := l.exec(ctx, h, []string{"systemctl", "is-system-running", "--wait"}, nil, &out, &out)
		if err != nil {
			return err
		}
		switch state := strings.TrimSpace(out.String()); {
		case status == 0:
			return nil
		case state == "degraded" || state == "maintenance":
			out.Reset()
			list := []string{"systemctl", "list-units", "--failed", "--plain", "--no-legend", "--full"}
			if _, err := l.exec(ctx, h, list, nil, &out, &out); err != nil {
				return err
			}
			return fault.New(fault.StepFailed, l.commandOn(h, "systemctl --failed"),
				"it is %s: %s", state, strings.Join(strings.Fields(out.String()), " "))
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// starting is the fault of a host that runs, but has not started all in time: a unit that waits for
// another one, such as an API server for etcd, does not fail.
func (l *Lab) starting(ctx context.Context, h hostState) error {
	const patience = 5 * time.Second
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	var out bytes.Buffer
	jobs := "it could not be asked for what it waits"
	if status, err := l.exec(ctx, h, []string{"systemctl", "list-jobs", "--no-legend", "--full"}, nil, &out, &out); err == nil && status == 0 {
		jobs = "its jobs are: " + strings.Join(strings.Fields(out.String()), " ")
	}
	return fault.New(fault.Timeout, l.commandOn(h, "systemctl list-jobs")+" and "+l.commandOn(h, "systemctl --failed"),
		"it is on, but not up after %s: %s", bootDeadline, jobs)
}

// commandOn is how an admin runs a command on a host, whatever it lacks.
func (l *Lab) commandOn(h hostState, command string) string {
	return fmt.Sprintf("`kubewright lab exec %s %s -- %s`", l.Name(), h.Name, command)
}

// waitSSH returns when an SSH server shows its banner.
func waitSSH(ctx context.Context, a netip.Addr) error {
	for {
		banner := func() bool {
			c, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(a.String(), sshPort))
			if err != nil {
				return false
			}
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			line, err := bufio.NewReader(c).ReadString('\n')
			return err == nil && strings.HasPrefix(line, "SSH-")
		}()
		if banner {
			return nil
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("wait for sshd: %w", err)
		}
	}
}

// console is the end of what a host's first process wrote.
func (l *Lab) console(h *hostState) string {
	b, err := os.ReadFile(filepath.Join(l.dir, "hosts", h.Name, consoleFile))
	if err != nil {
		return err.Error()
	}
	return lastLines(string(b), 3)
}
