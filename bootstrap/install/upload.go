package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"

	"github.com/kubewright/kubewright/bootstrap/bundle"
	"github.com/kubewright/kubewright/bootstrap/bundle/unpack"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// Upload has the bundle's files stand in their version folder. The folder
// appears whole or not at all, so a cut connection or a full disk leaves the host as it was.
type Upload struct {
	Bundle *bundle.Bundle
}

var _ plan.Action[host.Reader, host.Host] = Upload{}

// unbundle is where the program that unpacks stands meanwhile.
const unbundle = Root + "/.unbundle"

func (u Upload) dir() string { return path.Join(Root, u.Bundle.Name()) }

// Check compares the folder's manifest, which is written last, with the
// bundle's, and the size of every file with the manifest's. The program that
// unpacks must be gone.
func (u Upload) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	create := plan.Diff{{Verb: plan.Create, Kind: plan.ObjectFile, Object: u.dir(), Detail: "bundle " + u.Bundle.Digest(),
		After:  &plan.State{Mode: (fs.ModeDir | 0o755).String(), Later: true},
		Brings: plan.Objects(plan.ObjectFile, unbundle)}}
	have, err := r.ReadFile(ctx, path.Join(u.dir(), unpack.ManifestName))
	if errors.Is(err, fs.ErrNotExist) {
		return create, nil
	}
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(have, u.Bundle.Manifest()) {
		return create, nil
	}
	manifest, err := unpack.ParseManifest(have)
	if err != nil {
		return nil, err
	}
	paths := make([]string, len(manifest.Files))
	for i, f := range manifest.Files {
		paths[i] = path.Join(u.dir(), f.Path)
	}
	found, err := r.Stat(ctx, append(paths, unbundle)...)
	if err != nil {
		return nil, err
	}
	for i, f := range manifest.Files {
		if !found[i].Exists || f.Link == "" && found[i].Size != f.Size {
			return plan.Diff{{Verb: plan.Update, Kind: plan.ObjectFile, Object: u.dir(), Detail: paths[i] + " is absent or damaged"}}, nil
		}
	}
	if left := found[len(paths)]; left.Exists {
		return plan.Diff{{Verb: plan.Delete, Kind: plan.ObjectFile, Object: left.Path, Detail: "left by a run that was broken off",
			Before: &plan.State{Mode: left.Mode.String()}}}, nil
	}
	return nil, nil
}

// Apply sends the small program that unpacks, then streams the layers through it.
// If that is all there is to do, it only removes the program.
func (u Upload) Apply(ctx context.Context, h host.Host) error {
	diff, err := u.Check(ctx, h)
	if err != nil {
		return err
	}
	if len(diff) == 1 && diff[0].Verb == plan.Delete {
		return h.Remove(ctx, unbundle)
	}
	program, err := u.Bundle.Unbundler()
	if err != nil {
		return err
	}
	if err := h.WriteFile(ctx, unbundle, bytes.NewReader(program), host.Meta{Mode: 0o755}); err != nil {
		return err
	}
	pr, pw := io.Pipe()
	go func() {
		pw.CloseWithError(u.Bundle.Stream(pw, func(done, total int64) {
			plan.ReportBytes(ctx, "bundle", done, total)
		}))
	}()
	_, err = h.Run(ctx, host.Command{Argv: []string{unbundle, "--into", u.dir()}, Stdin: pr})
	pr.CloseWithError(errors.New("the host reads no more"))
	if rmErr := h.Remove(ctx, unbundle); err == nil {
		err = rmErr
	}
	var exit *host.ExitError
	if errors.As(err, &exit) && exit.Status == unpack.StatusNoSpace {
		return fault.New(fault.DiskFull, fmt.Sprintf("make 400 MB of room below %s, then run the same command again", Root),
			"no space left on the host for the bundle: %w", err)
	}
	return err
}
