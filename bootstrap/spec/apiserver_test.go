package spec_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/bootstrap/spec"
)

func TestAPIServerFiles(t *testing.T) {
	a := spec.APIServer{Component: spec.Component{ExtraArgs: map[string]string{
		"encryption-provider-config": "/etc/keys/encryption.yaml", "audit-policy-file": "/etc/audit.yaml", "audit-log-path": "/var/log/audit.log",
		"oidc-ca-file": "/etc/audit.yaml", "tls-cert-file": "/etc/own.crt", "tracing-config-file": "relative.yaml",
	}}}
	if diff := cmp.Diff("[/etc/audit.yaml (the API server's --audit-policy-file) /etc/keys/encryption.yaml (the API server's --encryption-provider-config)]",
		fmt.Sprint(a.Files())); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
