package spec

import (
	"fmt"
	"maps"
	"math/bits"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"filippo.io/age"
)

const (
	// nodeBits is the prefix length of each node's part of the pods' range.
	nodeBits = 24
	// podBitsMin: the controller manager keeps a bitmap of the nodes' parts and
	// refuses more than 2^16 of them.
	podBitsMin = nodeBits - 16
	// serviceBitsMin: kube-apiserver refuses ranges of more than 20 host bits.
	// serviceBitsMax: the DNS service takes the tenth address.
	serviceBitsMin, serviceBitsMax = 12, 28
	// NodePorts are given out of this range, kube-apiserver's default.
	nodePortMin, nodePortMax = 30000, 32767
)

// Validate tells all faults of a cluster that Default has completed, as *Errors
// within a fault.SpecInvalid; nil if there are none.
func (c *Cluster) Validate() error {
	return wrap("", c.faults())
}

// faults returns what is wrong, with paths but without positions.
func (c *Cluster) faults() []Fault {
	v := &validator{}
	if c.APIVersion != APIVersion {
		v.add("apiVersion", "%q is not supported, it must be %s", c.APIVersion, APIVersion)
	}
	if c.Kind != Kind {
		v.add("kind", "%q is not supported, it must be %s", c.Kind, Kind)
	}
	if fault := dnsLabelFault(c.Name); fault != "" {
		v.add("name", "%q %s", c.Name, fault)
	}
	v.hosts(c.Hosts)
	v.endpoint(c)
	v.network(c)
	v.ports(c)
	v.sans(c.APIServer.ExtraSANs)
	v.extraArgs("apiServer", c.APIServer.ExtraArgs)
	v.extraArgs("controllerManager", c.ControllerManager.ExtraArgs)
	v.extraArgs("scheduler", c.Scheduler.ExtraArgs)
	v.extraArgs("etcd", c.Etcd.ExtraArgs)
	v.extraArgs("kubelet", c.Kubelet.ExtraArgs)
	v.extraArgs("kubeProxy", c.KubeProxy.ExtraArgs)
	v.backup(c.Backup)
	return v.faults
}

type validator struct {
	faults []Fault
}

func (v *validator) add(path, format string, args ...any) {
	v.faults = append(v.faults, Fault{Path: path, Message: fmt.Sprintf(format, args...)})
}

// unique remembers where each value stood first.
type unique[T comparable] map[T]string

// seen returns the path of the same value further up, if there is one.
func (u unique[T]) seen(value T, path string) (first string, again bool) {
	first, again = u[value]
	if !again {
		u[value] = path
	}
	return first, again
}

func (v *validator) hosts(hosts []Host) {
	targets, nodes, addresses := unique[Target]{}, unique[string]{}, unique[netip.Addr]{}
	controlPlanes, unknownRoles := 0, 0
	for i, h := range hosts {
		path := fmt.Sprintf("hosts[%d]", i)

		if h.Name == "" {
			v.add(path+".name", "is missing: say how ssh reaches the host")
		} else if target, err := ParseTarget(h.Name); err != nil {
			v.add(path+".name", "%v", err)
		} else {
			target.User = "" // another user does not make it another host
			if first, again := targets.seen(target, path); again {
				v.add(path+".name", "%q is the same host as %s", h.Name, first)
			}
		}

		switch h.Role {
		case ControlPlaneRole:
			controlPlanes++
		case WorkerRole:
		default:
			unknownRoles++
			v.add(path+".role", "%q must be %s or %s", h.Role, ControlPlaneRole, WorkerRole)
		}

		if h.Node != "" {
			if fault := dnsNameFault(h.Node); fault != "" {
				v.add(path+".node", "%q %s", h.Node, fault)
			} else if first, again := nodes.seen(h.Node, path); again {
				v.add(path+".node", "%q is the name of %s already", h.Node, first)
			}
		}

		if h.Address.IsValid() {
			if fault := addressFault(h.Address); fault != "" {
				v.add(path+".address", "%s %s", h.Address, fault)
			} else if first, again := addresses.seen(h.Address, path); again {
				v.add(path+".address", "%s is the address of %s already", h.Address, first)
			}
		}

		for _, key := range slices.Sorted(maps.Keys(h.Labels)) {
			labelPath := path + ".labels" + keyPath(key)
			if fault := qualifiedNameFault(key); fault != "" {
				v.add(labelPath, "label key %q %s", key, fault)
			} else if fault := kubeletLabelFault(key); fault != "" {
				v.add(labelPath, "label key %q %s", key, fault)
			}
			if fault := labelValueFault(h.Labels[key]); fault != "" {
				v.add(labelPath, "label value %q %s", h.Labels[key], fault)
			}
		}

		taints := unique[Taint]{}
		for j, taint := range h.Taints {
			taintPath := fmt.Sprintf("%s.taints[%d]", path, j)
			if err := taint.check(); err != nil {
				v.add(taintPath, "%v", err)
				continue
			}
			if first, again := taints.seen(Taint{Key: taint.Key, Effect: taint.Effect}, taintPath); again {
				v.add(taintPath, "%s has the same key and effect as %s", taint, first)
			}
		}
	}
	switch {
	case len(hosts) == 0:
		v.add("hosts", "there are none: a cluster has at least a control-plane host")
	case controlPlanes == 0 && unknownRoles == 0:
		v.add("hosts", "none of them is a control-plane host: give one the role %s", ControlPlaneRole)
	}
}

// endpoint judges where people reach the API.
func (v *validator) endpoint(c *Cluster) {
	const addressPath, virtualPath = "controlPlaneEndpoint.address", "controlPlaneEndpoint.virtualIP"
	e := c.ControlPlaneEndpoint
	if e.Address != "" {
		if a, err := netip.ParseAddr(e.Address); err == nil {
			if fault := addressFault(a); fault != "" {
				v.add(addressPath, "%s %s", a, fault)
			}
		} else if fault := dnsNameFault(e.Address); fault != "" {
			v.add(addressPath, "%q is no address, and as a name it %s (the port is that of the API server)", e.Address, fault)
		}
	}
	if !e.VirtualIP.IsValid() {
		return
	}
	if fault := addressFault(e.VirtualIP); fault != "" {
		v.add(virtualPath, "%s %s", e.VirtualIP, fault)
	}
	for i, h := range c.Hosts {
		name, _ := netip.ParseAddr(h.SSHTarget().Host)
		if h.Address == e.VirtualIP || name == e.VirtualIP {
			v.add(virtualPath, "%s is the address of hosts[%d]: it must be one that no host has", e.VirtualIP, i)
		}
	}
	for _, r := range []struct {
		path   string
		prefix netip.Prefix
	}{{"network.podCIDR", c.Network.PodCIDR}, {"network.serviceCIDR", c.Network.ServiceCIDR}} {
		if r.prefix.IsValid() && r.prefix.Contains(e.VirtualIP) {
			v.add(virtualPath, "%s is in %s %s", e.VirtualIP, r.path, r.prefix)
		}
	}
}

// addressFault says why an address cannot be a node's.
func addressFault(a netip.Addr) string {
	switch {
	case !a.Is4():
		return "is not an IPv4 address: this release makes IPv4 clusters only"
	case a.IsUnspecified(), a.IsLoopback(), a.IsMulticast(), a.IsLinkLocalUnicast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "cannot be a node's address: other hosts do not reach it"
	}
	return ""
}

// unusable are the ranges that can be neither pods' nor services'.
var unusable = [...]struct{ name, prefix string }{
	{"this network", "0.0.0.0/8"},
	{"loopback", "127.0.0.0/8"},
	{"link-local", "169.254.0.0/16"},
	{"multicast", "224.0.0.0/4"},
	{"reserved", "240.0.0.0/4"},
}

func (v *validator) network(c *Cluster) {
	const podPath, servicePath = "network.podCIDR", "network.serviceCIDR"
	n := c.Network

	switch n.Backend {
	case VXLAN, HostGW, NoNet:
	default:
		v.add("network.backend", "%q must be %s, %s or %s", n.Backend, VXLAN, HostGW, NoNet)
	}
	if fault := dnsNameFault(n.DNSDomain); fault != "" {
		v.add("network.dnsDomain", "%q %s", n.DNSDomain, fault)
	}

	pods, services := v.prefix(podPath, n.PodCIDR), v.prefix(servicePath, n.ServiceCIDR)
	if pods {
		switch b := n.PodCIDR.Bits(); {
		case b < podBitsMin:
			v.add(podPath, "%s is too large: it must be a /%d or smaller", n.PodCIDR, podBitsMin)
		case b > nodeBits || 1<<(nodeBits-b) < len(c.Hosts):
			need := nodeBits - bits.Len(uint(max(len(c.Hosts), 1)-1))
			v.add(podPath, "%s is too small: each node gets a /%d of it, so %d hosts need a /%d at least",
				n.PodCIDR, nodeBits, len(c.Hosts), need)
		}
	}
	if services {
		switch b := n.ServiceCIDR.Bits(); {
		case b < serviceBitsMin:
			v.add(servicePath, "%s is too large: kube-apiserver takes a /%d at most", n.ServiceCIDR, serviceBitsMin)
		case b > serviceBitsMax:
			v.add(servicePath, "%s is too small: it must be a /%d at least", n.ServiceCIDR, serviceBitsMax)
		}
	}
	if pods && services && n.PodCIDR.Overlaps(n.ServiceCIDR) {
		v.add(servicePath, "%s overlaps the pods' range %s", n.ServiceCIDR, n.PodCIDR)
	}

	for i, h := range c.Hosts {
		// The address that ssh uses counts as well: it is the host's, too.
		name, err := netip.ParseAddr(h.SSHTarget().Host)
		named := err == nil && name != h.Address
		for _, at := range []struct {
			path string
			addr netip.Addr
			ok   bool
		}{
			{fmt.Sprintf("hosts[%d].name", i), name, named},
			{fmt.Sprintf("hosts[%d].address", i), h.Address, h.Address.IsValid()},
		} {
			if at.ok && pods && n.PodCIDR.Contains(at.addr) {
				v.add(at.path, "%s is in the pods' range %s", at.addr, n.PodCIDR)
			}
			if at.ok && services && n.ServiceCIDR.Contains(at.addr) {
				v.add(at.path, "%s is in the services' range %s", at.addr, n.ServiceCIDR)
			}
		}
	}
}

// prefix judges a range by itself and reports whether it can be compared with others.
func (v *validator) prefix(path string, p netip.Prefix) bool {
	switch {
	case !p.IsValid():
		v.add(path, "is not a range: write address/length, as in 10.0.0.0/16")
		return false
	case !p.Addr().Is4():
		v.add(path, "%s is not an IPv4 range: this release makes IPv4 clusters only", p)
		return false
	case p != p.Masked():
		v.add(path, "%s has bits set behind its /%d: write %s", p, p.Bits(), p.Masked())
	}
	for _, r := range unusable {
		if p.Overlaps(netip.MustParsePrefix(r.prefix)) {
			v.add(path, "%s overlaps the %s range %s", p, r.name, r.prefix)
		}
	}
	return true
}

// takenPorts are the TCP ports that are in use on a control-plane host.
var takenPorts = map[int]string{
	22:    "sshd",
	2379:  "etcd's clients",
	2380:  "etcd's peers",
	2381:  "etcd's metrics",
	6444:  "apilb",
	6445:  "apilb's status",
	10248: "the kubelet's health check",
	10249: "kube-proxy's metrics",
	10250: "the kubelet",
	10256: "kube-proxy's health check",
	10257: "kube-controller-manager",
	10259: "kube-scheduler",
	10261: "the pod network's health check",
}

func (v *validator) ports(c *Cluster) {
	v.port("apiServer.port", c.APIServer.Port)
	if c.Kubelet.ReadOnlyPort == 0 {
		return
	}
	v.port("kubelet.readOnlyPort", c.Kubelet.ReadOnlyPort)
	if c.Kubelet.ReadOnlyPort == c.APIServer.Port {
		v.add("kubelet.readOnlyPort", "%d is apiServer.port already", c.Kubelet.ReadOnlyPort)
	}
}

func (v *validator) port(path string, port int) {
	if port < 1 || port > 65535 {
		v.add(path, "%d is no port: it must be from 1 to 65535", port)
		return
	}
	if owner, ok := takenPorts[port]; ok {
		v.add(path, "%d is taken: it is the port of %s", port, owner)
	}
	if nodePortMin <= port && port <= nodePortMax {
		v.add(path, "%d is among the NodePorts %d-%d, which services are given", port, nodePortMin, nodePortMax)
	}
}

func (v *validator) sans(names []string) {
	seen := unique[string]{}
	for i, name := range names {
		path := fmt.Sprintf("apiServer.extraSANs[%d]", i)
		if _, err := netip.ParseAddr(name); err != nil {
			// A certificate may name all hosts of a domain.
			if fault := dnsNameFault(strings.TrimPrefix(name, "*.")); fault != "" {
				v.add(path, "%q is no address, and as a name it %s", name, fault)
				continue
			}
		}
		if first, again := seen.seen(name, path); again {
			v.add(path, "%q is the same as %s", name, first)
		}
	}
}

// ownFields are the flags whose value has a field in the cluster file, or that
// kubewright could not do without: to set them here would make half of the
// cluster believe something else. The value says what to do instead.
var ownFields = map[string]map[string]string{
	"apiServer": {
		"secure-port":              "set apiServer.port",
		"service-cluster-ip-range": "set network.serviceCIDR",
		"advertise-address":        "set the address of the host",
	},
	"controllerManager": {
		"cluster-cidr":             "set network.podCIDR",
		"service-cluster-ip-range": "set network.serviceCIDR",
		"cluster-name":             "set name",
	},
	"etcd": {
		"data-dir":              "backup and reset know no other",
		"name":                  "it is the name of the node",
		"initial-cluster":       "members are added one by one",
		"initial-cluster-state": "members are added one by one",
		"wal-dir":               "backup and reset know no other place than the data's",
		"force-new-cluster":     "it gives the other members up at each start: kubewright recover does it once",
	},
	"kubelet": {
		"hostname-override":    "set the node of the host",
		"node-ip":              "set the address of the host",
		"node-labels":          "set the labels of the host",
		"register-with-taints": "set the taints of the host",
		"read-only-port":       "set kubelet.readOnlyPort",
		"cluster-domain":       "set network.dnsDomain",
		"root-dir":             "reset knows no other",
	},
	"kubeProxy": {
		"cluster-cidr":      "set network.podCIDR",
		"hostname-override": "set the node of the host",
	},
}

func (v *validator) extraArgs(component string, args map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(args)) {
		path := component + ".extraArgs" + keyPath(name)
		switch bare := strings.TrimLeft(name, "-"); {
		case flagName.MatchString(name):
		case bare != name && flagName.MatchString(bare):
			v.add(path, "write the flag without dashes before it: %s", bare)
		default:
			v.add(path, "%q is no flag: flags are lower-case letters, digits and single dashes", name)
		}
		if instead, ok := ownFields[component][name]; ok {
			v.add(path, "this flag is kubewright's own: %s", instead)
		}
		if strings.ContainsFunc(args[name], unicode.IsControl) {
			v.add(path, "the value %q has line breaks or other control characters", args[name])
		}
	}
}

// keyPath is a map's key as a part of a path.
func keyPath(key string) string {
	if flagName.MatchString(strings.ToLower(key)) {
		return "." + key
	}
	return fmt.Sprintf("[%q]", key)
}

// calendarWord is a word of systemd's calendar expressions: weekdays, a date, a time, a zone.
var calendarWord = regexp.MustCompile(`^((?i:(mon|tue|wed|thu|fri|sat|sun)[a-z]*([,-]|\.\.|$))+|[0-9*/,.~]+(-[0-9*/,.~]+){1,2}|[0-9*/,.]+(:[0-9*/,.]+){1,2}|UTC|[A-Z][A-Za-z]+/[A-Za-z0-9_/+-]+)$`)

// calendarName is one that stands for a whole expression.
var calendarName = regexp.MustCompile(`^(minutely|hourly|daily|weekly|monthly|quarterly|semiannually|yearly|annually)( (UTC|[A-Z][A-Za-z]+/[A-Za-z0-9_/+-]+))?$`)

// calendarFault says why a text is no calendar expression of systemd's, as far as its form tells.
func calendarFault(text string) string {
	words := strings.Fields(text)
	if len(words) > 0 && (calendarName.MatchString(text) || !slices.ContainsFunc(words, func(w string) bool { return !calendarWord.MatchString(w) })) {
		return ""
	}
	return "is no time as systemd's OnCalendar has it: write daily, or *-*-* 02:30:00 (systemd-analyze calendar explains one)"
}

// backup judges the schedule by its form only: systemd on the hosts judges the rest.
func (v *validator) backup(b Backup) {
	if b.Schedule == "" {
		if b.Keep != 0 || len(b.Recipients) > 0 || b.Dir != "" {
			v.add("backup.schedule", "is missing: say when, as in daily")
		}
		return
	}
	if fault := calendarFault(b.Schedule); fault != "" {
		v.add("backup.schedule", "%q %s", b.Schedule, fault)
	}
	if b.Keep < 1 {
		v.add("backup.keep", "%d is too few: at least one backup is kept", b.Keep)
	}
	if clean := path.Clean(b.Dir); !path.IsAbs(b.Dir) || clean != b.Dir || clean == "/" || strings.ContainsFunc(b.Dir, unicode.IsControl) {
		v.add("backup.dir", "%q is no absolute path of a folder", b.Dir)
	}
	if len(b.Recipients) == 0 {
		v.add("backup.recipients", "are missing: a backup holds all keys of the cluster, say who may open it")
	}
	keys := unique[string]{}
	for i, key := range b.Recipients {
		at := fmt.Sprintf("backup.recipients[%d]", i)
		if found, err := age.ParseRecipients(strings.NewReader(key)); err != nil || len(found) != 1 {
			v.add(at, "%q is no public key of age: it begins with age1", key)
		} else if first, again := keys.seen(key, at); again {
			v.add(at, "it is the same as %s", first)
		}
	}
}
