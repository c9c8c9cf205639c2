package spec

import (
	"fmt"
	"regexp"
	"strings"
)

// The syntax of names is that of k8s.io/apimachinery/pkg/util/validation, which
// this package does not import: it stands at the bottom of the house.

const (
	labelMax     = 63  // of one part of a DNS name, and of label keys and values
	subdomainMax = 253 // of a whole DNS name
)

var (
	dnsLabel      = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
	dnsSubdomain  = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	qualifiedPart = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$`)
	flagName      = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
)

// Each of these returns what is wrong with a value, "" if nothing is.

func dnsLabelFault(s string) string {
	switch {
	case len(s) > labelMax:
		return fmt.Sprintf("has %d characters, at most %d are allowed", len(s), labelMax)
	case !dnsLabel.MatchString(s):
		return "must be lower-case letters, digits and '-', with a letter or digit at both ends"
	}
	return ""
}

func dnsSubdomainFault(s string) string {
	if len(s) > subdomainMax {
		return fmt.Sprintf("has %d characters, at most %d are allowed", len(s), subdomainMax)
	}
	if !dnsSubdomain.MatchString(s) {
		return "must be lower-case letters, digits, '-' and '.', with a letter or digit at both ends of each part"
	}
	return ""
}

// dnsNameFault is dnsSubdomainFault with the length limit that DNS sets for each part.
func dnsNameFault(s string) string {
	if fault := dnsSubdomainFault(s); fault != "" {
		return fault
	}
	for part := range strings.SplitSeq(s, ".") {
		if len(part) > labelMax {
			return fmt.Sprintf("has a part of %d characters, at most %d are allowed", len(part), labelMax)
		}
	}
	return ""
}

// qualifiedNameFault judges the key of a label or taint: [prefix/]name.
func qualifiedNameFault(s string) string {
	prefix, name, found := strings.Cut(s, "/")
	if !found {
		prefix, name = "", s
	} else if fault := dnsSubdomainFault(prefix); fault != "" {
		return "has a prefix that " + fault
	}
	switch {
	case len(name) > labelMax:
		return fmt.Sprintf("has a name of %d characters, at most %d are allowed", len(name), labelMax)
	case !qualifiedPart.MatchString(name):
		return "must be [prefix/]name, the name of letters, digits, '-', '_' and '.', with a letter or digit at both ends"
	}
	return ""
}

func labelValueFault(s string) string {
	switch {
	case len(s) > labelMax:
		return fmt.Sprintf("has %d characters, at most %d are allowed", len(s), labelMax)
	case s != "" && !qualifiedPart.MatchString(s):
		return "must be empty, or letters, digits, '-', '_' and '.', with a letter or digit at both ends"
	}
	return ""
}

// kubeletLabelFault tells the label keys that a kubelet refuses to give its own
// node, and thus to start with (k8s.io/kubelet/pkg/apis.IsKubeletLabel).
func kubeletLabelFault(key string) string {
	prefix, _, found := strings.Cut(key, "/")
	if !found || !within(prefix, "kubernetes.io") && !within(prefix, "k8s.io") {
		return ""
	}
	switch key {
	case "kubernetes.io/hostname", "kubernetes.io/os", "kubernetes.io/arch",
		"beta.kubernetes.io/os", "beta.kubernetes.io/arch", "beta.kubernetes.io/instance-type",
		"topology.kubernetes.io/zone", "topology.kubernetes.io/region",
		"failure-domain.beta.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/region":
		return ""
	}
	if within(prefix, "node.kubernetes.io") || within(prefix, "kubelet.kubernetes.io") {
		return ""
	}
	return "is reserved: a kubelet may not give its node labels of kubernetes.io and k8s.io, except node.kubernetes.io/*; use a prefix of your own"
}

// within reports whether a DNS name is a domain or below it.
func within(name, domain string) bool {
	return name == domain || strings.HasSuffix(name, "."+domain)
}
