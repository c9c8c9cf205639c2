package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kubewright/kubewright/bootstrap"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/kubeconfig"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

func (a *app) removeCommand(do doer) *cobra.Command {
	r := bootstrap.Request{Verb: verbRemove}
	c := &cobra.Command{
		Use:   "remove HOST...",
		Short: "Take hosts out of a cluster that lives on",
		Long: "remove drains the nodes, as disruption budgets allow, takes them out of the cluster, and leaves the hosts as they were\n" +
			"before. HOST is a host as it was named to init or join, or a node. Any control-plane host can go as long as etcd keeps\n" +
			"its quorum, the first one included; the last one goes with reset. If pods cannot move within --timeout, the nodes take\n" +
			"pods again: the message says which budget keeps which pods, and which were evicted before.\n\n" +
			"A host that is dead goes with --force: its pods start elsewhere without an end here, so be certain that it is switched\n" +
			"off. It cannot come back as a node: when it is back, `kubewright reset` it.",
		Example: "  kubewright remove w3\n  kubewright remove cp1\n  kubewright remove w3 --timeout 30m\n  kubewright remove w3 --force",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage(c, fmt.Errorf("name hosts"))
			}
			if err := checkTimeout(c, r.Timeout); err != nil {
				return err
			}
			for _, name := range args {
				r.Hosts = append(r.Hosts, spec.Host{Name: name})
			}
			return do(c.Context(), r)
		},
	}
	addTimeout(c.Flags(), &r.Timeout)
	c.Flags().BoolVar(&r.Force, "force", false, "give up what cannot be moved: a host that is dead, pods that no controller makes anew, and after\n"+
		"--timeout pods that budgets keep; release a host on which something of ours is left")
	c.Flags().StringVar(&r.Via, "via", "", "another host of the cluster to reach its API through, where this machine does not reach it itself")
	c.Flags().BoolVar(&a.verify, "verify", false, "print what each host was compared with after it was put back")
	return c
}

func addTimeout(flags *pflag.FlagSet, timeout *time.Duration) {
	flags.DurationVar(timeout, "timeout", bootstrap.DrainTimeout, "how long disruption budgets are waited for, and pods that end")
}

func checkTimeout(c *cobra.Command, timeout time.Duration) error {
	if timeout <= 0 {
		return usage(c, fmt.Errorf("--timeout is more than 0"))
	}
	return nil
}

// connector reaches hosts and takes their locks, if the run takes any.
type connector func([]spec.Host) ([]bootstrap.Target, error)

// reach is connector for one host.
func (c connector) reach(name string) (bootstrap.Target, error) {
	targets, err := c([]spec.Host{{Name: name}})
	if err != nil {
		return bootstrap.Target{}, err
	}
	return targets[0], nil
}

// found are hosts as they were reached, by the names that they were asked for by.
type found struct {
	targets map[string]bootstrap.Target
	faults  map[string]error
}

// find reaches a host, or remembers why it does not answer. Other faults are the run's.
func (f *found) find(connect connector, name string) error {
	t, err := connect.reach(name)
	switch {
	case err == nil:
		f.targets[name] = t
	case fault.CodeOf(err) == fault.HostUnreachable:
		f.faults[name] = err
	default:
		return err
	}
	return nil
}

// findRemoval finds out which nodes the hosts to be removed are, reaches those that answer,
// and a control-plane host that stays. It refuses what must not be begun.
func (a *app) findRemoval(ctx context.Context, w *work, connect connector) error {
	name, access, err := kubeconfig.Access(a.kubeconfig, "")
	if err != nil {
		return err
	}
	hosts := &found{map[string]bootstrap.Target{}, map[string]error{}}
	for _, h := range w.Hosts {
		if err := hosts.find(connect, h.Name); err != nil {
			return err
		}
	}
	var ways []cluster.DialFunc
	if w.Via != "" {
		via, err := connect.reach(w.Via)
		if err != nil {
			return err
		}
		hosts.targets[w.Via] = via
		ways = append(ways, via.Host.Dial)
	}
	for _, h := range w.Hosts {
		if t, ok := hosts.targets[h.Name]; ok && t.Claim != nil {
			ways = append(ways, t.Host.Dial)
		}
	}
	if w.live, err = lookThrough(ctx, access, append(ways, nil)); err != nil {
		return err
	}
	d := a.departure(w, name)
	if err := w.findNodeless(ctx, d, hosts, connect); err != nil {
		return err
	}
	var lost []error
	for _, h := range w.Hosts {
		err := w.leave(d, hosts, connect, h.Name)
		if fault.CodeOf(err) == fault.HostUnreachable {
			lost = append(lost, err)
		} else if err != nil {
			return err
		}
	}
	w.reset = bootstrap.Reset{Targets: w.targets, Force: w.Force}
	if len(d.Nodes) == 0 {
		return nil // hosts that are in no cluster
	}
	w.reset.Departure = d
	if err := bootstrap.ReadJournals(ctx, w.targets); err != nil {
		return err
	}
	return a.keep(ctx, d, hosts, connect, errors.Join(lost...))
}

// findNodeless has hosts count as nodes whose members etcd has, although the cluster has no node of
// their name: nothing else would take these members out.
func (w *work) findNodeless(ctx context.Context, d *bootstrap.Departure, hosts *found, connect connector) error {
	var names []string
	for _, h := range w.Hosts {
		_, known := w.live.Member(h.Name)
		if !known && hosts.targets[h.Name].Claim == nil {
			names = append(names, h.Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	via, err := keeper(d, hosts, connect)
	if err != nil {
		return err
	}
	hosts.targets[via.Wish.Name] = via // it is not reached twice
	nodeless, err := d.Nodeless(ctx, via.Host, names)
	w.live.Nodes = append(w.live.Nodes, nodeless...)
	return err
}

// departure is that of a request, still without its nodes.
func (a *app) departure(w *work, name string) *bootstrap.Departure {
	timeout := w.Timeout
	if timeout == 0 {
		timeout = bootstrap.DrainTimeout
	}
	return &bootstrap.Departure{Live: w.live, By: signature(), Timeout: timeout, Force: w.Force, Kubeconfig: a.kubeconfig, Name: name}
}

// lookTime bounds a look at a cluster by one way: which of its API servers serves has to be found out first.
const lookTime = 2 * apiTimeout

// lookThrough looks at a cluster by the first way that leads to one of its API servers which serves.
func lookThrough(ctx context.Context, access cluster.Access, ways []cluster.DialFunc) (*bootstrap.Live, error) {
	var faults []error
	for _, dial := range ways {
		asking, cancel := context.WithTimeout(ctx, lookTime)
		live, err := bootstrap.LookThrough(asking, access, dial)
		cancel()
		if err == nil || ctx.Err() != nil {
			return live, err
		}
		faults = append(faults, err)
	}
	return nil, fault.New(fault.ClusterMissing, "see whether etcd has lost its quorum: kubewright etcd health --via HOST; else name another host to reach the API through with --via HOST, or the kubeconfig with --kubeconfig",
		"the cluster cannot be asked: %w", errors.Join(faults...))
}

// leave adds the node that a host is to those that leave. The error is a
// fault.HostUnreachable if it was added as one whose host is lost.
func (w *work) leave(d *bootstrap.Departure, hosts *found, connect connector, name string) error {
	member, known := w.live.Member(name)
	if known && member.Host != "" && member.Host != name && hosts.faults[name] != nil { // it is a node's name
		if err := hosts.find(connect, member.Host); err != nil {
			return err
		}
		name = member.Host
	}
	t, reached := hosts.targets[name]
	switch {
	case reached && t.Claim != nil && t.Claim.ClusterID != w.live.Record.ID:
		return t.Claim.Taken(name)
	case reached && t.Claim != nil:
		w.targets = append(w.targets, t)
		d.Add(t.Leaver())
		return nil
	case reached && known: // put back before, while the cluster did not answer
		d.Add(bootstrap.Leaver{Member: member})
		return nil
	case reached:
		return nil
	case known:
		d.Add(bootstrap.Leaver{Member: member, Lost: true})
		return hosts.faults[name]
	}
	if slices.Contains(w.live.Removed, name) {
		return nil // by an earlier run
	}
	return fault.New(fault.Usage, "see the names with `kubewright status`",
		"the cluster has no host or node %s, nor does a host of that name answer: %w", name, hosts.faults[name])
}

// keep reaches a control-plane host that stays, and refuses a departure that must not be begun.
func (a *app) keep(ctx context.Context, d *bootstrap.Departure, hosts *found, connect connector, lost error) error {
	if !d.Stays() {
		return d.Last()
	}
	var err error
	if d.Keeper, err = keeper(d, hosts, connect); err != nil {
		return err
	}
	if err := d.Refuse(ctx); err != nil {
		return err
	}
	if lost != nil && !d.Force {
		return d.Lose(ctx, lost)
	}
	return nil
}

// keeper reaches one of the control-plane hosts that stay: it holds the lock of the cluster's
// membership, and leads to API and etcd.
func keeper(d *bootstrap.Departure, hosts *found, connect connector) (bootstrap.Target, error) {
	var faults []error
	var names []string
	for _, m := range d.Keepers() {
		t, ok := hosts.targets[m.Host]
		var err error
		if !ok {
			t, err = connect.reach(m.Host)
		}
		switch {
		case err == nil && t.Claim != nil && t.Claim.ClusterID == d.Live.Record.ID:
			return t, nil
		case err == nil:
			err = fmt.Errorf("%s: it was taken out of the cluster, which still has its node %s", m.Host, m.Node)
		case fault.CodeOf(err) != fault.HostUnreachable:
			return t, err
		}
		faults, names = append(faults, err), append(names, m.Host)
	}
	return bootstrap.Target{}, fault.New(fault.HostUnreachable, "bring one of them back, or see that this machine reaches it by SSH",
		"nodes leave by way of a control-plane host that stays, and none of %s can be reached: %w", strings.Join(names, ", "), errors.Join(faults...))
}

// showLost tells of hosts that left and were not put back.
func showLost(notice func(string), d *bootstrap.Departure) {
	if d == nil {
		return
	}
	for _, n := range d.Nodes {
		if n.Lost {
			notice(fmt.Sprintf("%s: it was not reached: what is on it is still there. It cannot come back as a node; when it is back: kubewright reset %s",
				n.Host, n.Host))
		}
	}
}

// findResetCluster fills in the cluster that the hosts belong to, if the kubeconfig
// leads to that very cluster and it answers, and how they leave it if it lives on.
func (a *app) findResetCluster(ctx context.Context, w *work, t bootstrap.Target, connect connector) error {
	in := &w.reset
	takesControlPlane := slices.ContainsFunc(in.Targets, func(t bootstrap.Target) bool {
		return t.Claim != nil && t.Claim.Role == string(spec.ControlPlaneRole)
	})
	// What never became a node has no pods to be moved.
	force := w.Force || !slices.ContainsFunc(in.Targets, func(t bootstrap.Target) bool { return t.Member })
	if !force && !takesControlPlane { // and what an earlier run has left without a control plane cannot be drained
		var err error
		if force, err = in.Orphaned(ctx); err != nil {
			return err
		}
	}
	name, access, err := kubeconfig.Access(a.kubeconfig, "")
	if err != nil {
		if takesControlPlane || force {
			return nil
		}
		return fault.New(fault.ClusterMissing, "name the cluster's kubeconfig with --kubeconfig, or add --force to reset without draining", "drain the nodes: %w", err)
	}
	live, err := lookThrough(ctx, access, []cluster.DialFunc{t.Host.Dial})
	switch {
	case err != nil && (takesControlPlane || force):
		if in.Destroys(name, access.Server) {
			in.Kubeconfig, in.Name, in.Server = a.kubeconfig, name, access.Server
		}
		return nil // a cluster that is half gone is still to be cleaned up
	case err != nil:
		return fault.New(fault.ClusterMissing, "repair the cluster, or add --force to reset without draining", "drain the nodes: %w", err)
	case live.Record.ID != t.Claim.ClusterID:
		if force || takesControlPlane {
			return nil
		}
		return fault.New(fault.ClusterMissing, "name the kubeconfig of cluster "+t.Claim.Cluster+" with --kubeconfig, or add --force to reset without draining",
			"the kubeconfig is of cluster %s, the host belongs to cluster %s (id %s)", live.Record.Name, t.Claim.Cluster, t.Claim.ClusterID)
	}
	w.live = live
	d := a.departure(w, name)
	d.Nodes = in.Departing(live)
	if d.Stays() {
		err := a.keep(ctx, d, &found{}, connect, nil)
		if force && fault.CodeOf(err) == fault.HostUnreachable {
			return nil
		}
		in.Departure = d
		return err
	}
	in.Kubeconfig, in.Name, in.Server = a.kubeconfig, name, access.Server
	if !takesControlPlane || w.Force {
		return nil
	}
	client := cluster.New(plan.Of("the admin's access", access), t.Host.Dial)
	left, err := cluster.OtherNodes(ctx, client, d.NodeNames())
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fault.New(fault.Usage, "if the whole cluster goes, name these hosts too; if they have another control plane by now, as a restored cluster has, add --force",
			"the cluster's last control-plane node is to be reset, but nodes %s still need it", strings.Join(left, ", "))
	}
	return nil
}
