package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/kubewright/kubewright/bootstrap/bundle/unpack"
)

// The test binary is the program, too: with these set it runs main, on a small
// file system of its own if asked.
const (
	runMain   = "UNBUNDLE_TEST_MAIN"
	smallDisk = "UNBUNDLE_TEST_SMALL_DISK" // where to mount it
)

func TestMain(m *testing.M) {
	if os.Getenv(runMain) == "" {
		os.Exit(m.Run())
	}
	if dir := os.Getenv(smallDisk); dir != "" {
		os.Exit(onSmallDisk(dir))
	}
	main()
}

// onSmallDisk runs the program in the private mount namespace that the parent
// started this in, and looks whether it cleaned up where the parent cannot see.
func onSmallDisk(dir string) int {
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		fmt.Fprintln(os.Stderr, "mount:", err)
		return 99
	}
	status := run(os.Args[2])
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		fmt.Fprintln(os.Stderr, "left behind:", left, err)
		return 98
	}
	return status
}

// program returns the program's command line, ready to run.
func program(t *testing.T, stdin io.Reader, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), runMain+"=1")
	cmd.Stdin = stdin
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	return cmd, &stderr
}

// wantStatus checks how the program ended and what it said.
func wantStatus(t *testing.T, err error, stderr *bytes.Buffer, want int) {
	t.Helper()
	status := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		status = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if status != want {
		t.Errorf("exit status %d, want %d: %s", status, want, stderr)
	}
	if want == 0 {
		if stderr.Len() > 0 {
			t.Errorf("it said %s", stderr)
		}
		return
	}
	var line struct {
		Status int
		Error  string
	}
	if err := json.Unmarshal(stderr.Bytes(), &line); err != nil || line.Status != want || line.Error == "" {
		t.Errorf("it said %q (%v), want one line of JSON with status %d", stderr, err, want)
	}
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		t.Errorf("%s holds %v (%v), want nothing", dir, entries, err)
	}
}

// stream returns a stream that makes one file of size bytes.
func stream(t *testing.T, size int) []byte {
	t.Helper()
	content := make([]byte, size)
	digest := func(data []byte) string {
		s := sha256.Sum256(data)
		return hex.EncodeToString(s[:])
	}
	var layer bytes.Buffer
	encoder, err := zstd.NewWriter(&layer)
	if err != nil {
		t.Fatal(err)
	}
	archive := tar.NewWriter(encoder)
	err = archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/kube", Size: int64(size), Mode: 0o755, Format: tar.FormatUSTAR})
	_, writeErr := archive.Write(content)
	if err := errors.Join(err, writeErr, archive.Close(), encoder.Close()); err != nil {
		t.Fatal(err)
	}
	listing, err := unpack.Manifest{Files: []unpack.File{{Path: "bin/kube", Mode: 0o755, Size: int64(size), SHA256: digest(content)}}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for _, f := range []struct {
		kind unpack.Kind
		body []byte
	}{{unpack.KindManifest, listing}, {unpack.KindLayer, layer.Bytes()}, {unpack.KindEnd, nil}} {
		if err := unpack.WriteFrame(&out, unpack.Frame{Kind: f.kind, Digest: "sha256:" + digest(f.body), Size: int64(len(f.body))}); err != nil {
			t.Fatal(err)
		}
		out.Write(f.body)
	}
	return out.Bytes()
}

func TestProgram(t *testing.T) {
	good := stream(t, 1<<20)
	damaged := bytes.Clone(good)
	damaged[len(damaged)/2] ^= 1

	t.Run("whole", func(t *testing.T) {
		into := filepath.Join(t.TempDir(), "opt", "v1")
		cmd, stderr := program(t, bytes.NewReader(good), "--into", into)
		wantStatus(t, cmd.Run(), stderr, 0)
		if info, err := os.Stat(filepath.Join(into, "bin", "kube")); err != nil || info.Size() != 1<<20 || info.Mode() != 0o755 {
			t.Errorf("bin/kube: %v %v", info, err)
		}
	})
	for name, tc := range map[string]struct {
		stdin  []byte
		status int
	}{
		"nothing": {nil, unpack.StatusRefused},
		"short":   {good[:len(good)-1], unpack.StatusRefused},
		"damaged": {damaged, unpack.StatusRefused},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			cmd, stderr := program(t, bytes.NewReader(tc.stdin), "--into", filepath.Join(dir, "v1"))
			wantStatus(t, cmd.Run(), stderr, tc.status)
			wantEmpty(t, dir)
		})
	}
	t.Run("usage", func(t *testing.T) {
		cmd, stderr := program(t, nil, "--help")
		wantStatus(t, cmd.Run(), stderr, unpack.StatusUsage)
	})
	t.Run("no place to write", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		cmd, stderr := program(t, bytes.NewReader(good), "--into", filepath.Join(file, "v1"))
		wantStatus(t, cmd.Run(), stderr, unpack.StatusFailed)
	})
}

// TestFullDisk unpacks 1 MiB on a file system of 256 KiB, in a mount namespace
// (and user namespace, unless root runs the test) that ends with the program.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	cmd, stderr := program(t, bytes.NewReader(stream(t, 1<<20)), "--into", filepath.Join(dir, "v1"))
	cmd.Env = append(cmd.Env, smallDisk+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS} // Go makes the mounts private
	if os.Getuid() != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWNS | syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
	}
	wantStatus(t, cmd.Run(), stderr, unpack.StatusNoSpace)
}

// TestSignal interrupts the program while it waits for input: it cleans up.
func TestSignal(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		t.Run(signal.String(), func(t *testing.T) {
			dir := t.TempDir()
			reader, writer, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer writer.Close() //nolint:errcheck // a pipe
			cmd, stderr := program(t, reader, "--into", filepath.Join(dir, "v1"))
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if err := reader.Close(); err != nil {
				t.Fatal(err)
			}
			// More than a pipe holds: once it is written, the program has begun to
			// read, after it began to listen for signals.
			if _, err := writer.Write(longStart(t)); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			wantStatus(t, cmd.Wait(), stderr, unpack.StatusSignaled)
			wantEmpty(t, dir)
		})
	}
}

// longStart returns the beginning of a stream whose manifest has yet to end.
func longStart(t *testing.T) []byte {
	t.Helper()
	const much = 512 << 10
	var out bytes.Buffer
	if err := unpack.WriteFrame(&out, unpack.Frame{Kind: unpack.KindManifest, Size: much + 1}); err != nil {
		t.Fatal(err)
	}
	out.Write(make([]byte, much))
	return out.Bytes()
}
