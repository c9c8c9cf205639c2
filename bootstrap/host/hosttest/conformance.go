package hosttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host"
)

// Fixture is a host to be tested, and what of it the suite may use.
type Fixture struct {
	Host host.Host
	Dir  string // an empty directory, absolute, that is the suite's
	// Mount mounts a file system of some hundred KiB at an empty directory, until
	// the test ends.
	Mount func(t *testing.T, dir string)
	// Servers has, by network, the address of a server on the host that speaks
	// first. Of a network that is missing here, Dial has to fail.
	Servers map[string]string
}

// Conformance tests what package host promises of a host but for its units.
// open is called for each part; it must clean up by itself. The suite changes
// owners, so it needs root.
func Conformance(t *testing.T, open func(t *testing.T) Fixture) {
	for _, part := range []struct {
		name string
		test func(*testing.T, Fixture)
	}{
		{"WriteFile", testWriteFile},
		{"WriteFileBrokenOff", testWriteFileBrokenOff},
		{"WriteFileAtOnce", testWriteFileAtOnce},
		{"DiskFull", testDiskFull},
		{"Names", testNames},
		{"Stat", testStat},
		{"ReadDir", testReadDir},
		{"Mkdir", testMkdir},
		{"Symlink", testSymlink},
		{"Remove", testRemove},
		{"Run", testRun},
		{"RunEnds", testRunEnds},
		{"Dial", testDial},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, open(t)) })
	}
}

func (f Fixture) at(names ...string) string { return path.Join(append([]string{f.Dir}, names...)...) }

// write writes a file of root's.
func (f Fixture) write(t *testing.T, name, content string, mode fs.FileMode) {
	t.Helper()
	if err := f.Host.WriteFile(t.Context(), name, strings.NewReader(content), host.Meta{Mode: mode}); err != nil {
		t.Fatal(err)
	}
}

// want checks what one file is like.
func (f Fixture) want(t *testing.T, want host.File) {
	t.Helper()
	got, err := f.Host.Stat(t.Context(), want.Path)
	if err != nil {
		t.Fatal(err)
	}
	got[0].ModTime = time.Time{}
	if got[0].Mode.IsDir() || got[0].Target != "" {
		got[0].Size = 0
	}
	if got[0] != want {
		t.Errorf("\n got %+v\nwant %+v", got[0], want)
	}
}

func (f Fixture) wantContent(t *testing.T, name, want string) {
	t.Helper()
	if got, err := f.Host.ReadFile(t.Context(), name); err != nil || string(got) != want {
		t.Errorf("%s holds %.40q (%d bytes), %v; want %.40q (%d bytes)", name, got, len(got), err, want, len(want))
	}
}

// wantNames checks what is in a directory: temporary files would show here.
func (f Fixture) wantNames(t *testing.T, dir string, want ...string) {
	t.Helper()
	if got, err := f.Host.ReadDir(t.Context(), dir); err != nil || !slices.Equal(got, want) {
		t.Errorf("%s holds %q, %v; want %q", dir, got, err, want)
	}
}

func testWriteFile(t *testing.T, f Fixture) {
	ctx := t.Context()
	name := f.at("a", "b", "c")
	before := time.Now()
	if err := f.Host.WriteFile(ctx, name, strings.NewReader("one"), host.Meta{Mode: 0o640, UID: 12, GID: 34}); err != nil {
		t.Fatal(err)
	}
	f.want(t, host.File{Path: name, Exists: true, Mode: 0o640, Size: 3, UID: 12, GID: 34})
	f.want(t, host.File{Path: path.Dir(name), Exists: true, Mode: fs.ModeDir | 0o755})
	f.want(t, host.File{Path: f.at("a"), Exists: true, Mode: fs.ModeDir | 0o755})
	f.wantContent(t, name, "one")
	if got, err := f.Host.Stat(ctx, name); err != nil || got[0].ModTime.IsZero() {
		t.Errorf("written at %v, it is of %v, %v", before, got[0].ModTime, err)
	}

	f.write(t, name, "", 0o666) // whatever the umask is
	f.want(t, host.File{Path: name, Exists: true, Mode: 0o666})
	f.wantContent(t, name, "")

	large := make([]byte, 3<<20+17)
	for i := range large {
		large[i] = byte(rand.Uint32())
	}
	if err := f.Host.WriteFile(ctx, name, bytes.NewReader(large), host.Meta{Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	f.want(t, host.File{Path: name, Exists: true, Mode: 0o755, Size: int64(len(large))})
	f.wantContent(t, name, string(large))
	if err := f.Host.WriteFile(ctx, name, iotest.OneByteReader(strings.NewReader("slow")), host.Meta{Mode: 0o600}); err != nil {
		t.Fatal(err)
	}
	f.wantContent(t, name, "slow")

	// A link is replaced, not followed.
	if err := f.Host.Symlink(ctx, "c", f.at("a", "b", "link")); err != nil {
		t.Fatal(err)
	}
	f.write(t, f.at("a", "b", "link"), "of its own", 0o600)
	f.want(t, host.File{Path: f.at("a", "b", "link"), Exists: true, Mode: 0o600, Size: 10})
	f.wantContent(t, name, "slow")

	// But one on the way is followed.
	if err := f.Host.Symlink(ctx, "a", f.at("way")); err != nil {
		t.Fatal(err)
	}
	f.write(t, f.at("way", "b", "c"), "by link", 0o600)
	f.wantContent(t, name, "by link")

	if err := f.Host.WriteFile(ctx, f.at("a"), strings.NewReader("x"), host.Meta{Mode: 0o600}); err == nil {
		t.Error("a directory was overwritten")
	}
	if err := f.Host.WriteFile(ctx, path.Join(name, "below"), strings.NewReader("x"), host.Meta{Mode: 0o600}); err == nil {
		t.Error("a file was written below a file")
	}
	f.wantContent(t, name, "by link")
	f.wantNames(t, f.Dir, "a", "way")
	f.wantNames(t, f.at("a", "b"), "c", "link")
}

func testWriteFileBrokenOff(t *testing.T, f Fixture) {
	name := f.at("file")
	f.write(t, name, "old", 0o640)
	torn := errors.New("torn")
	err := f.Host.WriteFile(t.Context(), name, io.MultiReader(bytes.NewReader(make([]byte, 1<<20)), iotest.ErrReader(torn)), host.Meta{Mode: 0o600})
	if !errors.Is(err, torn) {
		t.Errorf("content that cannot be read: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(torn)
	if err := f.Host.WriteFile(ctx, name, strings.NewReader("new"), host.Meta{Mode: 0o600}); !errors.Is(err, torn) {
		t.Errorf("cancelled before: %v", err)
	}
	if _, err := f.Host.ReadFile(ctx, name); !errors.Is(err, torn) {
		t.Errorf("cancelled reading: %v", err)
	}
	f.want(t, host.File{Path: name, Exists: true, Mode: 0o640, Size: 3})
	f.wantContent(t, name, "old")
	f.wantNames(t, f.Dir, "file")
}

// Whoever writes last wins, and nobody sees a mixture.
func testWriteFileAtOnce(t *testing.T, f Fixture) {
	const writers, size = 8, 100 << 10
	var all sync.WaitGroup
	for i := range writers {
		all.Go(func() {
			content := bytes.Repeat([]byte{byte('a' + i)}, size)
			for _, name := range []string{f.at("deep", "shared"), f.at("deep", fmt.Sprint("own", i))} {
				if err := f.Host.WriteFile(t.Context(), name, bytes.NewReader(content), host.Meta{Mode: 0o600}); err != nil {
					t.Error(err)
				}
			}
			got, err := f.Host.ReadFile(t.Context(), f.at("deep", "shared"))
			if err != nil || len(got) != size || !bytes.Equal(got, bytes.Repeat(got[:1], size)) {
				t.Errorf("a mixture of %d bytes, %v", len(got), err)
			}
		})
	}
	all.Wait()
	names, err := f.Host.ReadDir(t.Context(), f.at("deep"))
	if err != nil || len(names) != writers+1 {
		t.Errorf("%q, %v", names, err)
	}
}

func testDiskFull(t *testing.T, f Fixture) {
	dir := f.at("small")
	if err := f.Host.Mkdir(t.Context(), dir, host.Meta{Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	f.Mount(t, dir)
	name := path.Join(dir, "below", "file")
	f.write(t, name, "old", 0o600)
	err := f.Host.WriteFile(t.Context(), name, bytes.NewReader(make([]byte, 4<<20)), host.Meta{Mode: 0o644})
	if fault.CodeOf(err) != fault.DiskFull || fault.RemedyOf(err) == "" {
		t.Errorf("%v (%s, %q); want a full disk with a remedy", err, fault.CodeOf(err), fault.RemedyOf(err))
	}
	f.want(t, host.File{Path: name, Exists: true, Mode: 0o600, Size: 3})
	f.wantContent(t, name, "old")
	f.wantNames(t, path.Dir(name), "file")

	f.write(t, f.at("beside"), "x", 0o600)
	for _, at := range []string{dir, f.Dir} {
		if err := f.Host.Remove(t.Context(), f.at("beside"), at); err == nil {
			t.Errorf("%s was removed with what is mounted at %s", at, dir)
		}
	}
	f.wantContent(t, f.at("beside"), "x") // it is all or nothing
	f.wantContent(t, name, "old")
	if err := f.Host.Remove(t.Context(), path.Dir(name)); err != nil {
		t.Errorf("below the mount point: %v", err)
	}
}

func testNames(t *testing.T, f Fixture) {
	names := []string{
		"-rf", "a b", "it's", `back\slash`, "$HOME", "`id`", "*", "new\nline", "tab\t", `"quoted"`, "käse", "..dots", "~", "#", "a;b&c|d>e",
	}
	slices.Sort(names)
	for _, name := range names {
		f.write(t, f.at(name), name, 0o600)
		f.wantContent(t, f.at(name), name)
	}
	f.wantNames(t, f.Dir, names...)
	paths := make([]string, len(names))
	for i, name := range names {
		paths[i] = f.at(name)
	}
	if err := f.Host.Remove(t.Context(), paths...); err != nil {
		t.Error(err)
	}
	f.wantNames(t, f.Dir)
}

func testStat(t *testing.T, f Fixture) {
	ctx := t.Context()
	const count = 300
	var paths []string
	f.write(t, f.at("file"), "four", 0o604)
	for i := range count {
		switch {
		case i%3 == 0:
			paths = append(paths, f.at("file"))
		case i%3 == 1:
			paths = append(paths, f.at(fmt.Sprint("nothing", i)))
		default:
			paths = append(paths, f.at("file", "below")) // not a directory on the way
		}
	}
	got, err := f.Host.Stat(ctx, paths...)
	if err != nil || len(got) != count {
		t.Fatalf("%d answers, %v", len(got), err)
	}
	for i, file := range got {
		if file.Path != paths[i] || file.Exists != (i%3 == 0) {
			t.Errorf("%d: %s, exists: %v; asked of %s", i, file.Path, file.Exists, paths[i])
		}
		if !file.Exists && file != (host.File{Path: paths[i]}) {
			t.Errorf("nothing is something: %+v", file)
		}
	}
	if got, err := f.Host.Stat(ctx); err != nil || len(got) != 0 {
		t.Errorf("of no path: %v, %v", got, err)
	}
	for _, name := range []string{f.at("nothing"), f.at("file", "below")} {
		if _, err := f.Host.ReadFile(ctx, name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("read %s: %v", name, err)
		}
	}
	if _, err := f.Host.ReadFile(ctx, f.Dir); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read a directory: %v", err)
	}
}

func testReadDir(t *testing.T, f Fixture) {
	f.wantNames(t, f.Dir)
	var want []string
	for i := range 150 {
		want = append(want, fmt.Sprint("n", i))
		f.write(t, f.at(want[i]), "", 0o600)
	}
	slices.Sort(want)
	f.wantNames(t, f.Dir, want...)
	if _, err := f.Host.ReadDir(t.Context(), f.at("nothing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of nothing: %v", err)
	}
	if _, err := f.Host.ReadDir(t.Context(), f.at("n0")); err == nil {
		t.Error("of a file: no error")
	}
}

func testMkdir(t *testing.T, f Fixture) {
	ctx := t.Context()
	for _, meta := range []host.Meta{{Mode: 0o700, UID: 5, GID: 6}, {Mode: 0o777}} { // the second time it is there
		if err := f.Host.Mkdir(ctx, f.at("a", "b"), meta); err != nil {
			t.Fatal(err)
		}
		f.want(t, host.File{Path: f.at("a", "b"), Exists: true, Mode: fs.ModeDir | meta.Mode, UID: meta.UID, GID: meta.GID})
		f.want(t, host.File{Path: f.at("a"), Exists: true, Mode: fs.ModeDir | 0o755})
	}
	f.write(t, f.at("a", "b", "file"), "x", 0o600)
	for _, bad := range []string{f.at("a", "b", "file"), f.at("a", "b", "file", "below")} {
		if err := f.Host.Mkdir(ctx, bad, host.Meta{Mode: 0o755}); err == nil {
			t.Errorf("%s was made", bad)
		}
	}
	f.wantContent(t, f.at("a", "b", "file"), "x")
}

func testSymlink(t *testing.T, f Fixture) {
	ctx := t.Context()
	link := f.at("deep", "link")
	for _, target := range []string{"../nothing", "/absolute", "it's a name", "../file"} {
		if err := f.Host.Symlink(ctx, target, link); err != nil {
			t.Fatal(err)
		}
		f.want(t, host.File{Path: link, Exists: true, Mode: fs.ModeSymlink | 0o777, Target: target})
	}
	f.write(t, f.at("file"), "x", 0o600)
	f.wantContent(t, link, "x")
	if err := f.Host.Symlink(ctx, "deep", f.at("file")); err != nil {
		t.Errorf("in the place of a file: %v", err)
	}
	f.want(t, host.File{Path: f.at("file"), Exists: true, Mode: fs.ModeSymlink | 0o777, Target: "deep"})
	f.wantNames(t, f.at("file"), "link")
	if err := f.Host.Symlink(ctx, "x", f.at("deep")); err == nil {
		t.Error("in the place of a directory: no error")
	}
	f.wantNames(t, f.Dir, "deep", "file")
	f.wantNames(t, f.at("deep"), "link")
}

func testRemove(t *testing.T, f Fixture) {
	ctx := t.Context()
	f.write(t, f.at("tree", "a", "file"), "x", 0o400)
	f.write(t, f.at("tree", "b"), "x", 0o600)
	f.write(t, f.at("kept", "file"), "x", 0o600)
	for _, link := range []string{f.at("tree", "out"), f.at("link")} {
		if err := f.Host.Symlink(ctx, f.at("kept"), link); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Host.Remove(ctx, f.at("tree"), f.at("nothing"), f.at("nothing", "below"), f.at("kept", "file", "below"), f.at("link")); err != nil {
		t.Error(err)
	}
	f.wantNames(t, f.Dir, "kept")
	f.wantContent(t, f.at("kept", "file"), "x") // links are not followed
	if err := f.Host.Remove(ctx); err != nil {
		t.Errorf("nothing at all: %v", err)
	}
	if err := f.Host.Remove(ctx, "kubewright-relative"); err == nil {
		t.Error("a relative path was removed")
	}
}

// What testRun runs.
var (
	cmdPrint  = []string{"printf", "%s|", "it's", "$HOME", "", "a\nb", "-n", `\`, "*"}
	cmdCat    = []string{"cat"}
	cmdCount  = []string{"wc", "-c"}
	cmdFail   = []string{"sh", "-c", "echo out; yes long | head -c 9000 >&2; echo last >&2; exit 7"}
	cmdAbsent = []string{"kubewright-no-such-program"}
	cmdWhoami = []string{"id", "-u"}
	cmdHang   = []string{"sleep", "1000"}
	cmdTrue   = []string{"true"}
)

const largeInput = 8 << 20

func testRun(t *testing.T, f Fixture) {
	ctx := t.Context()
	for _, c := range []struct {
		argv  []string
		stdin io.Reader
		want  string
		query bool // it changes nothing
	}{
		{argv: cmdPrint, want: "it's|$HOME||a\nb|-n|\\|*|", query: true},
		{argv: cmdCat}, // an empty standard input, which ends
		{argv: cmdCat, stdin: strings.NewReader("in\x00put"), want: "in\x00put"},
		{argv: cmdCount, stdin: bytes.NewReader(make([]byte, largeInput)), want: fmt.Sprintln(largeInput)},
		{argv: cmdTrue, stdin: bytes.NewReader(make([]byte, largeInput))}, // does not read it
		{argv: cmdWhoami, want: "0\n", query: true},
	} {
		got, err := f.Host.Run(ctx, host.Command{Argv: c.argv, Stdin: c.stdin})
		if err != nil || string(got) != c.want {
			t.Errorf("%q: %.40q, %v; want %.40q", c.argv, got, err, c.want)
		}
		if !c.query {
			continue
		}
		if got, err := f.Host.Query(ctx, c.argv...); err != nil || string(got) != c.want {
			t.Errorf("query %q: %.40q, %v; want %.40q", c.argv, got, err, c.want)
		}
	}
	var into bytes.Buffer
	if got, err := f.Host.Run(ctx, host.Command{Argv: cmdCat, Stdin: strings.NewReader("streamed"), Stdout: &into}); err != nil ||
		len(got) > 0 || into.String() != "streamed" {
		t.Errorf("to a writer: %q, %q, %v", into.String(), got, err)
	}
	var exit *host.ExitError
	_, err := f.Host.Query(ctx, cmdFail...)
	if !errors.As(err, &exit) || exit.Status != 7 || !slices.Equal(exit.Argv, cmdFail) ||
		len(exit.Stderr) != stderrKept || !strings.HasSuffix(exit.Stderr, "last\n") {
		t.Errorf("%T %v", err, err)
	}
	if _, err = f.Host.Query(ctx, cmdAbsent...); !errors.As(err, &exit) || exit.Status != host.NoProgram {
		t.Errorf("a program that is not there: %T %v", err, err)
	}
	var all sync.WaitGroup
	for range 40 { // more than an sshd allows sessions
		all.Go(func() {
			if got, err := f.Host.Query(ctx, cmdWhoami...); err != nil || string(got) != "0\n" {
				t.Errorf("at once with others: %q, %v", got, err)
			}
		})
	}
	all.Wait()
}

func testRunEnds(t *testing.T, f Fixture) {
	torn := errors.New("torn")
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := f.Host.Run(ctx, host.Command{Argv: cmdHang})
		ended <- err
	}()
	cancel(torn)
	if err := <-ended; !errors.Is(err, torn) {
		t.Errorf("cancelled: %v", err)
	}
	_, err := f.Host.Run(t.Context(), host.Command{Argv: cmdCat, Stdin: io.MultiReader(strings.NewReader("half"), iotest.ErrReader(torn))})
	if !errors.Is(err, torn) {
		t.Errorf("input that cannot be read: %v", err)
	}
}

func testDial(t *testing.T, f Fixture) {
	ctx := t.Context()
	for network, address := range f.Servers {
		conn, err := f.Host.Dial(ctx, network, address)
		if err != nil {
			t.Errorf("%s: %v", network, err)
			continue
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Errorf("%s: the server says nothing: %v", network, err)
		}
		if err := conn.Close(); err != nil {
			t.Errorf("%s: %v", network, err)
		}
	}
	for network, address := range map[string]string{"tcp": "127.0.0.1:1", "unix": f.at("no-socket"), "udp": "127.0.0.1:1"} {
		if conn, err := f.Host.Dial(ctx, network, address); err == nil {
			conn.Close() //nolint:errcheck // the test has failed
			t.Errorf("%s: nobody listens at %s, and it connected", network, address)
		}
	}
}

// The suite's units. The one that fails does so on a simulated host by FailUnit.
const (
	unitRuns  = "kubewright-conformance.service"
	unitFails = "kubewright-conformance-fails.service"
	unitNone  = "kubewright-conformance-none.service"
	unitDir   = "/run/systemd/system"
	failLog   = "kubewright-conformance says why"
	runsFile  = "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"
	failsFile = "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo " + failLog + "; exit 1'\n"
)

// ConformanceSystemd tests what package host promises of a host's units. It makes
// some of its own in /run/systemd/system, and removes them.
func ConformanceSystemd(t *testing.T, h host.Host) {
	ctx := t.Context()
	f, sd := Fixture{Host: h}, h.Systemd()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	state := func(name string) host.Unit {
		t.Helper()
		u, err := h.Units(ctx, name)
		must(err)
		return u[0]
	}
	runs, fails := path.Join(unitDir, unitRuns), path.Join(unitDir, unitFails)
	defer func() {
		ctx := context.WithoutCancel(ctx)
		for _, err := range []error{
			sd.Stop(ctx, unitRuns), sd.Disable(ctx, unitRuns), sd.ResetFailed(ctx, unitFails), h.Remove(ctx, runs, fails), sd.Reload(ctx),
		} {
			if err != nil {
				t.Error(err)
			}
		}
		if u := state(unitRuns); u.Load != "not-found" || u.Active != "inactive" {
			t.Errorf("in the end: %+v", u)
		}
	}()
	f.write(t, runs, runsFile, 0o644)
	f.write(t, fails, failsFile, 0o644)
	must(sd.Reload(ctx))

	got, err := h.Units(ctx, unitNone, unitRuns, unitNone, unitFails)
	must(err)
	for i, want := range []host.Unit{
		{Name: unitNone, Load: "not-found", Active: "inactive", Sub: "dead"},
		{Name: unitRuns, Load: "loaded", Active: "inactive", Sub: "dead", File: "disabled", Fragment: runs},
		{Name: unitNone, Load: "not-found", Active: "inactive", Sub: "dead"},
		{Name: unitFails, Load: "loaded", Active: "inactive", Sub: "dead", File: "static", Fragment: fails},
	} {
		if got[i] != want {
			t.Errorf("\n got %+v\nwant %+v", got[i], want)
		}
	}
	if got, err := h.Units(ctx); err != nil || len(got) != 0 {
		t.Errorf("of no name: %v, %v", got, err)
	}

	must(sd.Start(ctx, unitRuns))
	first := state(unitRuns)
	if first.Active != "active" || first.Sub != "running" || first.MainPID == 0 || first.Started.IsZero() || first.Stale {
		t.Errorf("started: %+v", first)
	}
	must(sd.Start(ctx, unitRuns)) // again changes nothing
	if again := state(unitRuns); again.MainPID != first.MainPID || !again.Started.Equal(first.Started) {
		t.Errorf("started again: %+v, it was %+v", again, first)
	}
	must(sd.Restart(ctx, unitRuns))
	if again := state(unitRuns); again.Active != "active" || again.MainPID == first.MainPID || !again.Started.After(first.Started) {
		t.Errorf("restarted: %+v, it was %+v", again, first)
	}

	f.write(t, runs, "# another\n"+runsFile, 0o644)
	if u := state(unitRuns); !u.Stale || u.Active != "active" {
		t.Errorf("its file is another: %+v", u)
	}
	must(sd.Reload(ctx))
	if u := state(unitRuns); u.Stale || u.Active != "active" {
		t.Errorf("reloaded: %+v", u)
	}

	must(sd.Enable(ctx, unitRuns))
	must(sd.Enable(ctx, unitRuns))
	must(sd.Reload(ctx))
	if u := state(unitRuns); u.File != "enabled" && u.File != "enabled-runtime" {
		t.Errorf("enabled: %+v", u)
	}
	link := "/etc/systemd/system/multi-user.target.wants/" + unitRuns
	f.want(t, host.File{Path: link, Exists: true, Mode: fs.ModeSymlink | 0o777, Target: runs})
	must(sd.Disable(ctx, unitRuns))
	must(sd.Reload(ctx))
	if u := state(unitRuns); u.File != "disabled" || u.Active != "active" {
		t.Errorf("disabled: %+v", u)
	}
	f.want(t, host.File{Path: link})

	must(sd.Stop(ctx, unitRuns))
	must(sd.Stop(ctx, unitRuns))
	if u := state(unitRuns); u.Active != "inactive" || u.MainPID != 0 {
		t.Errorf("stopped: %+v", u)
	}
	must(sd.Stop(ctx, unitNone))
	must(sd.ResetFailed(ctx, unitNone))
	if err := sd.Start(ctx, unitNone); err == nil {
		t.Error("a unit that does not exist was started")
	}
	if err := sd.Enable(ctx, unitNone); err == nil {
		t.Error("a unit that does not exist was enabled")
	}

	var failed *host.UnitError
	for verb, do := range map[string]func(context.Context, string) error{"start": sd.Start, "restart": sd.Restart} {
		err := do(ctx, unitFails)
		if !errors.As(err, &failed) || failed.Unit != unitFails || failed.Verb != verb || failed.Result != "failed" || !strings.Contains(failed.Log, failLog) {
			t.Errorf("%s of a unit that fails: %T %v", verb, err, err)
		}
		if u := state(unitFails); u.Active != "failed" {
			t.Errorf("failed: %+v", u)
		}
	}
	must(sd.ResetFailed(ctx, unitFails))
	if u := state(unitFails); u.Active != "inactive" {
		t.Errorf("its failure forgotten: %+v", u)
	}
}
