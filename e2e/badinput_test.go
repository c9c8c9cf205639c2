package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/lab"
)

// refused is how the program has to refuse: status, and words of its message.
type refused struct {
	exit  int
	words []string // the host, the step, the cause, the remedy
}

func (r refused) check(t *testing.T, got result) {
	t.Helper()
	if got.exit != r.exit {
		t.Errorf("exit %d, want %d", got.exit, r.exit)
	}
	for _, w := range r.words {
		if !strings.Contains(got.stderr, w) {
			t.Errorf("the message does not say %q", w)
		}
	}
	if n := strings.Count(got.stderr, "error: "); n != 1 {
		t.Errorf("%d messages instead of one", n)
	}
	if !strings.Contains(got.stderr, "remedy: ") {
		t.Error("the message has no remedy")
	}
	if t.Failed() {
		t.Log(got.output())
	}
}

// TestBadInput meets what people get wrong. Each is one clear message with a
// status of its own, and the hosts stay as they were.
func TestBadInput(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "bad", Hosts: 2})
	h, other := e.host(1), e.host(2)
	before := e.inventory(t, h)
	untouched := func(t *testing.T) {
		t.Helper()
		if diff := cmp.Diff(before, e.inventory(t, h)); diff != "" {
			t.Errorf("%s was touched (-before +after):\n%s", h, diff)
		}
	}
	file := func(rest string) string { return e.spec(t, rest) }
	withSSH := func(config string, args ...string) result {
		args = append(append([]string{program(t)}, args...), "-F", config, "--kubeconfig", e.kubeconfig)
		return run(t.Context(), t, "", nil, args...)
	}
	ssh, err := os.ReadFile(e.lab.SSHConfig())
	if err != nil {
		t.Fatal(err)
	}
	config := func(name string, replace ...string) string {
		path := filepath.Join(e.dir, name)
		if err := os.WriteFile(path, []byte(strings.NewReplacer(replace...).Replace(string(ssh))), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}

	t.Run("unknown field", func(t *testing.T) {
		refused{3, []string{"cluster.yaml:4", "netwrok", "network"}}.check(t, e.kubewright(t, "init", "-f", file("netwrok: {backend: vxlan}\n")))
	})
	t.Run("overlapping ranges", func(t *testing.T) {
		refused{3, []string{"network", "10.96.0.0/12", "overlap"}}.check(t,
			e.kubewright(t, "init", h, "--pod-cidr", "10.96.0.0/12", "--service-cidr", "10.100.0.0/16"))
	})
	t.Run("nobody at the address", func(t *testing.T) {
		nobody := strings.TrimSuffix(e.lab.Gateway().String(), ".1") + ".200"
		refused{5, []string{nobody, "connect"}}.check(t, e.kubewright(t, "init", nobody))
	})
	t.Run("a host without power", func(t *testing.T) {
		if err := e.lab.Kill(t.Context(), other); err != nil {
			t.Fatal(err)
		}
		refused{5, []string{other, "connect"}}.check(t, e.kubewright(t, "init", "-f", file("")))
		untouched(t)
		if err := e.lab.Start(t.Context(), other); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("unknown host key", func(t *testing.T) {
		nobodyKnown := config("unknown", e.lab.KnownHosts(), filepath.Join(e.dir, "new_known_hosts"))
		refused{6, []string{h, "SHA256:", "--accept-new-host-keys"}}.check(t, withSSH(nobodyKnown, "init", h))
	})
	t.Run("changed host key", func(t *testing.T) {
		known, err := os.ReadFile(e.lab.KnownHosts())
		if err != nil {
			t.Fatal(err)
		}
		// Each host is given the key of the other.
		lines := strings.Split(strings.TrimSpace(string(known)), "\n")
		keys := make([]string, len(lines))
		for i, l := range lines {
			_, keys[i], _ = strings.Cut(l, " ")
		}
		slices.Reverse(keys)
		for i, l := range lines {
			name, _, _ := strings.Cut(l, " ")
			lines[i] = name + " " + keys[i]
		}
		swapped := filepath.Join(e.dir, "swapped_known_hosts")
		if err := os.WriteFile(swapped, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		refused{7, []string{h, "swapped_known_hosts", "ssh-keygen"}}.check(t, withSSH(config("changed", e.lab.KnownHosts(), swapped), "init", h))
		refused{7, []string{h}}.check(t, withSSH(config("changed", e.lab.KnownHosts(), swapped), "init", h, "--accept-new-host-keys"))
	})
	t.Run("refused key", func(t *testing.T) {
		key := filepath.Join(e.dir, "stranger")
		if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		refused{8, []string{h, "root", "stranger"}}.check(t, withSSH(config("stranger_config", e.lab.Key(), key), "init", h))
	})
	t.Run("sudo asks for a password", func(t *testing.T) {
		// On the other host: sudo keeps a note of every attempt in /run.
		refused{9, []string{"nosudo@" + other, "sudo", "NOPASSWD"}}.check(t, e.kubewright(t, "init", "nosudo@"+other))
	})
	t.Run("no nft", func(t *testing.T) {
		e.on(t, h, "mv", "/usr/sbin/nft", "/usr/sbin/nft.away")
		refused{10, []string{h, "preflight", "nft", "apt-get install nftables"}}.check(t, e.kubewright(t, "init", h))
		e.on(t, h, "mv", "/usr/sbin/nft.away", "/usr/sbin/nft")
		untouched(t)
	})
	t.Run("a cluster of another installer", func(t *testing.T) {
		e.on(t, h, "mkdir", "-p", "/etc/kubernetes")
		e.on(t, h, "touch", "/etc/kubernetes/kubelet.conf")
		refused{11, []string{h, "host/claim", "/etc/kubernetes/kubelet.conf", "kubeadm reset"}}.check(t, e.kubewright(t, "init", h))
		e.on(t, h, "rm", "-r", "/etc/kubernetes")
		untouched(t)
	})
	t.Run("bundles that are not whole", func(t *testing.T) {
		files, err := filepath.Glob("../dist/kubewright-*-linux-amd64.kwb")
		if err != nil || len(files) != 1 {
			t.Fatalf("bundles: %v, %v", files, err)
		}
		whole, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		flipped := bytes.Clone(whole)
		flipped[len(flipped)/2] ^= 1
		for name, content := range map[string][]byte{"half.kwb": whole[:len(whole)/2], "flipped.kwb": flipped} {
			path := filepath.Join(e.dir, name)
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			refused{4, []string{name, "kubewright bundle build"}}.check(t, e.kubewright(t, "init", h, "--bundle", path))
		}
		untouched(t)
	})
	t.Run("nowhere to join", func(t *testing.T) {
		refused{15, []string{"kubeconfig", "kubewright init"}}.check(t, e.kubewright(t, "join", h))
	})
	t.Run("disk full during the upload, and then not", func(t *testing.T) {
		e.on(t, h, "mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", "/opt")
		refused{12, []string{h, "preflight", "/opt/kubewright", "disk-space"}}.check(t, e.kubewright(t, "init", h, "--name", "bad"))
		refused{12, []string{h, "bundle/upload", "no space left", "/opt/kubewright"}}.check(t,
			e.kubewright(t, "init", h, "--name", "bad", "--ignore", "disk-space"))
		if left := e.on(t, h, "find", "/opt/kubewright", "-mindepth", "1"); left != "" {
			t.Errorf("the upload left %s", left)
		}
		e.on(t, h, "umount", "/opt")
		e.must(t, "init", h, "--name", "bad")
	})
	t.Run("a host that is in another cluster", func(t *testing.T) {
		refused{11, []string{h, "host/claim", "cluster bad", "kubewright reset"}}.check(t, e.kubewright(t, "init", h, "--name", "second"))
		refused{11, []string{h, "host/claim", "control-plane"}}.check(t, e.kubewright(t, "join", h))
	})
	e.must(t, "reset", h)
	untouched(t)
}

// TestInterrupt presses Ctrl-C in the middle of init: it ends cleanly between two
// steps, and the same command goes on from there.
func TestInterrupt(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "int", Hosts: 1})
	args := []string{"init", e.host(1), "--name", "int", "-F", e.lab.SSHConfig(), "--kubeconfig", e.kubeconfig, "-o", "jsonl"}
	cmd := exec.CommandContext(t.Context(), program(t), args...)
	cmd.Dir = ".."
	var stdout, stderr lockedBuffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the control plane starts", func() string {
		if strings.Contains(stdout.String(), `"kind":"applying","lane":"`+e.host(1)+`","step":"controlplane/start"`) {
			return ""
		}
		return "it has said: " + stdout.String()
	})
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 130 {
		t.Errorf("exit %d (%v)\n%s", got, err, stderr.String())
	}
	if !strings.Contains(stderr.String(), "code: interrupted") || !strings.Contains(stdout.String(), "press Ctrl-C again") {
		t.Errorf("it does not say what happens:\n%s%s", stdout.String(), stderr.String())
	}
	if !strings.Contains(stdout.String(), fmt.Sprintf(`"kind":"applied","lane":%q,"step":"controlplane/start"`, e.host(1))) {
		t.Errorf("the step under way was not brought to its end:\n%s", stdout.String())
	}
	s := e.counted(t, "init", e.host(1), "--name", "int")
	if s.Applied == 0 || s.Skipped == 0 {
		t.Errorf("the second run did not go on from the first: %+v", s)
	}
	if s := e.counted(t, "init", e.host(1), "--name", "int"); s.Applied != 0 {
		t.Errorf("the third run applied %d steps", s.Applied)
	}
}
