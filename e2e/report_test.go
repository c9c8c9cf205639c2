package e2e

import (
	"bytes"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubewright/kubewright/lab"
)

// TestReport makes pages of real runs and opens them in a browser that runs no scripts:
// on a desk, on a phone, by night and on paper. With KUBEWRIGHT_PICTURES=DIR the
// pictures are kept for people.
func TestReport(t *testing.T) {
	e := newEnv(t, lab.Options{Name: "report", Hosts: 2})
	page := func(name string) string { return filepath.Join(e.dir, name+".html") }
	e.must(t, "init", e.host(1), "--name", "report", "--report", page("init"))
	e.on(t, e.host(2), "mkdir", "-p", "/etc/systemd/system/containerd.service/in-the-way")
	if r := e.kubewright(t, "join", e.host(2), "--report", page("failed")); r.exit == 0 {
		t.Fatalf("join with a folder in the place of a unit:\n%s", r.output())
	}
	e.on(t, e.host(2), "rm", "-r", "/etc/systemd/system/containerd.service")
	e.must(t, "join", e.host(2), "--report", page("join"))

	for name, words := range map[string][]string{
		"init":   {"init report", "done", "waits for the API server", "controlplane/start", "v1.37.2", e.host(1), "10.244.0.0/16"},
		"failed": {"join report", "failed", "What went wrong", "exit status", "same command"},
		"join":   {"join report", "done", "kubelet/bootstrap", e.host(2)},
	} {
		content, err := os.ReadFile(page(name))
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range words {
			if !bytes.Contains(content, []byte(w)) {
				t.Errorf("%s does not say %q", name, w)
			}
		}
		for _, secret := range []string{"PRIVATE KEY", "client-key-data", "BEGIN CERTIFICATE"} {
			if bytes.Contains(content, []byte(secret)) {
				t.Errorf("%s holds %s", name, secret)
			}
		}
		if info, err := os.Stat(page(name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
		e.look(t, name, page(name))
	}
}

// look opens a page on every kind of screen.
func (e *env) look(t *testing.T, name, page string) {
	b := newBrowser(t)
	for _, s := range []screen{
		{name: "desk", width: 1280, height: 900, scheme: "light"},
		{name: "phone", width: 360, height: 740, phone: true, scheme: "light"},
		{name: "night", width: 1280, height: 900, scheme: "dark"},
		{name: "phone-night", width: 360, height: 740, phone: true, scheme: "dark"},
		{name: "paper", width: 794, height: 1123, media: "print", scheme: "dark"},
	} {
		b.show(page, s)
		if width, height := b.size(); width > float64(s.width) || height < float64(s.height) {
			t.Errorf("%s on %s: the page is %g wide and %g high", name, s.name, width, height)
		}
		picture := b.picture()
		if dir := os.Getenv("KUBEWRIGHT_PICTURES"); dir != "" {
			if err := os.WriteFile(filepath.Join(dir, name+"-"+s.name+".png"), picture, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		img, err := png.Decode(bytes.NewReader(picture))
		if err != nil {
			t.Fatal(err)
		}
		night := s.scheme == "dark" && s.media != "print"
		if ground := color.GrayModel.Convert(img.At(2, 2)).(color.Gray); (ground.Y < 128) != night {
			t.Errorf("%s on %s: the ground is %v", name, s.name, ground)
		}
	}
	for _, url := range b.fetched {
		if url != "file://"+page && !strings.HasPrefix(url, "data:") {
			t.Errorf("%s fetched %s", name, url)
		}
	}
	if len(b.logged) > 0 {
		t.Errorf("%s: the browser says: %s", name, strings.Join(b.logged, "; "))
	}
}
