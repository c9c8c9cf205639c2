package redact

import (
	"strings"
	"testing"
)

// TestSecretsGo has every form in which a secret was met. The word planted in
// each must not be left.
func TestSecretsGo(t *testing.T) {
	const word = "h4nter2Planted"
	for name, text := range map[string]string{
		"PEM key":               "before\n-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE" + word + "\nAAAA\n-----END EC PRIVATE KEY-----\nafter",
		"PEM key, never ended":  "-----BEGIN PRIVATE KEY-----\n" + word + "\n" + word,
		"PEM key in YAML":       "  tls.key: |\n    -----BEGIN RSA PRIVATE KEY-----\n    " + word + "\n    -----END RSA PRIVATE KEY-----\n  after: x",
		"PEM key in JSON":       `{"data":"-----BEGIN PRIVATE KEY-----\n` + word + `\n-----END PRIVATE KEY-----\n"}`,
		"PEM in base64":         "x: LS0tLS1CRUdJTiBFQyBQUklWQVRF" + word,
		"client-key-data":       "    client-key-data: " + word,
		"JWT":                   "got eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0." + word,
		"bearer":                "Authorization: Bearer " + word,
		"bearer in curl":        `curl -H "Authorization: Bearer ` + word + `"`,
		"basic":                 "proxy said Basic " + word,
		"bootstrap token":       "using abcdef." + strings.ToLower("h4nter2planted00") + " to join",
		"token in kubeconfig":   "    token: " + word,
		"age":                   "AGE-SECRET-KEY-1" + strings.ToUpper(word),
		"age, post-quantum":     "AGE-SECRET-KEY-PQ-1" + strings.ToUpper(word),
		"environment":           "DB_PASSWORD=" + word,
		"unit environment":      `Environment="DB_PASSWORD=` + word + ` and ` + word + `" OTHER=x`,
		"unit environment 2":    `Environment=REGISTRY_TOKEN=` + word,
		"flag":                  "--admin-password=" + word,
		"flag and value":        "tool --admin-password " + word + " --other",
		"flag in a log":         `FLAG: --token="` + word + `"`,
		"flag, value below":     "ExecStart=/x \\\n  --password \\\n  " + word + " \\\n  --y",
		"flag in a YAML list":   "args:\n- --password\n- " + word + "\n- x",
		"flag in a JSON list":   `["--password","` + word + `"]`,
		"YAML":                  "password: " + word,
		"YAML, quoted":          `password: "` + word + ` two words"`,
		"YAML block":            "a:\n  clientSecret: |\n    " + word + "\n    " + word + "\n\n    " + word + "\n  b: c",
		"YAML name and value":   "env:\n- name: API_TOKEN\n  value: " + word,
		"JSON":                  `{"password":"` + word + `","x":1}`,
		"JSON, blanks":          `"secretKey" : "` + word + ` \" ` + word + `",`,
		"JSON in a string":      `"{\"password\":\"` + word + `\"}"`,
		"JSON name and value":   `{"name":"DB_PASSWORD","value":"` + word + `"}`,
		"JSON name, then value": "\"name\": \"DB_PASSWORD\",\n\"value\": \"" + word + "\"",
		"YAML, escaped":         `err="cannot parse: env:\n- name: API_TOKEN\n  value: ` + word + `\npassword: |\n  ` + word + `\nafter"`,
		"two lines, escaped":    `{"password":"` + word + `\n` + word + `"}`,
		"JSON, quoted":          `missing in '{\"env\":[{\"name\":\"API_TOKEN\",\"value\":\"` + word + `\\\"` + word + `\"}],\"password\":\"` + word + `\\\"` + word + `\",\"kept\":\"x\"}'`,
		"TOML":                  `password = "` + word + `"`,
		"URL":                   "https://admin:" + word + "@proxy:3128/",
		"password's hash":       "root:$6$" + word + "/x:19000::",
		"query":                 "GET /x?access_token=" + word + "&y=1",
		"cloud key":             "AKIA" + strings.ToUpper(word) + "XY",
	} {
		got := Text(text)
		if strings.Contains(strings.ToLower(got), strings.ToLower(word)) {
			t.Errorf("%s: left:\n%s", name, got)
		}
		if !strings.Contains(got, Mark) {
			t.Errorf("%s: nothing says that something was there:\n%s", name, got)
		}
	}
}

// TestTheRestStays has what must still be readable.
func TestTheRestStays(t *testing.T) {
	for _, text := range []string{
		"",
		"one line without an end",
		"automountServiceAccountToken: true\n",
		"  --service-account-key-file=/etc/kubernetes/pki/sa.pub \\\n  --tls-private-key-file=/etc/kubernetes/pki/apiserver.key\n",
		"  secretName: web-tls\n",
		"  enable-bootstrap-token-auth=true\n",
		"  --authorization-mode=Node,RBAC \\\n  --authorization-kubeconfig=/etc/kubernetes/scheduler.conf\n",
		"controllers=*,bootstrapsigner,tokencleaner\n",
		"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
		"listen tcp 127.0.0.1:2379: bind: address already in use\n",
		"dial tcp 10.96.0.1:443: connect: connection refused\n",
		"etcd.service: Main process exited, code=exited, status=1/FAILURE\n",
		"198.18.0.11 dev eth0 lladdr 02:00:00:00:00:01 REACHABLE\n",
	} {
		if got := Text(text); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
	if got := Text(`{\"password\":\"x y\",\"kept\":\"z\"}`); got != `{\"password\":\"`+Mark+`\",\"kept\":\"z\"}` {
		t.Errorf("around a password: %s", got)
	}
	after := Text("a\n-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----\nb\n")
	if after != "a\n"+Mark+"\n\nb\n" {
		t.Errorf("around a key: %q", after)
	}
}
