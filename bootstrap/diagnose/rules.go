package diagnose

import (
	"slices"
	"strings"

	"github.com/kubewright/kubewright/bootstrap/finding"
)

// rule recognises one kind of trouble by a line of a log. Components say what ails
// them in text only, so here, and nowhere else, text is what decides.
type rule struct {
	of   string   // the component that says so: a unit's name without .service, or a container's; "" any
	has  []string // what the line has, all of it
	code finding.Code
}

// rules, the nearer to a cause the earlier: of two that match, the first counts.
// The words are those of Kubernetes 1.36 and 1.37, etcd 3.7, containerd 2.4 and systemd.
func rules() []rule {
	return []rule{
		{"", []string{"no space left on device"}, finding.DiskFilling},
		{"", []string{"killed by the OOM killer"}, finding.OutOfMemory},
		{"", []string{"Failed at step EXEC"}, finding.ProgramMissing},
		{"", []string{"Failed to locate executable"}, finding.ProgramMissing},
		{"", []string{"status=203/EXEC"}, finding.ProgramMissing},
		{"", []string{"unknown flag:"}, finding.FlagRefused},
		{"", []string{"flag provided but not defined"}, finding.FlagRefused},
		{"", []string{"invalid argument", "for \"--"}, finding.FlagRefused},
		{"", []string{"bind: address already in use"}, finding.PortInUse},
		{"", []string{"certificate has expired"}, finding.CertificateExpired},

		{"etcd", []string{"etcd is fenced and does not start"}, finding.EtcdFenced},
		{"etcd", []string{"database space exceeded"}, finding.EtcdNoSpace},
		{"etcd", []string{"crc mismatch"}, finding.EtcdDamaged},
		{"etcd", []string{"failed to open database"}, finding.EtcdDamaged},
		{"etcd", []string{"failed to recover v3 backend"}, finding.EtcdDamaged},
		{"etcd", []string{"failed to open WAL"}, finding.EtcdDamaged},
		{"etcd", []string{"failed to read WAL"}, finding.EtcdDamaged},
		{"etcd", []string{"invalid database"}, finding.EtcdDamaged},
		{"etcd", []string{"tocommit", "is out of range"}, finding.EtcdDamaged},
		{"etcd", []string{"snap: snapshot file doesn't exist"}, finding.EtcdDamaged},
		{"etcd", []string{"cannot access data directory"}, finding.EtcdDamaged},
		{"etcd", []string{"certificate signed by unknown authority"}, finding.CertificateRefused},
		{"etcd", []string{"lost leader"}, finding.EtcdNoLeader},
		{"etcd", []string{"no leader"}, finding.EtcdNoLeader},
		{"etcd", []string{"slow fdatasync"}, finding.EtcdDiskSlow},
		{"etcd", []string{"apply request took too long"}, finding.EtcdDiskSlow},

		{"kube-apiserver", []string{"127.0.0.1:2379", "connection refused"}, finding.EtcdUnreachable},
		{"kube-apiserver", []string{"127.0.0.1:2379", "authentication handshake failed"}, finding.CertificateRefused},
		{"kube-apiserver", []string{"etcdserver: no leader"}, finding.EtcdNoLeader},
		{"kube-apiserver", []string{"etcdserver: mvcc: database space exceeded"}, finding.EtcdNoSpace},
		{"kube-apiserver", []string{"etcd", "context deadline exceeded"}, finding.EtcdUnreachable},

		{"kubelet", []string{"running with swap on is not supported"}, finding.SwapOn},
		{"kubelet", []string{"cgroup driver", "is different from"}, finding.KubeletCgroupDriver},
		{"kubelet", []string{"not to run on a host using cgroup v1"}, finding.CgroupV1},
		{"kubelet", []string{"not to run on cgroup v1"}, finding.CgroupV1},
		{"kubelet", []string{"failed to load kubelet config file"}, finding.ConfigRefused},
		{"kubelet", []string{"failed to validate kubelet configuration"}, finding.ConfigRefused},
		{"kubelet", []string{"validate service connection"}, finding.KubeletRuntimeDown},
		{"kubelet", []string{"containerd.sock", "connect:"}, finding.KubeletRuntimeDown},
		{"kubelet", []string{"certificate signed by unknown authority"}, finding.CertificateRefused},
		{"kubelet", []string{"cni plugin not initialized"}, finding.CNINotReady},
		{"kubelet", []string{"connect: connection refused", "https://"}, finding.APIUnreachableFromNode},
		{"kubelet", []string{"connect: no route to host"}, finding.APIUnreachableFromNode},
		{"kubelet", []string{"i/o timeout", "https://"}, finding.APIUnreachableFromNode},

		{"containerd", []string{"cni conf dir is removed"}, finding.CNINotReady},
		{"containerd", []string{"failed to load TOML"}, finding.ConfigRefused},
		{"containerd", []string{"failed to unmarshal TOML"}, finding.ConfigRefused},
		{"containerd", []string{"failed to create CRI service"}, finding.RuntimeFailed},
		{"containerd", []string{"failed to load plugin", "required"}, finding.RuntimeFailed},
		{"containerd", []string{"level=fatal"}, finding.RuntimeFailed},

		{"kube-proxy", []string{"failed complete"}, finding.ConfigRefused},
		{"kube-proxy", []string{"connect: connection refused", "https://"}, finding.APIUnreachableFromNode},
		{"kube-controller-manager", []string{"connect: connection refused", "https://"}, finding.APIUnreachable},
		{"kube-scheduler", []string{"connect: connection refused", "https://"}, finding.APIUnreachable},

		{"kubewright-backup", []string{"etcd has no leader"}, finding.EtcdNoLeader},
		{"kubewright-backup", []string{"etcd members: 0 is not among them"}, finding.EtcdNoLeader}, // bundles before this one
		{"kubewright-backup", []string{"etcdserver: no leader"}, finding.EtcdNoLeader},
		{"kubewright-backup", []string{"etcdserver: request timed out"}, finding.EtcdNoLeader},
		{"kubewright-backup", []string{"etcdserver: mvcc: database space exceeded"}, finding.EtcdNoSpace},
		{"kubewright-backup", []string{":2379", "connection refused"}, finding.EtcdUnreachable},
		{"kubewright-backup", []string{"etcd", "context deadline exceeded"}, finding.EtcdUnreachable},
		{"kubewright-backup", []string{":6443", "connection refused"}, finding.APIUnreachable},

		{"coredns", []string{"Loop (", "detected"}, finding.DNSLoop},
		{"kubewright-vip", []string{"another machine has the virtual IP"}, finding.VirtualIPConflict},
		{"overlay", []string{"connect: connection refused"}, finding.APIUnreachableFromNode},
	}
}

// Recognise says what ails a component by its log, and which line tells. ok is
// false if no rule knows.
func Recognise(component string, log []string) (code finding.Code, line string, ok bool) {
	for _, r := range rules() {
		if r.of != "" && r.of != component {
			continue
		}
		for i := len(log) - 1; i >= 0; i-- {
			if r.in(log[i]) {
				return r.code, log[i], true
			}
		}
	}
	return "", "", false
}

func (r rule) in(line string) bool {
	for _, words := range r.has {
		if !strings.Contains(line, words) {
			return false
		}
	}
	return true
}

const (
	shownLines  = 6   // of a log, in a finding
	shownLength = 300 // of a line, in bytes
)

// relevant are the last lines that say more than that all is well, and telling among them.
func relevant(log []string, telling string) []string {
	var some []string
	for _, l := range log {
		if l == telling && l != "" || !routine(l) {
			some = slices.DeleteFunc(some, func(before string) bool { return says(before) == says(l) })
			some = append(some, l)
		}
	}
	if len(some) == 0 {
		some = log
	}
	var last []string
	for _, l := range some[max(0, len(some)-shownLines):] {
		last = append(last, shorten(l))
	}
	if telling = shorten(telling); telling != "" {
		for _, l := range last {
			if l == telling {
				return last
			}
		}
		last = append([]string{telling}, last[min(1, len(last)):]...)
	}
	return last
}

// says is a line without klog's header of level, time, process and source: what is
// said again and again is shown once, when it was said last.
func says(l string) string {
	if header, text, ok := strings.Cut(l, "] "); ok && len(header) > 5 && strings.Trim(header[1:5], "0123456789") == "" {
		return text
	}
	return l
}

// routine tells lines of level info, as klog, etcd and containerd write them.
func routine(l string) bool {
	klogInfo := len(l) > 5 && l[0] == 'I' && strings.Trim(l[1:5], "0123456789") == ""
	return l == "" || klogInfo || strings.Contains(l, `"level":"info"`) || strings.Contains(l, "level=info") ||
		strings.Contains(l, "[INFO]")
}

func shorten(l string) string {
	if len(l) <= shownLength {
		return l
	}
	return strings.ToValidUTF8(l[:shownLength], "") + " ..."
}
