package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kubewright/kubewright/bootstrap"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

// hostFlags are the flags that describe hosts on the command line.
type hostFlags struct {
	labels  map[string]string
	taints  []string
	address string
	node    string
}

func (f *hostFlags) add(flags *pflag.FlagSet) {
	flags.StringToStringVar(&f.labels, "label", nil, "label of the nodes, key=value (repeatable)")
	flags.StringArrayVar(&f.taints, "taint", nil, "taint of the nodes, key=value:Effect (repeatable)")
	flags.StringVar(&f.address, "address", "", "address of the node inside the cluster, for a single host (default: the one that SSH reached)")
	flags.StringVar(&f.node, "node-name", "", "name of the node, for a single host (default: its hostname)")
}

// hosts are the hosts named on the command line, with what the flags say of them.
func (f *hostFlags) hosts(names []string, role spec.Role) ([]spec.Host, error) {
	if len(names) > 1 && (f.address != "" || f.node != "") {
		return nil, fault.New(fault.Usage, "give them in a cluster file (-f)", "--address and --node-name are for a single host")
	}
	var taints []spec.Taint
	for _, text := range f.taints {
		t, err := spec.ParseTaint(text)
		if err != nil {
			return nil, fault.New(fault.Usage, "write key=value:Effect", "--taint: %w", err)
		}
		taints = append(taints, t)
	}
	var hosts []spec.Host
	for _, name := range names {
		h := spec.Host{Name: name, Role: role, Node: f.node, Labels: f.labels, Taints: taints}
		if f.address != "" {
			a, err := netip.ParseAddr(f.address)
			if err != nil {
				return nil, fault.New(fault.Usage, "write an IPv4 address", "--address: %w", err)
			}
			h.Address = a
		}
		hosts = append(hosts, h)
	}
	return hosts, nil
}

// clusterFlags are the common settings of a cluster file.
type clusterFlags struct {
	name, podCIDR, serviceCIDR, backend, domain string
	port, readOnlyPort                          int
	sans                                        []string
	schedulable, test                           bool
}

func (f *clusterFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.name, "name", "", "name of the cluster (default kubewright)")
	flags.StringVar(&f.podCIDR, "pod-cidr", "", "range of the pods (default 10.244.0.0/16)")
	flags.StringVar(&f.serviceCIDR, "service-cidr", "", "range of the services (default 10.96.0.0/16)")
	flags.StringVar(&f.backend, "network-backend", "", "pod network between nodes: vxlan, host-gw or none (default vxlan)")
	flags.StringVar(&f.domain, "dns-domain", "", "domain of the services (default cluster.local)")
	flags.IntVar(&f.port, "api-port", 0, "port of the API server (default 6443)")
	flags.StringArrayVar(&f.sans, "api-san", nil, "further name or address in the API server's certificate (repeatable)")
	flags.IntVar(&f.readOnlyPort, "kubelet-read-only-port", 0, "port of the kubelet's read-only API, for the host itself only (default off)")
	flags.BoolVar(&f.test, "test-cluster", false, "mark the cluster as one that nobody depends on: a drill does not ask then")
	flags.BoolVar(&f.schedulable, "schedulable", false, "let ordinary pods run on the control-plane node")
}

func (f *clusterFlags) cluster() (*spec.Cluster, error) {
	c := &spec.Cluster{Name: f.name}
	c.Network.Backend = spec.Backend(f.backend)
	c.Network.DNSDomain = f.domain
	c.APIServer.Port = f.port
	c.APIServer.ExtraSANs = f.sans
	c.Kubelet.ReadOnlyPort = f.readOnlyPort
	c.ControlPlane.Schedulable = f.schedulable
	c.TestCluster = f.test
	for _, r := range []struct {
		flag, text string
		into       *netip.Prefix
	}{{"--pod-cidr", f.podCIDR, &c.Network.PodCIDR}, {"--service-cidr", f.serviceCIDR, &c.Network.ServiceCIDR}} {
		if r.text == "" {
			continue
		}
		p, err := netip.ParsePrefix(r.text)
		if err != nil {
			return nil, fault.New(fault.Usage, "write a range such as 10.244.0.0/16", "%s: %w", r.flag, err)
		}
		*r.into = p
	}
	return c, nil
}

func (a *app) addRunFlags(flags *pflag.FlagSet) {
	flags.StringVarP(&a.specPath, "file", "f", "", "cluster file (docs/spec.md); - for standard input")
	flags.StringVar(&a.bundlePath, "bundle", "", "bundle to install (default: beside the program, or in ./dist)")
	flags.Var(&a.ignore, "ignore", "code of a finding to go on in spite of (repeatable; docs/findings.md)")
}

// doer does what a verb's flags and arguments ask for: it runs it, or makes a plan of it.
type doer func(context.Context, bootstrap.Request) error

func (a *app) initCommand(do doer) *cobra.Command {
	var cf clusterFlags
	var hf hostFlags
	c := &cobra.Command{
		Use:   "init [HOST] [-f cluster.yaml]",
		Short: "Make a host the first control-plane node of a new cluster",
		Long: "init makes a host the first control-plane node of a new cluster and adds the cluster to the user's\n" +
			"kubeconfig. With -f it makes the whole cluster of the file: workers join at the same time.\n" +
			"Run again, it changes only what is not as wished.",
		Example: "  kubewright init cp1\n  kubewright init admin@10.0.0.11 --pod-cidr 10.10.0.0/16\n  kubewright init -f cluster.yaml",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			wish, err := a.wish(c, args, &cf, &hf)
			if err != nil {
				return err
			}
			return do(c.Context(), bootstrap.Request{Verb: verbInit, Spec: wish, Hosts: controlPlaneFirst(wish.Hosts)})
		},
	}
	a.addRunFlags(c.Flags())
	cf.add(c.Flags())
	hf.add(c.Flags())
	return c
}

// controlPlaneFirst orders hosts as plans want them.
func controlPlaneFirst(hosts []spec.Host) []spec.Host {
	hosts = slices.Clone(hosts)
	slices.SortStableFunc(hosts, func(x, y spec.Host) int { return strings.Compare(string(x.Role), string(y.Role)) })
	return hosts
}

// wish is the cluster of the file, or that of the flags.
func (a *app) wish(c *cobra.Command, args []string, cf *clusterFlags, hf *hostFlags) (*spec.Cluster, error) {
	if a.specPath != "" {
		if len(args) > 0 {
			return nil, usage(c, fmt.Errorf("name hosts on the command line or in the file, not both"))
		}
		var both []string
		c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			if f.Changed && f.Name != "file" && f.Name != "bundle" && f.Name != "ignore" && f.Name != "report" {
				both = append(both, "--"+f.Name)
			}
		})
		if len(both) > 0 {
			return nil, usage(c, fmt.Errorf("%s: with -f, the file says it all", strings.Join(both, ", ")))
		}
		return a.loadSpec()
	}
	if len(args) == 0 {
		return nil, usage(c, fmt.Errorf("name a host, or a cluster file with -f"))
	}
	wish, err := cf.cluster()
	if err != nil {
		return nil, err
	}
	if wish.Hosts, err = hf.hosts(args, spec.ControlPlaneRole); err != nil {
		return nil, err
	}
	wish.Default()
	return wish, wish.Validate()
}

func (a *app) loadSpec() (*spec.Cluster, error) {
	in, name := a.stdin, "standard input"
	if a.specPath == "-" {
		if _, err := a.sudo(); err != nil { // its first line may be the password
			return nil, err
		}
	} else {
		file, err := os.Open(a.specPath)
		if err != nil {
			return nil, fault.New(fault.Usage, "name a cluster file that exists", "-f: %w", err)
		}
		defer file.Close() //nolint:errcheck // only read from
		in, name = file, a.specPath
	}
	return spec.Load(in, name)
}
