package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/kubewright/kubewright/bootstrap/fault"
)

// The recipe of the hosts' root file system: Debian's smallest with systemd,
// sshd and the tools that a person or a preflight expects on a server.
const (
	suite    = "bookworm"
	packages = "systemd,systemd-sysv,dbus,openssh-server,iproute2,kmod,procps,nftables,ca-certificates,sudo,iputils-ping,libfaketime"
)

// recipeFile marks a root file system as one of a lab's and says which.
const recipeFile = "/etc/kubewright-lab-recipe"

// The users of a host. root and adminUser need no password for sudo, opsUser
// needs SudoPassword; that of noSudoUser asks for one that nobody has.
const (
	adminUser  = "admin"
	opsUser    = "ops"
	noSudoUser = "nosudo"
)

// SudoPassword is what sudo asks user ops for. It is no secret: sshd takes keys alone.
const SudoPassword = "open sesame"

// sudoHash is SudoPassword as crypt(3) stores it.
const sudoHash = "$6$kubewrightlab$qxn/wroY2xc2SKOveBDHH0zfNCCe9VVZDC3egkurAUhdl6cHJbW/4iL99fFb9ieWpYv0mX0o6Abem.Z7rwb.u."

// noHash is the password of a user who has none: sshd still takes the user's
// key, which it would not for a locked "!".
const noHash = "*"

// keysFile holds the keys that sshd accepts for every user.
const keysFile = "/etc/ssh/lab_authorized_keys"

// hostKeyFile is the only key that sshd shows.
const hostKeyFile = "/etc/ssh/ssh_host_ed25519_key"

// diskFile is a file of root's in a root file system.
type diskFile struct {
	Path    string
	Content []byte
	Mode    fs.FileMode
}

func rootfsFiles() []diskFile {
	text := func(path, content string) diskFile {
		return diskFile{Path: path, Content: []byte(content), Mode: 0o644}
	}
	return []diskFile{
		text("/etc/ssh/sshd_config.d/lab.conf", `HostKey `+hostKeyFile+`
AuthorizedKeysFile `+keysFile+` .ssh/authorized_keys
PasswordAuthentication no
PermitRootLogin prohibit-password
UseDNS no
MaxSessions 100
MaxStartups 100
`),
		// The ring buffer is the outer machine's and all hosts': no host writes its log there or takes it for its own.
		text("/etc/systemd/journald.conf.d/lab.conf", "[Journal]\nRateLimitIntervalSec=0\nReadKMsg=no\n"),
		text("/etc/systemd/system.conf.d/lab.conf", "[Manager]\nLogTarget=journal\n"),
		{Path: "/etc/sudoers.d/lab", Mode: 0o440, Content: []byte(
			adminUser + " ALL=(ALL:ALL) NOPASSWD: ALL\n" + opsUser + " ALL=(ALL:ALL) ALL\n" + noSudoUser + " ALL=(ALL:ALL) ALL\n")},
		text("/etc/resolv.conf", ""),
		text("/etc/hostname", ""),
		text("/etc/machine-id", ""),
	}
}

// maskedUnits make no sense in a host, or only slow its boot.
func maskedUnits() []string {
	return []string{
		"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer",
		"e2scrub_reap.service", "getty.target", "getty-static.service", "systemd-pstore.service",
		"systemd-journald-audit.socket", "systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount",
		"systemd-firstboot.service", "systemd-repart.service", "systemd-random-seed.service",
		"systemd-update-utmp.service", "systemd-update-utmp-runlevel.service", "systemd-machine-id-commit.service",
		"systemd-pcrphase.service", "systemd-pcrphase-sysinit.service", "systemd-ask-password-console.path",
		"systemd-ask-password-wall.path", "systemd-resolved.service", "systemd-networkd.service",
		"dev-hugepages.mount", "sys-kernel-config.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
		"sys-fs-fuse-connections.mount", "kmod-static-nodes.service",
		// These set what is the outer machine's too, as far as it is not in /proc/sys/net.
		"systemd-modules-load.service",
	}
}

// maskedSettings are the packages' sysctl files about more than the network:
// the kernel is the outer machine's.
func maskedSettings() []string {
	return []string{"50-pid-max.conf", "99-protect-links.conf", "50-coredump.conf", "50-default.conf"}
}

// removedFiles would be the same on every host, or is waste.
func removedFiles() []string {
	return []string{
		"/etc/ssh/ssh_host_*", "/var/lib/dbus/machine-id", "/var/lib/systemd/random-seed",
		"/var/cache/apt/*.bin", "/var/lib/apt/lists/*", "/var/log/*.log", "/var/log/apt",
	}
}

// rootfsRecipe is all that decides what a root file system is; its hash names the cached one.
func rootfsRecipe() string {
	var b bytes.Buffer
	fmt.Fprintln(&b, suite, runtime.GOARCH, packages)
	for _, f := range rootfsFiles() {
		fmt.Fprintf(&b, "%s %o %q\n", f.Path, f.Mode, f.Content)
	}
	fmt.Fprintln(&b, maskedUnits(), maskedSettings(), removedFiles(), excludedPaths(), rootfsUsers(), dataFolders())
	sum := sha256.Sum256(b.Bytes())
	return hex.EncodeToString(sum[:8])
}

func excludedPaths() []string {
	return []string{"/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*"}
}

// account is a user to add, with a group of the same name and number.
type account struct {
	Name string
	ID   int
	Hash string // of the password
}

func rootfsUsers() []account {
	return []account{{adminUser, 1000, noHash}, {noSudoUser, 1001, noHash}, {opsUser, 1002, sudoHash}}
}

// dataFolders are not in a host's overlay: overlayfs refuses to be the upper layer of another.
func dataFolders() []string {
	return []string{"/var/lib/containerd", "/var/lib/kubelet", "/var/lib/etcd"}
}

// BuildRootfs makes the root file system that hosts are clones of, unless there
// is one of the same recipe, and returns its folder. It needs the Debian
// packages of this machine's mirrors and takes about half a minute.
func BuildRootfs(ctx context.Context, progress func(string)) (string, error) {
	cache := filepath.Join(stateRoot, rootfsFolder)
	dir := filepath.Join(cache, rootfsRecipe())
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", fmt.Errorf("build root file system: %w", err)
	}
	unlock, err := lock(ctx, cache)
	if err != nil {
		return "", fmt.Errorf("build root file system: %w", err)
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := requireTools("mmdebstrap", "unshare"); err != nil {
		return "", err
	}
	if err := removePartial(cache); err != nil {
		return "", fmt.Errorf("build root file system: %w", err)
	}
	partial := dir + partialSuffix
	start := time.Now()
	progress("root file system: building with mmdebstrap, once")
	err = buildRootfs(ctx, partial)
	if err == nil {
		err = os.Rename(partial, dir)
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("build root file system: %w", err), removeTree(partial))
	}
	progress(fmt.Sprintf("root file system: built in %s", timeSince(start)))
	return dir, nil
}

const partialSuffix = ".partial"

// removePartial removes what builds left behind that were killed. The cache is locked.
func removePartial(cache string) error {
	left, err := filepath.Glob(filepath.Join(cache, "*"+partialSuffix))
	if err != nil {
		return err
	}
	for _, dir := range left {
		if err := removeTree(dir); err != nil {
			return err
		}
	}
	return nil
}

func buildRootfs(ctx context.Context, dir string) error {
	argv := []string{
		// All that mmdebstrap mounts and starts ends with it, however it ends.
		"--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", "--",
		"mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", "--include=" + packages,
		"--dpkgopt=force-unsafe-io", // a build that a crash cuts short is thrown away anyway
	}
	for _, p := range excludedPaths() {
		argv = append(argv, "--dpkgopt=path-exclude="+p)
	}
	cmd := exec.CommandContext(ctx, "unshare", append(argv, suite, dir)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	// The parent of Pdeathsig is the thread, not the process.
	runtime.LockOSThread()
	err := cmd.Run()
	runtime.UnlockOSThread()
	if err != nil {
		return fault.New(fault.HostUnsuitable, "see that this machine reaches a Debian mirror, then try again",
			"mmdebstrap: %w: %s", err, lastLines(stderr.String(), 3))
	}
	return configureRootfs(dir)
}

// configureRootfs changes a plain Debian into what hosts are clones of. The
// recipe is written last: without it no host boots.
func configureRootfs(dir string) error {
	for _, pattern := range removedFiles() {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		for _, path := range found {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	for _, f := range rootfsFiles() {
		if err := writeBelow(dir, f); err != nil {
			return err
		}
	}
	for _, name := range maskedUnits() {
		if err := mask(filepath.Join(dir, "etc/systemd/system", name)); err != nil {
			return err
		}
	}
	for _, name := range maskedSettings() {
		if err := mask(filepath.Join(dir, "etc/sysctl.d", name)); err != nil {
			return err
		}
	}
	for _, folder := range dataFolders() {
		if err := mkdirs(filepath.Join(dir, folder)); err != nil {
			return err
		}
	}
	for _, u := range rootfsUsers() {
		if err := addUser(dir, u); err != nil {
			return err
		}
	}
	return writeBelow(dir, diskFile{Path: recipeFile, Content: []byte(rootfsRecipe() + "\n"), Mode: 0o644})
}

func writeBelow(root string, f diskFile) error {
	path := filepath.Join(root, f.Path)
	if err := mkdirs(filepath.Dir(path)); err != nil {
		return err
	}
	return writeFile(path, f.Content, f.Mode)
}

// mkdirs makes a folder with its missing parents, 0755 whatever the umask says:
// they are the hosts' too.
func mkdirs(dir string) error {
	err := os.Mkdir(dir, 0o755)
	switch {
	case err == nil:
		return os.Chmod(dir, 0o755)
	case errors.Is(err, fs.ErrExist):
		return nil
	case errors.Is(err, fs.ErrNotExist):
		if err := mkdirs(filepath.Dir(dir)); err != nil {
			return err
		}
		return mkdirs(dir)
	}
	return err
}

func mask(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink("/dev/null", path)
}

// addUser adds a user with a home of its own.
func addUser(root string, u account) error {
	for file, line := range map[string]string{
		"etc/passwd": fmt.Sprintf("%s:x:%d:%d::/home/%s:/bin/bash\n", u.Name, u.ID, u.ID, u.Name),
		"etc/group":  fmt.Sprintf("%s:x:%d:\n", u.Name, u.ID),
		"etc/shadow": fmt.Sprintf("%s:%s:1:0:99999:7:::\n", u.Name, u.Hash), // last changed on day 1: 0 would ask for a new one
	} {
		if err := appendLine(filepath.Join(root, file), line); err != nil {
			return err
		}
	}
	home := filepath.Join(root, "home", u.Name)
	if err := mkdirs(home); err != nil {
		return err
	}
	return os.Chown(home, u.ID, u.ID)
}

func appendLine(path, line string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line)
	return errors.Join(err, f.Close())
}

// requireTools returns a fault that says how to get the programs that are missing.
func requireTools(names ...string) error {
	from := map[string]string{"mmdebstrap": "mmdebstrap", "nft": "nftables", "nsenter": "util-linux", "unshare": "util-linux"}
	var missing, debs []string
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			missing, debs = append(missing, name), append(debs, from[name])
		}
	}
	if missing == nil {
		return nil
	}
	return fault.New(fault.HostUnsuitable, "apt-get install "+strings.Join(debs, " "),
		"this machine lacks %s", strings.Join(missing, ", "))
}

// removeTree removes a folder, unless a file system is mounted below it: what
// is in that is not the lab's to remove.
func removeTree(dir string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) > 4 && (fields[4] == dir || strings.HasPrefix(fields[4], dir+"/")) {
			return fault.New(fault.HostUnsuitable, "umount "+fields[4], "remove %s: a file system is mounted on %s", dir, fields[4])
		}
	}
	return os.RemoveAll(dir)
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}
