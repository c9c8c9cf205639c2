package bootstrap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/kubewright/kubewright/bootstrap/certs"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/file"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
	"github.com/kubewright/kubewright/pki"
)

// An admin's own flags of the API server may name files of his. All control-plane hosts need the same ones:
// without the keys in one of them an API server reads no Secret, and without any other it does not start. They
// are on hosts only, so a further host gets them from one that has them, as it gets the cluster's authorities, and
// a restored one from the backup.

// adminFilesOf are those that a cluster's wish names. What pki/write makes is not the admin's, whoever names it.
func adminFilesOf(c *spec.Cluster) []spec.APIServerFile {
	return slices.DeleteFunc(c.APIServer.Files(), func(f spec.APIServerFile) bool {
		name, below := strings.CutPrefix(f.Path, certs.Dir+"/")
		return below && slices.Contains(pki.FileNames(), name)
	})
}

// adminContents are what is in such files, by path; secret.
type adminContents map[string][]byte

// String hides them.
func (adminContents) String() string { return "the admin's files" }

// readAdminFiles reads those that a host has.
func readAdminFiles(ctx context.Context, r host.Reader, files []spec.APIServerFile) (adminContents, error) {
	contents := adminContents{}
	for _, f := range files {
		content, err := r.ReadFile(ctx, f.Path)
		switch {
		case err == nil:
			contents[f.Path] = content
		case !errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("read %s: %w", f, err)
		}
	}
	return contents, nil
}

// RefuseFiles tells, before anything is changed, which file of an admin's a control-plane host lacks from which
// the others get them, or another one has in a version of its own. One that has an API server already keeps what it has: keys may
// be in the course of being changed, host by host.
func RefuseFiles(ctx context.Context, c *spec.Cluster, from Target, others []Target) error {
	files := adminFilesOf(c)
	have, err := readAdminFiles(ctx, from.Host, files)
	if err != nil {
		return fault.At(from.Wish.Name, adminStep, err)
	}
	var faults []error
	for _, f := range files {
		if _, ok := have[f.Path]; !ok {
			faults = append(faults, fault.At(from.Wish.Name, adminStep, fault.New(fault.HostUnsuitable,
				"put the file there: further control-plane hosts get it from this one", "there is no %s", f)))
		}
	}
	for _, t := range others {
		if t.Wish.Role != spec.ControlPlaneRole || t.HasAPI || t.Wish.Name == from.Wish.Name {
			continue
		}
		has, err := readAdminFiles(ctx, t.Host, files)
		if err != nil {
			return fault.At(t.Wish.Name, adminStep, err)
		}
		for _, f := range files {
			own, ok := has[f.Path]
			if wished, known := have[f.Path]; ok && known && !bytes.Equal(own, wished) {
				faults = append(faults, fault.At(t.Wish.Name, adminStep, fault.New(fault.HostUnsuitable,
					fmt.Sprintf("remove it from %s, which then gets that of %s; or make them the same", t.Wish.Name, from.Wish.Name),
					"%s is another file than on %s: its API server would not work as the others do, nor read what they encrypt", f, from.Wish.Name)))
			}
		}
	}
	return errors.Join(faults...)
}

// adminStep is what these faults say where they are from.
const adminStep = "preflight"

// readFilesSteps read the admin's files on the host from which others get them.
func (c *shared) readFilesSteps() []hostStep {
	files := adminFilesOf(c.Cluster)
	if len(files) == 0 || c.from != nil {
		return nil
	}
	return []hostStep{{Name: "apiserver/read-files", Doc: "the admin's own files, for the further control-plane hosts", Sets: []plan.Cell{c.files},
		Do: shareFiles{files, c.files}}}
}

// writeFilesSteps give a further control-plane host the admin's files. A backup has those that it is restored with.
func (c *shared) writeFilesSteps() []hostStep {
	files := adminFilesOf(c.Cluster)
	switch {
	case c.from != nil:
		return c.from.fileSteps(c.Cluster)
	case len(files) == 0:
		return nil
	}
	return []hostStep{{Name: "apiserver/write-files", Doc: "the admin's own files, from another control-plane host", Needs: []plan.Cell{c.files},
		Do: takeFiles{files, c.files}}}
}

// shareFiles reads the admin's files, and changes nothing.
type shareFiles struct {
	files    []spec.APIServerFile
	contents *plan.Value[adminContents]
}

func (a shareFiles) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	contents, err := readAdminFiles(ctx, r, a.files)
	if err == nil {
		a.contents.Set(contents)
	}
	return nil, err
}

func (a shareFiles) Apply(context.Context, host.Host) error { return nil }

// takeFiles writes those that are not there, for root alone: what is there is the admin's to change.
type takeFiles struct {
	files    []spec.APIServerFile
	contents *plan.Value[adminContents]
}

func (a takeFiles) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	put, err := a.absent(ctx, r)
	if err != nil {
		return nil, err
	}
	return put.Check(ctx, r)
}

func (a takeFiles) Apply(ctx context.Context, h host.Host) error {
	put, err := a.absent(ctx, h)
	if err != nil {
		return err
	}
	return put.Apply(ctx, h)
}

func (a takeFiles) absent(ctx context.Context, r host.Reader) (file.Put, error) {
	paths := make([]string, len(a.files))
	for i, f := range a.files {
		paths[i] = f.Path
	}
	found, err := r.Stat(ctx, paths...)
	if err != nil {
		return file.Put{}, err
	}
	contents := a.contents.Get()
	var put file.Put
	for i, f := range a.files {
		if found[i].Exists {
			continue
		}
		content, ok := contents[f.Path]
		if !ok {
			return file.Put{}, fault.New(fault.HostUnsuitable, "put the file there", "there is no %s, nor has the host it that has the others", f)
		}
		put.Files = append(put.Files, file.Wish{Path: f.Path, Mode: 0o600, Content: content})
	}
	return put, nil
}
