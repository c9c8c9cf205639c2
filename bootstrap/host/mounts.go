package host

import (
	"path"
	"slices"
	"strings"
)

// MountTable is the file that Mounts reads.
const MountTable = "/proc/self/mountinfo"

// Mount is a file system, or a part of one, where it is mounted.
type Mount struct {
	Device string // major:minor: the same for all mounts of one file system
	Root   string // the folder of the file system that is mounted: / for all of it
	Point  string
	Kind   string // ext4, tmpfs, ...
}

// Mounts reads the text of a mountinfo file (proc(5)). Lines that it does not know are left out.
func Mounts(mountinfo string) []Mount {
	const device, root, point, optional = 2, 3, 4, 6 // of its fields; "-" ends the optional ones
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var mounts []Mount
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		end := slices.Index(fields, "-")
		if end < optional || end+1 >= len(fields) {
			continue
		}
		mounts = append(mounts, Mount{
			Device: fields[device], Root: unescape.Replace(fields[root]), Point: unescape.Replace(fields[point]), Kind: fields[end+1],
		})
	}
	return mounts
}

// MountBelow returns the first mount point in the text of a mountinfo file that
// is one of paths or below it, "" if there is none. Removing such a path would
// empty what is mounted there: rm --one-file-system by itself goes through bind
// mounts of the same device.
func MountBelow(mountinfo string, paths []string) string {
	for _, m := range Mounts(mountinfo) {
		for _, name := range paths {
			if name = path.Clean(name); m.Point == name || strings.HasPrefix(m.Point, name+"/") {
				return m.Point
			}
		}
	}
	return ""
}
