package inventory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// File keeps the inventory of the time before the first change.
const File = "/var/lib/kubewright/inventory.json.gz"

// Keep writes down what stands on a host, once: before anything but the claim is
// changed on it.
type Keep struct {
	Settings []string // kernel settings that count, by their path below /proc/sys
}

var _ plan.Action[host.Reader, host.Host] = Keep{}

func (Keep) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	found, err := r.Stat(ctx, File)
	if err != nil || found[0].Exists {
		return nil, err
	}
	return plan.Diff{{Verb: plan.Create, Kind: plan.ObjectFile, Object: File, Detail: "files, units, mounts, network and settings as they are"}}, nil
}

func (k Keep) Apply(ctx context.Context, h host.Host) error {
	now, err := Take(ctx, h, k.Settings...)
	if err != nil {
		return err
	}
	content, err := now.Encode()
	if err != nil {
		return err
	}
	return h.WriteFile(ctx, File, bytes.NewReader(content), host.Meta{Mode: 0o600})
}

// Proof is how a host that was put back compares with its inventory.
type Proof struct {
	Missing bool         // no inventory was taken: the first run ended before that
	Before  string       // digest
	After   string       // digest; equal if there is no difference
	Count   int          // objects compared
	Ours    []Difference // what kubewright changed and did not put back
	Others  []Difference // what others changed meanwhile
}

// Compare compares a host that was put back with its inventory. What differs where
// we changed something is a fault.NotAsBefore, unless it is forced; what others
// changed meanwhile is theirs.
type Compare struct {
	Settings []string      // as in Keep
	Ours     []plan.Object // that we made or changed
	Force    bool
	Result   *plan.Value[Proof]
}

var _ plan.Action[host.Reader, host.Host] = Compare{}

// Check has nothing to compare once it was done: the result is set.
func (c Compare) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	if c.Result.IsSet() {
		return nil, nil
	}
	return plan.Diff{{Verb: plan.Await, Kind: plan.ObjectWait, Object: "comparison with the inventory"}}, nil
}

func (c Compare) Apply(ctx context.Context, h host.Host) error {
	content, err := h.ReadFile(ctx, File)
	if errors.Is(err, fs.ErrNotExist) {
		c.Result.Set(Proof{Missing: true})
		return nil
	}
	if err != nil {
		return err
	}
	before, err := Decode(content)
	if err != nil {
		return fmt.Errorf("%s: %w", File, err)
	}
	after, err := Take(ctx, h, c.Settings...)
	if err != nil {
		return err
	}
	p := Proof{Before: before.Digest(), After: after.Digest(), Count: before.Len()}
	for _, d := range Diff(*before, *after) {
		if c.ours(d) {
			p.Ours = append(p.Ours, d)
		} else {
			p.Others = append(p.Others, d)
		}
	}
	if len(p.Ours) > 0 && !c.Force {
		words := make([]string, len(p.Ours))
		for i, d := range p.Ours {
			words[i] = d.String()
		}
		return fault.New(fault.NotAsBefore, "put these back by hand and run the same command again, or release the host as it is with `kubewright reset "+h.Name()+" --force`",
			"the host is not what it was before the first change: %s", strings.Join(words, "; "))
	}
	c.Result.Set(p)
	return nil
}

// ours tells whether a difference is in what we changed. A module that the kernel
// keeps is the kernel's.
func (c Compare) ours(d Difference) bool {
	return slices.ContainsFunc(c.Ours, func(o plan.Object) bool {
		switch d.Section {
		case Files:
			return o.Kind == plan.ObjectFile && within(d.Object, o.Name)
		case Units:
			return (o.Kind == plan.ObjectUnit || o.Kind == plan.ObjectSlice) && d.Object == o.Name
		case Groups:
			return o.Kind == plan.ObjectSlice && path.Base(d.Object) == o.Name
		case Mounts:
			return o.Kind == plan.ObjectMounts && within(d.Object, o.Name)
		case Interfaces:
			return o.Kind == plan.ObjectInterface && d.Object == o.Name
		case Routes:
			return o.Kind == plan.ObjectRoutes && strings.Contains(d.Object, o.Name)
		case Firewall:
			return o.Kind == plan.ObjectTable && strings.Contains(d.Object, o.Name)
		case Settings:
			return o.Kind == plan.ObjectSetting && d.Object == strings.ReplaceAll(o.Name, ".", "/")
		}
		return false
	})
}

func within(name, dir string) bool { return name == dir || strings.HasPrefix(name, dir+"/") }
