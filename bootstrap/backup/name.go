package backup

import (
	"strings"
	"time"
)

const (
	// Extension ends the name of a backup that a host keeps.
	Extension = ".kwbackup"
	// stamp is how such a name has its time: sorted by name, those of a cluster are sorted by
	// time. A backup of a small cluster takes a third of a second.
	stamp = "20060102T150405.000Z"
)

// FileName is what a host calls the backup of a cluster that it made at a time.
func FileName(cluster string, made time.Time) string {
	return cluster + "-" + made.UTC().Format(stamp) + Extension
}

// ParseFileName undoes FileName; ok is false of any other name.
func ParseFileName(name string) (cluster string, made time.Time, ok bool) {
	rest, ours := strings.CutSuffix(name, Extension)
	at := strings.LastIndexByte(rest, '-')
	if !ours || at < 1 {
		return "", time.Time{}, false
	}
	made, err := time.Parse(stamp, rest[at+1:])
	return rest[:at], made, err == nil
}
