package diagnose

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
)

const unitFile = "[Service]\nType=notify\nExecStart=/bin/x\n[Install]\nWantedBy=multi-user.target\n"

// machine has etcd and kubelet installed, enabled and running.
func machine(t *testing.T) *hosttest.Sim {
	s := hosttest.NewSim(t, "cp1")
	for _, u := range []string{"etcd.service", "kubelet.service"} {
		s.Put("/etc/systemd/system/"+u, unitFile, 0o644)
	}
	s.Boot()
	sd := s.Systemd()
	if err := errors.Join(sd.Enable(t.Context(), "etcd.service", "kubelet.service"), sd.Start(t.Context(), "etcd.service"),
		sd.Start(t.Context(), "kubelet.service")); err != nil {
		t.Fatal(err)
	}
	return s
}

func journal(unit, text string) hosttest.Answer {
	return hosttest.Answer{Argv: []string{"journalctl", "-u", unit, "-n", "50", "-o", "cat", "--no-pager"}, Stdout: text}
}

func TestUnits(t *testing.T) {
	s := machine(t)
	names := []string{"etcd.service", "kubelet.service"}
	report, err := Units(t.Context(), s, time.Now(), names...)
	if err != nil || len(report) != 0 {
		t.Fatalf("of a host in order: %v, %v", report, err)
	}
	s.CrashUnit("etcd.service")
	if err := s.Systemd().Stop(t.Context(), "kubelet.service"); err != nil {
		t.Fatal(err)
	}
	s.Script(
		journal("etcd.service", "token: abcdef.0123456789abcdef\npanic: failed to open database\n"),
		journal("kubelet.service", "bind: address already in use\nStopped kubelet.\n"))
	report, err = Units(t.Context(), s, time.Now(), append(names, "kube-proxy.service")...)
	if err != nil || len(report) != 3 {
		t.Fatalf("%v, %v", report, err)
	}
	for i, want := range []finding.Code{finding.EtcdDamaged, finding.UnitFailed, finding.UnitMissing} {
		f := report[i]
		if f.Code != want || f.Host != "cp1" || f.Cause == "" || f.Remedy == "" || f.Severity != finding.Error {
			t.Errorf("%d: %+v, want %s", i, f, want)
		}
	}
	if log := strings.Join(report[0].Log, "\n"); strings.Contains(log, "0123456789abcdef") || !strings.Contains(log, "failed to open") {
		t.Errorf("log: %s", log)
	}
	if report[1].Remedy != "on cp1: systemctl start kubelet.service" {
		t.Errorf("remedy: %s", report[1].Remedy)
	}
}

func TestUnitThatRestarts(t *testing.T) {
	now := time.Now()
	for want, u := range map[finding.Code]host.Unit{
		finding.UnitRestarting: {Name: "a", Active: "active", Restarts: 3, Started: now.Add(-time.Minute), File: "enabled"},
		finding.UnitDisabled:   {Name: "a", Active: "active", Restarts: 3, Started: now.Add(-time.Hour), File: "disabled"},
	} {
		if f, wrong := state(u, now); !wrong || f.Code != want || f.Severity != finding.Warning {
			t.Errorf("%+v is %+v", u, f)
		}
	}
	if f, wrong := state(host.Unit{Name: "a", Active: "active", Restarts: 3, Started: now.Add(-time.Hour), File: "enabled"}, now); wrong {
		t.Errorf("%+v", f)
	}
}

func TestStep(t *testing.T) {
	s := machine(t)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "coredns-1"},
		Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "coredns", State: corev1.ContainerState{
			Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImageNeverPull", Message: "not there"}}}}}}
	var api kubernetes.Interface = fake.NewClientset(pod)
	r := Run{Hosts: []host.Reader{s}, Units: []string{"etcd.service", "kubelet.service"},
		Kubernetes: func(context.Context) (kubernetes.Interface, error) { return api, nil }}
	late := fault.New(fault.Timeout, "", "not done")
	found := func(lane string, err error) finding.Code {
		t.Helper()
		var why *finding.Diagnosed
		got := r.Step(t.Context(), lane, "x/y", err)
		if !errors.Is(got, err) || fault.CodeOf(got) != fault.CodeOf(err) {
			t.Errorf("the error itself is lost: %v", got)
		}
		if errors.As(got, &why) {
			return why.Finding.Code
		}
		return ""
	}
	if got := found("cp1", fault.New(fault.DiskFull, "", "full")); got != "" {
		t.Errorf("an error that says it all got %s", got)
	}
	if got := found("cluster", late); got != finding.ImageMissing {
		t.Errorf("a wait for pods got %s", got)
	}
	failed := fault.At("cp1", "x/y", &host.UnitError{Unit: "etcd.service", Verb: "start", Result: "failed", Log: "bind: address already in use"})
	if got := found("cp1", failed); got != finding.PortInUse {
		t.Errorf("a unit that runs by now got %s", got)
	}
	var why *finding.Diagnosed
	if errors.As(r.Step(t.Context(), "cp1", "x/y", failed), &why); !strings.Contains(why.Finding.Remedy, "ss -ltnp") {
		t.Errorf("of a port that is taken: %+v", why.Finding) // never to stop the unit itself
	}
	s.CrashUnit("etcd.service")
	s.Script(journal("etcd.service", "walpb: crc mismatch\n"))
	for _, err := range []error{late, failed} {
		if got := found("cp1", err); got != finding.EtcdDamaged {
			t.Errorf("with etcd crashed, %v got %s", err, got)
		}
	}
	api = fake.NewClientset()
	if err := s.Systemd().Start(t.Context(), "etcd.service"); err != nil {
		t.Fatal(err)
	}
	s.Script(journal("etcd.service", ""), journal("kubelet.service", `Get "https://x": dial tcp: connect: connection refused`))
	if got := found("cluster", late); got != finding.APIUnreachableFromNode {
		t.Errorf("by the log of a unit that runs: %s", got)
	}
}

func TestPodsAndNodes(t *testing.T) {
	now := time.Now()
	pod := func(ns string, s corev1.PodStatus) corev1.Pod {
		return corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "p"}, Status: s}
	}
	waits := func(reason string, restarts int32) corev1.PodStatus {
		return corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "c", RestartCount: restarts,
			State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}}}}
	}
	event := &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "e"}, Type: "Warning", Reason: "FailedMount",
		Message: "password=hunter2 was refused", InvolvedObject: corev1.ObjectReference{Name: "p"}}
	for _, c := range []struct {
		pod      corev1.Pod
		want     finding.Code
		severity finding.Severity
	}{
		{pod("kube-system", waits("CrashLoopBackOff", 4)), finding.PodCrashLoop, finding.Error},
		{pod("default", waits("ImagePullBackOff", 0)), finding.ImageMissing, finding.Warning},
		{pod("default", waits("CreateContainerConfigError", 0)), finding.PodNotReady, finding.Warning},
		{pod("default", corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Reason: "Unschedulable", Message: "0/1 nodes"}}}), finding.PodUnschedulable, finding.Warning},
		{pod("default", corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse,
			LastTransitionTime: metav1.NewTime(now.Add(-time.Hour))}}}), finding.PodNotReady, finding.Warning},
		{pod("default", corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse,
			LastTransitionTime: metav1.NewTime(now)}}}), "", ""},
		{pod("default", waits("ContainerCreating", 0)), "", ""},
	} {
		report := Pods(t.Context(), fake.NewClientset(event), []corev1.Pod{c.pod}, now)
		switch {
		case c.want == "" && len(report) == 0:
		case len(report) != 1 || report[0].Code != c.want || report[0].Severity != c.severity:
			t.Errorf("%+v, want %s", report, c.want)
		case strings.Contains(strings.Join(report[0].Log, " "), "hunter2"):
			t.Errorf("a secret of an event: %s", report[0].Log)
		}
	}

	node := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "w1"}, Spec: corev1.NodeSpec{Unschedulable: true},
		Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeReady, Status: corev1.ConditionFalse, Message: "cni plugin not initialized"},
			{Type: corev1.NodeDiskPressure, Status: corev1.ConditionTrue}, {Type: corev1.NodeMemoryPressure, Status: corev1.ConditionTrue},
			{Type: corev1.NodePIDPressure, Status: corev1.ConditionTrue}}}}
	var got []string
	for _, f := range Nodes([]corev1.Node{node}) {
		got = append(got, string(f.Code))
	}
	if want := "cni-not-ready node-disk-pressure node-memory-pressure node-pid-pressure node-cordoned"; strings.Join(got, " ") != want {
		t.Errorf("%v", got)
	}
}
