package pki_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/kubewright/kubewright/pki"
)

func kubeconfig(b *pki.Bundle) pki.Kubeconfig {
	return pki.Kubeconfig{
		Cluster: "kubewright",
		User:    "kubernetes-admin",
		Server:  "https://198.18.0.11:6443",
		CA:      b.Authorities[pki.CA].Pair().Cert,
		Client:  b.Pairs[pki.Admin],
	}
}

func TestKubeconfigGolden(t *testing.T) {
	text, err := pki.Kubeconfig{
		Cluster: "kubewright", User: "system:node:cp-1", Server: "https://198.18.0.11:6443",
		CA: []byte("a certificate\n"), ClientFile: "/var/lib/kubelet/pki/kubelet-client-current.pem",
	}.Render()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "kubelet.conf.golden", string(text))
}

// client-go reads what was rendered, whatever the names are.
func TestKubeconfigReadByClientGo(t *testing.T) {
	b := newBundle(t)
	token, file := kubeconfig(b), kubeconfig(b)
	token.Client, token.Token = pki.Pair{}, pki.Secret("abcdef.0123456789abcdef")
	file.Client, file.ClientFile = pki.Pair{}, "/a folder/kubelet: #1.pem"
	named := kubeconfig(b)
	named.TLSServerName, named.Context = "kubernetes.default", "prod"
	tests := map[string]pki.Kubeconfig{"client": kubeconfig(b), "token": token, "file": file, "named": named}
	for _, name := range []string{"true", "Null", "no", "~", "1e3", "0x10", "- x", "a: b", "x #y", "*a", "&a", "!a", "{a}", `q"q'q\`, "line\nbreak", "ünïcode", "a:", ":", "system:node:n", "{{.CA}}"} {
		k := kubeconfig(b)
		k.Cluster, k.User = name, name
		tests["name "+name] = k
	}
	for name, k := range tests {
		t.Run(name, func(t *testing.T) {
			text, err := k.Render()
			if err != nil {
				t.Fatal(err)
			}
			config, err := clientcmd.Load(text)
			if err != nil {
				t.Fatalf("%v\n%s", err, []byte(text))
			}
			if err := clientcmd.Validate(*config); k.ClientFile == "" && err != nil {
				t.Fatal(err)
			}
			contextName := k.Context
			if contextName == "" {
				contextName = k.User + "@" + k.Cluster
			}
			context, cluster, user := config.Contexts[contextName], config.Clusters[k.Cluster], config.AuthInfos[k.User]
			if context == nil || cluster == nil || user == nil || config.CurrentContext != contextName {
				t.Fatalf("incomplete:\n%s", []byte(text))
			}
			got := []string{context.Cluster, context.AuthInfo, cluster.Server, cluster.TLSServerName, string(cluster.CertificateAuthorityData),
				string(user.ClientCertificateData), string(user.ClientKeyData), user.ClientCertificate, user.ClientKey, user.Token}
			want := []string{k.Cluster, k.User, k.Server, k.TLSServerName, string(k.CA),
				string(k.Client.Cert), string(k.Client.Key), k.ClientFile, k.ClientFile, string(k.Token)}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestKubeconfigRefuses(t *testing.T) {
	b := newBundle(t)
	for name, change := range map[string]func(*pki.Kubeconfig){
		"no cluster":      func(k *pki.Kubeconfig) { k.Cluster = "" },
		"no user":         func(k *pki.Kubeconfig) { k.User = "" },
		"no server":       func(k *pki.Kubeconfig) { k.Server = "" },
		"plain http":      func(k *pki.Kubeconfig) { k.Server = "http://198.18.0.11:6443" },
		"no authority":    func(k *pki.Kubeconfig) { k.CA = nil },
		"no credentials":  func(k *pki.Kubeconfig) { k.Client = pki.Pair{} },
		"half a pair":     func(k *pki.Kubeconfig) { k.Client.Key = nil },
		"two credentials": func(k *pki.Kubeconfig) { k.Token = pki.Secret("x") },
	} {
		k := kubeconfig(b)
		change(&k)
		if _, err := k.Render(); err == nil {
			t.Errorf("%s: rendered", name)
		}
	}
}
