// Package cleanup takes a node's traces off its host: processes, mounts,
// network and files, down to what stood there before.
package cleanup

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/systemd"
)

// Pods is the unit that holds all pods' processes.
const Pods = "kubepods.slice"

// Processes stops units and all that runs in them, in the order given, and keeps
// them from starting at boot.
type Processes struct {
	Units []string
}

var _ plan.Action[host.Reader, host.Host] = Processes{}

func (a Processes) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	states, err := r.Units(ctx, a.Units...)
	if err != nil {
		return nil, err
	}
	var diff plan.Diff
	for _, u := range states {
		if u.Active != "inactive" && u.Active != "failed" && u.Load != "not-found" || u.File == "enabled" {
			diff = append(diff, plan.Change{Verb: plan.Stop, Object: u.Name, Detail: u.Active})
		}
	}
	return diff, nil
}

// Apply kills a unit's whole control group before it stops the unit: container
// shims outlive their runtime by design.
func (a Processes) Apply(ctx context.Context, h host.Host) error {
	sd := h.Systemd()
	states, err := h.Units(ctx, a.Units...)
	if err != nil {
		return err
	}
	var enabled []string
	for _, u := range states {
		if u.File == "enabled" {
			enabled = append(enabled, u.Name)
		}
	}
	if len(enabled) > 0 {
		if err := sd.Disable(ctx, enabled...); err != nil {
			return err
		}
		if err := sd.Reload(ctx); err != nil { // systemd remembers what was enabled
			return err
		}
	}
	for _, u := range states {
		if u.Load == "not-found" {
			continue
		}
		if u.Active == "inactive" || u.Active == "failed" {
			continue
		}
		plan.Report(ctx, "stopping "+u.Name)
		if u.MainPID != 0 {
			kill := []string{"systemctl", "kill", "--kill-whom=all", "--signal=KILL", u.Name}
			if _, err := h.Run(ctx, host.Command{Argv: kill}); err != nil {
				return err
			}
		}
		if err := sd.Stop(ctx, u.Name); err != nil {
			return err
		}
	}
	return nil
}

// Mounts unmounts everything strictly below folders.
type Mounts struct {
	Below []string
}

var _ plan.Action[host.Reader, host.Host] = Mounts{}

// found returns the mount points, the innermost first.
func (a Mounts) found(ctx context.Context, r host.Reader) ([]string, error) {
	table, err := r.ReadFile(ctx, "/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for lines := bufio.NewScanner(bytes.NewReader(table)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		point := unescape(fields[4])
		if slices.ContainsFunc(a.Below, func(dir string) bool { return strings.HasPrefix(point, dir+"/") }) {
			points = append(points, point)
		}
	}
	slices.Reverse(points)
	return points, nil
}

// unescape undoes the kernel's octal escapes of blanks and backslashes.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func (a Mounts) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	points, err := a.found(ctx, r)
	if err != nil || len(points) == 0 {
		return nil, err
	}
	return plan.Diff{{Verb: plan.Delete, Object: fmt.Sprintf("%d mounts", len(points)), Detail: points[0]}}, nil
}

func (a Mounts) Apply(ctx context.Context, h host.Host) error {
	points, err := a.found(ctx, h)
	if err != nil || len(points) == 0 {
		return err
	}
	_, err = h.Run(ctx, host.Command{Argv: append([]string{"umount", "--"}, points...)})
	return err
}

// Network removes the interfaces, packet filter tables and routes of a node.
type Network struct {
	Interfaces []string
	Tables     []string       // of nftables, by name, in any family
	Routes     []netip.Prefix // ranges; routes to networks within them go
	IP, NFT    string         // the host's programs
}

var _ plan.Action[host.Reader, host.Host] = Network{}

// traces are the commands that remove what is there, by what they remove.
func (a Network) traces(ctx context.Context, r host.Reader) (map[string][]string, error) {
	traces := map[string][]string{}

	var links []struct {
		Name string `json:"ifname"`
	}
	if err := query(ctx, r, &links, a.IP, "-json", "link", "show"); err != nil {
		return nil, err
	}
	for _, l := range links {
		if slices.Contains(a.Interfaces, l.Name) {
			traces["interface "+l.Name] = []string{a.IP, "link", "delete", "dev", l.Name}
		}
	}

	var routes []struct {
		To       string `json:"dst"`
		Protocol string `json:"protocol"`
	}
	if err := query(ctx, r, &routes, a.IP, "-json", "-4", "route", "show"); err != nil {
		return nil, err
	}
	for _, rt := range routes {
		to, err := netip.ParsePrefix(rt.To)
		if err != nil || rt.Protocol == "kernel" { // a single address or default; or gone with its interface
			continue
		}
		for _, ours := range a.Routes {
			if ours.Contains(to.Addr()) && to.Bits() >= ours.Bits() {
				traces["route "+rt.To] = []string{a.IP, "-4", "route", "delete", rt.To}
			}
		}
	}

	var ruleset struct {
		NFTables []struct {
			Table *struct{ Family, Name string }
		} `json:"nftables"`
	}
	if err := query(ctx, r, &ruleset, a.NFT, "--json", "list", "tables"); err != nil {
		return nil, err
	}
	for _, o := range ruleset.NFTables {
		if o.Table != nil && slices.Contains(a.Tables, o.Table.Name) {
			traces["nftables table "+o.Table.Family+" "+o.Table.Name] = []string{a.NFT, "delete", "table", o.Table.Family, o.Table.Name}
		}
	}
	return traces, nil
}

func query(ctx context.Context, r host.Reader, into any, argv ...string) error {
	out, err := r.Query(ctx, argv...)
	if err != nil {
		return err
	}
	if len(bytes.TrimSpace(out)) == 0 {
		return nil
	}
	if err := json.Unmarshal(out, into); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(argv, " "), err)
	}
	return nil
}

func (a Network) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	traces, err := a.traces(ctx, r)
	var diff plan.Diff
	for _, object := range slices.Sorted(maps.Keys(traces)) {
		diff = append(diff, plan.Change{Verb: plan.Delete, Object: object})
	}
	return diff, err
}

func (a Network) Apply(ctx context.Context, h host.Host) error {
	traces, err := a.traces(ctx, h)
	if err != nil {
		return err
	}
	// Interfaces first: routes through them go with them.
	objects := slices.SortedFunc(maps.Keys(traces), strings.Compare)
	for _, object := range objects {
		if strings.HasPrefix(object, "route ") {
			continue
		}
		if _, err := h.Run(ctx, host.Command{Argv: traces[object]}); err != nil {
			return err
		}
	}
	left, err := a.traces(ctx, h)
	if err != nil {
		return err
	}
	for object, argv := range left {
		if strings.HasPrefix(object, "route ") {
			if _, err := h.Run(ctx, host.Command{Argv: argv}); err != nil {
				return err
			}
		}
	}
	return nil
}

// Units removes unit files, and has systemd forget them.
type Units struct {
	Units []string
}

var _ plan.Action[host.Reader, host.Host] = Units{}

func (a Units) files() []string {
	paths := make([]string, len(a.Units))
	for i, u := range a.Units {
		paths[i] = path.Join(systemd.Dir, u)
	}
	return paths
}

func (a Units) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	found, err := r.Stat(ctx, a.files()...)
	if err != nil {
		return nil, err
	}
	var diff plan.Diff
	for _, f := range found {
		if f.Exists {
			diff = append(diff, plan.Change{Verb: plan.Delete, Object: f.Path})
		}
	}
	known, err := r.Units(ctx, a.Units...)
	if err != nil {
		return nil, err
	}
	for _, u := range known {
		if u.Load != "not-found" || u.Active == "failed" {
			diff = append(diff, plan.Change{Verb: plan.Delete, Object: u.Name, Detail: "systemd knows it still"})
		}
	}
	return diff, nil
}

func (a Units) Apply(ctx context.Context, h host.Host) error {
	if err := h.Remove(ctx, a.files()...); err != nil {
		return err
	}
	sd := h.Systemd()
	if err := sd.Reload(ctx); err != nil {
		return err
	}
	for _, u := range append(slices.Clone(a.Units), Pods) {
		if err := sd.ResetFailed(ctx, u); err != nil {
			return err
		}
	}
	return nil
}

// Files puts back what stood before: what was not there goes, a folder that was
// empty is emptied, and in one that had content only Own goes.
type Files struct {
	Paths  []string // parents before what is in them
	Before claim.Before
	Own    []string // files of ours in folders that were there before, globs in the last element allowed
}

var _ plan.Action[host.Reader, host.Host] = Files{}

// surplus lists what stands on the host now and did not before.
func (a Files) surplus(ctx context.Context, r host.Reader) ([]string, error) {
	found, err := r.Stat(ctx, a.Paths...)
	if err != nil {
		return nil, err
	}
	var remove []string
	covered := func(p string) bool {
		return slices.ContainsFunc(remove, func(dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") })
	}
	for _, f := range found {
		// The claim goes last, in a step of its own: it is what lets a reset be resumed.
		if !f.Exists || f.Path == claim.Dir || covered(f.Path) {
			continue
		}
		switch a.Before.Paths[f.Path] {
		case "":
			remove = append(remove, f.Path)
		case "empty":
			names, err := r.ReadDir(ctx, f.Path)
			if err != nil {
				return nil, err
			}
			for _, name := range names {
				if p := path.Join(f.Path, name); !slices.Contains(a.Paths, p) || a.Before.Paths[p] == "" {
					remove = append(remove, p)
				}
			}
		}
	}
	for _, pattern := range a.Own {
		names, err := r.ReadDir(ctx, path.Dir(pattern))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if ok, _ := path.Match(path.Base(pattern), name); ok {
				if p := path.Join(path.Dir(pattern), name); !covered(p) {
					remove = append(remove, p)
				}
			}
		}
	}
	return remove, nil
}

// changed lists the folders of before whose mode is another now.
func (a Files) changed(ctx context.Context, r host.Reader) ([]host.File, error) {
	found, err := r.Stat(ctx, slices.Sorted(maps.Keys(a.Before.Modes))...)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(found, func(f host.File) bool {
		return !f.Exists || f.Mode.Perm() == a.Before.Modes[f.Path].Perm()
	}), nil
}

func (a Files) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	remove, err := a.surplus(ctx, r)
	if err != nil {
		return nil, err
	}
	var diff plan.Diff
	for _, p := range remove {
		diff = append(diff, plan.Change{Verb: plan.Delete, Object: p})
	}
	changed, err := a.changed(ctx, r)
	for _, f := range changed {
		diff = append(diff, plan.Change{Verb: plan.Update, Object: f.Path,
			Detail: fmt.Sprintf("mode %04o -> %04o", f.Mode.Perm(), a.Before.Modes[f.Path].Perm())})
	}
	return diff, err
}

func (a Files) Apply(ctx context.Context, h host.Host) error {
	remove, err := a.surplus(ctx, h)
	if err != nil {
		return err
	}
	if err := h.Remove(ctx, remove...); err != nil {
		return err
	}
	changed, err := a.changed(ctx, h)
	if err != nil {
		return err
	}
	for _, f := range changed {
		meta := host.Meta{Mode: a.Before.Modes[f.Path].Perm(), UID: f.UID, GID: f.GID}
		if err := h.Mkdir(ctx, f.Path, meta); err != nil {
			return err
		}
	}
	return nil
}

// Settings puts kernel settings back.
type Settings struct {
	Before map[string]string // by path below /proc/sys
}

var _ plan.Action[host.Reader, host.Host] = Settings{}

func (a Settings) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	var diff plan.Diff
	for _, s := range slices.Sorted(maps.Keys(a.Before)) {
		have, err := r.ReadFile(ctx, path.Join("/proc/sys", s))
		if errors.Is(err, fs.ErrNotExist) {
			continue // its module is gone
		}
		if err != nil {
			return nil, err
		}
		if got := strings.TrimSpace(string(have)); got != a.Before[s] {
			diff = append(diff, plan.Change{Verb: plan.Update, Object: s, Detail: got + " -> " + a.Before[s]})
		}
	}
	return diff, nil
}

func (a Settings) Apply(ctx context.Context, h host.Host) error {
	argv := []string{"sysctl", "-q", "-w"}
	for _, s := range slices.Sorted(maps.Keys(a.Before)) {
		argv = append(argv, strings.ReplaceAll(s, "/", ".")+"="+a.Before[s])
	}
	_, err := h.Run(ctx, host.Command{Argv: argv})
	return err
}
