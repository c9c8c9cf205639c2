package etcd

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/plan"
)

const (
	toldNew      = "# Written by kubewright: read by a member that has no data yet.\nETCD_INITIAL_CLUSTER=cp1=https://192.0.2.1:2380\nETCD_INITIAL_CLUSTER_STATE=new\n"
	toldExisting = "# Written by kubewright: read by a member that has no data yet.\nETCD_INITIAL_CLUSTER=cp1=https://192.0.2.1:2380\nETCD_INITIAL_CLUSTER_STATE=existing\n"
	toldOther    = "# Written by kubewright: read by a member that has no data yet.\nETCD_INITIAL_CLUSTER=cp9=https://192.0.2.9:2380\nETCD_INITIAL_CLUSTER_STATE=existing\n"
)

func TestStart(t *testing.T) {
	founding := plan.Of("members", Founding(Inputs{NodeName: "cp1", Address: netip.MustParseAddr("192.0.2.1")}))
	for name, c := range map[string]struct {
		have string // "": no file
		data bool
		vain bool // etcd was started, and never came to data
		do   Start
		want string
		verb plan.Verb // "": nothing is to be done
	}{
		"a founder":                        {do: Start{Cluster: founding, New: true}, want: toldNew, verb: plan.Create},
		"a founder once more":              {have: toldNew, do: Start{Cluster: founding, New: true}, want: toldNew},
		"a founder with its data":          {have: toldNew, data: true, do: Start{Cluster: founding, New: true}, want: toldNew},
		"a founder that was settled":       {have: toldExisting, data: true, do: Start{Cluster: founding, New: true}, want: toldExisting},
		"a founder is settled":             {have: toldNew, data: true, do: Start{Cluster: founding}, want: toldExisting, verb: plan.Update},
		"a founder whose data are lost":    {have: toldExisting, do: Start{Cluster: founding, New: true}, want: toldNew, verb: plan.Update},
		"one that was started in vain":     {have: toldExisting, vain: true, do: Start{Cluster: founding, New: true}, want: toldNew, verb: plan.Update},
		"a member that knew other ones":    {have: toldOther, vain: true, do: Start{Cluster: founding}, want: toldExisting, verb: plan.Update},
		"a member":                         {do: Start{Cluster: founding}, want: toldExisting, verb: plan.Create},
		"a member that knows other ones":   {have: toldOther, do: Start{Cluster: founding}, want: toldExisting, verb: plan.Update},
		"a member with data keeps them":    {have: toldOther, data: true, do: Start{Cluster: founding}, want: toldOther},
		"a member with data, and the file": {data: true, do: Start{Cluster: founding}, want: toldExisting, verb: plan.Create},
		"data, nobody needs to know":       {have: toldOther, data: true, do: Start{Cluster: plan.NewValue[string]("members")}, want: toldOther},
	} {
		t.Run(name, func(t *testing.T) {
			s := hosttest.NewSim(t, "cp1")
			if c.have != "" {
				s.Put(environmentFile, c.have, 0o644)
			}
			if c.data {
				s.Put(memberDir+"/snap/db", "data", 0o600)
				s.Put(memberDir+"/wal/0.wal", "log", 0o600)
			}
			if c.vain {
				s.Put(memberDir+"/snap/db", "empty", 0o600)
			}
			diff, err := c.do.Check(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			// The folder is made, too, where there is none.
			changed := ""
			for _, d := range diff {
				if d.Object == environmentFile {
					changed = string(d.Verb)
				}
			}
			if changed != string(c.verb) {
				t.Errorf("it is to %q the file, want %q: %s", changed, c.verb, diff)
			}
			if len(diff) > 0 {
				if err := c.do.Apply(t.Context(), s); err != nil {
					t.Fatal(err)
				}
			}
			if got, _ := s.Get(environmentFile); got != c.want {
				t.Errorf("the file:\n%s", got)
			}
			if left, err := c.do.Check(t.Context(), s); err != nil || len(left) > 0 {
				t.Errorf("afterwards: %s, %v", left, err)
			}
		})
	}
}

// TestStartIsForeseen: as long as nobody has let it in, the file is known, and what is in it is not.
func TestStartIsForeseen(t *testing.T) {
	a := Start{Cluster: plan.NewValue[string]("members")}
	if _, err := a.Check(t.Context(), hosttest.NewSim(t, "cp2")); err == nil {
		t.Error("it knows members that there are not")
	}
	if diff := a.Foresee(); len(diff) != 1 || diff[0].Object != environmentFile || !diff[0].After.Later {
		t.Errorf("foreseen: %s", diff)
	}
}

// TestStartInterrupted: a file that was cut off is written anew.
func TestStartInterrupted(t *testing.T) {
	hosttest.Interrupt(t, func(t testing.TB) *hosttest.Sim {
		s := hosttest.NewSim(t, "cp1")
		s.Put(environmentFile, toldOther, 0o644)
		return s
	}, func(ctx context.Context, h host.Host) error {
		return Start{Cluster: plan.Of("members", "cp1=https://192.0.2.1:2380")}.Apply(ctx, h)
	})
}

// TestService: how the unit finds what Start has said, and who stands before etcd.
func TestService(t *testing.T) {
	unit := string(Service(Inputs{NodeName: "cp1", Address: netip.MustParseAddr("192.0.2.1"), PKI: "/pki", ExtraArgs: map[string]string{"quota-backend-bytes": "1"}}).File())
	for _, want := range []string{
		"EnvironmentFile=" + environmentFile + "\n", "--name=cp1", "--data-dir=" + DataDir, "--initial-advertise-peer-urls=https://192.0.2.1:2380",
		"--listen-client-urls=https://127.0.0.1:2379,https://192.0.2.1:2379", "--quota-backend-bytes=1", "etcd-fence", "Type=notify", "TimeoutStartSec=10min\n",
	} {
		if !strings.Contains(unit, want) {
			t.Errorf("the unit has no %q:\n%s", want, unit)
		}
	}
	if strings.Contains(unit, "initial-cluster") {
		t.Errorf("flags are stronger than the file, and stay when members come and go:\n%s", unit)
	}
}
