package backup

import (
	"testing"
	"time"
)

func TestFileName(t *testing.T) {
	made := time.Date(2026, 11, 26, 2, 30, 0, 7e6, time.FixedZone("", 3600))
	for _, cluster := range []string{"c", "prod", "prod-20261126T013000.007Z"} {
		name := FileName(cluster, made)
		if of, at, ok := ParseFileName(name); !ok || of != cluster || !at.Equal(made) {
			t.Errorf("%s: %q, %v, %t", name, of, at, ok)
		}
	}
	for _, name := range []string{"", ".kwbackup", "prod.kwbackup", "20261126T013000.007Z.kwbackup", "-20261126T013000.007Z.kwbackup",
		"prod-20261326T013000.007Z.kwbackup", "prod-20261126T013000Z.kwbackup", "prod-20261126T013000.007Z", "prod-20261126T013000.007Z.kwbackup.part"} {
		if of, at, ok := ParseFileName(name); ok {
			t.Errorf("%q: taken for one of %s at %v", name, of, at)
		}
	}
}
