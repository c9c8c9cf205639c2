package finding

// The codes of what is found before the first change.
const (
	OSUnsupported        Code = "os-unsupported"
	KernelFeatureMissing Code = "kernel-feature-missing"
	CgroupV1             Code = "cgroup-v1"
	SwapOn               Code = "swap-on"
	PortInUse            Code = "port-in-use"
	DiskSpace            Code = "disk-space"
	DiskSlow             Code = "disk-slow"
	ClockSkew            Code = "clock-skew"
	HostnameDuplicate    Code = "hostname-duplicate"
	AddressDuplicate     Code = "address-duplicate"
	MachineIDDuplicate   Code = "machine-id-duplicate"
	MachineIDMissing     Code = "machine-id-missing"
	ForeignInstaller     Code = "foreign-installer"
	FirewallActive       Code = "firewall-active"
	ToolMissing          Code = "tool-missing"
	MemoryLow            Code = "memory-low"
	CPULow               Code = "cpu-low"
	ArchMismatch         Code = "arch-mismatch"
	TCPBlocked           Code = "tcp-blocked"
	UDPBlocked           Code = "udp-blocked"
	VXLANBlocked         Code = "vxlan-blocked"
	VXLANTCPBroken       Code = "vxlan-tcp-broken"
	NodeUntried          Code = "node-untried"
	MTUTooSmall          Code = "mtu-too-small"
	PathMTU              Code = "path-mtu"
	VirtualIPTaken       Code = "virtual-ip-taken"
	VirtualIPOutside     Code = "virtual-ip-outside"
	ControlPlanesEven    Code = "control-planes-even"
	ProbeFailed          Code = "probe-failed"
	AddressChosen        Code = "address-chosen"
	MTUChosen            Code = "mtu-chosen"
)

// preflightCodes are of what is found before the first change.
func preflightCodes() []Explanation {
	return []Explanation{
		{Code: OSUnsupported, Title: "the operating system is too old, or has no systemd",
			Meaning: "A node's components run as systemd units, and kube-proxy's nftables mode needs Linux 5.13. Nothing would start on this host.",
			Causes:  []string{"a distribution without systemd (Alpine, Devuan)", "a kernel of before June 2021"},
			Remedy:  []string{"Install a distribution with systemd and Linux 5.13 or later: Debian 12, Ubuntu 22.04, RHEL 9 and later ones have both."}},
		{Code: KernelFeatureMissing, Title: "the kernel lacks what pods need",
			Meaning: "The feature was tried on the host, not looked up: what is built in counts as present, and a module is loaded by the attempt as it would be by the node.",
			Causes:  []string{"a minimal or cloud kernel without the module", "a container or VM that may not load modules", "modules of another kernel than the one that runs: reboot after an upgrade"},
			Remedy:  []string{"modprobe overlay br_netfilter vxlan nf_tables", "apt-get install linux-image-amd64 && reboot"}},
		{Code: CgroupV1, Title: "the host uses cgroup version 1",
			Meaning: "It works today. Kubernetes has announced the end of version 1, so that a later release will refuse this host.",
			Causes:  []string{"an old distribution, or systemd.unified_cgroup_hierarchy=0 on the kernel's command line"},
			Remedy:  []string{"Remove systemd.unified_cgroup_hierarchy=0 from the kernel's command line, then reboot."}},
		{Code: SwapOn, Title: "swap is on",
			Meaning: "The kubelet refuses to start on a host with swap: it could not keep to pods' memory limits.",
			Causes:  []string{"a swap partition or file in /etc/fstab", "zram swap, made by systemd's generator"},
			Remedy:  []string{"swapoff -a && sed -i '/\\sswap\\s/d' /etc/fstab"}},
		{Code: PortInUse, Title: "a port that a node listens on is in use",
			Meaning: "The component whose port it is would not start.",
			Causes:  []string{"what an earlier cluster left running", "a server of the host's own, often on 6443 or 8472"},
			Remedy:  []string{"systemctl disable --now UNIT", "For the API server: another port with --api-port or apiServer.port."}},
		{Code: DiskSpace, Title: "a file system is too small or too full",
			Meaning: "The bundle, or what etcd, containerd and the kubelet write, does not fit. A kubelet short of room evicts pods.",
			Causes:  []string{"logs, packages or images of something else"},
			Remedy:  []string{"journalctl --vacuum-size=100M; apt-get clean", "Mount a larger file system at the path."}},
		{Code: DiskSlow, Title: "etcd's disk is slow",
			Meaning: "The 99th percentile of 100 small synced writes, as etcd makes them. etcd wants less than 10 ms; with more than half of its election timeout of 1 s, it loses its leader again and again.",
			Causes:  []string{"a rotating or network disk", "another program that writes much", "a virtual disk without a write cache"},
			Remedy:  []string{"Give /var/lib/etcd an SSD or NVMe of its own."}},
		{Code: ClockSkew, Title: "a clock is off",
			Meaning: "Tokens are accepted up to a minute off, certificates are made five minutes back: half a minute blocks. From one second on etcd complains, and logs of several hosts cannot be compared.",
			Causes:  []string{"no time synchronization", "a virtual machine that was suspended"},
			Remedy:  []string{"timedatectl set-ntp true", "chronyc makestep"}},
		{Code: HostnameDuplicate, Title: "two hosts have one name",
			Meaning: "A node is called like its host: the second would take the place of the first.",
			Causes:  []string{"machines cloned from one image"},
			Remedy:  []string{"hostnamectl set-hostname NAME", "Or a name of its own with `node:` in the cluster file."}},
		{Code: AddressDuplicate, Title: "two hosts have one address",
			Meaning: "Packets for the node would reach the one host or the other.",
			Causes:  []string{"the same static address on two machines", "the same host named twice, by two names"},
			Remedy:  []string{"Give one of the hosts another address, or name it once."}},
		{Code: MachineIDDuplicate, Title: "two hosts have one machine-id",
			Meaning: "DHCP servers give both one address, and journals and monitoring take both for one machine.",
			Causes:  []string{"machines cloned from one image"},
			Remedy:  []string{"rm /etc/machine-id && systemd-machine-id-setup && reboot"}},
		{Code: MachineIDMissing, Title: "the host has no machine-id",
			Meaning: "The kubelet and systemd's journal name the machine by it.",
			Causes:  []string{"an image that was made to get one at its first boot, and could not write it"},
			Remedy:  []string{"systemd-machine-id-setup"}},
		{Code: ForeignInstaller, Title: "another installer has been here",
			Meaning: "What it left would be mixed with this cluster: certificates that do not fit, a database of another cluster, pods on two networks. kubewright never takes over such a host.",
			Causes:  []string{"the host is still in that cluster", "a cluster that was taken down without its own reset"},
			Remedy:  []string{"kubeadm reset", "k3s-uninstall.sh", "k0s stop && k0s reset"}},
		{Code: FirewallActive, Title: "a firewall drops what no rule accepts",
			Meaning: "Hosts of the cluster and pods must reach this host. What was found blocked between the hosts has findings of its own; pods' traffic is not in those.",
			Causes:  []string{"ufw or firewalld, which distributions turn on", "nftables rules of the admin's own with `policy drop`"},
			Remedy:  []string{"ufw allow from HOST-NETWORK && ufw allow from POD-RANGE", "firewall-cmd --permanent --zone=trusted --add-source=HOST-NETWORK --add-source=POD-RANGE && firewall-cmd --reload"}},
		{Code: ToolMissing, Title: "a program is missing on the host",
			Meaning: "A node's components run this program of the host's.",
			Causes:  []string{"a minimal image"},
			Remedy:  []string{"apt-get install nftables iproute2 mount procps"}},
		{Code: MemoryLow, Title: "the host has little memory",
			Meaning: "The components alone take about 650 MB on a control-plane node and 250 MB on a worker, with nothing to do; without room to spare the kernel kills them.",
			Causes:  []string{"a small virtual machine"},
			Remedy:  []string{"Give it 2 GB as a control-plane node, 1 GB as a worker."}},
		{Code: CPULow, Title: "the host has one processor",
			Meaning: "etcd and the API server wait for each other, most of all while the cluster starts.",
			Causes:  []string{"a small virtual machine"},
			Remedy:  []string{"Give it two processors."}},
		{Code: ArchMismatch, Title: "the bundle is for another architecture",
			Meaning: "No program of the bundle runs on this host.",
			Causes:  []string{"a bundle built on another kind of machine"},
			Remedy:  []string{"Use a bundle for the host's architecture, with --bundle."}},
		{Code: TCPBlocked, Title: "a TCP port cannot be reached between two hosts",
			Meaning: "A throw-away program listened there and was called from the other host. `no answer` is a firewall that drops, `connection refused` one that rejects or an address of another machine.",
			Causes:  []string{"a firewall on the host that is called", "security groups of a cloud", "no route between the networks"},
			Remedy:  []string{"ufw allow from HOST-NETWORK", "firewall-cmd --permanent --zone=trusted --add-source=HOST-NETWORK && firewall-cmd --reload"}},
		{Code: UDPBlocked, Title: "UDP does not arrive between two hosts",
			Meaning: "Pods on the two hosts would not reach each other: VXLAN is carried in UDP, port 8472.",
			Causes:  []string{"a firewall on the host that is called", "security groups of a cloud that know TCP alone"},
			Remedy:  []string{"nft insert rule inet filter input udp dport 8472 accept", "ufw allow 8472/udp", "Or `network: {backend: host-gw}`, if all hosts are in one layer-2 network."}},
		{Code: VXLANBlocked, Title: "VXLAN frames do not arrive between two hosts",
			Meaning: "Plain UDP arrives on the same port, frames of a VXLAN device do not; to a host that is a node already, frames alone are tried. Pods on the two hosts would not reach each other.",
			Causes:  []string{"to a node: a firewall that lets in the other nodes, and not the host that joins", "a hypervisor or switch that takes VXLAN on 8472 for its own", "a firewall that looks into packets"},
			Remedy:  []string{"Use `network: {backend: host-gw}`, if all hosts are in one layer-2 network."}},
		{Code: VXLANTCPBroken, Title: "TCP inside VXLAN is broken between two hosts",
			Meaning: "Pings pass, connections hang: a network card computes wrong checksums for what is inside a tunnel.",
			Causes:  []string{"checksum offload of vmxnet3, or of an old driver", "a path that drops packets of full size"},
			Remedy:  []string{"ethtool -K DEV tx-checksum-ip-generic off", "ethtool -K DEV tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off"}},
		{Code: NodeUntried, Title: "the way to a node of the cluster was not tried",
			Meaning: "Before hosts join, VXLAN frames are sent between them and up to ten nodes that are there. This one was not reached by SSH, or could not take part. It keeps nobody from joining.",
			Causes:  []string{"its host is down", "this machine does not reach it: SSH is asked for the name that it was joined by"},
			Remedy:  []string{"kubewright doctor"}},
		{Code: MTUTooSmall, Title: "an interface's MTU leaves pods little",
			Meaning: "Pods get the interface's MTU less 50 for VXLAN; below 1280 IPv6 ends, and many programs assume it.",
			Causes:  []string{"a tunnel in a tunnel"},
			Remedy:  []string{"ip link set dev DEV mtu 1500"}},
		{Code: PathMTU, Title: "large packets do not arrive between two hosts",
			Meaning: "Packets as large as the interface allows are lost on the way: connections open, then hang with the first full packet. Sizes were tried one by one.",
			Causes:  []string{"a VPN or tunnel between the hosts", "jumbo frames on some hosts, not on all, or not on the switch"},
			Remedy:  []string{"ip link set dev DEV mtu N, and the same in the host's network configuration"}},
		{Code: VirtualIPTaken, Title: "another machine has the virtual IP",
			Meaning: "The first control-plane host asked its network by ARP who has the address, and somebody answered. With two owners, each machine's calls would reach the one or the other.",
			Causes:  []string{"an address that DHCP gives away", "a cluster that was not reset, and still holds it", "another load balancer or router of the network"},
			Remedy:  []string{"ip neigh show ADDRESS", "Set controlPlaneEndpoint.virtualIP to an address that nobody has, outside of DHCP's range."}},
		{Code: VirtualIPOutside, Title: "the virtual IP is in no network of the host",
			Meaning: "A host tells its neighbours by ARP that it has the virtual IP. Outside of its networks nobody asks for it.",
			Causes:  []string{"a mistyped address", "control-plane hosts in several networks"},
			Remedy:  []string{"Set controlPlaneEndpoint.virtualIP to an unused address of a network that all control-plane hosts are in.", "For hosts in several networks: a load balancer or a DNS name as controlPlaneEndpoint.address."}},
		{Code: ControlPlanesEven, Title: "an even number of control-plane hosts",
			Meaning: "etcd needs more than half of its members: with two of them both, with four of them three. The last one makes the cluster no safer, and one more host can fail that stops it.",
			Causes:  []string{"a cluster on its way to three or five control-plane hosts", "an even number for symmetry"},
			Remedy:  []string{"kubewright join HOST --control-plane", "Three control-plane hosts survive the loss of one, five the loss of two."}},
		{Code: ProbeFailed, Title: "the host could not be looked at closely",
			Meaning: "The throw-away program that tries kernel, disk and network did not run there; everything that it would have found is not known.",
			Causes:  []string{"every folder for temporary files is mounted noexec", "a security module that lets unknown programs not run"},
			Remedy:  []string{"mount -o remount,exec /dev/shm"}},
		{Code: AddressChosen, Title: "which of several addresses became the node's",
			Meaning: "Of all addresses of the host, the one that every other host reached, the one that SSH uses first.",
			Causes:  []string{"the host has several networks"},
			Remedy:  []string{"Name another one with `address:` in the cluster file."}},
		{Code: MTUChosen, Title: "which MTU pods get",
			Meaning: "The interface's MTU, less what the pod network adds to each packet.",
			Causes:  []string{"always told, once for all hosts"},
			Remedy:  []string{"ip link set dev DEV mtu N changes the interface, and pods with it."}},
	}
}
