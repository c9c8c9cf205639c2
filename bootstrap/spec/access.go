package spec

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// ServiceIP returns the nth address of the services' range, the invalid address
// if the range has none.
func (n Network) ServiceIP(nth int) netip.Addr {
	if !n.ServiceCIDR.Addr().Is4() || nth < 0 {
		return netip.Addr{}
	}
	b := n.ServiceCIDR.Masked().Addr().As4()
	value := uint64(b[0])<<24 | uint64(b[1])<<16 | uint64(b[2])<<8 | uint64(b[3])
	value += uint64(nth)
	if value > 1<<32-1 {
		return netip.Addr{}
	}
	ip := netip.AddrFrom4([4]byte{byte(value >> 24), byte(value >> 16), byte(value >> 8), byte(value)})
	if !n.ServiceCIDR.Contains(ip) {
		return netip.Addr{}
	}
	return ip
}

// KubernetesIP is the ClusterIP of the API: kube-apiserver takes the range's
// first address for the service "kubernetes", and does not ask.
func (n Network) KubernetesIP() netip.Addr { return n.ServiceIP(1) }

// DNSIP is the ClusterIP of the cluster's DNS: the tenth, as kubeadm has it.
func (n Network) DNSIP() netip.Addr { return n.ServiceIP(10) }

// ControlPlaneHost returns the control-plane host. There is one after Validate.
func (c *Cluster) ControlPlaneHost() (Host, bool) {
	for _, h := range c.Hosts {
		if h.Role == ControlPlaneRole {
			return h, true
		}
	}
	return Host{}, false
}

// Target is a host as ssh is to look it up. What is left out comes from
// ssh_config, and then from ssh's own defaults.
type Target struct {
	User string // "": not given
	Host string // a Host of ssh_config, a host name or an address
	Port int    // 0: not given
}

// ParseTarget reads [user@]host[:port]. An IPv6 address with a port is written
// in brackets.
func ParseTarget(name string) (Target, error) {
	var t Target
	rest := name
	if at := strings.LastIndexByte(name, '@'); at >= 0 {
		t.User, rest = name[:at], name[at+1:]
		if !sshWord(t.User) {
			return Target{}, fmt.Errorf("%q is no user to log in as", t.User)
		}
	}
	if _, err := netip.ParseAddr(rest); err == nil { // a bare IPv6 address has colons, but no port
		t.Host = rest
		return t, nil
	}
	port := ""
	bracketed := false
	if inner, ok := strings.CutPrefix(rest, "["); ok {
		t.Host, port, bracketed = strings.Cut(inner, "]")
		if _, err := netip.ParseAddr(t.Host); err != nil || !bracketed {
			return Target{}, fmt.Errorf("%q is no address in brackets", rest)
		}
		if port != "" && port[0] != ':' {
			return Target{}, fmt.Errorf("%q follows the address in brackets: write :port", port)
		}
	} else {
		t.Host = rest
		if colon := strings.LastIndexByte(rest, ':'); colon >= 0 {
			t.Host, port = rest[:colon], rest[colon:]
		}
	}
	if port != "" {
		number, err := strconv.ParseUint(port[1:], 10, 16)
		if err != nil || number == 0 {
			return Target{}, fmt.Errorf("%q is no port: it must be from 1 to 65535", port[1:])
		}
		t.Port = int(number)
	}
	if !bracketed && !sshWord(t.Host) {
		return Target{}, fmt.Errorf("%q is no host: it must be a Host of ssh_config, a host name or an address", t.Host)
	}
	return t, nil
}

// sshWord accepts what ssh can be given as a user or a host: nothing that a
// pattern of ssh_config, a separator or an option could be made of.
func sshWord(s string) bool {
	if s == "" || s[0] == '-' {
		return false
	}
	for _, r := range s {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
		case r == '.', r == '-', r == '_', r == '+':
		default:
			return false
		}
	}
	return true
}

// SSHTarget is the host's name in its parts; the zero Target for a name that
// Validate refuses.
func (h Host) SSHTarget() Target {
	t, _ := ParseTarget(h.Name) // Validate reports the error
	return t
}

// Effect of a taint on pods that do not tolerate it.
type Effect string

// The effects.
const (
	NoSchedule       Effect = "NoSchedule"
	PreferNoSchedule Effect = "PreferNoSchedule"
	NoExecute        Effect = "NoExecute"
)

// Taint keeps pods off a node. Its text is key=value:Effect, or key:Effect.
type Taint struct {
	Key    string
	Value  string // may be ""
	Effect Effect
}

// ParseTaint reads a taint as kubectl writes it.
func ParseTaint(text string) (Taint, error) {
	colon := strings.LastIndexByte(text, ':')
	if colon < 0 {
		return Taint{}, fmt.Errorf("%q is no taint: write key=value:Effect or key:Effect", text)
	}
	t := Taint{Effect: Effect(text[colon+1:])}
	t.Key, t.Value, _ = strings.Cut(text[:colon], "=")
	if err := t.check(); err != nil {
		return Taint{}, err
	}
	return t, nil
}

func (t Taint) String() string {
	if t.Value == "" {
		return t.Key + ":" + string(t.Effect)
	}
	return t.Key + "=" + t.Value + ":" + string(t.Effect)
}

// MarshalText writes the taint as kubectl does.
func (t Taint) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads what ParseTaint does.
func (t *Taint) UnmarshalText(text []byte) (err error) {
	*t, err = ParseTaint(string(text))
	return err
}

func (t Taint) check() error {
	if fault := qualifiedNameFault(t.Key); fault != "" {
		return fmt.Errorf("taint key %q %s", t.Key, fault)
	}
	if fault := labelValueFault(t.Value); fault != "" {
		return fmt.Errorf("taint value %q %s", t.Value, fault)
	}
	switch t.Effect {
	case NoSchedule, PreferNoSchedule, NoExecute:
		return nil
	}
	return fmt.Errorf("taint effect %q must be %s, %s or %s", t.Effect, NoSchedule, PreferNoSchedule, NoExecute)
}
