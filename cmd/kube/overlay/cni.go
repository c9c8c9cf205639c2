package overlay

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
)

// confList is a CNI configuration of chained plugins, as far as it is used here.
type confList struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	Plugins    []any  `json:"plugins"`
}

type bridgeConf struct {
	Type             string   `json:"type"`
	Bridge           string   `json:"bridge"`
	IsDefaultGateway bool     `json:"isDefaultGateway"`
	ForceAddress     bool     `json:"forceAddress"`
	IPMasq           bool     `json:"ipMasq"`
	HairpinMode      bool     `json:"hairpinMode"`
	MTU              int      `json:"mtu"`
	IPAM             ipamConf `json:"ipam"`
}

type ipamConf struct {
	Type    string        `json:"type"`
	Ranges  [][]ipamRange `json:"ranges"`
	DataDir string        `json:"dataDir"`
}

type ipamRange struct {
	Subnet netip.Prefix `json:"subnet"`
}

type portmapConf struct {
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities"`
	Backend      string          `json:"backend"`
}

// conf is the CNI configuration of a node: pods on a bridge that is their
// gateway, addresses from the node's range. isDefaultGateway makes the pods'
// default route: a second one by host-local would be refused.
//
// Addresses are booked in /run, so that a power cut, after which no pod runs,
// leaves none booked. forceAddress lets the bridge of an earlier range go on.
func conf(pods netip.Prefix, mtu int) ([]byte, error) {
	text, err := json.MarshalIndent(confList{
		CNIVersion: "1.0.0",
		Name:       "kubewright",
		Plugins: []any{
			bridgeConf{
				Type: "bridge", Bridge: "cni0", IsDefaultGateway: true, ForceAddress: true,
				IPMasq:      false, // masquerade does it once for all pods
				HairpinMode: true,  // a pod may be its own Service's endpoint
				MTU:         mtu,
				IPAM: ipamConf{
					Type:    "host-local",
					Ranges:  [][]ipamRange{{{pods}}},
					DataDir: "/run/cni/host-local",
				},
			},
			portmapConf{
				Type: "portmap", Capabilities: map[string]bool{"portMappings": true},
				Backend: "nftables", // iptables is what it takes otherwise, and hosts need not have it
			},
		},
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("CNI configuration: %w", err)
	}
	return append(text, '\n'), nil
}

// writeConf replaces the file atomically: the runtime reads it as soon as it is
// there, and calls the node ready. One that is right already is not touched.
func writeConf(path string, pods netip.Prefix, mtu int) (err error) {
	want, err := conf(pods, mtu)
	if err != nil {
		return err
	}
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, want) {
		return nil
	}
	// The runtime takes any *.conf, *.conflist and *.json for a configuration.
	temp, err := os.CreateTemp(filepath.Dir(path), ".kubewright-*.tmp")
	if err != nil {
		return fmt.Errorf("write CNI configuration: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temp.Name())
			err = fmt.Errorf("write CNI configuration %s: %w", path, err)
		}
	}()
	_, err = temp.Write(want)
	if err == nil {
		err = temp.Chmod(0o644)
	}
	if err == nil {
		err = temp.Sync()
	}
	if closed := temp.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	return err
}
