package bootstrap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kubewright/kubewright/bootstrap/backup"
	"github.com/kubewright/kubewright/bootstrap/backup/census"
	"github.com/kubewright/kubewright/bootstrap/certs"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/file"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
	"github.com/kubewright/kubewright/pki"
)

// Restore is a backup that a cluster is made from: its authorities, its data and its id
// are taken instead of new ones.
type Restore struct {
	Backup   *backup.Backup
	Snapshot etcd.Source
	// Counted is set when the objects of the restored cluster were counted, by this run or by an earlier one.
	Counted *plan.Value[Recount]
	// Count counts them; nil: by etcd and the API of the restored cluster.
	Count Counter
}

// Recount is what a restored cluster has, by kind, as of its first revision.
type Recount struct {
	Origin string        `json:"origin"` // what the snapshot is known by: its SHA-256
	Kinds  []backup.Kind `json:"kinds"`  // as in the manifest, with the objects that were found
	// Late is why they cannot be compared with the manifest, "" if they can.
	Late string `json:"late,omitempty"`
}

// Counter counts the objects of each kind of a manifest in the cluster whose data a host has.
type Counter func(ctx context.Context, via host.Reader, access cluster.Access, m backup.Manifest) (Recount, error)

// NewRestore is one that is still to be carried out.
func NewRestore(b *backup.Backup, snapshot etcd.Source) *Restore {
	return &Restore{Backup: b, Snapshot: snapshot, Counted: plan.NewValue[Recount]("the objects of the restored cluster")}
}

// Resume orders hosts as FounderFirst does, but for the one that an earlier run has given the backup's data: that is
// the first one, however they are given. What was counted on it is not counted again.
func (r *Restore) Resume(ctx context.Context, targets []Target) ([]Target, error) {
	ordered := FounderFirst(targets)
	for i, t := range ordered {
		if !t.EtcdData {
			continue
		}
		origin, err := etcd.Origin(ctx, t.Host)
		if err != nil {
			return nil, fault.At(t.Wish.Name, "gather-facts", err)
		}
		if origin == r.origin() {
			return slices.Insert(slices.Delete(ordered, i, i+1), 0, t), fault.At(t.Wish.Name, "gather-facts", r.recall(ctx, t.Host))
		}
	}
	return ordered, nil
}

// recall reads what an earlier run has counted on the host that was given the data.
func (r *Restore) recall(ctx context.Context, h host.Reader) error {
	content, err := h.ReadFile(ctx, etcd.CountFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var was Recount
	if json.Unmarshal(content, &was) == nil && was.Origin == r.origin() && len(was.Kinds) == len(r.Backup.Manifest.Kinds) {
		r.Counted.Set(was)
	}
	return nil
}

// common is what all control-plane hosts had.
func (r *Restore) common() certs.Common {
	c := certs.Common{}
	for _, name := range pki.CommonFiles() {
		if content, ok := r.Backup.Files[certs.Dir+"/"+name]; ok {
			c[name] = content
		}
	}
	return c
}

// Complete refuses a backup without all that control-plane hosts had in common.
func (r *Restore) Complete() error {
	have := r.common()
	for _, name := range pki.CommonFiles() {
		if len(have[name]) == 0 {
			return fault.New(fault.BackupRefused, "take another backup", "the backup has no %s", name)
		}
	}
	return nil
}

// origin is what the snapshot is known by on the host that has its data.
func (r *Restore) origin() string { return r.Backup.Snapshot.SHA256 }

// dataStep gives the founder of the cluster its data.
func (r *Restore) dataStep(c *shared, n Node) hostStep {
	m := r.Backup.Manifest
	s := step("etcd/restore", "the data of the backup", etcd.Restore{Member: c.etcd(n), From: r.Snapshot, Origin: r.origin(),
		Detail: fmt.Sprintf("from the backup of %s, revision %d", m.Made.Format(time.RFC3339), m.Data.Revision)})
	s.Timeout = dataTime(r.Backup.Snapshot.Size)
	return s
}

// slowest is how many bytes a second a snapshot comes to its host at least: a way that is slower than this
// is taken for one that is broken.
const slowest = 256 << 10

// dataTime bounds a step that sends or copies so many bytes: begun anew, it would come no further in the
// same time.
func dataTime(bytes int64) time.Duration {
	return plan.DefaultTimeout + time.Duration(bytes/slowest)*time.Second
}

// RefuseFiles tells, before anything is changed, which file of the admin's an API server of the restored cluster would
// not start without: the backup has it not, nor has the host. Older versions took the keys for Secrets only.
func (r *Restore) RefuseFiles(ctx context.Context, wish *spec.Cluster, targets []Target) error {
	files := slices.DeleteFunc(adminFilesOf(wish), func(f spec.APIServerFile) bool {
		_, kept := r.Backup.Files[f.Path]
		return kept
	})
	var faults []error
	for _, t := range targets {
		if t.Wish.Role != spec.ControlPlaneRole {
			continue
		}
		have, err := readAdminFiles(ctx, t.Host, files)
		if err != nil {
			return fault.At(t.Wish.Name, adminStep, err)
		}
		for _, f := range files {
			if _, ok := have[f.Path]; !ok {
				faults = append(faults, fault.At(t.Wish.Name, adminStep, fault.New(fault.HostUnsuitable,
					"put the file there, on every control-plane host", "there is no %s, nor has the backup it", f)))
			}
		}
	}
	return errors.Join(faults...)
}

// fileSteps write the admin's files that the API server reads: without them it cannot read its Secrets, or does
// not start. They come with the data, so what a host has in their place gives way.
func (r *Restore) fileSteps(wish *spec.Cluster) []hostStep {
	var put file.Put
	for _, p := range r.adminPaths(wish) {
		put.Files = append(put.Files, file.Wish{Path: p, Mode: 0o600, Content: r.Backup.Files[p]})
	}
	if len(put.Files) == 0 {
		return nil
	}
	return []hostStep{step("apiserver/write-files", "the admin's own files, of the backup", put)}
}

// adminPaths are the backup's files that are not the cluster's own, sorted: those outside the certificates' folder,
// and in it those that the wish names. What else is there is of a host that is no more.
func (r *Restore) adminPaths(wish *spec.Cluster) []string {
	var paths []string
	for p := range r.Backup.Files {
		named := slices.ContainsFunc(adminFilesOf(wish), func(f spec.APIServerFile) bool { return f.Path == p })
		if named || !strings.HasPrefix(p, certs.Dir+"/") {
			paths = append(paths, p)
		}
	}
	slices.Sort(paths)
	return paths
}

// clusterSteps count what was restored, and take out the nodes of control-plane hosts that
// are no more.
func (r *Restore) clusterSteps(c *shared, nodes []Node) []clusterStep {
	lost := r.lost(nodes)
	return []clusterStep{
		{Name: "backup/count", Doc: "count what was restored, as of the backup", Wait: true,
			Sets: []plan.Cell{r.Counted}, Do: recount{restore: r, via: nodes[0], access: c.access}},
		{Name: "node/bury-pods", Doc: "the pods of control-plane hosts that are no more", Do: cluster.DeadPods{Nodes: lost}},
		{Name: "node/forget", Doc: "their nodes", Do: cluster.Remove{Nodes: lost, By: c.run.By}},
	}
}

// countStep keeps what was counted.
func (r *Restore) countStep() hostStep {
	return hostStep{Name: "backup/keep-count", Doc: "what was counted, for a run that is given again", Needs: []plan.Cell{r.Counted}, Do: keepCount{r.Counted}}
}

// keepCount writes down what was counted.
type keepCount struct{ counted *plan.Value[Recount] }

func (a keepCount) put() (file.Put, error) {
	content, err := json.Marshal(a.counted.Get())
	return file.Put{Files: []file.Wish{{Path: etcd.CountFile, Mode: 0o600, Content: append(content, '\n')}}}, err
}

// Foresee is said as long as nothing is counted.
func (a keepCount) Foresee() plan.Diff {
	return plan.Diff{{Verb: plan.Create, Kind: plan.ObjectFile, Object: etcd.CountFile, After: &plan.State{Mode: "-rw-------", Later: true}}}
}

func (a keepCount) Check(ctx context.Context, r host.Reader) (plan.Diff, error) {
	put, err := a.put()
	if err != nil {
		return nil, err
	}
	return put.Check(ctx, r)
}

func (a keepCount) Apply(ctx context.Context, h host.Host) error {
	put, err := a.put()
	if err != nil {
		return err
	}
	return put.Apply(ctx, h)
}

// lost are the nodes of the control-plane hosts that are not among nodes.
func (r *Restore) lost(nodes []Node) []string {
	var lost []string
	for _, was := range r.Backup.Manifest.Nodes {
		if was.ControlPlane && !slices.ContainsFunc(nodes, func(n Node) bool { return n.Name == was.Name }) {
			lost = append(lost, was.Name)
		}
	}
	return lost
}

// Advice says what to do with the control-plane hosts of the backup that are not among the targets, a line each; nothing
// if all of them are.
func (r *Restore) Advice(targets []Target) []string {
	var names []string
	reset := ""
	for _, was := range r.Backup.Manifest.Nodes {
		switch {
		case !was.ControlPlane || among(targets, was):
		case was.Host == "": // its init or join had not come to its end
			names, reset = append(names, was.Name+" at "+was.Address), " HOST..."
		default:
			names = append(names, was.Host)
		}
	}
	if len(names) == 0 {
		return nil
	}
	if reset == "" {
		reset = " " + strings.Join(names, " ")
	}
	return []string{
		keepOff("no longer of the control plane: "+strings.Join(names, ", "), "the others"),
		fmt.Sprintf("next: kubewright reset%s, when they are on; then kubewright join --control-plane HOST, for each that is to come back", reset)}
}

// among tells whether the host of a node of the backup is one of the targets, by its name or its address.
func among(targets []Target, was backup.Node) bool {
	address, err := netip.ParseAddr(was.Address)
	return slices.ContainsFunc(targets, func(t Target) bool {
		return t.Wish.Name == was.Host || err == nil && t.interfaceOf(address) != ""
	})
}

// recount counts the objects of each kind at the revision that the data had when they
// were restored.
type recount struct {
	restore *Restore
	via     Node
	access  *plan.Value[cluster.Access]
}

func (a recount) Check(context.Context, cluster.Reader) (plan.Diff, error) {
	if a.restore.Counted.IsSet() {
		return nil, nil
	}
	return plan.Diff{{Verb: plan.Await, Kind: plan.ObjectWait, Object: "count of all objects"}}, nil
}

func (a recount) Apply(ctx context.Context, _ cluster.Writer) error {
	count := a.restore.Count
	if count == nil {
		count = countRestored
	}
	r, err := count(ctx, a.via.Host, a.access.Get(), a.restore.Backup.Manifest)
	if err != nil {
		return err
	}
	r.Origin = a.restore.origin()
	a.restore.Counted.Set(r)
	return nil
}

// countRestored asks etcd for its oldest revision, and the API for the objects at it. It finds what was restored
// whatever was changed since, as long as etcd keeps that: API servers have it thrown away after five minutes.
func countRestored(ctx context.Context, via host.Reader, access cluster.Access, m backup.Manifest) (Recount, error) {
	store, err := etcd.Connect(ctx, via, certs.Dir+"/etcd")
	if err != nil {
		return Recount{}, err
	}
	defer store.Close() //nolint:errcheck // only read through
	at, err := store.HashKV(ctx, store.Endpoints()[0], 0)
	if err != nil {
		return Recount{}, fmt.Errorf("etcd's revision: %w", err)
	}
	// All that was restored is compacted up to its last revision, put forward.
	oldest, first := at.CompactRevision, m.Data.Revision+etcd.Bump
	r := Recount{}
	switch {
	case oldest == first:
	case m.Data.Exact:
		r.Late = fmt.Sprintf("they are counted late, %d revisions after they were restored", oldest-first)
	default:
		r.Late = fmt.Sprintf("the snapshot goes on for %d revisions after the count", oldest-first)
	}
	r.Kinds, err = census.Count(ctx, cluster.Config(access, via.Dial), m.Kinds, oldest)
	return r, err
}

// OldServers are the addresses at which control-plane hosts of the backup still serve the
// API, those of targets aside: the cluster is not lost then.
func (r *Restore) OldServers(ctx context.Context, wish *spec.Cluster, targets []Target) []string {
	var serving []string
	for _, n := range r.Backup.Manifest.Nodes {
		address, err := netip.ParseAddr(n.Address)
		if err != nil || !n.ControlPlane || slices.ContainsFunc(targets, func(t Target) bool { return t.interfaceOf(address) != "" }) {
			continue
		}
		at := net.JoinHostPort(n.Address, strconv.Itoa(wish.APIServer.Port))
		dialing, cancel := context.WithTimeout(ctx, oldServerTime)
		conn, err := targets[0].Host.Dial(dialing, "tcp", at)
		cancel()
		if err == nil {
			conn.Close() //nolint:errcheck // nothing was said
			serving = append(serving, n.Name+" at "+at)
		}
	}
	return serving
}

// oldServerTime bounds the question whether somebody serves at an address.
const oldServerTime = 2 * time.Second

// Wish is the cluster of the backup on other control-plane hosts: its record, with the
// hosts that are given for the control plane, and those workers of it that are named. A host that was one
// of its control plane is the same node again, at whatever address.
func (r *Restore) Wish(controlPlane, workers []string) (*spec.Cluster, error) {
	wish, err := spec.Load(strings.NewReader(string(r.Backup.Spec)), "the backup's cluster.yaml")
	if err != nil {
		return nil, err
	}
	known := wish.Hosts
	wish.Hosts = nil
	for _, name := range controlPlane {
		h := spec.Host{Name: name}
		if i := slices.IndexFunc(known, func(k spec.Host) bool { return k.Name == name && k.Role == spec.ControlPlaneRole }); i >= 0 {
			h.Node, h.Labels, h.Taints = known[i].Node, known[i].Labels, known[i].Taints
		}
		h.Role = spec.ControlPlaneRole
		wish.Hosts = append(wish.Hosts, h)
	}
	for _, name := range workers {
		h := spec.Host{Name: name}
		if i := slices.IndexFunc(known, func(k spec.Host) bool { return k.Name == name && k.Role == spec.WorkerRole }); i >= 0 {
			h = known[i]
		}
		h.Role = spec.WorkerRole
		wish.Hosts = append(wish.Hosts, h)
	}
	return wish, wish.Validate()
}

// Workers are the hosts of the backup's workers, by the names that SSH knows them by.
func (r *Restore) Workers() []string {
	var names []string
	for _, n := range r.Backup.Manifest.Nodes {
		if !n.ControlPlane && n.Host != "" {
			names = append(names, n.Host)
		}
	}
	return names
}

// Changeable refuses a wish for what cannot be another than in the backup.
func (r *Restore) Changeable(wish *spec.Cluster) error {
	was, err := spec.Load(strings.NewReader(string(r.Backup.Spec)), "the backup's cluster.yaml")
	if err != nil {
		return err
	}
	return (&Live{Record: cluster.Record{Name: r.Backup.Manifest.Cluster}, Spec: was}).Changeable(wish)
}
