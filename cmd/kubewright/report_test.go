package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

func TestReportOfNowhereIsRefusedBeforeAnythingIsDone(t *testing.T) {
	a := &app{reportPath: filepath.Join(t.TempDir(), "no-such-folder", "install.html")}
	if _, err := a.newPage("init", time.Now()); fault.CodeOf(err) != fault.Usage {
		t.Errorf("error: %v", err)
	}
}

func TestReportStandsFromTheBeginning(t *testing.T) {
	dir := t.TempDir()
	a := &app{reportPath: filepath.Join(dir, "install.html")}
	p, err := a.newPage("init", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	says := func(want string) {
		t.Helper()
		content, err := os.ReadFile(a.reportPath)
		if err != nil || !strings.Contains(string(content), want) {
			t.Errorf("the page does not say %q (%v)", want, err)
		}
	}
	says("not ended")
	failed := fault.New(fault.HostUnreachable, "is it on?", "no answer")
	if err := p.end(failed); err != error(failed) {
		t.Errorf("end returned %v", err)
	}
	says("refused")
	says("is it on?")
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Errorf("in the folder: %v, %v", files, err)
	}
	if info, err := os.Stat(a.reportPath); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestWithoutTheFlagNothingIsWritten(t *testing.T) {
	p, err := new(app).newPage("init", time.Now())
	if p != nil || err != nil || p.end(nil) != nil {
		t.Errorf("%v, %v", p, err)
	}
}
