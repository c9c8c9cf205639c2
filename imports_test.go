package kubewright_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/kubewright/kubewright"

// law says what a folder of ours may import of ours, and why not more. The
// longest matching folder counts. Test files are free.
var law = []struct {
	folder string
	may    []string
	reason string
}{
	{"bootstrap/fault", nil, "everything can fail: it is below everything"},
	{"bootstrap/finding", nil, "a form for what is seen: below everything that looks"},
	{"bootstrap/redact", nil, "text without its secrets: below everything that shows text"},
	{"bootstrap/version", []string{"."}, "reads the embedded go.mod"},
	{"bootstrap/spec", []string{"bootstrap/fault"}, "the wish knows no hosts"},
	{"pki", nil, "pure: knows no hosts and no files"},
	{"templates", nil, "pure"},
	{"addons", []string{"templates"}, "pure: input to manifests"},
	{"bootstrap/host", []string{"bootstrap/fault"}, "what a host is, not what is done with it"},
	{"bootstrap/host/sshhost", []string{"bootstrap/fault", "bootstrap/host", "bootstrap/redact"}, "carries a host over SSH"},
	{"bootstrap/host/localhost", []string{"bootstrap/fault", "bootstrap/host"}, "carries a host on this machine"},
	{"bootstrap/host/hosttest", []string{"bootstrap/fault", "bootstrap/host"}, "simulates a host"},
	{"bootstrap/plan", []string{"bootstrap/fault"}, "the engine knows neither hosts nor Kubernetes"},
	{"bootstrap/bundle/unpack", nil, "is sent to hosts: small"},
	{"bootstrap/bundle", []string{"bootstrap/fault", "bootstrap/version", "bootstrap/bundle/unpack"}, "a file format"},
	{"bootstrap/file", []string{"bootstrap/host", "bootstrap/plan"}, "an action"},
	{"bootstrap/systemd", []string{"bootstrap/host", "bootstrap/plan"}, "an action"},
	{"bootstrap/claim", []string{"bootstrap/fault", "bootstrap/host", "bootstrap/plan"}, "an action"},
	{"bootstrap/kernel", []string{"bootstrap/file", "bootstrap/host", "bootstrap/plan"}, "an action"},
	{"bootstrap/cluster", []string{"bootstrap/fault", "bootstrap/plan"}, "the API, without hosts"},
	{"bootstrap/kubeconfig", []string{"bootstrap/cluster", "bootstrap/fault", "bootstrap/plan"}, "the workstation, without hosts"},
	{"bootstrap/install", []string{"bootstrap/bundle", "bootstrap/bundle/unpack", "bootstrap/fault", "bootstrap/host", "bootstrap/plan"}, "puts the bundle on a host"},
	{"bootstrap/certs", []string{"bootstrap/host", "bootstrap/plan", "pki"}, "a component"},
	{"bootstrap/containerd", component("bootstrap/bundle"), "a component: components do not know each other"},
	{"bootstrap/kubelet", component("pki"), "a component: components do not know each other"},
	{"bootstrap/kubeproxy", component(), "a component: components do not know each other"},
	{"bootstrap/etcd", component("bootstrap/fault"), "a component: components do not know each other"},
	{"bootstrap/etcd/etcdtest", []string{"pki"}, "real members of etcd, for tests"},
	{"bootstrap/apilb", component(), "a component: components do not know each other"},
	{"bootstrap/controlplane", component(), "a component: components do not know each other"},
	{"bootstrap/vip", component(), "a component: components do not know each other"},
	{"bootstrap/preflight", []string{"bootstrap/claim", "bootstrap/fault", "bootstrap/finding", "bootstrap/host", "bootstrap/probe", "bootstrap/spec"}, "looks, before anything is planned"},
	{"bootstrap/probe", nil, "is sent to hosts: small; what probe and preflight say to each other"},
	{"bootstrap/lock", []string{"bootstrap/fault", "bootstrap/host"}, "who works on a host"},
	{"bootstrap/inventory", []string{"bootstrap/fault", "bootstrap/host", "bootstrap/plan"}, "what stands on a host"},
	{"bootstrap/journal", []string{"bootstrap/fault", "bootstrap/host", "bootstrap/plan"}, "what was changed on a host, and how to put it back"},
	{"bootstrap/diagnose", []string{"bootstrap/fault", "bootstrap/finding", "bootstrap/host", "bootstrap/redact"}, "why something does not work, by what can be read"},
	{"bootstrap/doctor", []string{"addons", "bootstrap/...", "pki"}, "looks at all of a live cluster"},
	{"bootstrap/drill", []string{"bootstrap/..."}, "practises on a live cluster"},
	{"bootstrap/support", []string{"bootstrap/...", "pki"}, "collects what there is to see"},
	{"bootstrap/backup", []string{"bootstrap/fault"}, "a file format: knows no hosts"},
	{"bootstrap/backup/census", []string{"bootstrap/backup"}, "counts through an API, wherever that is"},
	{"bootstrap/backup/take", []string{"bootstrap/backup", "bootstrap/backup/census", "bootstrap/cluster", "bootstrap/etcd", "bootstrap/fault", "bootstrap/host", "bootstrap/kubeconfig", "bootstrap/plan", "bootstrap/spec", "pki"},
		"reads a host, over SSH or as a component on it: no steps"},
	{"bootstrap/backup/scheduled", component(), "a component: components do not know each other"},
	{"bootstrap/backup/kept", []string{"bootstrap/backup", "bootstrap/backup/scheduled", "bootstrap/claim", "bootstrap/fault", "bootstrap/host", "bootstrap/spec"}, "looks at what hosts keep, and takes one with it"},
	{"bootstrap/backup/trial", []string{"bootstrap/backup", "bootstrap/backup/census", "bootstrap/bundle", "bootstrap/fault", "bootstrap/spec", "pki"}, "boots a backup on this machine: no hosts"},
	{"bootstrap/foresee", []string{"bootstrap/fault", "bootstrap/host", "bootstrap/plan"}, "a host as a plan would leave it"},
	{"bootstrap", []string{"bootstrap/...", "addons", "pki", "templates"}, "the verbs; what carries a host is the command's choice"},
	{"lab", []string{"bootstrap/fault"}, "hosts for anyone: it knows nothing of what runs on them"},
	{"cmd/kube", []string{"cmd/kube/apilb", "cmd/kube/backup", "cmd/kube/etcdfence", "cmd/kube/overlay", "cmd/kube/vip"}, "upstream's mains"},
	{"cmd/kube/component", []string{"bootstrap/version"}, "the frame of our own components"},
	{"cmd/kube/apilb", []string{"cmd/kube/component"}, "a component of the cluster, not of the installer"},
	{"cmd/kube/etcdfence", nil, "a component of the cluster, not of the installer"},
	{"cmd/kube/overlay", []string{"cmd/kube/component"}, "a component of the cluster, not of the installer"},
	{"cmd/kube/vip", []string{"cmd/kube/component"}, "a component of the cluster, not of the installer"},
	{"cmd/kube/backup", []string{"bootstrap/backup", "bootstrap/backup/take", "bootstrap/host/localhost", "bootstrap/version"},
		"makes the same file as the installer does, in the same way"},
	{"cmd/pause", nil, "a component of the cluster, not of the installer"},
	{"cmd/probe", []string{"bootstrap/probe"}, "is sent to hosts: small"},
	{"cmd/unbundle", []string{"bootstrap/bundle/unpack"}, "is sent to hosts: small"},
	{"cmd/kubewright/ui", []string{"bootstrap/fault", "bootstrap/finding", "bootstrap/plan"}, "shows events"},
	{"cmd/kubewright/report", []string{"bootstrap/fault", "bootstrap/finding", "bootstrap/plan"}, "shows a run as a page"},
	{"cmd/kubewright", []string{"..."}, "wires everything"},
	{"e2e", []string{"lab", "cmd/kubewright/ui"}, "uses the program as people do"},
	{"e2e/drill", []string{"lab", "bootstrap/drill"}, "uses the program as people do, and reads its results"},
	{"e2e/box", nil, "runs in test pods"},
	{".", nil, "go.mod, embedded"},
}

// component is what the steps of one component may use.
func component(more ...string) []string {
	return append([]string{"bootstrap/file", "bootstrap/host", "bootstrap/install", "bootstrap/plan", "bootstrap/systemd", "templates"}, more...)
}

// TestImportsPointDown reads the files itself: the result of a test that shells
// out to `go list` would be cached over a violation.
func TestImportsPointDown(t *testing.T) {
	files := token.NewFileSet()
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "dist" || d.Name() == "internal") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(files, name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		folder := filepath.ToSlash(filepath.Dir(name))
		may, reason, known := lawOf(folder)
		if !known {
			t.Errorf("%s: folder %s has no line in the law: add one with its reason", name, folder)
		}
		for _, of := range ours(t, file) {
			if !allowed(may, of) {
				t.Errorf("%s imports %s: %s may not (%s)", name, of, folder, reason)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// ours are the folders of this module that a file imports.
func ours(t *testing.T, file *ast.File) []string {
	t.Helper()
	var folders []string
	for _, spec := range file.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		if imported == module || strings.HasPrefix(imported, module+"/") {
			folders = append(folders, path.Clean("./"+strings.TrimPrefix(strings.TrimPrefix(imported, module), "/")))
		}
	}
	return folders
}

// TestBundleIsMadeAnew: the Makefile names all folders that the bundle's programs are made of, or a change in one of
// them would not reach the hosts.
func TestBundleIsMadeAnew(t *testing.T) {
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(makefile), "\nCOMPONENTS := $(shell find ")
	list, _, _ = strings.Cut(list, " -name ")
	named := strings.Fields(list)
	queue := []string{"cmd/kube", "cmd/pause", "cmd/probe", "cmd/unbundle"}
	for i := 0; i < len(queue); i++ {
		folder := queue[i]
		if folder == "." {
			continue // its files are named
		}
		if !slices.ContainsFunc(named, func(n string) bool { return folder == n || strings.HasPrefix(folder, n+"/") }) {
			t.Errorf("COMPONENTS in the Makefile lacks %s", folder)
		}
		files, err := filepath.Glob(filepath.Join(folder, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, of := range ours(t, file) {
				if !slices.Contains(queue, of) {
					queue = append(queue, of)
				}
			}
		}
	}
}

func lawOf(folder string) (may []string, reason string, known bool) {
	longest := -1
	for _, l := range law {
		if (folder == l.folder || strings.HasPrefix(folder, l.folder+"/")) && len(l.folder) > longest {
			may, reason, known, longest = l.may, l.reason, true, len(l.folder)
		}
	}
	return may, reason, known
}

func allowed(may []string, of string) bool {
	return slices.ContainsFunc(may, func(m string) bool {
		if below, ok := strings.CutSuffix(m, "..."); ok {
			if m == "bootstrap/..." && strings.HasPrefix(of, "bootstrap/host/") {
				return false // sshhost is cmd's to choose
			}
			return strings.HasPrefix(of, below)
		}
		return m == of
	})
}
