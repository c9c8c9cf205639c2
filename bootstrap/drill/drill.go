// Package drill practises the day on which a host dies: on a live cluster, with writers and
// readers at work, one control-plane host is dealt a fault, and what the clients saw of it is
// counted. Every write that the API acknowledged has to be there afterwards.
//
// A fault is bounded in time by the host that it is on, not by the admin's machine, and nothing
// of a drill stays on hosts or in the API.
package drill

import (
	"context"
	"errors"
	"net"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// Options of a drill.
type Options struct {
	Kind    Kind
	Host    string        // the victim; "": the one whose etcd leads
	Via     string        // the host whose way to the API the clients use; "": a worker
	For     time.Duration // of a fault that lasts
	Within  time.Duration // how soon after the fault all has to be well again
	MaxFill int64         // bytes, of Filled
	// Off and On are commands on this machine, of PoweredOff: without Off the host resets itself, without
	// On it boots by itself. {host} in a word stands for the victim's name.
	Off, On []string
	Writers int
	Readers int

	// Emit is told how it goes, one event at a time.
	Emit func(plan.Event)
}

// Result is what clients saw of a fault.
type Result struct {
	Fault Kind   `json:"fault"`
	Host  string `json:"host"` // the victim
	Via   string `json:"via"`  // whose way to the API the clients used
	// WriteOutageMS and ReadOutageMS are the longest time that a client, the unluckiest one, went
	// without a success, over what was usual before the fault.
	WriteOutageMS int64 `json:"writeOutage_ms"`
	ReadOutageMS  int64 `json:"readOutage_ms"`
	// RecoveryMS is from the fault's end until all members of etcd, API servers and nodes were well; 0: nobody
	// saw them be.
	RecoveryMS int64    `json:"recovery_ms,omitempty"`
	Writes     int      `json:"writes"` // acknowledged
	Reads      int      `json:"reads"`  // answered
	Failed     int      `json:"failed"` // operations that were refused or not answered in time
	Lost       []Record `json:"lost"`   // acknowledged writes that are not there
	Stale      []Record `json:"stale"`  // acknowledged writes that a later read did not see
	Notes      []string `json:"notes,omitempty"`
}

// Drill is one that can be run: the cluster can bear it.
type Drill struct {
	Options
	Victim Node

	cluster *Cluster
	via     Node
	fault   Fault
}

// Prepare chooses the victim and the clients' way. It refuses a drill that etcd could not
// bear: with a fault.Quorum that has the arithmetic.
func Prepare(ctx context.Context, c *Cluster, o Options) (*Drill, error) {
	members, err := c.members(ctx)
	if err != nil {
		return nil, err
	}
	if err := spare(members); err != nil {
		return nil, err
	}
	d := &Drill{Options: o, cluster: c}
	if d.Victim, err = c.victim(members, o.Host); err != nil {
		return nil, err
	}
	if d.via, err = c.clientsHost(d.Victim, o.Via); err != nil {
		return nil, err
	}
	d.fault, err = c.fault(ctx, d.Victim, o)
	return d, err
}

// Run practises the fault on a cluster that is well, and takes everything back, also when ctx
// ends. If acknowledged writes are lost or were not seen by later reads, the error is a fault.WritesLost
// and the result says which.
func (d *Drill) Run(ctx context.Context) (*Result, error) {
	dial, err := d.cluster.through(ctx, d.via)
	if err != nil {
		return nil, err
	}
	kube, err := d.cluster.client(dial)
	if err != nil {
		return nil, err
	}
	writers, err := d.stores(dial, d.Writers)
	if err != nil {
		return nil, err
	}
	readers, err := d.stores(dial, d.Readers)
	if err != nil {
		return nil, err
	}
	w := newWatch(d.cluster, d.Victim, kube)
	defer w.close()
	tell := teller{d.Victim.Host, d.Emit}
	err = tell.step("look", "looks whether all members, API servers and nodes are well", func() error { return beWell(ctx, w, tell) })
	if err != nil {
		return nil, err
	}
	if err := makeNamespace(ctx, kube); err != nil {
		return nil, err
	}
	e := exercise{
		fault: d.fault, lasts: d.For, within: d.Within, watch: w, victim: victim{d.Victim, w},
		writers: writers, readers: readers, judge: configMaps{kube: kube},
		kind: d.Kind, tell: tell,
	}
	result, err := e.run(ctx)
	result.Via = d.via.Host
	return result, errors.Join(err, tell.step("tidy", "waits until namespace "+Namespace+" is gone", func() error { return tidy(ctx, kube) }))
}

// settleTime is how long a cluster may take to be well that has only just been made.
const settleTime = 15 * time.Second

// beWell refuses to practise on a cluster that is not well.
func beWell(ctx context.Context, w Watch, tell teller) error {
	settling, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	troubles := untilWell(settling, w, func(now string) { tell.progress("look", now) })
	if len(troubles) == 0 || ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fault.New(fault.Unhealthy, "see `kubewright doctor`, and practise on a cluster that is well",
		"the cluster is not well before the drill: %s", strings.Join(troubles, "; "))
}

// filler is what a record holds while a disk is full: small ones may find room for a while.
const filler = 1 << 10

// stores are the ways of n clients to the API, each with connections of its own.
func (d *Drill) stores(dial cluster.DialFunc, n int) ([]Store, error) {
	var value string
	if d.Kind == Filled {
		value = strings.Repeat("x", filler)
	}
	all := make([]Store, n)
	for i := range all {
		// A function of its own: connections are shared by those who dial alike.
		kube, err := d.cluster.client(func(ctx context.Context, network, address string) (net.Conn, error) {
			return dial(ctx, network, address)
		})
		if err != nil {
			return nil, err
		}
		all[i] = configMaps{kube: kube, value: value}
	}
	return all, nil
}

// cleanupTime bounds what is done after a drill, or one that was broken off.
const cleanupTime = time.Minute

// tidy takes back what the drill made in the API, also when ctx has ended.
func tidy(ctx context.Context, kube kubernetes.Interface) error {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), cleanupTime,
		fault.New(fault.Timeout, "kubectl delete namespace "+Namespace, "it was not gone after %s", cleanupTime))
	defer cancel()
	return removeNamespace(ctx, kube)
}
