package finding

// Codes of what is found in a cluster that runs, or that should.
const (
	AddonNotAvailable      Code = "addon-not-available"
	APIServerNotReady      Code = "apiserver-not-ready"
	APIUnreachable         Code = "api-unreachable"
	APIUnreachableFromNode Code = "api-unreachable-from-node"
	BackupFailed           Code = "backup-failed"
	BackupOld              Code = "backup-old"
	BundleMismatch         Code = "bundle-mismatch"
	CertificateExpired     Code = "certificate-expired"
	CertificateExpiring    Code = "certificate-expiring"
	CertificateRefused     Code = "certificate-refused"
	CheckFailed            Code = "check-failed"
	CNINotReady            Code = "cni-not-ready"
	ConfigRefused          Code = "configuration-refused"
	DiskFilling            Code = "disk-filling"
	DNSLoop                Code = "dns-loop"
	DNSNotAvailable        Code = "dns-not-available"
	EtcdDamaged            Code = "etcd-damaged"
	EtcdDiskSlow           Code = "etcd-disk-slow"
	EtcdFenced             Code = "etcd-fenced"
	EtcdFilling            Code = "etcd-filling"
	EtcdMemberDown         Code = "etcd-member-down"
	EtcdNoLeader           Code = "etcd-no-leader"
	EtcdNoSpace            Code = "etcd-no-space"
	EtcdOtherCluster       Code = "etcd-other-cluster"
	EtcdUnreachable        Code = "etcd-unreachable"
	FlagRefused            Code = "flag-refused"
	HostUnclaimed          Code = "host-unclaimed"
	HostUnreachable        Code = "host-unreachable"
	ImageMissing           Code = "image-missing"
	KubeletCgroupDriver    Code = "kubelet-cgroup-driver"
	KubeletRuntimeDown     Code = "kubelet-runtime-down"
	NodeCordoned           Code = "node-cordoned"
	NodeUnfinished         Code = "node-unfinished"
	NodeDiskPressure       Code = "node-disk-pressure"
	NodeMemoryPressure     Code = "node-memory-pressure"
	NodeNotReady           Code = "node-not-ready"
	NodePIDPressure        Code = "node-pid-pressure"
	OutOfMemory            Code = "out-of-memory"
	OverlayNotRunning      Code = "overlay-not-running"
	PodCrashLoop           Code = "pod-crash-loop"
	PodNotReady            Code = "pod-not-ready"
	PodUnschedulable       Code = "pod-unschedulable"
	ProgramMissing         Code = "program-missing"
	RuntimeFailed          Code = "runtime-failed"
	UnitDisabled           Code = "unit-disabled"
	UnitFailed             Code = "unit-failed"
	UnitMissing            Code = "unit-missing"
	UnitRestarting         Code = "unit-restarting"
	VersionSkew            Code = "version-skew"
	VirtualIPConflict      Code = "virtual-ip-conflict"
)

// Remedies that many have in common.
const (
	sameCommand = "run the same `kubewright init` or `kubewright join` again: it repairs what differs"
	readJournal = "read the unit's journal on the host: journalctl -u UNIT -n 100 --no-pager"
)

// healthCodes are of what is found in a cluster that runs, or that should.
func healthCodes() []Explanation {
	return []Explanation{
		{APIUnreachable, "the API server does not answer",
			"Nobody can see or change the cluster. Pods go on running, but nothing replaces those that end.",
			[]string{"kube-apiserver or etcd does not run on the control-plane host", "the workstation does not reach the host's API port"},
			[]string{"name the control-plane host, so that doctor looks at it over SSH: kubewright doctor HOST", "on the host: journalctl -u kube-apiserver -u etcd -n 100 --no-pager"}},
		{APIServerNotReady, "the API server answers, but is not ready",
			"Some of its own checks fail; it refuses or delays requests.",
			[]string{"etcd is slow or has no leader", "the API server has only just started"},
			[]string{"kubewright kubectl get --raw '/readyz?verbose'", "on the control-plane host: journalctl -u kube-apiserver -n 100 --no-pager"}},
		{APIUnreachableFromNode, "a node does not reach the API server",
			"Its kubelet cannot report: after 40 seconds the node is not ready, after five minutes its pods are made anew elsewhere.",
			[]string{"a firewall between the hosts drops the API server's port", "the API server's address changed, or does not lead there from this host"},
			[]string{"let TCP to the API server's port (6443) pass from every node", "on the node: nc -vz ADDRESS 6443"}},
		{UnitFailed, "a component does not run",
			"A unit of kubewright's is not active. systemd starts it again each second, unless it was stopped by hand.",
			[]string{"somebody stopped it", "it ends as soon as it starts: its last log lines say why"},
			[]string{"on the host: systemctl start UNIT", readJournal}},
		{UnitRestarting, "a component ends again and again",
			"A unit has started anew a short time ago, or is waiting to be. What it does fails in between.",
			[]string{"its last lines say it in words that are not known here", "what it depends on does not answer", "its configuration is refused", "it needs more memory than there is"},
			[]string{readJournal}},
		{UnitMissing, "a component is not installed",
			"The host is a node of the cluster, but systemd does not know one of its units.",
			[]string{"the run that made the node was broken off", "somebody removed the unit file"},
			[]string{sameCommand}},
		{UnitDisabled, "a component would not start at boot",
			"It runs now, and will be missing after the next reboot.",
			[]string{"somebody disabled it"},
			[]string{"on the host: systemctl enable UNIT", sameCommand}},
		{ProgramMissing, "a unit's program is not there or cannot be executed",
			"systemd has nothing to start.",
			[]string{"the folder of the version in use (/opt/kubewright/current) was removed or is incomplete", "the file system is mounted noexec"},
			[]string{sameCommand, "on the host: ls -l /opt/kubewright/current/bin; findmnt -T /opt"}},
		{FlagRefused, "a component refuses one of its flags",
			"It ends before it does anything.",
			[]string{"extraArgs of the cluster file names a flag that this version has not, or a value that it does not take"},
			[]string{"correct extraArgs in the cluster file, then run the same command again"}},
		{ConfigRefused, "a component refuses its configuration file",
			"It ends before it does anything.",
			[]string{"somebody edited the file on the host"},
			[]string{sameCommand}},
		{OutOfMemory, "the kernel killed a component for want of memory",
			"It starts again, and is likely to be killed again.",
			[]string{"the host has too little memory for what runs on it", "a pod without a memory limit uses all of it"},
			[]string{"give pods memory limits, or the host more memory", "on the host: journalctl -k --grep 'Out of memory' --no-pager"}},
		{EtcdUnreachable, "etcd does not answer",
			"The API server can neither read nor write: the cluster stands still.",
			[]string{"etcd does not run", "its certificates are not those of the API server's client"},
			[]string{"on the control-plane host: systemctl status etcd; journalctl -u etcd -n 100 --no-pager"}},
		{EtcdMemberDown, "a member of etcd is not healthy",
			"The cluster goes on as long as more than half of the members are; one more that fails may be one too many.",
			[]string{"its host is off or cut off from the others", "etcd does not run on its host", "a join that was broken off has left it"},
			[]string{"kubewright etcd health", "bring its host back: kubewright doctor HOST; if it is gone for ever: kubewright remove NODE --force"}},
		{EtcdNoLeader, "etcd has no leader",
			"Nothing can be written, and most reads fail.",
			[]string{"more than half of the members do not run or do not reach each other", "a member's disk or network is too slow for heartbeats"},
			[]string{"start etcd on the control-plane hosts that lack it: systemctl start etcd", "let TCP 2379 and 2380 pass between control-plane hosts",
				"if more than half of the hosts are gone for ever: kubewright recover --from HOST"}},
		{EtcdNoSpace, "etcd's database has reached its quota",
			"etcd refuses all writes until space is made and the alarm is taken back: the cluster is read-only.",
			[]string{"something writes very many objects or events", "the database was never defragmented"},
			[]string{"kubewright etcd defrag --disarm",
				"raise quota-backend-bytes in extraArgs of etcd"}},
		{BackupFailed, "scheduled backups are not made",
			"The cluster file asks for backups, and the last one failed, or the timer does not run. Older backups are still there: they are removed only when a new one is proven.",
			[]string{"the disk of the backups' folder is full", "etcd or the API server did not answer at that time"},
			[]string{"read why on the host: journalctl -u kubewright-backup.service -n 20 --no-pager", "then try: systemctl start kubewright-backup.service"}},
		{BackupOld, "no backup is as young as the schedule would have it",
			"Two scheduled backups in a row, or more, are on no control-plane host. A restore would go further back than the cluster file promises.",
			[]string{"etcd or the API server did not answer at these times", "the disk of the backups' folder is full", "the hosts were off", "somebody removed the newest ones"},
			[]string{"make one now: kubewright backup -o FILE --recipient KEY", "see which there are: kubewright backup list",
				"read why on each control-plane host: journalctl -u kubewright-backup.service -n 20 --no-pager"}},
		{EtcdFenced, "a member of etcd that was taken out does not start again",
			"The host has the data of a member that its cluster has taken out for ever, or of another cluster than the other control-plane hosts'. With them it could become a second cluster, so etcd does not start on it. The data stay where they are.",
			[]string{"the member was removed while its host was off", "the cluster was recovered or restored without this host"},
			[]string{"kubewright reset HOST, then kubewright join HOST --control-plane"}},
		{EtcdOtherCluster, "a host's etcd is not of the cluster that the API belongs to",
			"Its member of etcd has other data than the cluster: it belongs to another one of the same name, or was given up. What reaches the API server on this host sees and changes a cluster of before; pods may run twice.",
			[]string{"the cluster was restored or recovered without this host, which was turned on again"},
			[]string{"kubewright reset HOST, or keep it off", "then, to have it in the cluster again: kubewright join HOST --control-plane"}},
		{EtcdFilling, "etcd's database is near its quota",
			"At the quota (2 GiB unless it was raised) etcd refuses all writes.",
			[]string{"something writes very many objects or events", "the database was never defragmented"},
			[]string{"find the kind of object that there are many of: kubewright kubectl get --raw /metrics | grep apiserver_resource_objects", "kubewright etcd defrag"}},
		{EtcdDamaged, "etcd's data is damaged",
			"etcd ends rather than serve data that it cannot trust.",
			[]string{"power was lost on a disk that does not keep what it said it had written", "files below /var/lib/etcd were changed or copied by hand"},
			[]string{"restore a backup; on a cluster that holds nothing yet: kubewright reset HOST, then kubewright init again", "on the host: dmesg --level err"}},
		{EtcdDiskSlow, "etcd's disk is too slow",
			"Every write to the cluster waits for it; above about 100 ms per fsync leaders are lost and components restart.",
			[]string{"a disk that others share, or a network disk", "a rotating disk"},
			[]string{"put /var/lib/etcd on a disk of its own, best an SSD", "on the host: grep -r . /proc/pressure/io"}},
		{KubeletCgroupDriver, "kubelet and container runtime disagree about cgroups",
			"The kubelet does not start pods.",
			[]string{"cgroupDriver of /var/lib/kubelet/config.yaml and SystemdCgroup of /etc/containerd/config.toml differ: one was edited by hand"},
			[]string{sameCommand}},
		{KubeletRuntimeDown, "the kubelet does not reach the container runtime",
			"No container can be started, stopped or looked at on this node.",
			[]string{"containerd does not run"},
			[]string{"on the host: systemctl restart containerd; journalctl -u containerd -n 100 --no-pager"}},
		{RuntimeFailed, "the container runtime cannot do its work",
			"No container can be started on this node.",
			[]string{"its configuration was edited by hand, or is refused: its last log lines say why", "the file system below /var/lib/containerd does not serve as overlay's upper layer", "the kernel lacks overlayfs or cgroups"},
			[]string{"on the host: journalctl -u containerd -n 100 --no-pager; findmnt -T /var/lib/containerd"}},
		{CNINotReady, "a node has no pod network",
			"Only pods on the host's own network start there.",
			[]string{"the pod network's pod does not run on this node yet", "with `network: none`, nobody has installed a pod network", "/etc/cni/net.d was emptied"},
			[]string{"kubewright kubectl -n kube-system get pods -o wide", "make the pod network's pod write its configuration again: kubewright kubectl -n kube-system delete pod -l app.kubernetes.io/name=overlay"}},
		{OverlayNotRunning, "the pod network does not run on all nodes",
			"Pods of the nodes without it neither start nor reach pods of other nodes.",
			[]string{"its pod cannot start", "a node is not ready", "UDP 8472 or the API server's port is blocked"},
			[]string{"kubewright kubectl -n kube-system logs -l app.kubernetes.io/name=overlay --tail 50"}},
		{AddonNotAvailable, "a workload that kubewright installed is not available",
			"What it does for the cluster is missing, or is done by fewer replicas than wished.",
			[]string{"its pods cannot start", "no node takes them"},
			[]string{"kubewright kubectl -n kube-system get pods -o wide", "kubewright kubectl -n kube-system describe deployment NAME"}},
		{DNSNotAvailable, "names of services cannot be resolved",
			"Pods do not find each other by name.",
			[]string{"CoreDNS does not run", "the pod network or kube-proxy does not carry packets to it"},
			[]string{"kubewright kubectl -n kube-system get pods -l k8s-app=kube-dns -o wide", "kubewright kubectl -n kube-system logs -l k8s-app=kube-dns"}},
		{DNSLoop, "CoreDNS asks itself",
			"It ends as soon as it notices, and starts again.",
			[]string{"the host's resolv.conf names an address that leads back to CoreDNS or to the host itself"},
			[]string{"name other resolvers in the host's resolv.conf, then run the same command again"}},
		{NodeNotReady, "a node is not ready",
			"No new pods go there; after five minutes its pods are made anew elsewhere.",
			[]string{"its kubelet or container runtime does not run", "the host is down, or does not reach the API server", "it has no pod network yet"},
			[]string{"kubewright kubectl describe node NODE", "on the host: journalctl -u kubelet -u containerd -n 100 --no-pager"}},
		{NodeDiskPressure, "a node has too little disk space",
			"Its kubelet removes images and evicts pods, and takes no new ones.",
			[]string{"logs, images or volumes of type emptyDir fill the disk of /var/lib"},
			[]string{"on the host: df -h /var/lib/kubelet /var/lib/containerd; du -xsh /var/lib/* /var/log"}},
		{NodeMemoryPressure, "a node has too little memory",
			"Its kubelet evicts pods.",
			[]string{"pods without memory limits"},
			[]string{"kubewright kubectl describe node NODE", "give pods requests and limits, or the host more memory"}},
		{NodePIDPressure, "a node has too few process ids",
			"Its kubelet evicts pods.",
			[]string{"a pod that forks without end"},
			[]string{"on the host: ps -e -o ppid= | sort | uniq -c | sort -n | tail"}},
		{NodeCordoned, "a node takes no new pods",
			"Somebody, or a drain that was broken off, made it unschedulable.",
			[]string{"maintenance"},
			[]string{"kubewright kubectl uncordon NODE"}},
		{NodeUnfinished, "an init or join has not come to its end",
			"The node is registered, but has not its role, labels and taints yet; its member of etcd may have no vote.",
			[]string{"the run goes on at this moment", "it was broken off"},
			[]string{"run the same command again", "or give it up: kubewright remove HOST"}},
		{PodCrashLoop, "a container ends again and again",
			"It is started anew after a pause that grows to five minutes.",
			[]string{"its program ends by itself: its last log lines say why", "its liveness probe fails"},
			[]string{"kubewright kubectl -n NAMESPACE logs POD --previous"}},
		{ImageMissing, "a container's image cannot be had",
			"The container does not start.",
			[]string{"the image's name is wrong", "no registry is reached from the node, and the image was not imported", "images of the bundle were removed from the node"},
			[]string{"import it on the node: /opt/kubewright/current/bin/ctr -n k8s.io images import FILE", "if the image came with the bundle: " + sameCommand}},
		{PodUnschedulable, "no node takes a pod",
			"It waits until one does.",
			[]string{"the nodes have too little CPU or memory left", "taints, node selectors or affinities exclude all nodes"},
			[]string{"kubewright kubectl -n NAMESPACE describe pod POD"}},
		{PodNotReady, "a pod does not become ready",
			"Services do not lead to it.",
			[]string{"its readiness probe fails", "a volume or its network cannot be set up"},
			[]string{"kubewright kubectl -n NAMESPACE describe pod POD"}},
		{CertificateExpiring, "a certificate ends soon",
			"When it has ended, those who are shown it refuse the connection.",
			[]string{"a year has passed since it was made"},
			[]string{sameCommand}},
		{CertificateExpired, "a certificate has ended",
			"Those who are shown it refuse the connection.",
			[]string{"a year has passed since it was made", "the clock of a host is wrong"},
			[]string{"compare the clocks of the hosts: date", sameCommand}},
		{CertificateRefused, "a certificate is not trusted",
			"Two components do not talk to each other.",
			[]string{"the authority below /etc/kubernetes/pki was replaced, and not everywhere", "the host belonged to another cluster before"},
			[]string{"kubewright reset HOST, then join it again"}},
		{VersionSkew, "versions of components do not go together",
			"A kubelet may be up to three minor versions older than the API server, and never newer.",
			[]string{"an upgrade was broken off"},
			[]string{"run the upgrade again"}},
		{VirtualIPConflict, "another machine has the cluster's virtual IP",
			"The control-plane host that is to have it does not take it, or has it and the other machine as well: then clients reach the one or the other.",
			[]string{"the hosts of a cluster that was restored or recovered elsewhere were turned on again", "somebody gave the address to a machine; DHCP did"},
			[]string{"find the machine by its hardware address (the switch's table, the hypervisor's list) and take the address from it", "old hosts of this cluster: kubewright reset HOST, or keep them off"}},
		{BundleMismatch, "a host runs another bundle than the cluster's record names",
			"Its components may be of another version than the others'.",
			[]string{"an upgrade was broken off", "somebody changed the link /opt/kubewright/current"},
			[]string{sameCommand}},
		{DiskFilling, "a file system is nearly full",
			"At 85 % the kubelet begins to remove images, at 90 % to evict pods; a full disk stops etcd.",
			[]string{"logs, images, or files of pods"},
			[]string{"on the host: du -xh --max-depth 2 /var | sort -h | tail"}},
		{HostUnreachable, "a host does not answer over SSH",
			"Nothing can be said of it but what the API knows.",
			[]string{"it is off", "it is not in ssh_config by this name", "a firewall drops port 22"},
			[]string{"ssh HOST true"}},
		{HostUnclaimed, "a host belongs to no cluster",
			"kubewright has not made a node of it.",
			[]string{"another host was meant", "it was reset"},
			[]string{"kubewright join HOST"}},
		{CheckFailed, "something could not be looked at",
			"What this check would have found is not known.",
			[]string{"the host or the API did not answer in time", "a program is missing on the host"},
			[]string{"run `kubewright doctor` again; the message says what was asked"}},
	}
}
