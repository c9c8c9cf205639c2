package bootstrap

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

const keysFile = "/etc/kubernetes/enc.yaml"

// encrypting is a cluster whose API servers encrypt, of hosts that are all control-plane ones.
func encrypting(hosts ...string) *spec.Cluster {
	c := &spec.Cluster{Name: "sim", APIServer: spec.APIServer{Component: spec.Component{ExtraArgs: map[string]string{encryptionFlag: keysFile}}}}
	for _, h := range hosts {
		c.Hosts = append(c.Hosts, spec.Host{Name: h, Role: spec.ControlPlaneRole})
	}
	c.Default()
	return c
}

// TestEncryptionKeys: a further control-plane host gets the keys of the first one, for root alone; its own stay.
func TestEncryptionKeys(t *testing.T) {
	for own, want := range map[string]string{"": "the first one's", "the admin's": "the admin's"} {
		first, further := hosttest.NewSim(t, "cp1"), hosttest.NewSim(t, "cp2")
		e := newEncryption(encrypting("cp1"))
		if _, err := (readKeys{e}).Check(t.Context(), first); fault.CodeOf(err) != fault.HostUnsuitable || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("without the file: %v", err)
		}
		first.Put(keysFile, "the first one's", 0o600)
		if own != "" {
			further.Put(keysFile, own, 0o640)
		}
		var told strings.Builder
		_, err := plan.Run(t.Context(), plan.Options{Emit: func(ev plan.Event) { fmt.Fprintf(&told, "%+v %s", ev, ev.Diff) }},
			plan.NewLane[hostReader, hostWriter]("cp1", first, first, e.readSteps()...),
			plan.NewLane[hostReader, hostWriter]("cp2", further, further, e.writeSteps()...))
		if got, _ := further.Get(keysFile); err != nil || got != want {
			t.Errorf("%q: %q, %v", own, got, err)
		}
		if strings.Contains(told.String(), "one's") {
			t.Errorf("the keys are told: %s", &told)
		}
		found, err := further.Stat(t.Context(), keysFile)
		if mode := found[0].Mode.Perm(); err != nil || own == "" && mode != 0o600 || own != "" && mode != 0o640 {
			t.Errorf("%q: %v, %v", own, mode, err)
		}
	}
	if e := newEncryption(&spec.Cluster{}); e != nil || e.readSteps() != nil || e.writeSteps() != nil {
		t.Error("a cluster that encrypts nothing has keys")
	}
}

// TestEncryptionIsPlanned: before its API server starts, and only where there are further hosts.
func TestEncryptionIsPlanned(t *testing.T) {
	node := func(n byte) Target {
		name := fmt.Sprintf("h%d", n)
		return Target{Wish: spec.Host{Name: name, Role: spec.ControlPlaneRole, Node: name, Address: netip.AddrFrom4([4]byte{192, 0, 2, n})},
			Host: hosttest.NewSim(t, name)}
	}
	c := &shared{Cluster: encrypting("h1", "h2"), bundle: testBundle(t)}
	c.encryption = newEncryption(c.Cluster)
	m := newMembers([]Node{{Name: "h2", Target: node(2), Address: netip.MustParseAddr("192.0.2.2")}})[0]
	steps := memberLane(c, m).Steps()
	at := func(name string) int { return slices.Index(steps, name) }
	if write := at("apiserver/write-encryption"); write < 0 || write > at("controlplane/start") {
		t.Errorf("%v", steps)
	}
}
