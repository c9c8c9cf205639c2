package kubeconfig

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The one cluster that leads to a server which went away leads to another one; the rest stays.
func TestRepoint(t *testing.T) {
	const gone, stays = "https://192.0.2.11:6443", "https://192.0.2.12:6443"
	path := filepath.Join(t.TempDir(), "config")
	write := func(server string) {
		t.Helper()
		text := "apiVersion: v1\nkind: Config\nclusters:\n- name: mine\n  cluster: {server: '" + server + "'}\n- name: other\n  cluster: {server: '" + gone + "'}\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a := Repoint{Path: path, Name: "mine", From: gone, To: stays}
	write("https://api.example.com:6443") // an endpoint
	if diff, err := a.Check(t.Context(), Local{}); err != nil || len(diff) > 0 {
		t.Errorf("%v, %v", diff, err)
	}
	write(gone)
	if diff, err := a.Check(t.Context(), Local{}); err != nil || len(diff) != 1 {
		t.Errorf("%v, %v", diff, err)
	}
	if err := a.Apply(t.Context(), Local{}); err != nil {
		t.Fatal(err)
	}
	if diff, err := a.Check(t.Context(), Local{}); err != nil || len(diff) > 0 {
		t.Errorf("%v, %v", diff, err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if s := string(text); strings.Count(s, stays) != 1 || strings.Count(s, gone) != 1 {
		t.Errorf("afterwards:\n%s", s)
	}
}
