package certs

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/pki"
)

// ensure is the action for a control-plane host.
func ensure(name, address string, common *plan.Value[Common]) Ensure {
	return Ensure{
		Inputs:  pki.Inputs{Node: name, Address: netip.MustParseAddr(address), ServiceIP: netip.MustParseAddr("10.96.0.1"), DNSDomain: "cluster.local"},
		Servers: Servers{People: "https://" + address + ":6443", Local: "https://" + address + ":6443", Agents: "https://127.0.0.1:6444"},
		Cluster: "c", Common: common, KubeletCert: "/var/lib/kubelet/pki/kubelet-client-current.pem", KubeletDir: "/var/lib/kubelet",
		Result: plan.NewValue[Material]("certificates of " + name),
	}
}

// have has all of it on a host.
func have(t *testing.T, s *hosttest.Sim, e Ensure) {
	t.Helper()
	_, err := plan.Run(t.Context(), plan.Options{}, plan.NewLane[host.Reader, host.Host](s.Name(), s, s,
		plan.Step[host.Reader, host.Host]{Name: "pki/write", Do: e}))
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, s *hosttest.Sim, name string) string {
	t.Helper()
	content, ok := s.Get(path.Join(Dir, name))
	if !ok {
		t.Fatalf("%s has no %s", s.Name(), name)
	}
	return content
}

// TestSecondControlPlane: it has the authorities of the first one, and nothing else of it.
func TestSecondControlPlane(t *testing.T) {
	for name, before := range map[string]func(t *testing.T, s *hosttest.Sim){
		"a bare host":                   func(*testing.T, *hosttest.Sim) {},
		"one that was to be the first":  func(t *testing.T, s *hosttest.Sim) { have(t, s, ensure("cp2", "192.0.2.2", nil)) },
		"one with a damaged authority":  func(_ *testing.T, s *hosttest.Sim) { s.Put(Dir+"/ca.crt", "-----BEGIN", 0o644) },
		"one that has lost a key of it": func(_ *testing.T, s *hosttest.Sim) { s.Put(Dir+"/sa.key", "", 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			first, second := hosttest.NewSim(t, "cp1"), hosttest.NewSim(t, "cp2")
			have(t, first, ensure("cp1", "192.0.2.1", nil))
			common, err := ReadCommon(t.Context(), first)
			if err != nil {
				t.Fatal(err)
			}
			before(t, second)
			e := ensure("cp2", "192.0.2.2", plan.Of("authorities", common))
			have(t, second, e)

			for _, name := range pki.FileNames() {
				same := read(t, first, name) == read(t, second, name)
				if shared := slices.Contains(pki.CommonFiles(), name); same != shared {
					t.Errorf("%s: the same on both is %v, want %v", name, same, shared)
				}
			}
			roots := map[string]*x509.CertPool{}
			for _, name := range pki.Authorities() {
				roots[name] = x509.NewCertPool()
				roots[name].AppendCertsFromPEM([]byte(read(t, first, name+".crt")))
			}
			for _, row := range pki.Table(e.Inputs) {
				if row.File == "" {
					continue
				}
				cert, err := pki.ParseCertificate([]byte(read(t, second, row.File+".crt")))
				if err == nil {
					_, err = cert.Verify(x509.VerifyOptions{Roots: roots[row.CA], KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
				}
				if err != nil {
					t.Errorf("%s: %v", row.Name, err)
				}
			}
			server, err := pki.ParseCertificate([]byte(read(t, second, "apiserver.crt")))
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(server.VerifyHostname("192.0.2.2"), server.VerifyHostname("kubernetes")); err != nil {
				t.Error(err)
			}
			if server.VerifyHostname("192.0.2.1") == nil {
				t.Error("its API server may pass for the first one's")
			}
			operations := len(second.Operations())
			have(t, second, ensure("cp2", "192.0.2.2", plan.Of("authorities", common)))
			if done := second.Operations()[operations:]; len(done) > 0 {
				t.Errorf("once more: %q", done)
			}
		})
	}
}

// TestReadCommonWantsAll: a host that lacks a part is not one to make others like.
func TestReadCommonWantsAll(t *testing.T) {
	whole := hosttest.NewSim(t, "cp1")
	have(t, whole, ensure("cp1", "192.0.2.1", nil))
	for _, name := range pki.CommonFiles() {
		s := hosttest.NewSim(t, "cp1")
		for _, other := range pki.CommonFiles() {
			if other != name {
				s.Put(path.Join(Dir, other), read(t, whole, other), 0o600)
			}
		}
		common, err := ReadCommon(t.Context(), s)
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), name) || common != nil {
			t.Errorf("without %s: %v", name, err)
		}
	}
}

// TestCommonIsSecret: it holds every key that a cluster rests on.
func TestCommonIsSecret(t *testing.T) {
	c := Common{"ca.key": []byte("secret")}
	if text := c.String() + (Material{Common: c}).String(); strings.Contains(text, "secret") {
		t.Error(text)
	}
}

// TestCommonIsForeseen: before it is there, the files are known, and what is in them is not.
func TestCommonIsForeseen(t *testing.T) {
	e := ensure("cp2", "192.0.2.2", plan.NewValue[Common]("authorities"))
	if _, err := e.Check(t.Context(), hosttest.NewSim(t, "cp2")); err == nil {
		t.Error("it makes authorities of its own")
	}
	foreseen := map[string]bool{}
	for _, c := range e.Foresee() {
		foreseen[c.Object] = c.After != nil && c.After.Later
	}
	for _, name := range pki.FileNames() {
		if !foreseen[path.Join(Dir, name)] {
			t.Errorf("%s is not foreseen", name)
		}
	}
}
