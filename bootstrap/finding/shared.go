package finding

// Codes of what both a preflight and a look at a live cluster find.
const (
	CgroupV1  Code = "cgroup-v1"
	ClockSkew Code = "clock-skew"
	PortInUse Code = "port-in-use"
	SwapOn    Code = "swap-on"
)

// sharedCodes are theirs.
func sharedCodes() []Explanation {
	return []Explanation{
		{PortInUse, "a port is taken",
			"A component cannot listen where the others look for it.",
			[]string{"another program, or another Kubernetes, listens there"},
			[]string{"find out who: ss -ltnp 'sport = :PORT'", "stop that program, then run the same command again"}},
		{ClockSkew, "clocks differ between hosts",
			"New certificates are not valid yet on a host that is behind, leases end too early, and logs cannot be compared.",
			[]string{"no time service runs, or it reaches no server"},
			[]string{"on the hosts: timedatectl set-ntp true", "without a time server: date --set against a host that is right"}},
		{SwapOn, "swap is on",
			"The kubelet does not start with swap: memory limits of pods would mean nothing.",
			[]string{"an entry in /etc/fstab, a systemd swap unit or zram"},
			[]string{"on the host: swapoff -a, and remove the entry from /etc/fstab"}},
		{CgroupV1, "the kubelet refuses cgroup v1",
			"The host has the old cgroup hierarchies.",
			[]string{"an old distribution, or systemd.unified_cgroup_hierarchy=0 on the kernel's command line"},
			[]string{"boot with systemd.unified_cgroup_hierarchy=1", sameCommand}},
	}
}
