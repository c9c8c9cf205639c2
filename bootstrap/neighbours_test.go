package bootstrap

import (
	"testing"

	"github.com/kubewright/kubewright/bootstrap/apilb"
	"github.com/kubewright/kubewright/bootstrap/etcd"
)

// Components do not know each other: that they mean the same file is seen here.
func TestEtcdLooksWhereApilbRemembers(t *testing.T) {
	if etcd.NeighboursFile != apilb.ServersFile {
		t.Errorf("etcd looks at %s, apilb remembers in %s", etcd.NeighboursFile, apilb.ServersFile)
	}
}
