package pki

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// renewBelow is the part of its life, one over renewBelow, below which a
// certificate is to be renewed: four months before the end of a year.
const renewBelow = 3

// Check returns why have does not do as the certificate want, signed by ca, at
// the time now: one reason a line, none if it does. It compares by meaning
// (signature, names, usages, remaining life), because no two certificates are
// equal in bytes. An empty key is not compared, so that a caller who may not
// read keys can check certificates alone.
func Check(have Pair, want Cert, ca *x509.Certificate, now time.Time) []string {
	if len(have.Cert) == 0 {
		return []string{"there is no certificate"}
	}
	cert, err := ParseCertificate(have.Cert)
	if err != nil {
		return []string{fmt.Sprintf("the certificate cannot be read: %v", err)}
	}
	var reasons []string
	differs := func(what, have, want string) {
		if have != want {
			reasons = append(reasons, fmt.Sprintf("%s: is %q, should be %q", what, have, want))
		}
	}

	if err := cert.CheckSignatureFrom(ca); err != nil {
		reasons = append(reasons, fmt.Sprintf("not signed by the authority %s: %v", want.CA, err))
	}
	if cert.IsCA {
		reasons = append(reasons, "it is an authority's certificate")
	}
	differs("common name", cert.Subject.CommonName, want.CommonName)
	differs("organization", set(cert.Subject.Organization), set(want.Organization))
	differs("usages", set(texts(cert.ExtKeyUsage)), set(texts(want.Usages)))
	differs("DNS names", set(lower(cert.DNSNames)), set(lower(want.DNSNames)))
	differs("addresses", set(addresses(cert)), set(texts(want.IPs)))

	switch left := cert.NotAfter.Sub(now); {
	case now.Before(cert.NotBefore):
		reasons = append(reasons, "valid only from "+cert.NotBefore.Format(time.RFC3339))
	case left <= 0:
		reasons = append(reasons, "expired on "+cert.NotAfter.Format(time.RFC3339))
	case left < cert.NotAfter.Sub(cert.NotBefore)/renewBelow:
		reasons = append(reasons, "less than a third of its life is left: it expires on "+cert.NotAfter.Format(time.RFC3339))
	}

	if len(have.Key) > 0 {
		key, err := parseKey(have.Key)
		switch {
		case err != nil:
			reasons = append(reasons, fmt.Sprintf("the key cannot be read: %v", err))
		case !samePublicKey(cert.PublicKey, key.Public()):
			reasons = append(reasons, errKeyMismatch.Error())
		}
	}
	return reasons
}

// set writes a list so that two lists of the same values read the same.
func set(values []string) string {
	return strings.Join(slices.Compact(slices.Sorted(slices.Values(values))), ", ")
}

func texts[T fmt.Stringer](values []T) []string {
	list := make([]string, len(values))
	for i, value := range values {
		list[i] = value.String()
	}
	return list
}

func lower(names []string) []string {
	list := make([]string, len(names))
	for i, name := range names {
		list[i] = strings.ToLower(name)
	}
	return list
}

func addresses(cert *x509.Certificate) []string {
	list := make([]string, len(cert.IPAddresses))
	for i, ip := range cert.IPAddresses {
		addr, _ := netip.AddrFromSlice(ip) // x509 yields 4 or 16 bytes only
		list[i] = addr.Unmap().String()
	}
	return list
}
