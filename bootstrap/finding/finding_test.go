package finding

import (
	"flag"
	"os"
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write docs/findings.md")

func TestPageIsUpToDate(t *testing.T) {
	const page = "../../docs/findings.md"
	if *update {
		if err := os.WriteFile(page, []byte(Table()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(page)
	if err != nil || string(have) != Table() {
		t.Errorf("%s is stale (%v): run go test ./bootstrap/finding -update", page, err)
	}
}

func TestEveryCodeIsExplainedOnce(t *testing.T) {
	form := regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	seen := map[Code]bool{}
	for _, e := range Explanations() {
		if seen[e.Code] {
			t.Errorf("%s is explained twice", e.Code)
		}
		seen[e.Code] = true
		if !form.MatchString(string(e.Code)) || e.Title == "" || e.Meaning == "" || len(e.Remedy) == 0 {
			t.Errorf("%q lacks title, meaning or remedy, or is not in words and hyphens", e.Code)
		}
		if found, ok := Explain(e.Code); !ok || found.Title != e.Title {
			t.Errorf("%s is not found", e.Code)
		}
	}
	if _, ok := Explain("no-such-code"); ok {
		t.Error("an unknown code is explained")
	}
}

func TestReport(t *testing.T) {
	r := Report{
		{Code: "b", Severity: Warning, Host: "w1", Message: "slow"},
		{Code: "a", Severity: Error, Host: "w2", Message: "swap is on"},
		{Code: "c", Severity: Error, Host: "w1", Message: "no nft"},
	}
	r.Sort()
	r.Ignore("a")
	var got []string
	for _, f := range r.Blocking() {
		got = append(got, f.String())
	}
	if diff := cmp.Diff([]string{"w1: no nft [c]"}, got); diff != "" {
		t.Error(diff)
	}
	if r[0].Code != "c" || r[1].Code != "a" || r[2].Code != "b" {
		t.Errorf("order: %v", r)
	}
}
