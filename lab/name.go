package lab

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// maxHosts is what fits between firstHost and the end of a lab's /24.
const maxHosts = 200

// names of labs become names of hosts, folders and cgroups, and stand in the
// options of an overlay mount: no comma, colon or dot may be in them.
var names = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$`)

// rootfsFolder and runtime files live beside the labs, so a lab cannot be called that.
const rootfsFolder = "rootfs"

func checkName(name string) error {
	if !names.MatchString(name) || name == rootfsFolder {
		return fault.New(fault.Usage, "use lower-case letters, digits and dashes, a letter first, at most 40 characters",
			"lab name %q cannot be used", name)
	}
	return nil
}

func hostName(lab string, number int) string { return fmt.Sprintf("%s-%d", lab, number) }

// uplinkName is the only interface that a lab has in the outer namespace. It is
// derived from the lab's name, so a destroy finds it without any record.
func uplinkName(lab string) string {
	sum := sha256.Sum256([]byte(lab))
	return "kw" + hex.EncodeToString(sum[:5])
}
