// Package pki makes and judges the certificates of a cluster. What there is to
// be made is a table, Table; what a certificate on a host must still fulfil is
// Check. Nothing here reads a clock, a file or the network: times are passed in,
// and keys stay in memory until the caller writes them.
//
// File names, common names and organizations are kubeadm's, so that what people
// know of /etc/kubernetes/pki holds here too.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"time"
)

const (
	// AuthorityLife and LeafLife are how long a new certificate is valid.
	AuthorityLife = 10 * 365 * 24 * time.Hour
	LeafLife      = 365 * 24 * time.Hour
	// Backdate is how far before now a certificate becomes valid, because the
	// clocks of hosts that are not yet synchronised differ.
	Backdate = 5 * time.Minute
)

// Types of PEM blocks.
const (
	certificateBlock = "CERTIFICATE"
	privateKeyBlock  = "PRIVATE KEY" // PKCS#8: one form for every algorithm
	publicKeyBlock   = "PUBLIC KEY"
)

// Secret is bytes that must not be printed: every form that fmt and the
// encoders know is a placeholder. It is host.Secret's twin, because pki knows no
// hosts.
type Secret []byte

const redacted = "[secret]"

func (Secret) String() string               { return redacted }
func (Secret) GoString() string             { return redacted }
func (Secret) Format(f fmt.State, _ rune)   { io.WriteString(f, redacted) } //nolint:errcheck // fmt ignores it
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Pair is a certificate with its private key.
type Pair struct {
	Cert []byte // PEM; the certificate first, any of its issuers behind it
	Key  Secret // PEM, PKCS#8
}

// Joined is certificate and key in one text, as the kubelet keeps its own.
func (p Pair) Joined() Secret {
	joined := make(Secret, 0, len(p.Cert)+len(p.Key))
	return append(append(joined, p.Cert...), p.Key...)
}

// Authority signs certificates.
type Authority struct {
	Name string            // its row in the table: CA, EtcdCA, FrontProxyCA
	Cert *x509.Certificate // not to be changed

	pair   Pair
	signer crypto.Signer
}

// Format names the authority: fmt would else reach into its key, because it
// calls no methods on unexported fields.
func (a Authority) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "authority %s", a.Name) }

// NewAuthority makes the authority of that name with a key of its own, valid
// from now for AuthorityLife. It may sign certificates of subscribers only, not
// of other authorities.
func NewAuthority(name string, now time.Time) (*Authority, error) {
	commonName := authorityCommonName(name)
	if commonName == "" {
		return nil, fmt.Errorf("make authority %q: no such authority", name)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: commonName},
		NotBefore:             now.Add(-Backdate),
		NotAfter:              now.Add(AuthorityLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	pair, err := sign(template, nil)
	if err != nil {
		return nil, fmt.Errorf("make authority %s: %w", name, err)
	}
	return LoadAuthority(name, pair)
}

// LoadAuthority returns the authority that pair is. Keys of any algorithm that
// the standard library can sign with are taken, so that an admin's own CA works.
func LoadAuthority(name string, pair Pair) (*Authority, error) {
	cert, err := ParseCertificate(pair.Cert)
	if err != nil {
		return nil, fmt.Errorf("load authority %s: %w", name, err)
	}
	if !cert.IsCA {
		return nil, fmt.Errorf("load authority %s: the certificate of %q is not an authority's", name, cert.Subject.CommonName)
	}
	signer, err := parseKey(pair.Key)
	if err != nil {
		return nil, fmt.Errorf("load authority %s: %w", name, err)
	}
	if !samePublicKey(cert.PublicKey, signer.Public()) {
		return nil, fmt.Errorf("load authority %s: %w", name, errKeyMismatch)
	}
	return &Authority{Name: name, Cert: cert, pair: pair, signer: signer}, nil
}

// Pair is the authority's certificate and key, to be kept on control-plane nodes only.
func (a *Authority) Pair() Pair { return a.pair }

// Issue makes a key and has the authority sign a certificate as c describes it,
// valid from now for LeafLife, or as long as the authority itself if that ends
// sooner. It is an error if c is not this authority's to sign.
func (a *Authority) Issue(c Cert, now time.Time) (Pair, error) {
	if c.CA != a.Name {
		return Pair{}, fmt.Errorf("issue %s: it is %s that signs it, not %s", c.Name, c.CA, a.Name)
	}
	if !now.Before(a.Cert.NotAfter) {
		return Pair{}, fmt.Errorf("issue %s: authority %s expired on %s", c.Name, a.Name, a.Cert.NotAfter.Format(time.RFC3339))
	}
	notAfter := now.Add(LeafLife)
	if notAfter.After(a.Cert.NotAfter) {
		notAfter = a.Cert.NotAfter
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: c.CommonName, Organization: c.Organization},
		DNSNames:              c.DNSNames,
		NotBefore:             now.Add(-Backdate),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           c.Usages,
		BasicConstraintsValid: true,
	}
	for _, ip := range c.IPs {
		template.IPAddresses = append(template.IPAddresses, net.IP(ip.AsSlice()))
	}
	pair, err := sign(template, a)
	if err != nil {
		return Pair{}, fmt.Errorf("issue %s: %w", c.Name, err)
	}
	return pair, nil
}

// sign makes a P-256 key and a certificate for it, signed by the authority or,
// if that is nil, by itself.
func sign(template *x509.Certificate, by *Authority) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, err
	}
	// 127 random bits, and never zero: RFC 5280 wants a positive serial number.
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return Pair{}, err
	}
	template.SerialNumber = serial.Add(serial, big.NewInt(1))
	parent, signer := template, crypto.Signer(key)
	if by != nil {
		parent, signer = by.Cert, by.signer
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return Pair{}, err
	}
	keyPEM, err := marshalKey(key)
	if err != nil {
		return Pair{}, err
	}
	return Pair{
		Cert: pem.EncodeToMemory(&pem.Block{Type: certificateBlock, Bytes: der}),
		Key:  keyPEM,
	}, nil
}

// ServiceAccountKey signs service account tokens; the API server verifies them
// with its public half.
type ServiceAccountKey struct {
	Private Secret // PEM, PKCS#8: sa.key
	Public  []byte // PEM, PKIX: sa.pub
}

// NewServiceAccountKey makes a P-256 key: tokens are signed with ES256.
func NewServiceAccountKey() (ServiceAccountKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return ServiceAccountKey{}, fmt.Errorf("make service account key: %w", err)
	}
	private, err := marshalKey(key)
	if err != nil {
		return ServiceAccountKey{}, fmt.Errorf("make service account key: %w", err)
	}
	return LoadServiceAccountKey(private)
}

// LoadServiceAccountKey returns the key with its public half.
func LoadServiceAccountKey(private Secret) (ServiceAccountKey, error) {
	key, err := parseKey(private)
	if err != nil {
		return ServiceAccountKey{}, fmt.Errorf("load service account key: %w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return ServiceAccountKey{}, fmt.Errorf("load service account key: %w", err)
	}
	return ServiceAccountKey{
		Private: private,
		Public:  pem.EncodeToMemory(&pem.Block{Type: publicKeyBlock, Bytes: der}),
	}, nil
}

// ParseCertificate returns the first certificate of a PEM text.
func ParseCertificate(text []byte) (*x509.Certificate, error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == certificateBlock {
			return x509.ParseCertificate(block.Bytes)
		}
	}
	return nil, errors.New("no PEM certificate found")
}

func marshalKey(key crypto.Signer) (Secret, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: privateKeyBlock, Bytes: der}), nil
}

// parseKey reads the first private key of a PEM text: PKCS#8, and the older
// forms that openssl and kubeadm write. Errors never quote the text.
func parseKey(text Secret) (crypto.Signer, error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		var key any
		var err error
		switch block.Type {
		case privateKeyBlock:
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		default:
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("parse private key: %w", err)
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("a %T cannot sign", key)
		}
		return signer, nil
	}
	return nil, errors.New("no PEM private key found")
}

var errKeyMismatch = errors.New("the key is not the certificate's")

func samePublicKey(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}
