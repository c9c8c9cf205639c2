package spec

import (
	"fmt"
	"path"
	"slices"
)

// APIServerFile is a file of the admin's that a flag of the API server names.
type APIServerFile struct{ Flag, Path string }

func (f APIServerFile) String() string {
	return fmt.Sprintf("%s (the API server's --%s)", f.Path, f.Flag)
}

// apiServerFileFlags are the flags of the API server that name such files. Its keys and certificates are not among
// them: the cluster has its own.
func apiServerFileFlags() []string {
	return []string{
		"admission-control-config-file", "audit-policy-file", "audit-webhook-config-file", "authentication-config",
		"authentication-token-webhook-config-file", "authorization-config", "authorization-policy-file", "authorization-webhook-config-file",
		"egress-selector-config-file", "encryption-provider-config", "oidc-ca-file", "token-auth-file", "tracing-config-file",
	}
}

// APIServerFiles are the files that an API server reads, each once. value is what a flag has, without its leading
// dashes; "" if it is not given.
func APIServerFiles(value func(flag string) string) []APIServerFile {
	var files []APIServerFile
	for _, flag := range apiServerFileFlags() {
		if p := value(flag); path.IsAbs(p) && !slices.ContainsFunc(files, func(f APIServerFile) bool { return f.Path == p }) {
			files = append(files, APIServerFile{flag, p})
		}
	}
	return files
}

// Files are those that the API server's own flags in the wish name.
func (a APIServer) Files() []APIServerFile {
	return APIServerFiles(func(flag string) string { return a.ExtraArgs[flag] })
}
