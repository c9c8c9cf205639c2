package lab

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// inotifyFile limits how many inotify instances one user has. The kernel counts all
// hosts of all labs as one user, of which each needs some thirty; the usual 128 are gone
// with the fifth host, and its kubelet does not start.
const (
	inotifyFile      = "/proc/sys/fs/inotify/max_user_instances"
	inotifyInstances = 8192
)

// raiseLimits lifts what the machine allows one user to what many hosts need. It is
// never lowered again: other labs may rely on it, and nothing else notices.
func raiseLimits() error {
	text, err := os.ReadFile(inotifyFile)
	if err != nil {
		return err
	}
	have, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("%s: %w", inotifyFile, err)
	}
	if have >= inotifyInstances {
		return nil
	}
	return os.WriteFile(inotifyFile, []byte(strconv.Itoa(inotifyInstances)), 0)
}
