package ui

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

// start is when the runs of these tests begin.
func start() time.Time { return time.Date(2026, 11, 23, 18, 0, 0, 0, time.UTC) }

func at(seconds float64) time.Time {
	return start().Add(time.Duration(seconds * float64(time.Second)))
}

func changed() plan.Diff { return plan.Diff{{Verb: plan.Create, Object: "/opt/kubewright/v1"}} }

func full() error {
	return &fault.Fault{Code: fault.DiskFull, Host: "w2", Step: "bundle/upload", Err: errors.New("no space left"), Remedy: "make room"}
}

// events are a run of two hosts, one of which fails.
func events() []plan.Event {
	return []plan.Event{
		{Time: at(0.1), Lane: "cp1", Step: "host/claim", Kind: plan.Skipped, Took: time.Millisecond},
		{Time: at(0.1), Lane: "w2", Step: "kubelet/bootstrap", Kind: plan.Waiting, Text: "the join token"},
		{Time: at(0.2), Lane: "cp1", Step: "bundle/upload", Kind: plan.Applying, Diff: changed()},
		{Time: at(0.3), Lane: "cp1", Step: "bundle/upload", Kind: plan.Progress, Text: "bundle", Bytes: 1e6, Total: 50e6},
		{Time: at(0.4), Lane: "cp1", Step: "bundle/upload", Kind: plan.Progress, Text: "bundle", Bytes: 2e6, Total: 50e6},
		{Time: at(0.9), Lane: "cp1", Step: "bundle/upload", Kind: plan.Progress, Text: "bundle", Bytes: 25e6, Total: 50e6},
		{Time: at(1.2), Lane: "cp1", Step: "bundle/upload", Kind: plan.Applied, Diff: changed(), Took: time.Second},
		{Time: at(1.2), Lane: "cp1", Kind: plan.Done},
		{Time: at(1.5), Lane: "w2", Step: "bundle/upload", Kind: plan.Failed, Err: full(), Took: time.Second},
	}
}

// TestPlainEnds: no line ends with blanks, also not that of a step of which there is no more to say.
func TestPlainEnds(t *testing.T) {
	var out bytes.Buffer
	NewPlain(&out).Event(plan.Event{Time: at(0), Lane: "cp1", Step: "kubelet/start", Kind: plan.Canceled})
	if got, want := out.String(), "18:00:00 cp1          canceled  kubelet/start\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestPlain(t *testing.T) {
	var out bytes.Buffer
	p := NewPlain(&out)
	for _, e := range events() {
		p.Event(e)
	}
	p.Close(Summary{Hosts: 2, Count: plan.Count{Applied: 1, Skipped: 1, Failed: 1}, Took: 1500 * time.Millisecond, Err: full()})
	want := `18:00:00 w2           waiting   kubelet/bootstrap          for the join token
18:00:00 cp1          progress  bundle/upload              bundle 25.0 MB of 50.0 MB
18:00:01 cp1          applied   bundle/upload              1.0s  create /opt/kubewright/v1
18:00:01 w2           failed    bundle/upload              w2: bundle/upload: no space left
2 hosts: stopped after 1.5s: 1 step applied, 1 unchanged, 1 failed
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestSummaries(t *testing.T) {
	for want, s := range map[string]Summary{
		"1 host: nothing to change, 17 steps checked in 400ms": {Hosts: 1, Count: plan.Count{Skipped: 17}, Took: 412 * time.Millisecond},
		"3 hosts: 41 steps applied, 2 unchanged in 11.1s":      {Hosts: 3, Count: plan.Count{Applied: 41, Skipped: 2}, Took: 11128 * time.Millisecond},
	} {
		if got := s.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestJSONLines(t *testing.T) {
	var out bytes.Buffer
	j := NewJSONLines(&out, func() time.Time { return at(2) })
	for _, e := range events() {
		j.Event(e)
	}
	j.Close(Summary{Hosts: 2, Count: plan.Count{Applied: 1}, Took: time.Second, Err: full()})
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != len(events())+1 {
		t.Fatalf("%d lines for %d events and a summary", len(lines), len(events()))
	}
	for i, text := range lines {
		var l Line
		d := json.NewDecoder(strings.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(&l); err != nil {
			t.Fatalf("line %d: %v", i, err)
		}
		if l.Time.IsZero() || l.Kind == "" {
			t.Errorf("line %d has no time or kind: %s", i, text)
		}
	}
	want := `{"time":"2026-11-23T18:00:01.5Z","kind":"failed","lane":"w2","step":"bundle/upload","took_ms":1000,` +
		`"error":{"code":"disk-full","message":"w2: bundle/upload: no space left","remedy":"make room","exit":12}}`
	if got := lines[len(lines)-2]; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if !strings.Contains(lines[len(lines)-1], `"summary":{"hosts":2,"applied":1,`) {
		t.Errorf("summary: %s", lines[len(lines)-1])
	}
}

func TestRenderErrorSaysEachFaultOnce(t *testing.T) {
	var out bytes.Buffer
	other := fault.At("w3", "connect", fault.New(fault.HostUnreachable, "is it on?", "no answer"))
	RenderError(&out, errors.Join(full(), errors.Join(full(), other)), false)
	want := `error: w2: bundle/upload: no space left
  remedy: make room
  code: disk-full (exit 12)
error: w3: connect: no answer
  remedy: is it on?
  code: host-unreachable (exit 5)
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// screen is a terminal that knows what Live sends: text, new lines, cursor up,
// erase to the end of the line and of the screen, and colours.
type screen struct {
	t        *testing.T
	lines    [][]rune
	row, col int
}

func (s *screen) Write(p []byte) (int, error) {
	text := []rune(string(p))
	for i := 0; i < len(text); i++ {
		for s.row >= len(s.lines) {
			s.lines = append(s.lines, nil)
		}
		switch text[i] {
		case '\n':
			s.row++
			s.col = 0
		case '\r':
			s.col = 0
		case '\x1b':
			end := i + 2
			for text[end] < '@' {
				end++
			}
			s.control(string(text[i+2:end]), text[end])
			i = end
		default:
			line := s.lines[s.row]
			for len(line) <= s.col {
				line = append(line, ' ')
			}
			line[s.col] = text[i]
			s.lines[s.row] = line
			s.col++
		}
	}
	return len(p), nil
}

func (s *screen) control(arg string, verb rune) {
	switch verb {
	case 'A':
		var n int
		if _, err := fmt.Sscan(arg, &n); err != nil || n > s.row {
			s.t.Fatalf("cursor up %q from row %d", arg, s.row)
		}
		s.row -= n
	case 'K':
		s.lines[s.row] = s.lines[s.row][:min(s.col, len(s.lines[s.row]))]
	case 'J':
		s.lines = s.lines[:s.row]
	case 'm':
	default:
		s.t.Fatalf("escape sequence %q%c", arg, verb)
	}
}

func (s *screen) String() string {
	var b strings.Builder
	for _, l := range s.lines {
		b.WriteString(strings.TrimRight(string(l), " ") + "\n")
	}
	return b.String()
}

func TestLive(t *testing.T) {
	tty := &screen{t: t}
	now := start()
	l := NewLive(tty, func() int { return 60 }, true, func() time.Time { return now })
	l.ticker.Stop() // frames come when the test wants them
	frame := func(upTo, from int) string {
		for _, e := range events()[from:upTo] {
			l.Event(e)
			now = e.Time
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.paint()
		return tty.String()
	}
	first := frame(4, 0)
	for _, want := range []string{" cp1  bundle/upload", "bundle 1.0 MB of…", "· w2   kubelet/bootstrap", "waits for the jo…"} {
		if !strings.Contains(first, want) {
			t.Errorf("first frame has no %q:\n%s", want, first)
		}
	}
	frame(len(events()), 4)
	l.Notice("stopping after the steps under way")
	l.Close(Summary{Hosts: 2, Count: plan.Count{Applied: 1, Skipped: 1, Failed: 1}, Took: 1500 * time.Millisecond, Err: full()})
	want := `stopping after the steps under way
✓ cp1  1 applied, 1 unchanged  1.2s
✗ w2   w2: bundle/upload: no space left
2 hosts: stopped after 1.5s: 1 step applied, 1 unchanged, 1 failed
`
	if diff := cmp.Diff(want, tty.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// reported is a finding with all that one can have.
func reported() finding.Finding {
	return finding.Finding{Code: "etcd-damaged", Severity: finding.Error, Host: "cp1", Object: "etcd.service", Message: "etcd.service does not run",
		Cause: "power was lost", Remedy: "restore a backup", Log: []string{"panic: failed to open database", "etcd.service: Failed"}}
}

func TestRenderReport(t *testing.T) {
	var out bytes.Buffer
	if err := RenderReport(&out, finding.Report{reported(), {Code: "node-cordoned", Severity: finding.Note, Message: "node w1 takes no new pods", Ignored: true}}); err != nil {
		t.Fatal(err)
	}
	want := `cp1
  error  etcd-damaged  etcd.service does not run
                       probable cause: power was lost
                       last lines of cp1 etcd.service:
                         | panic: failed to open database
                         | etcd.service: Failed
                       remedy: restore a backup
the cluster
  ignored  node-cordoned  node w1 takes no new pods
1 error, 0 warnings, 1 note
` + "`kubewright explain CODE` says more\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestRenderErrorWithItsCause has the finding's log in the place of the error's own.
func TestRenderErrorWithItsCause(t *testing.T) {
	err := error(&finding.Diagnosed{Err: fault.At("cp1", "controlplane/start", errors.New("start etcd.service: failed\nraw log")), Finding: reported()})
	var out bytes.Buffer
	RenderError(&out, errors.Join(err), false)
	want := `error: cp1: controlplane/start: start etcd.service: failed
  probable cause: power was lost
  last lines of cp1 etcd.service:
    | panic: failed to open database
    | etcd.service: Failed
  remedy: restore a backup
  more: kubewright explain etcd-damaged
  code: step-failed (exit 13)
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	got := jsonError(err)
	if got.Code != "step-failed" || got.Finding == nil || got.Finding.Code != "etcd-damaged" || strings.Contains(got.Message, "raw log") {
		t.Errorf("%+v", got)
	}
}
