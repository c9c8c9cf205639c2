// Package support collects what helps others to find out what is wrong with a
// cluster: logs, states, versions, configuration, events of all hosts and of the API,
// in one compressed tar archive. No secret is in it: files with private keys are not
// read, Secrets are not asked for, pre-images of the journal are left out, and all
// else goes through redact.
package support

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/doctor"
	"github.com/kubewright/kubewright/bootstrap/redact"
)

const (
	// root is the folder that the archive unpacks to.
	root = "kubewright-support"
	// itemTimeout bounds what is asked of a host or of the API, each.
	itemTimeout = 20 * time.Second
	// itemLimit bounds what is kept of one item: its end, in bytes.
	itemLimit = 2 << 20
)

// Item is one file of the archive, or what could not be had of it.
type Item struct {
	Path    string `json:"path"`
	Size    int    `json:"size"`
	Trouble string `json:"trouble,omitempty"`
}

// Collect writes the archive to w. What cannot be had is told in the items, and does
// not keep the rest from being collected; an error is one of writing to w. Of hosts
// and cluster, doctor's own inputs are taken, and its findings are among the items.
func Collect(ctx context.Context, in doctor.Inputs, version string, w io.Writer) ([]Item, error) {
	zip := gzip.NewWriter(w)
	a := &archive{tar: tar.NewWriter(zip), now: time.Now()}
	a.add("version.txt", []byte(version+"\n"), nil)
	var all sync.WaitGroup
	all.Go(func() { a.findings(ctx, in) })
	all.Go(func() { a.cluster(ctx, in.Client) })
	for _, h := range in.Hosts {
		all.Go(func() { a.host(ctx, h) })
	}
	all.Wait()
	slices.SortFunc(a.items, func(x, y Item) int { return strings.Compare(x.Path, y.Path) })
	index := slices.Clone(a.items)
	a.json("index.json", index, nil)
	return index, errors.Join(a.err, a.tar.Close(), zip.Close())
}

// archive is written to by many at once.
type archive struct {
	now time.Time

	mu    sync.Mutex
	tar   *tar.Writer
	items []Item
	err   error // of writing
}

// add puts a text into the archive, without its secrets, or says why it is not there.
func (a *archive) add(name string, content []byte, trouble error) {
	var clean bytes.Buffer
	err := redact.Copy(&clean, bytes.NewReader(content))
	if skip := clean.Len() - itemLimit; skip > 0 { // only now: half a secret is not recognised
		clean.Next(skip)
	}
	item := Item{Path: path.Join(root, name), Size: clean.Len()}
	if trouble != nil {
		item.Trouble = redact.Text(trouble.Error())
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.items = append(a.items, item)
	if clean.Len() == 0 && trouble != nil {
		return
	}
	if err == nil {
		err = a.tar.WriteHeader(&tar.Header{Name: item.Path, Mode: 0o600, Size: int64(item.Size), ModTime: a.now, Format: tar.FormatPAX})
	}
	if err == nil {
		_, err = a.tar.Write(clean.Bytes())
	}
	a.err = errors.Join(a.err, err)
}

// json adds a value in JSON, a field a line, as redact knows it best.
func (a *archive) json(name string, value any, trouble error) {
	if trouble != nil {
		a.add(name, nil, trouble)
		return
	}
	content, err := json.MarshalIndent(value, "", "  ")
	a.add(name, append(content, '\n'), err)
}

func (a *archive) findings(ctx context.Context, in doctor.Inputs) {
	report := doctor.Examine(ctx, in)
	a.json("findings.json", report, nil)
}

// safe makes the name of a host or pod one element of a path.
func safe(name string) string {
	return strings.NewReplacer("/", "_", "\\", "_", "..", "_").Replace(name)
}

// errNoAPI is said in place of the cluster's objects without access to them.
var errNoAPI = errors.New("there is no access to the API")

func (a *archive) cluster(ctx context.Context, client cluster.Reader) {
	if client == nil {
		a.add("cluster", nil, errNoAPI)
		return
	}
	kube, err := client.Kubernetes(ctx)
	if err != nil {
		a.add("cluster", nil, err)
		return
	}
	asking, cancel := context.WithTimeout(ctx, itemTimeout)
	defer cancel()
	if _, err := cluster.Readyz(asking, kube); err != nil {
		a.add("cluster/readyz.txt", nil, fmt.Errorf("the API is not ready: %w", err))
	}
	a.objects(ctx, kube)
	a.podLogs(ctx, kube)
}
