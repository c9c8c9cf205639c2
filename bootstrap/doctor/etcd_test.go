package doctor

import (
	"strings"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/finding"
)

func TestEvenMembers(t *testing.T) {
	for voters, want := range map[int]string{1: "", 2: "needs 2: it survives the loss of 0, no more than with 1", 3: "", 4: "needs 3: it survives the loss of 1, no more than with 3"} {
		report := checkTally(etcd.Tally{Voters: voters})
		if want == "" != (len(report) == 0) || len(report) > 0 && !strings.Contains(report[0].Message, want) {
			t.Errorf("%d: %v", voters, report)
		}
	}
}

func TestMembersInTrouble(t *testing.T) {
	const quota = 100 << 20
	for name, c := range map[string]struct {
		member etcd.Member
		codes  string
	}{
		"healthy":     {etcd.Member{Name: "cp1", Healthy: true, DBSize: 80 << 20, Quota: quota}, ""},
		"nearly full": {etcd.Member{Name: "cp1", Healthy: true, DBSize: 81 << 20, Quota: quota}, "warning etcd-filling cp1"},
		"full": {etcd.Member{Name: "cp1", Full: true, Alarms: []etcd.Alarm{etcd.NoSpace}, DBSize: quota, Quota: quota},
			"warning etcd-filling cp1, error etcd-no-space cp1"},
		"damaged": {etcd.Member{Name: "cp1", Alarms: []etcd.Alarm{etcd.Corrupt}}, "error etcd-damaged cp1"},
		"dead":    {etcd.Member{Name: "cp2", Trouble: "it cannot be reached"}, "error etcd-member-down cp2"},
		"left over": {etcd.Member{Learner: true, Peers: []string{"https://x:2380"}, Trouble: "it has not started yet"},
			"warning etcd-member-down https://x:2380"},
	} {
		var codes []string
		for _, f := range checkMember(c.member) {
			codes = append(codes, string(f.Severity)+" "+string(f.Code)+" "+f.Object)
			if _, known := finding.Explain(f.Code); !known {
				t.Errorf("%s: %s is not explained", name, f.Code)
			}
		}
		if got := strings.Join(codes, ", "); got != c.codes {
			t.Errorf("%s: %s, want %s", name, got, c.codes)
		}
	}
}
