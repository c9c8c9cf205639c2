package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kubewright/kubewright/bootstrap"
	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/drill"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/kubeconfig"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
	"github.com/kubewright/kubewright/cmd/kubewright/ui"
)

// allKinds as a drill's argument means one after the other.
const allKinds = "all"

// drillFlags are a drill's options as they are written.
type drillFlags struct {
	drill.Options
	off, on string
	yes     bool
}

func (a *app) drillCommand() *cobra.Command {
	var f drillFlags
	kinds := []string{allKinds}
	for _, k := range drill.Kinds() {
		kinds = append(kinds, string(k))
	}
	c := &cobra.Command{
		Use:   "drill FAULT [HOST]",
		Short: "Practise the day a host dies: deal a control-plane host a fault, and count what clients saw of it",
		Long: "drill deals one control-plane host of a live cluster a fault while writers and readers work through another\n" +
			"node, and says how long they were not served, how long it took until all was well again, and whether a write that\n" +
			"the API had acknowledged is lost (then the exit status is 22). HOST is the one whose etcd leads if none is named.\n\n" +
			"  kill-leader  SIGKILL of etcd and the API server\n" +
			"  partition    the host is cut from all other nodes; SSH goes on\n" +
			"  fill-disk    no byte is left on the file system of etcd's data, which has to be one of its own\n" +
			"  power-cut    the host is reset, without a sync and without anything being told; or --power-off and --power-on\n" +
			"  all          one after the other\n\n" +
			"A fault ends after --duration; if this machine dies, the host itself ends it ten seconds later. The cluster has to be well\n" +
			"and to have three members of etcd. Unless it is marked as a test cluster (testCluster in its file), you are asked first.",
		Example: "  kubewright drill kill-leader\n  kubewright drill partition cp2 --duration 1m\n  kubewright drill all --yes -o json\n" +
			"  kubewright drill power-cut cp1 --power-off 'ipmitool -H bmc-{host} power off' --power-on 'ipmitool -H bmc-{host} power on'",
		Args:      drillArgs,
		ValidArgs: kinds,
		RunE: func(c *cobra.Command, args []string) error {
			if f.off != "" && f.on == "" {
				return usage(c, errors.New("--power-off wants --power-on: the host would stay off"))
			}
			if f.Writers < 1 || f.Readers < 1 {
				return usage(c, errors.New("without writers and readers there is nothing to count"))
			}
			if f.For <= 0 || f.Within <= 0 {
				return usage(c, errors.New("--duration and --recover-within are times from now on"))
			}
			if len(args) > 1 {
				f.Host = args[1]
			}
			list := drill.Kinds()
			if args[0] != allKinds {
				list = []drill.Kind{drill.Kind(args[0])}
			}
			return a.drill(c.Context(), list, f)
		},
	}
	const defaultFill = 2 << 30
	flags := c.Flags()
	flags.DurationVar(&f.For, "duration", 30*time.Second, "how long a fault lasts that does not end by itself")
	flags.DurationVar(&f.Within, "recover-within", 5*time.Minute, "how soon after the fault all has to be well again")
	flags.StringVar(&f.Via, "via", "", "host whose way to the API the clients use (default: a worker)")
	flags.IntVar(&f.Writers, "writers", 2, "how many clients write, ten times a second each")
	flags.IntVar(&f.Readers, "readers", 2, "how many clients read, ten times a second each")
	flags.Int64Var(&f.MaxFill, "max-fill", defaultFill, "bytes that fill-disk may write at most")
	flags.StringVar(&f.off, "power-off", "", "command on this machine that takes the host's power (default: the host resets itself); its words are split at blanks, {host} is the host's name")
	flags.StringVar(&f.on, "power-on", "", "command on this machine that gives it back after --duration (default: it boots by itself)")
	flags.BoolVar(&f.yes, "yes", false, "do not ask")
	return c
}

// drillArgs wants a fault that there is, and one host at most.
func drillArgs(c *cobra.Command, args []string) error {
	faults := strings.Join(c.ValidArgs, ", ")
	switch {
	case len(args) == 0:
		return fmt.Errorf("name a fault: %s", faults)
	case !slices.Contains(c.ValidArgs, args[0]):
		return fmt.Errorf("there is no fault %q: name one of %s", args[0], faults)
	case len(args) > 2:
		return errors.New("a drill is dealt to one host")
	}
	return nil
}

// drill practises faults, one after the other, and prints what clients saw of them.
func (a *app) drill(ctx context.Context, kinds []drill.Kind, f drillFlags) error {
	show, err := a.drillRenderer()
	if err != nil {
		return err
	}
	began := time.Now()
	ctx, stop, done := interruptible(ctx, show.Notice)
	defer done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-stop:
			cancel(fault.New(fault.Interrupted, "", "stopped; what the drill did is taken back"))
		case <-ctx.Done():
		}
	}()
	summary := ui.Summary{}
	f.Emit = func(e plan.Event) {
		if e.Kind == plan.Applied {
			summary.Count.Applied++
		}
		show.Event(e)
	}
	var results []*drill.Result
	for _, f.Kind = range kinds {
		var result *drill.Result
		result, summary.Hosts, err = a.practise(ctx, f, show.Notice)
		if len(kinds) > 1 && fault.CodeOf(err) == fault.HostUnsuitable {
			show.Notice(fmt.Sprintf("%s is left out: %v", f.Kind, err))
			err = nil
			continue
		}
		if result != nil {
			results = append(results, result)
		}
		if err != nil {
			break
		}
	}
	summary.Took, summary.Err = time.Since(began), err
	show.Close(summary)
	return errors.Join(err, a.showDrills(results))
}

// drillRenderer shows how a drill goes: where the results are one JSON document, beside it.
func (a *app) drillRenderer() (ui.Renderer, error) {
	if a.output == "json" {
		return ui.NewPlain(a.stderr), nil
	}
	return a.renderer()
}

// practise deals one fault to a cluster whose hosts are all reached and locked for it. It
// also returns how many they are.
func (a *app) practise(ctx context.Context, f drillFlags, notice func(string)) (*drill.Result, int, error) {
	_, access, err := kubeconfig.Access(a.kubeconfig, "")
	if err != nil {
		return nil, 0, err
	}
	ground, err := a.ground(ctx, access, f.Via)
	if err != nil {
		return nil, 0, err
	}
	targets, connections, err := a.reachGround(ctx, ground)
	hosts := drill.NewHosts(connections, a.dialDrill)
	defer hosts.Close()
	if err != nil {
		return nil, len(targets), err
	}
	held := map[string]*locks{}
	defer func() {
		for _, l := range held {
			l.release(ctx)
		}
	}()
	for _, t := range targets {
		l := newLocks("drill "+string(f.Kind), notice)
		held[t.Wish.Name] = l
		if err := l.take(ctx, []bootstrap.Target{t}); err != nil {
			return nil, len(targets), err
		}
	}
	f.Off, f.On = strings.Fields(f.off), strings.Fields(f.on)
	d, err := drill.Prepare(ctx, &drill.Cluster{Nodes: ground.Nodes, Hosts: hosts, Access: access, Port: ground.Port}, f.Options)
	if err != nil {
		return nil, len(targets), err
	}
	if err := a.confirmDrill(ground, d, f.yes); err != nil {
		return nil, len(targets), err
	}
	run, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	for name, l := range held {
		if name == d.Victim.Host {
			continue // it may well be lost
		}
		go func() {
			select {
			case <-l.gone:
				stop(l.lost())
			case <-run.Done():
			}
		}()
	}
	result, err := d.Run(run)
	return result, len(targets), err
}

// ground is the cluster that the kubeconfig leads to, reached through a host if one is named.
func (a *app) ground(ctx context.Context, access cluster.Access, via string) (*bootstrap.Ground, error) {
	var dial cluster.DialFunc
	if via != "" {
		h, err := a.dial(ctx, via)
		if err != nil {
			return nil, fault.At(via, "connect", err)
		}
		defer h.Close() //nolint:errcheck // only read through
		dial = h.Dial
	}
	ground, err := bootstrap.FindGround(ctx, cluster.New(plan.Of("the admin's access", access), dial))
	if f := (*fault.Fault)(nil); err != nil && !errors.As(err, &f) {
		return nil, fault.New(fault.ClusterMissing, "see `kubewright doctor`, or reach the API through a host with --via HOST", "cluster at %s: %w", access.Server, err)
	}
	return ground, err
}

// reachGround connects to all hosts of a cluster, and makes sure that they are its own.
func (a *app) reachGround(ctx context.Context, g *bootstrap.Ground) ([]bootstrap.Target, []drill.Connection, error) {
	targets := make([]bootstrap.Target, len(g.Nodes))
	connections := make([]drill.Connection, len(g.Nodes))
	faults := make([]error, len(g.Nodes))
	var all sync.WaitGroup
	for i, n := range g.Nodes {
		all.Go(func() {
			c, err := a.dialDrill(ctx, n.Host)
			if err != nil {
				faults[i] = err
				return
			}
			connections[i] = c
			targets[i] = bootstrap.Target{Wish: spec.Host{Name: n.Host}, Host: c.Host}
			claimed, err := claim.Read(ctx, c.Host)
			targets[i].Claim = claimed
			switch {
			case err != nil:
				faults[i] = fault.At(n.Host, "claim", err)
			case claimed == nil:
				faults[i] = fault.At(n.Host, "claim", fault.New(fault.ClusterMissing, "see `kubewright doctor`",
					"the host that node %s names is none of the cluster", n.Name))
			case claimed.ClusterID != g.Record.ID:
				faults[i] = claimed.Taken(n.Host)
			}
		})
	}
	all.Wait()
	var reached []host.Reader
	for _, c := range connections {
		if c.Host != nil {
			reached = append(reached, c.Host)
		}
	}
	for i, c := range connections {
		if c.Host == nil {
			faults[i] = g.Miss(ctx, g.Nodes[i], reached, faults[i])
		}
	}
	connections = slices.DeleteFunc(connections, func(c drill.Connection) bool { return c.Host == nil })
	return targets, connections, errors.Join(faults...)
}

// dialDrill connects to a host as a drill wants it.
func (a *app) dialDrill(ctx context.Context, name string) (drill.Connection, error) {
	h, err := a.dial(ctx, name)
	if err != nil {
		return drill.Connection{}, err
	}
	s := h.Session()
	return drill.Connection{Host: h, Admin: s.Client, Port: s.Server.Port()}, nil
}

// confirmDrill asks, unless nobody depends on the cluster.
func (a *app) confirmDrill(g *bootstrap.Ground, d *drill.Drill, yes bool) error {
	if yes || g.Test {
		return nil
	}
	what := fmt.Sprintf("cluster %s is not marked as a test cluster: %s befalls %s, and whoever uses the cluster sees it",
		g.Record.Name, d.Kind, d.Victim.Host)
	if yes, err := a.agrees(what, "Type the cluster's name, "+g.Record.Name+", to go on", g.Record.Name); yes || err != nil {
		return err
	}
	return fault.New(fault.Usage, "confirm with --yes, or mark it: testCluster: true in the cluster file, then `kubewright apply`", "%s", what)
}

// drillLine is a result among JSON lines.
type drillLine struct {
	Kind string `json:"kind"` // "drill"
	*drill.Result
}

// showDrills prints what clients saw: a line for each fault.
func (a *app) showDrills(results []*drill.Result) error {
	switch a.output {
	case "json":
		return writeJSON(a.stdout, append([]*drill.Result{}, results...)) // [] if there is none
	case outputLines:
		lines := json.NewEncoder(a.stdout)
		for _, r := range results {
			if err := lines.Encode(drillLine{"drill", r}); err != nil {
				return err
			}
		}
		return nil
	}
	if len(results) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nFAULT\tHOST\tWRITES OUT\tREADS OUT\tRECOVERY\tACKNOWLEDGED\tFAILED\tLOST\tNOT SEEN")
	for _, r := range results {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\n", r.Fault, r.Host, seconds(r.WriteOutageMS), seconds(r.ReadOutageMS),
			recovery(r), r.Writes, r.Failed, len(r.Lost), len(r.Stale))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range results {
		for _, note := range r.Notes {
			fmt.Fprintf(a.stdout, "%s: %s\n", r.Fault, note)
		}
	}
	return nil
}

// recovery is how long it took, if that was seen: a drill may be broken off before.
func recovery(r *drill.Result) string {
	if r.RecoveryMS == 0 {
		return "-"
	}
	return seconds(r.RecoveryMS)
}

func seconds(ms int64) string { return fmt.Sprintf("%.1f s", float64(ms)/1000) }
