package pki

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"text/template"
)

// Kubeconfig is a file by which one user reaches one cluster. Exactly one of
// Client, ClientFile and Token says who the user is.
type Kubeconfig struct {
	Cluster       string // the cluster's name in the file
	User          string // the user's name in the file
	Context       string // "": User@Cluster
	Server        string // https://host:port
	TLSServerName string // the name that the server's certificate is checked for; "": the host of Server
	CA            []byte // PEM of the authority that the server is trusted by

	Client     Pair   // certificate and key, embedded
	ClientFile string // path of a PEM file with both, for clients that renew them
	Token      Secret // bearer token
}

// Render returns the kubeconfig as YAML. It holds whatever secret k does.
func (k Kubeconfig) Render() (Secret, error) {
	if k.Cluster == "" || k.User == "" {
		return nil, fmt.Errorf("render kubeconfig: cluster %q and user %q must have names", k.Cluster, k.User)
	}
	if k.Context == "" {
		k.Context = k.User + "@" + k.Cluster
	}
	if u, err := url.Parse(k.Server); err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("render kubeconfig of %s: server %q is not an https URL", k.Context, k.Server)
	}
	if len(k.CA) == 0 {
		return nil, fmt.Errorf("render kubeconfig of %s: no certificate authority", k.Context)
	}
	credentials := 0
	for _, given := range []bool{
		len(k.Client.Cert) > 0 && len(k.Client.Key) > 0,
		k.ClientFile != "",
		len(k.Token) > 0,
	} {
		if given {
			credentials++
		}
	}
	if credentials != 1 {
		return nil, fmt.Errorf("render kubeconfig of %s: %d ways to authenticate instead of one", k.Context, credentials)
	}

	text, err := template.New("kubeconfig").Option("missingkey=error").Funcs(template.FuncMap{
		"base64": func(data []byte) string { return base64.StdEncoding.EncodeToString(data) },
		"quote":  quote,
		"reveal": func(s Secret) string { return string(s) },
	}).Parse(kubeconfigText)
	if err != nil {
		return nil, fmt.Errorf("render kubeconfig of %s: %w", k.Context, err)
	}
	var out bytes.Buffer
	if err := text.Execute(&out, k); err != nil {
		return nil, fmt.Errorf("render kubeconfig of %s: %w", k.Context, err)
	}
	return out.Bytes(), nil
}

const kubeconfigText = `apiVersion: v1
kind: Config
clusters:
- name: {{ quote .Cluster }}
  cluster:
    certificate-authority-data: {{ base64 .CA }}
    server: {{ quote .Server }}
{{- if .TLSServerName }}
    tls-server-name: {{ quote .TLSServerName }}
{{- end }}
users:
- name: {{ quote .User }}
  user:
{{- if .ClientFile }}
    client-certificate: {{ quote .ClientFile }}
    client-key: {{ quote .ClientFile }}
{{- else if .Token }}
    token: {{ quote (reveal .Token) }}
{{- else }}
    client-certificate-data: {{ base64 .Client.Cert }}
    client-key-data: {{ base64 .Client.Key }}
{{- end }}
contexts:
- name: {{ quote .Context }}
  context:
    cluster: {{ quote .Cluster }}
    user: {{ quote .User }}
current-context: {{ quote .Context }}
`

// plain matches values that YAML reads as themselves without quotes.
var plain = regexp.MustCompile(`^[A-Za-z/]([A-Za-z0-9@:/._-]*[A-Za-z0-9/_-])?$`)

// quote writes a string as a YAML scalar: as it is where that is safe, and else
// as a JSON string, which is YAML too.
func quote(s string) (string, error) {
	switch strings.ToLower(s) {
	case "true", "false", "null", "yes", "no", "on", "off", "y", "n": // YAML would make something else of these
	default:
		if plain.MatchString(s) {
			return s, nil
		}
	}
	text, err := json.Marshal(s)
	return string(text), err
}
