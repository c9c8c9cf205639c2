package drill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
)

// Kind is what befalls a host.
type Kind string

// The kinds.
const (
	Killed      Kind = "kill-leader"
	Partitioned Kind = "partition"
	PoweredOff  Kind = "power-cut"
	Filled      Kind = "fill-disk"
)

// Kinds are all of them, the mildest first.
func Kinds() []Kind { return []Kind{Killed, Partitioned, Filled, PoweredOff} }

// Fault is what is done to one host.
type Fault interface {
	// Begin deals the fault, and returns when it is there.
	Begin(ctx context.Context, v Victim) error
	// End ends it, if it has not ended by itself. It leaves nothing on the host.
	End(ctx context.Context, v Victim) error
	Nature() Nature
}

// Nature says what is to be expected of a fault.
type Nature struct {
	Lasts bool // until End; else it is over as soon as it has begun
	Parts bool // the host's node is not heard of meanwhile
}

// Kill is the sudden end of units' processes. systemd starts them again.
type Kill struct {
	Units []string
}

func (k Kill) Begin(ctx context.Context, v Victim) error {
	return command(ctx, v, append([]string{"systemctl", "kill", "--signal=SIGKILL"}, k.Units...)...)
}

func (Kill) End(context.Context, Victim) error { return nil }
func (Kill) Nature() Nature                    { return Nature{} }

// command runs a command on the host.
func command(ctx context.Context, v Victim, argv ...string) error {
	h, err := v.Host(ctx)
	if err != nil {
		return err
	}
	_, err = h.Run(ctx, host.Command{Argv: argv})
	return err
}

// spell is a fault that a transient unit on the host keeps up: it is there as long as the
// unit runs, and a unit that ends, in whatever way, takes it away. So it ends in time even
// if the admin's machine or the connection dies, and with the power at the latest.
type spell struct {
	begin [][]string    // commands that deal the fault; one that fails makes it fail
	end   [][]string    // commands that take it away
	holds string        // file that the unit keeps open, "": none
	lasts time.Duration // by when somebody will have ended it
}

// spellGrace is how much longer than it is to last a fault would be there if nobody ended it.
const spellGrace = 10 * time.Second

// spellUnit is the unit's name; there is one fault at a time on a host.
const spellUnit = "kubewright-drill.service"

// env finds a program as a shell would: systemd wants the whole path of what it starts.
const env = "/usr/bin/env"

func (s spell) argv() []string {
	argv := []string{"systemd-run", "--quiet", "--collect", "--unit=" + spellUnit, "--description=kubewright drill: a fault that ends by itself"}
	for _, c := range s.begin {
		argv = append(argv, "--property=ExecStartPre="+commandLine(c))
	}
	for _, c := range s.end {
		argv = append(argv, "--property=ExecStopPost=-"+commandLine(c))
	}
	if s.holds != "" {
		argv = append(argv, "--property=StandardInput=file:"+s.holds)
	}
	return append(argv, "--", "sleep", strconv.FormatFloat((s.lasts+spellGrace).Seconds(), 'f', -1, 64))
}

// commandLine writes a command as systemd reads it.
func commandLine(argv []string) string {
	words := []string{env}
	for _, a := range argv {
		words = append(words, `"`+strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `$$`).Replace(a)+`"`)
	}
	return strings.Join(words, " ")
}

func (s spell) cast(ctx context.Context, v Victim) error { return command(ctx, v, s.argv()...) }

func dispel(ctx context.Context, v Victim) error {
	h, err := v.Host(ctx)
	if err != nil {
		return err
	}
	return h.Systemd().Stop(ctx, spellUnit)
}

// Partition cuts a host from the other nodes and their pods. SSH goes on.
type Partition struct {
	Others []netip.Prefix // what it hears nothing of, IPv4
	Admin  netip.Addr     // whence SSH comes to it, invalid if that is not known
	Port   uint16         // where its sshd listens
	For    time.Duration
}

// partitionTable is the packet filter's table, and the name of all that a partition is made of.
const partitionTable = "kubewright-drill"

func (p Partition) spell() spell {
	others := make([]string, len(p.Others))
	for i, o := range p.Others {
		others[i] = o.String()
	}
	set := "{ " + strings.Join(others, ", ") + " }"
	const table = "inet " + partitionTable
	// Before connection tracking, so that what stands is cut as well.
	commands := []string{
		"add table " + table,
		"add chain " + table + " in { type filter hook prerouting priority -310; }",
		"add chain " + table + " out { type filter hook postrouting priority -310; }",
	}
	if p.Admin.IsValid() {
		// It may come from one of the nodes.
		commands = append(commands,
			fmt.Sprintf("add rule %s in ip saddr %s tcp dport %d accept", table, p.Admin, p.Port),
			fmt.Sprintf("add rule %s out ip daddr %s tcp sport %d accept", table, p.Admin, p.Port))
	}
	commands = append(commands,
		"add rule "+table+" in ip saddr "+set+" drop",
		"add rule "+table+" out ip daddr "+set+" drop")
	return spell{
		begin: [][]string{{"nft", strings.Join(commands, "; ")}},
		end:   [][]string{{"nft", "delete table " + table}},
		lasts: p.For,
	}
}

func (p Partition) Begin(ctx context.Context, v Victim) error { return p.spell().cast(ctx, v) }
func (Partition) End(ctx context.Context, v Victim) error     { return dispel(ctx, v) }
func (Partition) Nature() Nature                              { return Nature{Lasts: true, Parts: true} }

// Fill leaves no room on the file system of etcd's data.
type Fill struct {
	Most int64 // bytes that may be written for it
	For  time.Duration
}

// fillFile is what takes the room.
const fillFile = etcd.DataDir + "/kubewright-drill.fill"

// The last of the room, which a file system may want for itself if much is asked for at
// once, is taken in grains until nothing is left.
const (
	fillGrain = 4 << 10  // bytes
	fillRest  = 32 << 20 // at most, and no more than a part of all
	fillPart  = 16
)

// Begin refuses to fill a file system that is not etcd's alone: what shares it would fail too.
// The file has no name in the end: only the unit has it, so it is gone with the power as well.
func (f Fill) Begin(ctx context.Context, v Victim) error {
	h, err := v.Host(ctx)
	if err != nil {
		return err
	}
	free, err := f.room(ctx, h)
	if err != nil {
		return err
	}
	if err := h.WriteFile(ctx, fillFile, strings.NewReader(""), host.Meta{Mode: 0o600}); err != nil {
		return err
	}
	err = f.fill(ctx, v, h, free)
	return errors.Join(err, h.Remove(context.WithoutCancel(ctx), fillFile))
}

// fill writes the file until nothing is left.
func (f Fill) fill(ctx context.Context, v Victim, h host.Host, free int64) error {
	most := free - min(fillRest, free/fillPart)
	s := spell{
		begin: [][]string{{"fallocate", "--length", strconv.FormatInt(most, 10), fillFile}},
		end:   [][]string{{"rm", "-f", fillFile}},
		holds: fillFile,
		lasts: f.For,
	}
	if err := s.cast(ctx, v); err != nil {
		return err
	}
	// It ends where nothing is left, which is an error of its own.
	_, err := h.Run(ctx, host.Command{Argv: []string{
		"dd", "if=/dev/zero", "of=" + fillFile, "oflag=append", "conv=notrunc",
		fmt.Sprintf("bs=%d", fillGrain), fmt.Sprintf("count=%d", 2*fillRest/fillGrain),
	}})
	if exit := (*host.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return err
	}
	left, err := roomOf(ctx, h)
	if err == nil && left >= 2*fillGrain {
		err = fault.New(fault.StepFailed, "practise another fault", "%s: %d bytes are free though it was filled", etcd.DataDir, left)
	}
	return err
}

func (Fill) End(ctx context.Context, v Victim) error { return dispel(ctx, v) }
func (Fill) Nature() Nature                          { return Nature{Lasts: true} }

// fillLeast is the room that etcd may need afterwards: to mend a log whose end was not written it
// copies a segment of 64 MB, and makes two new ones.
const fillLeast = 256 << 20

// fillable are the kinds of file system that have room of their own.
func fillable() []string { return []string{"ext2", "ext3", "ext4", "xfs", "f2fs", "tmpfs"} }

// fit refuses what cannot be filled.
func (f Fill) fit(ctx context.Context, h host.Host) error {
	_, err := f.room(ctx, h)
	return err
}

// room is how many bytes have to be written until the disk is full, if that is safe.
func (f Fill) room(ctx context.Context, h host.Host) (int64, error) {
	refuse := func(format string, args ...any) error {
		return fault.New(fault.HostUnsuitable, "give "+etcd.DataDir+" a file system of its own with room, or practise another fault", format, args...)
	}
	table, err := h.ReadFile(ctx, host.MountTable)
	if err != nil {
		return 0, err
	}
	mounts := host.Mounts(string(table))
	var own host.Mount // the last is on top
	for _, m := range mounts {
		if m.Point == etcd.DataDir {
			own = m
		}
	}
	elsewhere := func(m host.Mount) bool { return m.Device == own.Device && m.Point != own.Point }
	switch {
	case own.Point == "":
		return 0, refuse("%s is not a file system of its own: all that shares it would have no room either", etcd.DataDir)
	case own.Root != "/" || slices.ContainsFunc(mounts, elsewhere):
		return 0, refuse("%s is a part of a file system that is mounted elsewhere too: all that shares it would have no room either", etcd.DataDir)
	case !slices.Contains(fillable(), own.Kind):
		return 0, refuse("%s is %s: what shares its room cannot be told", etcd.DataDir, own.Kind)
	}
	free, err := roomOf(ctx, h)
	if err == nil && free < fillLeast {
		return 0, refuse("%s has %d bytes free, less than etcd may need to start again afterwards (%d)", etcd.DataDir, free, fillLeast)
	}
	if err == nil && free > f.Most {
		return 0, fault.New(fault.HostUnsuitable, "allow more with --max-fill", "%s has %d bytes free, more than may be filled (%d)", etcd.DataDir, free, f.Most)
	}
	return free, err
}

// roomOf is how much root can still write for etcd.
func roomOf(ctx context.Context, h host.Host) (int64, error) {
	out, err := h.Query(ctx, "stat", "--file-system", "--format=%S %f", etcd.DataDir)
	if err != nil {
		return 0, err
	}
	var block, blocks int64
	if _, err := fmt.Sscan(string(out), &block, &blocks); err != nil {
		return 0, fmt.Errorf("free blocks of %s: %q: %w", etcd.DataDir, bytes.TrimSpace(out), err)
	}
	return block * blocks, nil
}

// PowerCut takes the power from a host.
type PowerCut struct {
	// Off is a command on this machine, IPMI's for example; none: the host resets itself.
	Off []string
	// On is one that gives the power back; none: the host boots by itself.
	On []string
}

// containerFile is where systemd tells the name that a container's manager has given itself.
const containerFile = "/run/systemd/container"

// bootsAgain are the managers that boot a container which has reset itself, as a machine would.
func bootsAgain() []string { return []string{"kubewright-lab"} }

// fit refuses to reset what is no machine, unless it comes back all the same.
func (p PowerCut) fit(ctx context.Context, h host.Host) error {
	if len(p.On) > 0 {
		return nil
	}
	kind, err := h.Query(ctx, "systemd-detect-virt", "--container")
	if exit := (*host.ExitError)(nil); errors.As(err, &exit) {
		return nil
	}
	if err != nil {
		return err
	}
	manager, err := h.ReadFile(ctx, containerFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if slices.Contains(bootsAgain(), strings.TrimSpace(string(manager))) {
		return nil
	}
	return fault.New(fault.HostUnsuitable, "name the command that turns it on again with --power-on",
		"it is a container (%s): a reset may turn it off for good", bytes.TrimSpace(kind))
}

// resetTime is how long a host that resets itself may take to say no. One that does it does not answer.
const resetTime = 3 * time.Second

func (p PowerCut) Begin(ctx context.Context, v Victim) error {
	defer v.Forget()
	if len(p.Off) > 0 {
		return local(ctx, p.Off)
	}
	ctx, cancel := context.WithTimeout(ctx, resetTime)
	defer cancel()
	// Twice by force and without a sync: the kernel resets the machine, nothing else is told.
	err := command(ctx, v, "reboot", "--force", "--force", "-n")
	if exit := (*host.ExitError)(nil); errors.As(err, &exit) {
		return err
	}
	return nil
}

func (p PowerCut) End(ctx context.Context, _ Victim) error {
	if len(p.On) == 0 {
		return nil
	}
	return local(ctx, p.On)
}

func (p PowerCut) Nature() Nature { return Nature{Lasts: len(p.On) > 0, Parts: true} }

// local runs a command on this machine.
func local(ctx context.Context, argv []string) error {
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", path.Base(argv[0]), err, bytes.TrimSpace(out))
	}
	return nil
}
