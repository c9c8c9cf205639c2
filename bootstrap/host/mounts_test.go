package host

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMountBelow(t *testing.T) {
	table := "22 1 0:20 / / rw - ext4 /dev/sda rw\n" +
		"30 22 0:30 / /var/lib/kubelet rw shared:1 - tmpfs tmpfs rw\n" +
		"31 22 0:31 / /srv/with\\040space rw - tmpfs tmpfs rw\n"
	for name, want := range map[string]string{
		"/var":                   "/var/lib/kubelet",
		"/var/lib/kubelet/":      "/var/lib/kubelet",
		"/var/lib/kube":          "",
		"/var/lib/kubelet/pods":  "",
		"/srv/with space":        "/srv/with space",
		"/etc/kubernetes/../pki": "",
	} {
		if got := MountBelow(table, []string{"/opt", name}); got != want {
			t.Errorf("below %s: %q, want %q", name, got, want)
		}
	}
}

func TestMounts(t *testing.T) {
	table := "22 1 0:20 / / rw - ext4 /dev/sda rw\n" +
		"30 22 8:1 /sub/a\\040b /srv rw,noatime shared:1 master:2 - xfs /dev/sdb rw\n" +
		"\nnot a mount\n"
	want := []Mount{{"0:20", "/", "/", "ext4"}, {"8:1", "/sub/a b", "/srv", "xfs"}}
	if diff := cmp.Diff(want, Mounts(table)); diff != "" {
		t.Error(diff)
	}
}
