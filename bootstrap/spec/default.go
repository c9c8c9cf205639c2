package spec

import "net/netip"

const (
	defaultName      = "kubewright"
	defaultPort      = 6443
	defaultDNSDomain = "cluster.local"
	defaultKeep      = 7
)

// DefaultBackupDir is where hosts keep their backups.
const DefaultBackupDir = "/var/backups/kubewright"

// Default fills in what was left out. It is idempotent.
func (c *Cluster) Default() {
	orDefault(&c.APIVersion, APIVersion)
	orDefault(&c.Kind, Kind)
	orDefault(&c.Name, defaultName)
	orDefault(&c.Network.Backend, VXLAN)
	orDefault(&c.Network.PodCIDR, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244}), 16))
	orDefault(&c.Network.ServiceCIDR, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 96}), 16))
	orDefault(&c.Network.DNSDomain, defaultDNSDomain)
	orDefault(&c.APIServer.Port, defaultPort)
	if c.Backup.Schedule != "" {
		orDefault(&c.Backup.Keep, defaultKeep)
		orDefault(&c.Backup.Dir, DefaultBackupDir)
	}
	for i := range c.Hosts {
		role := WorkerRole
		if i == 0 {
			role = ControlPlaneRole
		}
		orDefault(&c.Hosts[i].Role, role)
	}
}

func orDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
