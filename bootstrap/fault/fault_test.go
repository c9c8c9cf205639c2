package fault

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "write docs/exit-codes.md")

func TestEveryCodeHasItsOwnStatusAndAMeaning(t *testing.T) {
	seen := map[int]Code{}
	for c, status := range exits {
		if other, ok := seen[status]; ok {
			t.Errorf("%s and %s have status %d", c, other, status)
		}
		seen[status] = c
		if status <= 0 || status > 255 {
			t.Errorf("%s has status %d", c, status)
		}
		if meanings[c] == "" {
			t.Errorf("%s has no meaning", c)
		}
	}
	if len(meanings) != len(exits) {
		t.Errorf("%d meanings for %d codes", len(meanings), len(exits))
	}
}

func TestPageIsUpToDate(t *testing.T) {
	const page = "../../docs/exit-codes.md"
	if *update {
		if err := os.WriteFile(page, []byte(Table()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(page)
	if err != nil || string(have) != Table() {
		t.Errorf("%s is stale (%v): run go test ./bootstrap/fault -update", page, err)
	}
}

func TestAt(t *testing.T) {
	cause := errors.New("no space left")
	full := &Fault{Code: DiskFull, Err: cause, Remedy: "make room"}
	for name, c := range map[string]struct {
		err    error
		text   string
		code   Code
		remedy string
	}{
		"any error":                {cause, "w1: upload: no space left", StepFailed, ""},
		"a fault":                  {full, "w1: upload: no space left", DiskFull, "make room"},
		"a fault that was wrapped": {fmt.Errorf("write x: %w", full), "w1: upload: write x: no space left", DiskFull, "make room"},
		"a fault with a place":     {&Fault{Code: Timeout, Host: "w2", Step: "wait", Err: cause}, "w2: wait: no space left", Timeout, ""},
	} {
		got := At("w1", "upload", c.err)
		if got.Error() != c.text || CodeOf(got) != c.code || RemedyOf(got) != c.remedy || !errors.Is(got, cause) {
			t.Errorf("%s: %q, %s, %q", name, got, CodeOf(got), RemedyOf(got))
		}
	}
	if At("w1", "upload", nil) != nil {
		t.Error("nil became an error")
	}
}

func TestExit(t *testing.T) {
	for want, err := range map[int]error{
		0:   nil,
		1:   errors.New("no fault"),
		12:  fmt.Errorf("wrapped: %w", New(DiskFull, "", "full")),
		130: errors.Join(New(Interrupted, "", "stopped"), New(DiskFull, "", "full")),
	} {
		if got := Exit(err); got != want {
			t.Errorf("%v: %d, want %d", err, got, want)
		}
	}
}
