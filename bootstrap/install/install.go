// Package install puts the bundle on a host: one folder per version, and the
// link "current" to the one in use, so that a change of version is one rename.
package install

import "path"

const (
	// Root holds a folder per installed bundle.
	Root = "/opt/kubewright"
	// Current is the link to the folder in use.
	Current = Root + "/current"
	// BinDir holds the component binaries in use.
	BinDir = Current + "/bin"
	// CNIDir holds the CNI plugins in use.
	CNIDir = Current + "/cni"
)

// Bin is the path of a component's binary in use.
func Bin(name string) string { return path.Join(BinDir, name) }

// Path of programs for units: our own first.
const Path = BinDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
