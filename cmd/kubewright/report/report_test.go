package report

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/html"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

var update = flag.Bool("update", false, "write the golden pages")

// secret stands where secrets may stand in a change. No page may have it.
const secret = "s3cr3t-c0ffee"

// work is an action that takes its time, once.
type work struct {
	takes time.Duration
	diff  plan.Diff
	sets  *plan.Value[bool]
	fails error
	done  *bool
}

func (w work) Check(context.Context, struct{}) (plan.Diff, error) {
	if len(w.diff) > 0 && !*w.done {
		return w.diff, nil
	}
	if w.sets != nil {
		w.sets.Set(true)
	}
	return nil, nil
}

func (w work) Apply(ctx context.Context, _ struct{}) error {
	plan.ReportBytes(ctx, "bundle <v1>", 5, 10)
	plan.Report(ctx, "looking\nfor more")
	select {
	case <-time.After(w.takes):
	case <-ctx.Done():
		return ctx.Err()
	}
	*w.done = w.fails == nil
	return w.fails
}

// does makes a step of so many seconds.
func does(name, doc string, takes float64, diff plan.Diff, sets *plan.Value[bool], needs ...plan.Cell) plan.Step[struct{}, struct{}] {
	s := plan.Step[struct{}, struct{}]{Name: name, Doc: doc, Needs: needs,
		Do: work{takes: time.Duration(takes * float64(time.Second)), diff: diff, sets: sets, done: new(bool)}}
	if sets != nil {
		s.Sets = []plan.Cell{sets}
	}
	s.Wait = len(diff) == 1 && diff[0].Verb == plan.Await
	return s
}

func fails(s plan.Step[struct{}, struct{}], err error) plan.Step[struct{}, struct{}] {
	w := s.Do.(work)
	w.fails = err
	s.Do = w
	return s
}

func files(names ...string) plan.Diff {
	var d plan.Diff
	for _, n := range names {
		d = append(d, plan.Change{Verb: plan.Create, Kind: plan.ObjectFile, Object: n, Detail: "mode 0600",
			After: &plan.State{Text: secret, Digest: "sha256:" + secret, Content: []byte(secret)}})
	}
	return d
}

func units(names ...string) plan.Diff {
	var d plan.Diff
	for _, n := range names {
		d = append(d, plan.Change{Verb: plan.Start, Kind: plan.ObjectUnit, Object: n + ".service"})
	}
	return d
}

func await(what string) plan.Diff { return plan.Diff{{Verb: plan.Await, Object: what}} }

// lanes are a small init of two hosts; the step of the second host whose name is
// given fails with err.
func lanes(failing string, err error) []plan.Lane {
	started, up, token := plan.NewValue[bool]("the control plane"), plan.NewValue[bool]("the API server"), plan.NewValue[bool]("the join token")
	w1 := []plan.Step[struct{}, struct{}]{
		does("host/claim", "mark the host as this cluster's", 0.05, files("/var/lib/kubewright/host.json"), nil),
		does("bundle/upload", "the component binaries", 0.9, files("/opt/kubewright/v1"), nil),
		does("containerd/start", "the container runtime", 0.6, units("containerd"), nil),
		does("kubelet/bootstrap", "a certificate for the node", 0.4, files("/var/lib/kubelet/pki/kubelet.crt"), nil, token),
		does("kubelet/start", "the node agent and kube-proxy", 0.8, units("kubelet", "kube-proxy"), nil),
	}
	for i := range w1 {
		if w1[i].Name == failing {
			w1[i] = fails(w1[i], err)
		}
	}
	return []plan.Lane{
		plan.NewLane("cp1", struct{}{}, struct{}{},
			does("host/claim", "mark the host as this cluster's", 0.05, files("/var/lib/kubewright/host.json"), nil),
			does("bundle/upload", "the component binaries", 0.8, files("/opt/kubewright/v1"), nil),
			does("kernel/configure", "modules and settings that pods need", 0, nil, nil),
			does("controlplane/start", "etcd and the API server", 1.7, append(files("/etc/kubernetes/<b>&amp;"), units("etcd", "kube-apiserver")...), started),
			does("controllers/start", "controller manager and scheduler", 0.5, units("kube-scheduler"), nil, up)),
		plan.NewLane("w1", struct{}{}, struct{}{}, w1...),
		plan.NewLane("cluster", struct{}{}, struct{}{},
			does("apiserver/wait-ready", "wait until the API server serves", 0.7, await("readyz"), up, started),
			does("token/create", "the join token", 0.1, plan.Diff{{Verb: plan.Create, Kind: plan.ObjectAPI, Object: "Secret kube-system/bootstrap-token"}}, token),
			does("node/wait-ready", "wait until the nodes are ready", 2.2, await("nodes"), nil)),
		plan.NewLane("workstation", struct{}{}, struct{}{},
			does("kubeconfig/merge", "add the cluster to the user's kubeconfig", 0.01, files("/root/.kube/config"), nil, up)),
	}
}

func described(findings finding.Report) Run {
	host := func(name, role, address string) Host {
		return Host{Name: name, Node: name, Role: role, Address: netip.MustParseAddr(address), OS: "Debian GNU/Linux 12 (bookworm)",
			Kernel: "6.1.0-31-amd64", Arch: "amd64", CPUs: 4, Memory: 8 << 30, Interfaces: []Interface{
				{Name: "enp1s0", Addrs: []netip.Prefix{netip.MustParsePrefix(address + "/24")}},
				{Name: "enp2s0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.2.15/24")}},
			}}
	}
	return Run{Verb: "init", Cluster: "docs", Server: "https://192.0.2.11:6443", By: "ada@workstation", Kubewright: "v0.1.0",
		Bundle:  Bundle{Name: "v1.37.2-b3a3c87f9b20", Digest: "sha256:b3a3c87f9b20", Components: []Component{{"kubernetes", "v1.37.2"}, {"etcd", "v3.7.3"}}},
		Network: Network{Backend: "vxlan", Pods: netip.MustParsePrefix("10.244.0.0/16"), Services: netip.MustParsePrefix("10.96.0.0/16"), DNSDomain: "cluster.local"},
		Hosts:   []Host{host("cp1", "control-plane", "192.0.2.11"), host("w1", "worker", "192.0.2.12")}, Findings: findings}
}

// pages are the pages of runs that end in every way, made by the real engine on a
// clock that only moves when all wait.
func pages(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	add := func(name string, make func() []plan.Lane, run Run, stopAfter time.Duration, before, killed error) {
		synctest.Test(t, func(t *testing.T) {
			r := New("init", time.Now())
			time.Sleep(300 * time.Millisecond) // connect
			r.Describe(run)
			if before == nil {
				ls := make() // their cells must be of this bubble
				r.Plan(ls...)
				stop := closedAfter(stopAfter)
				_, err := plan.Run(t.Context(), plan.Options{Emit: r.Event, Stop: stop}, ls...)
				if stopAfter > 0 {
					r.Notice(time.Now(), "stopping after the steps under way")
				}
				before = err
			}
			if killed == nil {
				r.End(time.Now(), before)
			}
			var b bytes.Buffer
			if err := r.Render(&b); err != nil {
				t.Fatal(err)
			}
			all[name] = b.String()
		})
	}
	full := fault.New(fault.DiskFull, "make room, then run the same command again", "write /opt/kubewright/v1: no space left on device\n<script>alert(1)</script>")
	unreachable := errors.Join(fault.At("w1", "connect", fault.New(fault.HostUnreachable, "is it on, and is sshd running?", "no answer on port 22")))
	add("done", func() []plan.Lane { return lanes("", nil) }, described(finding.Report{}), 0, nil, nil)
	add("failed", func() []plan.Lane { return lanes("bundle/upload", full) }, described(finding.Report{
		{Code: "clock-skew", Severity: finding.Note, Host: "cp1", Message: "its clock is 0.4 s ahead"},
		{Code: "disk-small", Severity: finding.Warning, Host: "w1", Object: "/opt", Message: "1.1 GB are free", Cause: "a small disk", Remedy: "make room", Log: []string{"df: 98%"}, Ignored: true},
	}), 0, nil, nil)
	add("interrupted", func() []plan.Lane { return lanes("", nil) }, described(nil), 2*time.Second, nil, nil)
	add("refused", nil, Run{Verb: "join"}, 0, unreachable, nil)
	add("diagnosed", nil, described(nil), 0, &fault.Fault{Code: fault.StepFailed, Host: "cp1", Step: "controlplane/start", Err: &finding.Diagnosed{
		Err: errors.New("start etcd.service: failed\nall of its log"),
		Finding: finding.Finding{Code: "port-in-use", Host: "cp1", Object: "etcd.service", Message: "etcd does not start", Cause: "another program has port 2379",
			Remedy: "ss -lntp", Log: []string{"bind: address already in use", "<script>alert(2)</script>"}},
	}}, nil)
	add("killed", func() []plan.Lane { return lanes("", nil) }, described(nil), 2*time.Second, nil, errors.New("no end was told"))
	return all
}

// closedAfter returns a channel that is closed after a while, nil for none.
func closedAfter(after time.Duration) <-chan struct{} {
	if after == 0 {
		return nil
	}
	stop := make(chan struct{})
	go func() {
		time.Sleep(after)
		close(stop)
	}()
	return stop
}

func TestPages(t *testing.T) {
	for name, got := range pages(t) {
		golden := filepath.Join("testdata", name+".html")
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("%s: (-want +got); go test ./cmd/kubewright/report -update writes it\n%s", name, diff)
		}
	}
}

func TestPageHoldsNoSecret(t *testing.T) {
	for name, page := range pages(t) {
		if strings.Contains(page, secret) {
			t.Errorf("%s shows the content of a file", name)
		}
		if strings.Contains(page, "<script") {
			t.Errorf("%s: the text of an error became an element", name)
		}
	}
}

// void are the elements that have no end.
var void = []string{"meta", "link"}

// TestPageIsWellFormed counts what the tolerant parser of browsers would mend: every
// element is one that is known and is closed in order, ids are unique, what refers
// to an id finds it.
func TestPageIsWellFormed(t *testing.T) {
	known := strings.Fields("html head meta link title style body header main section article footer figure h1 h2 h3 p ul li i b strong small span div code pre " +
		"table caption thead tbody tr th td details summary svg desc defs pattern g rect line circle polygon text")
	for name, page := range pages(t) {
		var open []string
		ids, refs := map[string]bool{}, map[string]bool{}
		for z := html.NewTokenizer(strings.NewReader(page)); ; {
			kind := z.Next()
			if kind == html.ErrorToken {
				break
			}
			tok := z.Token()
			if kind == html.StartTagToken || kind == html.SelfClosingTagToken {
				if !slices.Contains(known, tok.Data) {
					t.Errorf("%s: element %s", name, tok.Data)
				}
				for _, a := range tok.Attr {
					switch a.Key {
					case "id":
						if ids[a.Val] {
							t.Errorf("%s: id %s twice", name, a.Val)
						}
						ids[a.Val] = true
					case "aria-labelledby":
						for _, id := range strings.Fields(a.Val) {
							refs[id] = true
						}
					case "src", "action", "srcset", "xlink:href", "onclick", "onload":
						t.Errorf("%s: attribute %s", name, a.Key)
					case "href":
						if !strings.HasPrefix(a.Val, "data:,") {
							t.Errorf("%s: leads to %s", name, a.Val)
						}
					case "fill":
						refs[strings.TrimSuffix(strings.TrimPrefix(a.Val, "url(#"), ")")] = true
					}
				}
			}
			switch {
			case kind == html.StartTagToken && !slices.Contains(void, tok.Data):
				open = append(open, tok.Data)
			case kind == html.EndTagToken:
				if len(open) == 0 || open[len(open)-1] != tok.Data {
					t.Fatalf("%s: </%s> closes %v", name, tok.Data, open)
				}
				open = open[:len(open)-1]
			}
		}
		if len(open) > 0 {
			t.Errorf("%s: not closed: %v", name, open)
		}
		for id := range refs {
			if !ids[id] {
				t.Errorf("%s: nothing has id %s", name, id)
			}
		}
		if strings.Contains(style, "url(") || strings.Contains(style, "@import") || strings.Contains(style, "@font-face") {
			t.Error("the style fetches something")
		}
		if strings.Contains(page, "ZgotmplZ") {
			t.Errorf("%s: the template engine refused a value", name)
		}
	}
}

// TestColoursCanBeRead computes the contrast of every pair of text and ground, by
// day and by night, as WCAG 2 does: at least 4.5.
func TestColoursCanBeRead(t *testing.T) {
	blocks := regexp.MustCompile(`(?s):root \{(.*?)\}`).FindAllStringSubmatch(style, -1)
	if len(blocks) != 2 {
		t.Fatalf("%d colour schemes", len(blocks))
	}
	for _, b := range blocks {
		colour := map[string]string{}
		for _, m := range regexp.MustCompile(`--([a-z]+): #([0-9a-f]{6})`).FindAllStringSubmatch(b[1], -1) {
			colour[m[1]] = m[2]
		}
		pairs := [][2]string{{"ink", "bg"}, {"ink", "surface"}, {"muted", "bg"}, {"muted", "surface"}, {"ink", "wait"}, {"ink", "stripe"},
			{"change", "surface"}, {"watch", "bg"}}
		for _, ground := range []string{"change", "watch", "same", "fail", "stop", "good"} {
			pairs = append(pairs, [2]string{"on", ground})
		}
		for _, p := range pairs {
			if c := contrast(luminance(t, colour[p[0]]), luminance(t, colour[p[1]])); c < 4.5 {
				t.Errorf("%s on %s: contrast %.2f", p[0], p[1], c)
			}
		}
	}
}

func contrast(a, b float64) float64 { return (max(a, b) + 0.05) / (min(a, b) + 0.05) }

func luminance(t *testing.T, hex string) float64 {
	t.Helper()
	sum := 0.0
	for i, weight := range []float64{0.2126, 0.7152, 0.0722} {
		n, err := strconv.ParseUint(hex[2*i:2*i+2], 16, 8)
		if err != nil {
			t.Fatal(err)
		}
		c := float64(n) / 255
		if c <= 0.03928 {
			c /= 12.92
		} else {
			c = math.Pow((c+0.055)/1.055, 2.4)
		}
		sum += weight * c
	}
	return sum
}

// TestLongestChain: the worker's last step waits for the token, which waits for the
// API server, which waits for the control plane.
func TestLongestChain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New("init", time.Now())
		if _, err := plan.Run(t.Context(), plan.Options{Emit: r.Event}, lanes("", nil)...); err != nil {
			t.Fatal(err)
		}
		r.End(time.Now(), nil)
		var got []string
		sum := time.Duration(0)
		for _, l := range chain(r.lanes, func(at time.Time) time.Time { return at }) {
			got = append(got, fmt.Sprintf("%s %s", l.lane.name, l.step.name))
			sum += l.step.took(r.last)
		}
		want := []string{"cp1 host/claim", "cp1 bundle/upload", "cp1 kernel/configure", "cp1 controlplane/start",
			"cluster apiserver/wait-ready", "cluster token/create", "cluster node/wait-ready"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		if total := r.last.Sub(r.began); sum != total {
			t.Errorf("the chain took %s of %s", sum, total)
		}
	})
}
