package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/kubewright/kubewright/bootstrap"
)

// TestRenderBackups: a host that is down may have backups.
func TestRenderBackups(t *testing.T) {
	made := time.Date(2026, time.March, 2, 0, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		backups    bootstrap.BackupStatus
		want, told string
	}{
		"none":            {bootstrap.BackupStatus{Schedule: "daily"}, "daily    -       -\n", ""},
		"nobody can tell": {bootstrap.BackupStatus{Schedule: "daily", Unseen: []string{"cp1"}}, "daily    not seen  -\n", "backups may be on cp1, whose host could not be looked at\n"},
		"a younger one": {bootstrap.BackupStatus{Schedule: "daily", Newest: made, Host: "cp2", Unseen: []string{"cp1", "cp3"}},
			"daily    2026-03-02T00:00:00Z  cp2\n", "younger backups may be on cp1 or cp3, whose host could not be looked at\n"},
	} {
		var out bytes.Buffer
		if err := renderStatus(&out, &bootstrap.Status{Backups: &c.backups}); err != nil {
			t.Fatal(err)
		}
		if got := out.String(); !strings.Contains(got, c.want) || !strings.Contains(got, c.told) || (c.told == "") == strings.Contains(got, "may be on") {
			t.Errorf("%s: %s\ndoes not say:\n%s%s", name, got, c.want, c.told)
		}
	}
}
