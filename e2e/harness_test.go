// Package e2e proves kubewright on lab hosts, with the program and the bundle as
// they are shipped, real pods and real traffic. It needs root and what `make
// build` makes.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kubewright/kubewright/lab"
)

func TestMain(m *testing.M) {
	lab.MaybeInit()
	maybeHoldLock()
	os.Exit(m.Run())
}

// env is a lab with the program to be tested.
type env struct {
	lab        *lab.Lab
	dir        string // for the files of one test
	kubeconfig string
}

// program is the kubewright that `make build` made.
func program(t testing.TB) string {
	t.Helper()
	path, err := filepath.Abs("../bin/kubewright")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("run `make build` first: %v", err)
	}
	return path
}

// newEnv makes a lab of its own for a test, and destroys it afterwards.
func newEnv(t testing.TB, o lab.Options) *env {
	t.Helper()
	ctx := t.Context()
	if err := lab.Destroy(ctx, o.Name); err != nil { // of a run that was killed
		t.Fatal(err)
	}
	l, err := lab.Create(ctx, o, func(string) {})
	t.Cleanup(func() {
		// t's context has ended by now.
		if err := lab.Destroy(context.Background(), o.Name); err != nil {
			t.Errorf("destroy lab %s: %v", o.Name, err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	return &env{lab: l, dir: dir, kubeconfig: filepath.Join(dir, "kubeconfig")}
}

// host is the name of the nth host, from 1.
func (e *env) host(n int) string { return fmt.Sprintf("%s-%d", e.lab.Name(), n) }

// result is how a program ended.
type result struct {
	exit           int
	stdout, stderr string
}

// output is all that it wrote, for messages.
func (r result) output() string { return r.stdout + r.stderr }

func run(ctx context.Context, t testing.TB, stdin string, environ []string, argv ...string) result {
	t.Helper()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), environ...)
	cmd.Dir = ".." // where dist/ is
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", strings.Join(argv, " "), err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// kubewright runs the program against the lab, whatever comes of it.
func (e *env) kubewright(t testing.TB, args ...string) result {
	t.Helper()
	args = append(args, "-F", e.lab.SSHConfig(), "--kubeconfig", e.kubeconfig)
	return run(t.Context(), t, "", nil, append([]string{program(t)}, args...)...)
}

// must runs the program and fails the test unless it succeeds.
func (e *env) must(t testing.TB, args ...string) result {
	t.Helper()
	r := e.kubewright(t, args...)
	if r.exit != 0 {
		t.Fatalf("kubewright %s: exit %d\n%s", strings.Join(args, " "), r.exit, r.output())
	}
	return r
}

// summary is the last line of a run with -o jsonl.
type summary struct {
	Applied, Skipped, Failed, Canceled int
}

// counted runs the program with -o jsonl and returns what it did.
func (e *env) counted(t testing.TB, args ...string) summary {
	t.Helper()
	r := e.must(t, append(args, "-o", "jsonl")...)
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	var last struct{ Summary summary }
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil {
		t.Fatalf("last line of the run: %v\n%s", err, r.output())
	}
	return last.Summary
}

// try runs the shipped kubectl, whatever comes of it.
func (e *env) try(t testing.TB, args ...string) result {
	t.Helper()
	return run(t.Context(), t, "", []string{"KUBECONFIG=" + e.kubeconfig}, append([]string{program(t), "kubectl"}, args...)...)
}

// kubectl runs the shipped kubectl and returns its standard output without surrounding blanks.
func (e *env) kubectl(t testing.TB, args ...string) string {
	t.Helper()
	r := e.try(t, args...)
	if r.exit != 0 {
		t.Fatalf("kubectl %s: exit %d\n%s", strings.Join(args, " "), r.exit, r.output())
	}
	return strings.TrimSpace(r.stdout)
}

// on runs a command on a host as root and fails the test unless it succeeds.
func (e *env) on(t testing.TB, host string, argv ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status, err := e.lab.Exec(t.Context(), host, argv, nil, &stdout, &stderr)
	if err != nil {
		t.Fatal(err)
	}
	if status != 0 {
		t.Fatalf("%s: %s: exit %d\n%s%s", host, strings.Join(argv, " "), status, stdout.String(), stderr.String())
	}
	return strings.TrimSpace(stdout.String())
}

// lockedBuffer is a buffer that a running program writes to while it is read.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// poll is how often eventually looks.
const poll = 200 * time.Millisecond

// eventually waits until see returns "", and fails the test with what it
// returned last if that takes longer than within.
func eventually(t testing.TB, within time.Duration, what string, see func() string) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		missing := see()
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %s", what, within, missing)
		}
		select {
		case <-time.After(poll):
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		}
	}
}
