package host

import (
	"path"
	"strings"
)

// MountTable is the file that MountBelow reads.
const MountTable = "/proc/self/mountinfo"

const mountPointField = 4 // of a line of mountinfo, proc(5)

// MountBelow returns the first mount point in the text of a mountinfo file that
// is one of paths or below it, "" if there is none. Removing such a path would
// empty what is mounted there: rm --one-file-system by itself goes through bind
// mounts of the same device.
func MountBelow(mountinfo string, paths []string) string {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if len(fields) <= mountPointField {
			continue
		}
		point := unescape.Replace(fields[mountPointField])
		for _, name := range paths {
			if name = path.Clean(name); point == name || strings.HasPrefix(point, name+"/") {
				return point
			}
		}
	}
	return ""
}
