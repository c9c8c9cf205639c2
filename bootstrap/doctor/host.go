package doctor

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/kubewright/kubewright/bootstrap/apilb"
	"github.com/kubewright/kubewright/bootstrap/backup/kept"
	"github.com/kubewright/kubewright/bootstrap/backup/scheduled"
	"github.com/kubewright/kubewright/bootstrap/certs"
	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/cluster"
	"github.com/kubewright/kubewright/bootstrap/containerd"
	"github.com/kubewright/kubewright/bootstrap/controlplane"
	"github.com/kubewright/kubewright/bootstrap/diagnose"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/install"
	"github.com/kubewright/kubewright/bootstrap/kubelet"
	"github.com/kubewright/kubewright/bootstrap/spec"
	"github.com/kubewright/kubewright/bootstrap/vip"
	"github.com/kubewright/kubewright/pki"
)

type hostCheck struct {
	what string
	look func(context.Context, *examination, patient) (finding.Report, error)
}

func hostChecks() []hostCheck {
	return []hostCheck{
		{"units", checkUnits},
		{"the virtual IP", checkVirtualIP},
		{"etcd", checkEtcd},
		{"scheduled backups", checkBackups},
		{"certificates", checkCertificates},
		{"disk space", checkDisks},
		{"swap", checkSwap},
		{"the bundle in use", checkBundle},
		{"the pod network's configuration", checkCNI},
		{"the way to the API", checkAPI},
		{"DNS", checkDNS},
	}
}

func checkUnits(ctx context.Context, _ *examination, p patient) (finding.Report, error) {
	report, err := diagnose.Units(ctx, p, p.clock.now(), Units(spec.Role(p.claim.Role))...)
	if fenced, _ := etcd.Fenced(ctx, p); fenced != "" { // that etcd does not run, and why, is for checkEtcd to tell
		report = slices.DeleteFunc(report, func(f finding.Finding) bool { return f.Object == etcd.Unit })
	}
	return report, err
}

// checkVirtualIP looks at what gives the virtual IP to a host, if there is one.
func checkVirtualIP(ctx context.Context, _ *examination, p patient) (finding.Report, error) {
	units, err := p.Units(ctx, vip.Unit)
	if err != nil || units[0].Load == "not-found" {
		return nil, err
	}
	if f, conflict := diagnose.Saying(units[0]); conflict {
		return finding.Report{f}, nil
	}
	return diagnose.Units(ctx, p, p.clock.now(), vip.Unit)
}

// checkBackups looks whether backups that were wished for are made. Of a host that makes
// none there is nothing to say. How old the newest one is, is for all hosts together to tell.
func checkBackups(ctx context.Context, e *examination, p patient) (finding.Report, error) {
	if p.controlPlane() {
		shelf, err := kept.Look(ctx, p, "")
		if err != nil {
			return nil, err
		}
		e.mu.Lock()
		e.shelves = append(e.shelves, shelf)
		e.mu.Unlock()
	}
	units, err := p.Units(ctx, scheduled.Timer, scheduled.Unit)
	if err != nil {
		return nil, err
	}
	timer, service := units[0], units[1]
	f := finding.Finding{Code: finding.BackupFailed, Severity: finding.Error, Object: scheduled.Unit}
	switch {
	case timer.Load == "not-found":
		return nil, nil
	case timer.Active != "active":
		f.Object, f.Message = scheduled.Timer, fmt.Sprintf("no backups are made: %s is %s", scheduled.Timer, timer.Active)
		f.Cause, f.Remedy = "the timer was stopped, and nothing else starts a backup", "on "+p.Name()+": systemctl start "+scheduled.Timer
		return finding.Report{f}, nil
	case service.Active != "failed":
		return nil, nil
	}
	f.Message = "the last scheduled backup failed"
	if f.Log, err = diagnose.Journal(ctx, p, scheduled.Unit); err != nil {
		f.Message += "; its journal could not be read"
	}
	f.Cause = whyNoBackup(f.Log)
	f.Log = f.Log[max(0, len(f.Log)-backupLog):]
	return finding.Report{f}, nil
}

// whyNoBackup is the cause that the log of a failed backup names, and no other: in it, older ones may
// have failed, too.
func whyNoBackup(log []string) string {
	const ending = "backup: " // as the program's last words begin
	for _, line := range slices.Backward(log) {
		reason, ended := strings.CutPrefix(line, ending)
		if !ended {
			continue
		}
		if code, _, ok := diagnose.Recognise(strings.TrimSuffix(scheduled.Unit, ".service"), []string{line}); ok {
			e, _ := finding.Explain(code)
			return fmt.Sprintf("at that time: %s [%s]", e.Title, code)
		}
		return reason
	}
	return "not known: its log does not say why it ended"
}

// missedBackups is how many of them in a row are told: a single one that failed is made up for
// by the next.
const missedBackups = 2

// oldBackups looks whether the newest backup is as young as the schedule would have it. It may
// be on any control-plane host: if the API does not say which there are, nothing can be said.
func (e *examination) oldBackups(ctx context.Context) (finding.Report, error) {
	if e.kube == nil {
		return nil, nil
	}
	due, err := kept.Overdue(ctx, e.shelves, missedBackups, time.Now())
	if err != nil || due.IsZero() {
		return nil, err
	}
	f := finding.Finding{Code: finding.BackupOld, Severity: finding.Error, Object: scheduled.Timer,
		Message: "no scheduled backup of this cluster is on its hosts"}
	if on, newest := kept.Newest(e.shelves); newest != nil {
		f.Message = fmt.Sprintf("the newest scheduled backup is of %s, on %s", newest.Made.Format(time.DateTime), on.Host)
	}
	f.Message += fmt.Sprintf(", and at least %d should have been made since", missedBackups)
	if unseen := e.unseenControlPlanes(); len(unseen) > 0 {
		f.Severity = finding.Warning
		f.Message += "; a younger one may be on " + strings.Join(unseen, " or ") + ", which could not be looked at"
	}
	return finding.Report{f}, nil
}

// unseenControlPlanes are the nodes whose backups were not looked at.
func (e *examination) unseenControlPlanes() []string {
	var unseen []string
	for _, n := range e.nodes {
		_, controlPlane := n.Labels[controlPlaneLabel]
		if controlPlane && !slices.ContainsFunc(e.shelves, func(s *kept.Shelf) bool { return s.Node == n.Name }) {
			unseen = append(unseen, n.Name)
		}
	}
	return unseen
}

const controlPlaneLabel = "node-role.kubernetes.io/control-plane"

// backupLog is how many lines of a failed backup are shown: it says why in one.
const backupLog = 3

// expiringWithin is the remaining life from which a certificate is told.
const expiringWithin = 30 * 24 * time.Hour

// checkCertificates looks at the end of every certificate, in files and in kubeconfigs.
func checkCertificates(ctx context.Context, _ *examination, p patient) (finding.Report, error) {
	paths := []string{kubelet.ClientCert}
	for _, name := range pki.FileNames() {
		if path.Ext(name) == ".crt" {
			paths = append(paths, path.Join(certs.Dir, name))
		}
	}
	paths = append(paths, controlplane.ControllerManagerKubeconfig, controlplane.SchedulerKubeconfig,
		controlplane.AdminKubeconfig, controlplane.SuperAdminKubeconfig)
	reports := make([]finding.Report, len(paths))
	reads, ctx := errgroup.WithContext(ctx)
	for i, name := range paths {
		reads.Go(func() error {
			content, err := p.ReadFile(ctx, name)
			if errors.Is(err, fs.ErrNotExist) {
				return nil // a worker has few of them; which are missing is for init to say
			}
			if err != nil {
				return err
			}
			reports[i], err = certificatesIn(name, content, p.clock.now())
			return err
		})
	}
	err := reads.Wait()
	return slices.Concat(reports...), err
}

func certificatesIn(name string, content []byte, now time.Time) (finding.Report, error) {
	if path.Ext(name) == ".conf" {
		cfg, err := clientcmd.Load(content)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		content = nil
		for _, user := range maps.All(cfg.AuthInfos) {
			content = append(content, user.ClientCertificateData...)
		}
	}
	var report finding.Report
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return report, fmt.Errorf("%s: %w", name, err)
		}
		f := finding.Finding{Object: name}
		switch left := cert.NotAfter.Sub(now); {
		case left <= 0:
			f.Code, f.Severity = finding.CertificateExpired, finding.Error
			f.Message = fmt.Sprintf("%s ended on %s", name, cert.NotAfter.Format(time.DateOnly))
		case left < expiringWithin:
			f.Code, f.Severity = finding.CertificateExpiring, finding.Warning
			f.Message = fmt.Sprintf("%s ends on %s, in %d days", name, cert.NotAfter.Format(time.DateOnly), int(left.Hours()/24))
		default:
			continue
		}
		report = append(report, f)
	}
	return report, nil
}

// From which use, in percent, a file system is told. The kubelet acts at 85 and 90.
const (
	diskWarning = 85
	diskError   = 95
)

func checkDisks(ctx context.Context, _ *examination, p patient) (finding.Report, error) {
	dirs := []string{"/", "/var/lib/kubelet", "/var/lib/containerd", install.Root}
	if p.controlPlane() {
		dirs = append(dirs, etcd.DataDir)
	}
	found, err := p.Stat(ctx, dirs...)
	if err != nil {
		return nil, err
	}
	argv := []string{"df", "-P", "-k"}
	for _, f := range found {
		if f.Exists {
			argv = append(argv, f.Path)
		}
	}
	out, err := p.Query(ctx, argv...)
	if err != nil {
		return nil, err
	}
	return fullDisks(string(out))
}

// fullDisks reads POSIX df: device, blocks, used, available, use in percent, mount point.
func fullDisks(df string) (finding.Report, error) {
	var report finding.Report
	told := map[string]bool{} // by device and blocks: folders may share one
	_, lines, _ := strings.Cut(df, "\n")
	for line := range strings.Lines(lines) {
		f := strings.Fields(line)
		if len(f) < 6 {
			return report, fmt.Errorf("df: %q", strings.TrimSpace(line))
		}
		used, err := strconv.Atoi(strings.TrimSuffix(f[4], "%"))
		if err != nil {
			return report, fmt.Errorf("df: %w", err)
		}
		if used < diskWarning || told[f[0]+f[1]] {
			continue
		}
		told[f[0]+f[1]] = true
		severity := finding.Warning
		if used >= diskError {
			severity = finding.Error
		}
		report = append(report, finding.Finding{Code: finding.DiskFilling, Severity: severity, Object: f[5],
			Message: fmt.Sprintf("the file system of %s is %d %% full", f[5], used)})
	}
	return report, nil
}

func checkSwap(ctx context.Context, _ *examination, p patient) (finding.Report, error) {
	content, err := p.ReadFile(ctx, "/proc/swaps")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil || strings.Count(strings.TrimSpace(string(content)), "\n") == 0 {
		return nil, err
	}
	return finding.Report{{Code: finding.SwapOn, Severity: finding.Warning, Message: "swap is on: the kubelet will not start again"}}, nil
}

func checkBundle(ctx context.Context, e *examination, p patient) (finding.Report, error) {
	if e.record.Bundle == "" {
		return nil, nil
	}
	current, err := p.Stat(ctx, install.Current)
	if err != nil {
		return nil, err
	}
	if current[0].Target == e.record.Bundle {
		return nil, nil
	}
	return finding.Report{{Code: finding.BundleMismatch, Severity: finding.Error, Object: install.Current,
		Message: fmt.Sprintf("the host runs bundle %q, the cluster's record names %s", current[0].Target, e.record.Bundle)}}, nil
}

func checkCNI(ctx context.Context, _ *examination, p patient) (finding.Report, error) {
	names, err := p.ReadDir(ctx, containerd.CNIConfigDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, n := range names {
		if slices.Contains([]string{".conflist", ".conf", ".json"}, path.Ext(n)) {
			return nil, nil
		}
	}
	return finding.Report{{Code: finding.CNINotReady, Severity: finding.Error, Object: containerd.CNIConfigDir,
		Message: containerd.CNIConfigDir + " has no configuration of a pod network"}}, nil
}

// checkAPI connects to the API server from the host. Its kubelet does so by way of apilb, which
// may have found another one.
func checkAPI(ctx context.Context, e *examination, p patient) (finding.Report, error) {
	if e.Server == "" {
		return nil, nil
	}
	u, err := url.Parse(e.Server)
	if err != nil {
		return nil, err
	}
	conn, err := p.Dial(ctx, "tcp", u.Host)
	if err == nil {
		return nil, conn.Close()
	}
	if other := servingThrough(ctx, p); other != "" { // the host has another way: that one API server is down is told elsewhere
		return nil, nil
	}
	return finding.Report{{Code: finding.APIUnreachableFromNode, Severity: finding.Error, Object: u.Host,
		Message: fmt.Sprintf("the host does not reach the API server at %s: %v", u.Host, err)}}, nil
}

// explainAPI takes the blame off the network where no API server could have answered: a host that does not reach the
// API is told together with why its own API server, or that of all control-plane hosts, does not serve.
func (e *examination) explainAPI() {
	e.mu.Lock()
	defer e.mu.Unlock()
	idle := map[string]finding.Code{} // by host, why its API server does not serve
	for _, f := range e.report {
		switch {
		case f.Severity != finding.Error || f.Host == "":
		case slices.Contains([]finding.Code{finding.EtcdNoLeader, finding.EtcdUnreachable, finding.EtcdFenced}, f.Code),
			f.Object == controlplane.APIServerUnit && idle[f.Host] == "":
			idle[f.Host] = f.Code
		}
	}
	serves := func(s *seat) bool { return idle[s.Name()] == "" }
	for i, f := range e.report {
		if f.Code != finding.APIUnreachableFromNode {
			continue
		}
		at := f.Host
		if idle[at] == "" && len(e.seats) > 0 && !slices.ContainsFunc(e.seats, serves) {
			at = e.seats[0].Name()
		}
		if why, _ := finding.Explain(idle[at]); why.Code != "" {
			e.report[i].Cause = fmt.Sprintf("the API server of %s does not serve: %s", at, why.Title)
			e.report[i].Remedy = fmt.Sprintf("do first what is said of %s on %s", why.Code, at)
		}
	}
}

// servingThrough is an API server that a host's apilb has found ready, "" if there is none.
func servingThrough(ctx context.Context, p patient) string {
	client := http.Client{Transport: &http.Transport{DialContext: p.Dial, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort("127.0.0.1", strconv.Itoa(apilb.StatusPort))+"/", nil)
	if err != nil {
		return ""
	}
	answer, err := client.Do(request)
	if err != nil {
		return ""
	}
	defer answer.Body.Close() //nolint:errcheck // only read from
	var status struct {
		Servers []struct {
			Address string `json:"address"`
			Healthy bool   `json:"healthy"`
		} `json:"servers"`
	}
	if json.NewDecoder(answer.Body).Decode(&status) != nil {
		return ""
	}
	for _, s := range status.Servers {
		if s.Healthy {
			return s.Address
		}
	}
	return ""
}

// checkDNS asks the cluster's DNS from the host, through the service, as pods do.
func checkDNS(ctx context.Context, e *examination, p patient) (finding.Report, error) {
	if e.spec == nil || e.spec.Network.Backend == spec.NoNet {
		return nil, nil
	}
	server := net.JoinHostPort(e.spec.Network.DNSIP().String(), "53")
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := p.Dial(ctx, "tcp", server) // SSH carries no UDP
		if err == nil {
			context.AfterFunc(ctx, func() { conn.Close() }) //nolint:errcheck // nothing is lost
		}
		return conn, err
	}}
	name := "kubernetes.default.svc." + e.spec.Network.DNSDomain + "."
	found, err := resolver.LookupHost(ctx, name)
	if err == nil && len(found) == 0 {
		err = errNoAnswer
	}
	if err == nil {
		return nil, nil
	}
	if fenced, _ := etcd.Fenced(ctx, p); fenced != "" {
		return nil, nil // the cluster has taken the host out: that it does not reach the pods is no wonder
	}
	f := finding.Finding{Code: finding.DNSNotAvailable, Severity: finding.Error, Object: server,
		Message: fmt.Sprintf("%s is not resolved by %s: %v", name, server, err)}
	e.explainDNS(ctx, p, &f)
	return finding.Report{f}, nil
}

// explainDNS adds the cause to what a host does not resolve, as far as the API knows it: where CoreDNS runs, it is not CoreDNS
// that is to blame.
func (e *examination) explainDNS(ctx context.Context, p patient, f *finding.Finding) {
	if e.kube == nil {
		return
	}
	switch n := e.node(p.claim); {
	case n == nil:
		f.Cause = "the host is no node of the cluster: kube-proxy and the pod network do not serve it"
		f.Remedy = fmt.Sprintf("if its join was broken off, run it again; if it was removed: kubewright reset %s", p.Name())
		return
	case !ready(*n):
		f.Cause, f.Remedy = "its node is not ready", "see what is told of node "+n.Name
		return
	}
	pods, err := e.kube.CoreV1().Pods(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{LabelSelector: "k8s-app=kube-dns"})
	if err != nil {
		return
	}
	var on, silent []string
	for _, pod := range pods.Items {
		if !cluster.PodReady(&pod) {
			continue
		}
		on = append(on, pod.Spec.NodeName)
		if !e.answers(pod.Spec.NodeName) {
			silent = append(silent, pod.Spec.NodeName)
		}
	}
	slices.Sort(on)
	slices.Sort(silent)
	switch {
	case len(on) == 0: // the code's own cause
	case len(silent) > 0:
		f.Cause = fmt.Sprintf("%d of %d pods of CoreDNS that count as ready are on nodes that do not answer: %s", len(silent), len(on), strings.Join(slices.Compact(silent), ", "))
		f.Remedy = "wait until they run elsewhere (about five minutes), or bring these hosts back"
	default:
		f.Cause = "kube-proxy or the pod network does not carry this host's packets to CoreDNS, which runs on " + strings.Join(slices.Compact(on), ", ")
		f.Remedy = fmt.Sprintf("on %s: journalctl -u kube-proxy -n 50 --no-pager; then: kubewright kubectl -n kube-system get pods -l app.kubernetes.io/name=overlay -o wide", p.Name())
	}
}

// answers tells whether a node is ready, and its host was reached if it was to be looked at.
func (e *examination) answers(node string) bool {
	i := slices.IndexFunc(e.nodes, func(n corev1.Node) bool { return n.Name == node })
	return i >= 0 && ready(e.nodes[i]) && !slices.ContainsFunc(e.Hosts, func(h Host) bool {
		return h.Reader == nil && h.Name == e.nodes[i].Annotations[cluster.HostAnnotation]
	})
}

// node is the node that a host claims to be, at the address that it has; nil: the API does not know it.
func (e *examination) node(c *claim.Claim) *corev1.Node {
	for i, n := range e.nodes {
		if n.Name == c.Node && (!c.Address.IsValid() || slices.ContainsFunc(n.Status.Addresses, func(a corev1.NodeAddress) bool { return a.Address == c.Address.String() })) {
			return &e.nodes[i]
		}
	}
	return nil
}

func ready(n corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// clock is how a host's clock stands to ours.
type clock struct {
	ahead time.Duration // of ours
	give  time.Duration // or take
}

func (c clock) now() time.Time { return time.Now().Add(c.ahead) }

func readClock(ctx context.Context, r host.Reader) (clock, error) {
	asked := time.Now()
	out, err := r.Query(ctx, "date", "+%s.%N")
	took := time.Since(asked)
	if err != nil {
		return clock{}, err
	}
	seconds, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	if err != nil {
		return clock{}, fmt.Errorf("date: %w", err)
	}
	theirs := time.UnixMicro(int64(seconds * 1e6))
	return clock{ahead: theirs.Sub(asked.Add(took / 2)), give: took / 2}, nil
}

// From which difference between two clocks it is told. etcd complains at a second.
const (
	skewWarning = time.Second
	skewError   = time.Minute
)

// skew compares all clocks with that of the first host.
func (e *examination) skew() finding.Report {
	var report finding.Report
	var first string
	for _, h := range e.Hosts {
		c, ok := e.clocks[h.Name]
		if !ok {
			continue
		}
		if first == "" {
			first = h.Name
			continue
		}
		apart := c.ahead - e.clocks[first].ahead
		sure := apart.Abs() - c.give - e.clocks[first].give
		if sure < skewWarning {
			continue
		}
		f := finding.Finding{Code: finding.ClockSkew, Severity: finding.Warning, Host: h.Name, Object: first,
			Message: fmt.Sprintf("its clock is %s ahead of that of %s", apart.Round(time.Second/10), first)}
		if apart < 0 {
			f.Message = fmt.Sprintf("its clock is %s behind that of %s", apart.Abs().Round(time.Second/10), first)
		}
		if sure >= skewError {
			f.Severity = finding.Error
		}
		report = append(report, f)
	}
	return report
}
