// Package probe is what preflight and the throw-away program that it sends to
// hosts (cmd/probe) say to each other: JSON lines, an Order on the program's
// standard input, a Reply to each on its standard output, in order. The program
// ends when its standard input does, and leaves nothing behind then.
package probe

import (
	"net/netip"
	"time"
)

// Order is one thing to do: the field that is set.
type Order struct {
	Hello  *Hello  `json:"hello,omitempty"`
	Look   *Look   `json:"look,omitempty"`
	Listen *Listen `json:"listen,omitempty"`
	Reach  *Reach  `json:"reach,omitempty"`
	Tunnel *Tunnel `json:"tunnel,omitempty"`
	Carry  *Carry  `json:"carry,omitempty"`
}

// Reply answers an order: the field of the same name, or what went wrong.
type Reply struct {
	Error     string     `json:"error,omitempty"`
	Seen      *Seen      `json:"seen,omitempty"`
	Listening *Listening `json:"listening,omitempty"`
	Reached   []Reached  `json:"reached,omitempty"`
	Carried   []Carried  `json:"carried,omitempty"`
}

// Hello asks for an answer alone.
type Hello struct{}

// Look asks what the host is like.
type Look struct {
	Ports []Port   `json:"ports"` // that a node would listen on
	Paths []string `json:"paths"` // whose file systems' room is asked for; they need not exist
	// Disk is the folder whose file system is timed, "" for none; it need not exist.
	Disk string `json:"disk,omitempty"`
	// Unused is an address that nobody may have, invalid for none.
	Unused netip.Addr `json:"unused,omitzero"`
}

// Port is a port of the host, by protocol: "tcp" or "udp".
type Port struct {
	Protocol string `json:"protocol"`
	Number   int    `json:"number"`
}

// Seen is what the host is like.
type Seen struct {
	Missing   []Missing  `json:"missing,omitempty"`
	Uses      []Use      `json:"uses,omitempty"`
	Rooms     []Room     `json:"rooms,omitempty"`
	Disk      *Disk      `json:"disk,omitempty"`
	Firewalls []Firewall `json:"firewalls,omitempty"`
	Owner     *Owner     `json:"owner,omitempty"` // of Look.Unused, nil: nobody answers for it
}

// Missing is a feature of the kernel that was tried and did not work.
type Missing struct {
	Feature string `json:"feature"`
	Why     string `json:"why"`
}

// Use is a port that a process listens on.
type Use struct {
	Port
	PID     int    `json:"pid"`     // 0: the kernel's own, or a process of another namespace
	Process string `json:"process"` // its name, "" if PID is 0
	Program string `json:"program"` // path of its executable, "" if it cannot be told
}

// Room is what is free below a path.
type Room struct {
	Path   string `json:"path"`
	Device uint64 `json:"device"` // the same for paths that share the room
	Free   uint64 `json:"free"`   // bytes that root's services can use
}

// Disk is how long small writes take until they are on the disk.
type Disk struct {
	Dir    string        `json:"dir"`
	Writes int           `json:"writes"`
	P99    time.Duration `json:"p99"`
}

// Firewall is a chain that drops what no rule of it accepts.
type Firewall struct {
	Owner string `json:"owner"` // ufw, firewalld, or "" for rules of the admin's own
	Table string `json:"table"` // family and name
	Chain string `json:"chain"`
}

// Owner is who has an address that nobody may have.
type Owner struct {
	Interface string `json:"interface"`          // of the host that asked
	Hardware  string `json:"hardware,omitempty"` // address of the one that answered
	Self      bool   `json:"self,omitempty"`     // it is the host that asked
}

// Listen has the program listen on all addresses, until it ends.
type Listen struct {
	Token string `json:"token"` // what listeners answer with, so that nobody else is taken for them
	Host  int    `json:"host"`  // the host's own number
	TCP   []int  `json:"tcp"`
	UDP   int    `json:"udp"` // 0: none
}

// Listening tells what is not listened on, because somebody else does.
type Listening struct {
	Taken []Port `json:"taken,omitempty"`
}

// Reach has the program call others, all at once.
type Reach struct {
	Token   string        `json:"token"`
	To      []Peer        `json:"to"`
	Timeout time.Duration `json:"timeout"`
}

// Peer is an address at which another host may be reached.
type Peer struct {
	Host int        `json:"host"`
	Addr netip.Addr `json:"addr"`
	TCP  []int      `json:"tcp"`
	// Others are those of TCP where a program of the host's own listens: that it
	// accepts is enough.
	Others []int `json:"others,omitempty"`
	UDP    int   `json:"udp"` // 0: none
}

// Reached is how a Peer was reached.
type Reached struct {
	Host    int        `json:"host"`
	Addr    netip.Addr `json:"addr"`
	Called  int        `json:"called"` // TCP ports that were tried
	Blocked []Blocked  `json:"blocked,omitempty"`
	UDP     bool       `json:"udp"`
	// MTU is the largest packet that went there in one piece, in bytes with all
	// headers, and Whole the largest that the host's own interface takes. 0 if UDP is false.
	MTU   int `json:"mtu"`
	Whole int `json:"whole"`
}

// Blocked is a TCP port that could not be reached.
type Blocked struct {
	Port int    `json:"port"`
	Why  string `json:"why"`
	// Refused tells that the host itself said so: packets go both ways, and nobody listens.
	Refused bool `json:"refused,omitempty"`
}

// Tunnel has the program make a VXLAN device of its own, in a network namespace
// without a name, which ends with the program.
type Tunnel struct {
	Host  int        `json:"host"`
	Addr  netip.Addr `json:"addr"` // the host's own, on the interface that carries the frames
	VNI   int        `json:"vni"`
	Port  int        `json:"port"` // UDP
	Peers []Outer    `json:"peers"`
}

// Outer is where frames for a peer are sent to.
type Outer struct {
	Host int        `json:"host"`
	Addr netip.Addr `json:"addr"`
}

// Carry has the program call others through the tunnel, all at once.
type Carry struct {
	To      []int         `json:"to"` // hosts
	Timeout time.Duration `json:"timeout"`
}

// Carried is how a host was reached through the tunnel.
type Carried struct {
	Host   int  `json:"host"`
	Frames bool `json:"frames"` // small ones arrived
	TCP    bool `json:"tcp"`    // data went both ways in segments of full size
}
