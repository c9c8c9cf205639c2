// Package kubewright is the root of the module. It holds go.mod as text, the
// one place in which the version of every component stands.
package kubewright

import _ "embed"

//go:embed go.mod
var goMod string

// GoMod returns the module's go.mod.
func GoMod() string { return goMod }
