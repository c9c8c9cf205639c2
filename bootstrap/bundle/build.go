package bundle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/semver"
	"golang.org/x/sync/errgroup"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/version"
)

// Options of a build.
type Options struct {
	Dir  string // the module's root, where go.mod stands
	Out  string // the file to make; "": FileName in Dir/dist
	Arch string // as Go names it; "": this machine's
}

// FileName is what a bundle's file is called by custom.
func FileName(kubernetes, arch string) string {
	return fmt.Sprintf("kubewright-%s-%s-%s.kwb", kubernetes, OS, arch)
}

// Progress hears of every stage of a build twice: when it begins, and when it
// is done. It may be called by several goroutines at once. nil hears nothing.
type Progress func(Stage)

// Stage is a part of a build.
type Stage struct {
	Name string
	Done bool
	Took time.Duration // when done
	Err  error         // why it failed, when done
}

// begin reports that a stage begins; the function it returns reports its end.
func (p Progress) begin(name string) func(*error) {
	if p == nil {
		return func(*error) {}
	}
	start := time.Now()
	p(Stage{Name: name})
	return func(err *error) { p(Stage{Name: name, Done: true, Took: time.Since(start), Err: *err}) }
}

// tags leave out what no node of ours uses: containerd's btrfs, device mapper
// and zfs snapshotters, and grpc's tracing, which keeps the linker from
// dropping unused methods.
const tags = "grpcnotrace no_btrfs no_devmapper no_zfs"

// runcTags: seccomp profiles, and no part of the C library that looks for
// shared objects at run time, as runc is linked statically.
const runcTags = "seccomp netgo osusergo"

const (
	baseFlags = "-s -w -buildid="
	runcFlags = baseFlags + " -extldflags -static"
	runc      = "github.com/opencontainers/runc"
)

// programs are the packages built without cgo. Each gives a file named like the
// last part of its path.
var programs = [...]string{
	"./cmd/kube",
	"./cmd/pause",
	"./cmd/probe",
	"./cmd/unbundle",
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
	"github.com/containernetworking/plugins/plugins/ipam/host-local",
	"github.com/containernetworking/plugins/plugins/main/bridge",
	"github.com/containernetworking/plugins/plugins/main/loopback",
	"github.com/containernetworking/plugins/plugins/meta/portmap",
}

// kubeNames are the components of cmd/kube: each is a link to it.
var kubeNames = [...]string{
	"apilb", "containerd", "coredns", "ctr", "etcd", "etcd-fence", "etcdctl", "etcdutl", "kube-apiserver", "kube-controller-manager",
	"kube-proxy", "kube-scheduler", "kubectl", "kubelet", "overlay", "vip",
}

// Build makes the bundle of a source tree with the Go toolchain in PATH and
// opens it. The same tree and toolchain give the same bundle on every machine.
// It needs a C compiler and libseccomp's static library, for runc.
func Build(ctx context.Context, o Options, progress Progress) (_ *Bundle, err error) {
	if o.Arch == "" {
		o.Arch = runtime.GOARCH
	}
	if runtime.GOOS != OS || o.Arch != runtime.GOARCH {
		return nil, fault.New(fault.Usage, "build on a "+OS+"/"+o.Arch+" machine",
			"build bundle: cannot build for %s/%s on %s/%s: runc needs that architecture's C compiler and libraries",
			OS, o.Arch, runtime.GOOS, runtime.GOARCH)
	}
	tool := toolchain{dir: o.Dir, arch: o.Arch}
	components, err := tool.components(ctx)
	if err != nil {
		return nil, err
	}
	if o.Out == "" {
		o.Out = filepath.Join(o.Dir, "dist", FileName(components.Of(version.KubernetesName), o.Arch))
	}
	if err := os.MkdirAll(filepath.Dir(o.Out), 0o755); err != nil {
		return nil, fmt.Errorf("build bundle: %w", err)
	}
	work, err := os.MkdirTemp(filepath.Dir(o.Out), ".build-*")
	if err != nil {
		return nil, fmt.Errorf("build bundle: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()

	if err := tool.compile(ctx, components, work, progress); err != nil {
		return nil, err
	}
	return Pack(ctx, work, o.Arch, components, o.Out, progress)
}

// Pack makes the bundle of programs that are compiled already, a file in dir for
// each, and opens it. It leaves its blobs in dir, which is the caller's to remove.
func Pack(ctx context.Context, dir, arch string, components version.List, out string, progress Progress) (*Bundle, error) {
	if err := assemble(ctx, compiled(dir, arch, components), out, dir, progress); err != nil {
		return nil, err
	}
	return Open(out)
}

// compiled returns what a bundle is made of when all programs are in dir. The
// layers are what changes together: Kubernetes often, the others seldom.
func compiled(dir, arch string, components version.List) contents {
	in := func(name string) string { return filepath.Join(dir, name) }
	links := make(map[string]string, len(kubeNames))
	for _, name := range kubeNames {
		links["bin/"+name] = "kube"
	}
	return contents{
		arch:       arch,
		components: components,
		unbundler:  in("unbundle"),
		probe:      in("probe"),
		pause:      in("pause"),
		layers: []layerFiles{
			{name: "kube", files: map[string]string{"bin/kube": in("kube")}, links: links},
			{name: "runtime", files: map[string]string{
				"bin/containerd-shim-runc-v2": in("containerd-shim-runc-v2"),
				"bin/runc":                    in("runc"),
			}},
			{name: "cni", files: map[string]string{
				"cni/bridge":     in("bridge"),
				"cni/host-local": in("host-local"),
				"cni/loopback":   in("loopback"),
				"cni/portmap":    in("portmap"),
			}},
		},
	}
}

// toolchain runs the Go command in a module.
type toolchain struct {
	dir  string
	arch string
}

// components reads the versions of the tree and of the toolchain itself.
func (t toolchain) components(ctx context.Context) (version.List, error) {
	goMod, err := os.ReadFile(filepath.Join(t.dir, "go.mod"))
	if err != nil {
		return nil, fmt.Errorf("read versions: %w", err)
	}
	out, err := t.run(ctx, false, "env", "GOVERSION")
	if err != nil {
		return nil, err
	}
	return version.Parse(string(goMod), strings.TrimSpace(string(out)))
}

// compile builds every program into dir.
func (t toolchain) compile(ctx context.Context, components version.List, dir string, progress Progress) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		defer progress.begin("compile " + path.Base(runc))(&err)
		_, err = t.run(ctx, true, goBuild(runcTags, runcFlags, filepath.Join(dir, "runc"), runc)...)
		return err
	})
	group.Go(func() (err error) {
		defer progress.begin("compile components")(&err)
		flags := strings.Join(append([]string{baseFlags}, stamps(components)...), " ")
		_, err = t.run(ctx, false, goBuild(tags, flags, dir+string(filepath.Separator), programs[:]...)...)
		return err
	})
	return group.Wait()
}

func goBuild(tags, ldflags, out string, packages ...string) []string {
	return append([]string{"build", "-trimpath", "-buildvcs=false", "-tags", tags, "-ldflags", ldflags, "-o", out}, packages...)
}

// stamps are the linker flags that tell each component its version, as its own
// release build does. etcd, CoreDNS and runc have theirs in their sources. Go
// modules carry no commit and no build date, so none is stamped: "archive" is
// upstream's own word for a Kubernetes built from such a source.
func stamps(components version.List) []string {
	kubernetes := components.Of(version.KubernetesName)
	major, minor, _ := strings.Cut(strings.TrimPrefix(semver.MajorMinor(kubernetes), "v"), ".")
	var out []string
	for _, variable := range [...]struct{ name, value string }{
		{"gitVersion", kubernetes}, {"gitMajor", major}, {"gitMinor", minor}, {"gitTreeState", "archive"}, {"gitCommit", ""},
	} {
		for _, pkg := range [...]string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
			out = append(out, "-X "+pkg+"."+variable.name+"="+variable.value)
		}
	}
	return append(out,
		"-X github.com/containerd/containerd/v2/version.Version="+components.Of("containerd"),
		"-X github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion="+components.Of("cni-plugins"),
		"-X github.com/flannel-io/flannel/pkg/version.Version="+components.Of("flannel"),
	)
}

// fixed is the part of the Go command's environment that would change what is
// built; a build sets it, whatever the caller's environment says.
func (t toolchain) fixed(cgo bool) []string {
	enabled := "CGO_ENABLED=0"
	if cgo {
		enabled = "CGO_ENABLED=1"
	}
	return []string{
		enabled, "GOOS=" + OS, "GOARCH=" + t.arch, "GOAMD64=v1", "GOARM64=v8.0", "GOEXPERIMENT=", "GOFLAGS=", "GOWORK=off", "GODEBUG=",
		"CGO_CFLAGS=-O2 -g", "CGO_CPPFLAGS=", "CGO_CXXFLAGS=-O2 -g", "CGO_FFLAGS=-O2 -g", "CGO_LDFLAGS=-O2 -g",
	}
}

// run runs the Go command and returns its standard output. Its error holds the
// last lines of what the command said.
func (t toolchain) run(ctx context.Context, cgo bool, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = t.dir
	cmd.Env = append(os.Environ(), t.fixed(cgo)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // so that it removes its temporary files
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("go %s: %w%s", args[0], err, tail(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// tail returns the last lines of a command's messages, on lines of their own.
func tail(text string) string {
	const most = 20
	lines := strings.Split(strings.TrimSpace(text), "\n")
	lines = slices.DeleteFunc(lines, func(l string) bool { return l == "" })
	if len(lines) == 0 {
		return ""
	}
	return "\n" + strings.Join(lines[max(0, len(lines)-most):], "\n")
}
