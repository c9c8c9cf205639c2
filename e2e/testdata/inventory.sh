# Prints what stands on a host, so that two runs can be compared: files with mode
# and owner, units, mounts, interfaces, routes, packet filter rules, control groups of
# pods, processes, kernel settings. Left out is what a running host changes by itself.
set -u
ours='^/run/(systemd|log|user|sshd|utmp|dbus|initctl|motd)|^/var/log/(journal|wtmp|btmp|lastlog)|^/var/lib/systemd|^/root/[.]'
echo == files
{
  find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /run/systemd -o -path /run/log \) -prune \
    -o -printf '%p %y %m %U:%G %l\n'
  find /var/lib/containerd /var/lib/kubelet /var/lib/etcd /run -xdev -printf '%p %y %m %U:%G %l\n'
} 2>/dev/null | grep -v -E "$ours" | sort -u
echo == units
systemctl list-unit-files --no-pager --no-legend | grep -v -E 'session|user@|[.]scope' | sort
systemctl list-units --all --no-pager --no-legend --plain | awk '{print $1, $2, $3}' | grep -v -E 'session|user@|user-|[.]scope|[.]mount|run-' | sort
echo == mounts
awk '{print $5}' /proc/self/mountinfo | grep -v /run/user | sort
echo == network
ip -o link | awk '{print $2}' | sort
ip route
ip rule
nft list ruleset
echo == groups of pods
find /sys/fs/cgroup -name 'kubepods*' | sort
echo == processes
cat /proc/[0-9]*/comm 2>/dev/null | grep -v -E '^(bash|sh|cat|grep|sort|find|awk|ip|nft|systemctl|sshd|sftp-server|[(]sd-pam[)]|systemd|systemd-.*|agetty)$' | sort -u
echo == settings
sysctl -a 2>/dev/null | grep -E 'ip_forward |bridge-nf-call|overcommit_memory|panic|root_max' | sort
