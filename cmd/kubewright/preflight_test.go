package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kubewright/kubewright/bootstrap/finding"
)

func TestRenderFindings(t *testing.T) {
	r := finding.Report{
		{Code: finding.SwapOn, Severity: finding.Error, Host: "w1", Message: "swap is on", Remedy: "swapoff -a"},
		{Code: finding.PortInUse, Severity: finding.Error, Host: "cp", Message: "port TCP 6443 is in use by haproxy (pid 612)", Remedy: "stop it", Ignored: true},
		{Code: finding.CgroupV1, Severity: finding.Warning, Host: "w1", Message: "old", Remedy: "reboot"},
		{Code: finding.MTUChosen, Severity: finding.Note, Message: "pods get 1450"},
	}
	var got strings.Builder
	if err := renderFindings(&got, r); err != nil {
		t.Fatal(err)
	}
	want := `w1
  error    swap-on    swap is on
                      remedy: swapoff -a
  warning  cgroup-v1  old
                      remedy: reboot
cp
  ignored  port-in-use  port TCP 6443 is in use by haproxy (pid 612)
                        remedy: stop it
the cluster
  note  mtu-chosen  pods get 1450
2 errors, 1 warning, 1 note
` + "`kubewright explain CODE` says more" + `
1 of 4 findings would stop init
`
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
