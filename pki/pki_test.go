package pki_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/util/keyutil"

	"github.com/kubewright/kubewright/pki"
)

var update = flag.Bool("update", false, "write the golden files anew")

var (
	now    = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	inputs = pki.Inputs{
		Node:      "cp-1",
		Address:   netip.MustParseAddr("198.18.0.11"),
		ServiceIP: netip.MustParseAddr("10.96.0.1"),
		DNSDomain: "cluster.local",
		ExtraSANs: []string{"API.example.com", "192.0.2.7", "kubernetes", "::ffff:198.18.0.11"},
	}
)

func newBundle(t *testing.T) *pki.Bundle {
	t.Helper()
	b, err := pki.NewBundle(inputs, now)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func row(t *testing.T, name string) pki.Cert {
	t.Helper()
	table := pki.Table(inputs)
	i := slices.IndexFunc(table, func(c pki.Cert) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("no %s in the table", name)
	}
	return table[i]
}

func parse(t *testing.T, certPEM []byte) *x509.Certificate {
	t.Helper()
	cert, err := pki.ParseCertificate(certPEM)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// The whole table, as a person would want to read it.
func TestTableGolden(t *testing.T) {
	var b strings.Builder
	for _, c := range pki.Table(inputs) {
		place := "/etc/kubernetes/pki/" + c.File + ".crt"
		if c.Kubeconfig != "" {
			place = "/etc/kubernetes/" + c.Kubeconfig
		}
		fmt.Fprintf(&b, "%s\n  place  %s\n  by     %s\n  CN     %s\n  O      %v\n  usages %v\n  names  %v\n  IPs    %v\n",
			c.Name, place, c.CA, c.CommonName, c.Organization, c.Usages, c.DNSNames, c.IPs)
	}
	golden(t, "table.golden", b.String())
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s: -want +got; go test -update accepts it:\n%s", name, diff)
	}
}

func TestTableNames(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range pki.Table(inputs) {
		if seen[c.Name] {
			t.Errorf("%s: twice in the table", c.Name)
		}
		seen[c.Name] = true
		if (c.File == "") == (c.Kubeconfig == "") {
			t.Errorf("%s: must be in a file or in a kubeconfig: %q, %q", c.Name, c.File, c.Kubeconfig)
		}
		if !slices.Contains(pki.Authorities(), c.CA) {
			t.Errorf("%s: unknown authority %q", c.Name, c.CA)
		}
	}
}

// Every certificate verifies for its usages and names under its own authority,
// and for nothing else.
func TestChains(t *testing.T) {
	b := newBundle(t)
	for _, c := range pki.Table(inputs) {
		t.Run(c.Name, func(t *testing.T) {
			cert := parse(t, b.Pairs[c.Name].Cert)
			for _, authority := range pki.Authorities() {
				roots := x509.NewCertPool()
				roots.AddCert(b.Authorities[authority].Cert)
				for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
					_, err := cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
					if want := authority == c.CA && slices.Contains(c.Usages, usage); (err == nil) != want {
						t.Errorf("under %s for %s: %v", authority, usage, err)
					}
				}
			}
			for _, name := range c.DNSNames {
				if err := cert.VerifyHostname(name); err != nil {
					t.Error(err)
				}
			}
			for _, ip := range c.IPs {
				if err := cert.VerifyHostname(ip.String()); err != nil {
					t.Error(err)
				}
			}
			if err := cert.VerifyHostname("example.org"); err == nil {
				t.Error("verifies as example.org")
			}
			if cert.IsCA || cert.KeyUsage != x509.KeyUsageDigitalSignature {
				t.Errorf("CA %v, key usage %v", cert.IsCA, cert.KeyUsage)
			}
			if key, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
				t.Errorf("key is a %T, not P-256", cert.PublicKey)
			}
			if got := now.Sub(cert.NotBefore); got != pki.Backdate {
				t.Errorf("backdated by %v", got)
			}
			if got := cert.NotAfter.Sub(now); got != pki.LeafLife {
				t.Errorf("valid for %v", got)
			}
			if reasons := pki.Check(b.Pairs[c.Name], c, b.Authorities[c.CA].Cert, now); len(reasons) > 0 {
				t.Errorf("Check of a new certificate: %q", reasons)
			}
		})
	}
}

func TestAuthorities(t *testing.T) {
	b := newBundle(t)
	serials := map[string]bool{}
	for _, name := range pki.Authorities() {
		cert := b.Authorities[name].Cert
		if !cert.IsCA || !cert.MaxPathLenZero || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
			t.Errorf("%s: CA %v, path length 0 %v, key usage %v", name, cert.IsCA, cert.MaxPathLenZero, cert.KeyUsage)
		}
		if got := cert.NotAfter.Sub(now); got != pki.AuthorityLife {
			t.Errorf("%s: valid for %v", name, got)
		}
		if serial := cert.SerialNumber.String(); serials[serial] {
			t.Errorf("%s: serial number %s again", name, serial)
		} else {
			serials[serial] = true
		}
	}
	if _, err := pki.NewAuthority("apiserver", now); err == nil {
		t.Error("NewAuthority made an authority that is none")
	}
}

// What the components do with the keys: a handshake with certificates of both
// sides, as between API server and etcd.
func TestMutualTLS(t *testing.T) {
	b := newBundle(t)
	pool := func(authority string) *x509.CertPool {
		p := x509.NewCertPool()
		p.AddCert(b.Authorities[authority].Cert)
		return p
	}
	keyPair := func(name string) tls.Certificate {
		pair := b.Pairs[name]
		cert, err := tls.X509KeyPair(pair.Cert, pair.Key)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	clock := func() time.Time { return now }
	for client, welcome := range map[string]bool{
		pki.APIServerEtcdClient:   true,
		pki.EtcdHealthcheckClient: true,
		pki.EtcdPeer:              true,
		pki.SuperAdmin:            false, // the cluster's admin is nobody to etcd
		pki.FrontProxyClient:      false,
	} {
		t.Run(client, func(t *testing.T) {
			near, far := net.Pipe()
			defer near.Close()
			served := make(chan error, 1)
			go func() {
				defer far.Close()
				served <- tls.Server(far, &tls.Config{
					Certificates: []tls.Certificate{keyPair(pki.EtcdServer)},
					ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: pool(pki.EtcdCA), Time: clock,
				}).Handshake()
			}()
			conn := tls.Client(near, &tls.Config{
				Certificates: []tls.Certificate{keyPair(client)},
				RootCAs:      pool(pki.EtcdCA), ServerName: "198.18.0.11", Time: clock,
			})
			if err := conn.Handshake(); err != nil {
				t.Fatalf("client: %v", err)
			}
			go conn.Read(make([]byte, 1)) // takes the server's alert, if there is one
			if err := <-served; (err == nil) != welcome {
				t.Errorf("server: %v", err)
			}
		})
	}
}

func TestIssueRefuses(t *testing.T) {
	authority, err := pki.NewAuthority(pki.EtcdCA, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := authority.Issue(row(t, pki.APIServer), now); err == nil {
		t.Error("etcd's authority signed for the API server")
	}
	if _, err := authority.Issue(row(t, pki.EtcdPeer), now.Add(pki.AuthorityLife)); err == nil {
		t.Error("an expired authority signed")
	}
}

// A certificate cannot outlive its authority, and while it lasts as long as it
// can, it is not renewed again and again.
func TestIssueAtTheEndOfAnAuthority(t *testing.T) {
	authority, err := pki.NewAuthority(pki.EtcdCA, now)
	if err != nil {
		t.Fatal(err)
	}
	late := now.Add(pki.AuthorityLife - 24*time.Hour)
	want := row(t, pki.EtcdPeer)
	pair, err := authority.Issue(want, late)
	if err != nil {
		t.Fatal(err)
	}
	if got := parse(t, pair.Cert).NotAfter; !got.Equal(authority.Cert.NotAfter) {
		t.Errorf("certificate until %v, authority until %v", got, authority.Cert.NotAfter)
	}
	if reasons := pki.Check(pair, want, authority.Cert, late); len(reasons) > 0 {
		t.Errorf("Check: %q", reasons)
	}
}

func TestCheck(t *testing.T) {
	b := newBundle(t)
	ca := b.Authorities[pki.CA]
	want := row(t, pki.APIServer)
	have := b.Pairs[pki.APIServer]
	impostor, err := pki.NewAuthority(pki.CA, now)
	if err != nil {
		t.Fatal(err)
	}
	// issued returns a certificate that differs from the one wanted.
	issued := func(by *pki.Authority, change func(*pki.Cert)) pki.Pair {
		c := row(t, pki.APIServer)
		change(&c)
		pair, err := by.Issue(c, now)
		if err != nil {
			t.Fatal(err)
		}
		return pair
	}
	same := func(*pki.Cert) {}
	const expires = "2027-11-23T12:00:00Z"

	for name, test := range map[string]struct {
		have pki.Pair
		at   time.Duration // after now
		want string        // the start of the only reason; "": fit
	}{
		"fit":                 {have: have},
		"without key":         {have: pki.Pair{Cert: have.Cert}},
		"issued again":        {have: issued(ca, same)},
		"names in upper case": {have: issued(ca, func(c *pki.Cert) { c.DNSNames[0] = strings.ToUpper(c.DNSNames[0]) })},
		"names in disorder":   {have: issued(ca, func(c *pki.Cert) { slices.Reverse(c.DNSNames); slices.Reverse(c.IPs) })},
		"none":                {have: pki.Pair{}, want: "there is no certificate"},
		"not PEM":             {have: pki.Pair{Cert: []byte("x")}, want: "the certificate cannot be read: no PEM certificate found"},
		"cut in half":         {have: pki.Pair{Cert: have.Cert[:len(have.Cert)/2]}, want: "the certificate cannot be read: no PEM certificate found"},
		"other authority":     {have: issued(impostor, same), want: "not signed by the authority ca: x509: "},
		"common name":         {have: issued(ca, func(c *pki.Cert) { c.CommonName = "x" }), want: `common name: is "x", should be "kube-apiserver"`},
		"organization":        {have: issued(ca, func(c *pki.Cert) { c.Organization = []string{"system:masters"} }), want: `organization: is "system:masters", should be ""`},
		"usages":              {have: issued(ca, func(c *pki.Cert) { c.Usages = row(t, pki.Admin).Usages }), want: `usages: is "clientAuth", should be "serverAuth"`},
		"a name missing":      {have: issued(ca, func(c *pki.Cert) { c.DNSNames = c.DNSNames[1:] }), want: "DNS names: is "},
		"a name too many":     {have: issued(ca, func(c *pki.Cert) { c.DNSNames = append(c.DNSNames, "evil.example") }), want: "DNS names: is "},
		"another address":     {have: issued(ca, func(c *pki.Cert) { c.IPs[0] = netip.MustParseAddr("192.0.2.9") }), want: "addresses: is "},
		"key of another":      {have: pki.Pair{Cert: have.Cert, Key: b.Pairs[pki.Admin].Key}, want: "the key is not the certificate's"},
		"key damaged":         {have: pki.Pair{Cert: have.Cert, Key: pki.Secret("x")}, want: "the key cannot be read: no PEM private key found"},
		"not yet valid":       {have: have, at: -pki.Backdate - time.Second, want: "valid only from 2026-11-23T11:55:00Z"},
		"old enough":          {have: have, at: pki.LeafLife * 6 / 10},
		"to be renewed":       {have: have, at: pki.LeafLife * 7 / 10, want: "less than a third of its life is left: it expires on " + expires},
		"expired":             {have: have, at: pki.LeafLife, want: "expired on " + expires},
	} {
		t.Run(name, func(t *testing.T) {
			reasons := pki.Check(test.have, want, ca.Cert, now.Add(test.at))
			switch {
			case test.want == "" && len(reasons) == 0:
			case test.want == "" || len(reasons) != 1 || !strings.HasPrefix(reasons[0], test.want):
				t.Errorf("got %q, want %q", reasons, test.want)
			}
		})
	}

	t.Run("all reasons at once", func(t *testing.T) {
		if reasons := pki.Check(b.Pairs[pki.EtcdPeer], want, ca.Cert, now.Add(pki.LeafLife)); len(reasons) != 6 {
			t.Errorf("%d reasons: %q", len(reasons), reasons)
		}
	})
}

// The forms in which an admin's own authority may come.
func TestLoadAuthority(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "corp"}, NotBefore: now, NotAfter: now.Add(time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	own := pki.Pair{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		Key:  append([]byte("a comment\n"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})...),
	}
	authority, err := pki.LoadAuthority(pki.CA, own)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.Issue(row(t, pki.Admin), now)
	if err != nil {
		t.Fatal(err)
	}
	if reasons := pki.Check(pair, row(t, pki.Admin), authority.Cert, now); len(reasons) > 0 {
		t.Errorf("Check: %q", reasons)
	}

	b := newBundle(t)
	for name, pair := range map[string]pki.Pair{
		"no authority": b.Pairs[pki.Admin],
		"other key":    {Cert: own.Cert, Key: b.Pairs[pki.Admin].Key},
		"no key":       {Cert: own.Cert},
		"a public key": {Cert: own.Cert, Key: pki.Secret(b.ServiceAccount.Public)},
		"no cert":      {Key: own.Key},
	} {
		if _, err := pki.LoadAuthority(pki.CA, pair); err == nil {
			t.Errorf("%s: loaded", name)
		}
	}
}

// Kubernetes' own readers take the keys.
func TestKeysReadByKubernetes(t *testing.T) {
	b := newBundle(t)
	for name, pair := range b.Pairs {
		if _, err := keyutil.ParsePrivateKeyPEM(pair.Key); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := keyutil.ParsePrivateKeyPEM(b.ServiceAccount.Private); err != nil {
		t.Error(err)
	}
	if keys, err := keyutil.ParsePublicKeysPEM(b.ServiceAccount.Public); err != nil || len(keys) != 1 {
		t.Errorf("%d public keys: %v", len(keys), err)
	}
}

func TestJoined(t *testing.T) {
	pair := newBundle(t).Pairs[pki.Kubelet]
	joined := pair.Joined()
	if _, err := tls.X509KeyPair(joined, joined); err != nil {
		t.Error(err)
	}
}

// No way of printing shows a key.
func TestSecretsDoNotPrint(t *testing.T) {
	b := newBundle(t)
	key := []byte(b.Pairs[pki.Admin].Key)
	shown := []string{
		strings.Split(string(key), "\n")[1],        // as text
		strings.Trim(fmt.Sprint(key[30:40]), "[]"), // as numbers
		fmt.Sprintf("%x", key[30:60]),              // in hex
		strings.Split(string(b.Authorities[pki.CA].Pair().Key), "\n")[1],
		strings.Trim(fmt.Sprint([]byte(b.Authorities[pki.CA].Pair().Key)[30:40]), "[]"),
		"privatekey",
	}
	config, err := kubeconfig(b).Render()
	if err != nil {
		t.Fatal(err)
	}
	values := []any{b, *b, b.Authorities[pki.CA], *b.Authorities[pki.CA], b.Pairs[pki.Admin], b.ServiceAccount, b.Files(),
		b.Pairs[pki.Admin].Key, kubeconfig(b), config}
	for i, value := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			text := strings.ToLower(fmt.Sprintf(verb, value))
			for _, s := range shown {
				if strings.Contains(text, strings.ToLower(s)) {
					t.Errorf("value %d (%T) with %s shows a key", i, value, verb)
				}
			}
		}
		text, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range shown {
			if strings.Contains(string(text), s) {
				t.Errorf("value %d (%T) as JSON shows a key", i, value)
			}
		}
	}
}
