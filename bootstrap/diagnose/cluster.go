package diagnose

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/redact"
)

const (
	// patience is how long a pod may take to start before that is worth a word.
	patience = time.Minute
	// podLogLines is how much of a container's log is read.
	podLogLines = 50
	// logTimeout bounds the question for a log: a node that is down does not answer.
	logTimeout = 3 * time.Second
)

// Nodes says what the conditions of nodes tell, the gravest of each first.
func Nodes(nodes []corev1.Node) finding.Report {
	var report finding.Report
	for _, n := range nodes {
		add := func(code finding.Code, severity finding.Severity, message string) {
			report = append(report, finding.Finding{Code: code, Severity: severity, Object: n.Name, Message: "node " + n.Name + " " + message}.Advised())
		}
		for _, c := range n.Status.Conditions {
			on := c.Status == corev1.ConditionTrue
			switch {
			case c.Type == corev1.NodeReady && !on:
				code := finding.NodeNotReady
				if known, _, ok := Recognise("kubelet", []string{c.Message}); ok {
					code = known
				}
				add(code, finding.Error, "is not ready: "+redact.Text(c.Message))
			case c.Type == corev1.NodeDiskPressure && on:
				add(finding.NodeDiskPressure, finding.Error, "has too little disk space: "+c.Message)
			case c.Type == corev1.NodeMemoryPressure && on:
				add(finding.NodeMemoryPressure, finding.Error, "has too little memory: "+c.Message)
			case c.Type == corev1.NodePIDPressure && on:
				add(finding.NodePIDPressure, finding.Error, "has too few process ids: "+c.Message)
			}
		}
		if n.Spec.Unschedulable {
			add(finding.NodeCordoned, finding.Note, "takes no new pods: it is cordoned")
		}
	}
	return report
}

// Pods says what is wrong with pods, with the last lines of their logs and events.
func Pods(ctx context.Context, kube kubernetes.Interface, pods []corev1.Pod, now time.Time) finding.Report {
	var report finding.Report
	for _, p := range pods {
		f, container, wrong := podState(p, now)
		if !wrong {
			continue
		}
		f.Object = p.Namespace + "/" + p.Name
		f.Message = "pod " + f.Object + ": " + redact.Text(f.Message)
		if container != "" {
			explain(&f, container, podLog(ctx, kube, p, container), f.Code == finding.PodCrashLoop)
		}
		if len(f.Log) == 0 {
			f.Log = relevant(podEvents(ctx, kube, p), "")
		}
		report = append(report, f.Advised())
	}
	return report
}

// podState is what a pod's state alone tells, and the container whose log tells more, if one does.
func podState(p corev1.Pod, now time.Time) (f finding.Finding, container string, wrong bool) {
	f.Severity = finding.Warning
	if p.Namespace == metav1.NamespaceSystem {
		f.Severity = finding.Error
	}
	if p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodSucceeded {
		return f, "", false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonUnschedulable {
			f.Code, f.Message = finding.PodUnschedulable, c.Message
			return f, "", true
		}
	}
	for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if w := c.State.Waiting; w != nil {
			said := c.Name + " waits: " + strings.TrimSpace(w.Reason+" "+w.Message)
			switch w.Reason {
			case "CrashLoopBackOff":
				f.Code, f.Message = finding.PodCrashLoop, fmt.Sprintf("%s ended %d times%s", c.Name, c.RestartCount, ending(c))
				return f, c.Name, true
			case "ErrImageNeverPull", "ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ImageInspectError":
				f.Code, f.Message = finding.ImageMissing, said
				return f, "", true
			case "CreateContainerConfigError", "CreateContainerError", "RunContainerError":
				f.Code, f.Message = finding.PodNotReady, said
				return f, "", true
			}
		}
		if last := c.LastTerminationState.Terminated; last != nil && !c.Ready && c.RestartCount > 1 && now.Sub(last.FinishedAt.Time) < recently {
			f.Code, f.Message = finding.PodCrashLoop, fmt.Sprintf("%s ended %d times%s", c.Name, c.RestartCount, ending(c))
			return f, c.Name, true
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status != corev1.ConditionTrue && now.Sub(c.LastTransitionTime.Time) > patience {
			f.Code, f.Message = finding.PodNotReady, strings.TrimSpace("it is not ready: "+c.Message)
			if len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].State.Running != nil {
				container = p.Status.ContainerStatuses[0].Name
			}
			return f, container, true
		}
	}
	return f, "", false
}

// ending says how a container ended last.
func ending(c corev1.ContainerStatus) string {
	t := c.LastTerminationState.Terminated
	if t == nil {
		return ""
	}
	return fmt.Sprintf(", last with status %d (%s)", t.ExitCode, t.Reason)
}

// podLog is the end of the log of a container's last run that ended, or of the one
// under way. What cannot be read is not there.
func podLog(ctx context.Context, kube kubernetes.Interface, p corev1.Pod, container string) []string {
	ctx, cancel := context.WithTimeout(ctx, logTimeout)
	defer cancel()
	lines := int64(podLogLines)
	for _, previous := range []bool{true, false} {
		out, err := kube.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{
			Container: container, Previous: previous, TailLines: &lines}).DoRaw(ctx)
		if text := strings.TrimSpace(redact.Text(string(out))); err == nil && text != "" {
			return strings.Split(text, "\n")
		}
	}
	return nil
}

// podEvents are the warnings about a pod.
func podEvents(ctx context.Context, kube kubernetes.Interface, p corev1.Pod) []string {
	list, err := kube.CoreV1().Events(p.Namespace).List(ctx, metav1.ListOptions{
		FieldSelector: "type=Warning,involvedObject.name=" + p.Name})
	if err != nil {
		return nil
	}
	slices.SortFunc(list.Items, func(a, b corev1.Event) int { return a.LastTimestamp.Compare(b.LastTimestamp.Time) })
	var lines []string
	for _, e := range list.Items {
		lines = append(lines, strings.ReplaceAll(redact.Text(e.Reason+": "+e.Message), "\n", " "))
	}
	return lines
}
