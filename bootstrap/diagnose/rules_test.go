package diagnose

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/bootstrap/finding"
)

// TestRecognise has lines as the components wrote them.
func TestRecognise(t *testing.T) {
	for _, c := range []struct {
		of, line string
		want     finding.Code
	}{
		{"etcd", `panic: failed to open database`, finding.EtcdDamaged},
		{"etcd", `{"level":"fatal","ts":"2026-11-25T21:00:00Z","caller":"etcdmain/etcd.go:183","msg":"discovery failed","error":"listen tcp 127.0.0.1:2379: bind: address already in use"}`, finding.PortInUse},
		{"etcd", `{"level":"warn","msg":"slow fdatasync","took":"1.4s"}`, finding.EtcdDiskSlow},
		{"etcd", `{"level":"warn","msg":"failed to apply request","error":"etcdserver: mvcc: database space exceeded"}`, finding.EtcdNoSpace},
		{"etcd", `{"level":"panic","msg":"failed to open WAL","error":"walpb: crc mismatch"}`, finding.EtcdDamaged},
		{"etcd", `{"level":"fatal","msg":"...","error":"write /var/lib/etcd/member/wal/0.tmp: no space left on device"}`, finding.DiskFilling},
		{"etcd", `etcd.service: Failed to locate executable /opt/kubewright/current/bin/etcd: No such file or directory`, finding.ProgramMissing},
		{"kube-apiserver", `Error: unknown flag: --no-such-flag`, finding.FlagRefused},
		{"kube-apiserver", `W1125 20:59:38.1 1 logging.go:55] [core] grpc: addrConn.createTransport failed to connect to {Addr: "127.0.0.1:2379"}. Err: connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:2379: connect: connection refused"`, finding.EtcdUnreachable},
		{"kubewright-backup", `backup: etcd members: 0 is not among them`, finding.EtcdNoLeader},
		{"kubewright-backup", `backup: /var/backups/kubewright/.x: write: no space left on device`, finding.DiskFilling},
		{"kubewright-backup", `backup: etcd status: dial tcp 127.0.0.1:2379: connect: connection refused`, finding.EtcdUnreachable},
		{"kubelet", `E1125 20:59:38.1 1 run.go:72] "command failed" err="failed to run Kubelet: running with swap on is not supported, please disable swap or set --fail-swap-on flag to false"`, finding.SwapOn},
		{"kubelet", `E1125 20:59:38.1 1 run.go:72] "command failed" err="failed to run Kubelet: validate service connection: validate CRI v1 runtime API for endpoint"`, finding.KubeletRuntimeDown},
		{"kubelet", `E1125 20:59:38.1 1 run.go:72] "command failed" err="failed to load kubelet config file, path: /var/lib/kubelet/config.yaml"`, finding.ConfigRefused},
		{"kubelet", `E1125 20:59:38.1 1 controller.go:1] "Failed to ensure lease exists" err="Get \"https://198.18.34.11:6443/apis\": dial tcp 198.18.34.11:6443: connect: no route to host"`, finding.APIUnreachableFromNode},
		{"kubelet", `container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:Network plugin returns error: cni plugin not initialized`, finding.CNINotReady},
		{"kubelet", `x509: certificate has expired or is not yet valid: current time 2027-11-25T00:00:00Z is after 2026-11-25T00:00:00Z`, finding.CertificateExpired},
		{"containerd", `time="2026-11-25T20:59:25Z" level=fatal msg="Failed to run CRI service" error="cni network conf monitor error: cni conf dir is removed, stop watching"`, finding.CNINotReady},
		{"containerd", `containerd: failed to unmarshal TOML at row 34 column 8: toml: array is incomplete`, finding.ConfigRefused},
		{"coredns", `[FATAL] plugin/loop: Loop (127.0.0.1:40000 -> :53) detected for zone "."`, finding.DNSLoop},
		{"kubewright-vip", `another machine has the virtual IP: this host does not take it (02:00:00:00:00:09)`, finding.VirtualIPConflict},
		{"kube-scheduler", `kube-scheduler.service: A process of this unit has been killed by the OOM killer.`, finding.OutOfMemory},
		{"kubelet", `I1125 20:59:38.1 1 server.go:1] "Started kubelet"`, ""},
		{"containerd", `Started containerd.service - containerd: container runtime.`, ""},
		{"kube-proxy", `panic: failed to open database`, ""}, // another's words
	} {
		if got, line, ok := Recognise(c.of, []string{"before", c.line, "after"}); got != c.want || ok != (c.want != "") || ok && line != c.line {
			t.Errorf("%s: %s\n is %q, want %q", c.of, c.line, got, c.want)
		}
	}
}

func TestRelevant(t *testing.T) {
	telling := "E1125 21:00:00.0 1 a.go:1] the cause"
	log := []string{telling, "I1125 21:00:01.0 1 a.go:1] routine", `{"level":"info","msg":"routine"}`, "",
		"E1125 21:00:02.0 1 b.go:1] again", "E1125 21:00:03.0 1 b.go:1] again", "1", "2", "3", "4", "5", strings.Repeat("x", 1000)}
	got := relevant(log, telling)
	if len(got) != shownLines || got[0] != telling || len(got[5]) > shownLength+len(" ...") {
		t.Errorf("%d lines: %q", len(got), got)
	}
	got = relevant(log[:6], "")
	if diff := cmp.Diff([]string{telling, "E1125 21:00:03.0 1 b.go:1] again"}, got); diff != "" {
		t.Error(diff)
	}
	if got := relevant([]string{`"level":"info"`}, ""); len(got) != 1 {
		t.Errorf("of a log that is all routine nothing is shown: %q", got)
	}
}
