package report

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Measures of the picture of hosts.
const (
	trunk      = 20 // left of the cards: the line that joins the rows
	cardGap    = 14
	cardLine   = 17
	cardTop    = 26
	busHeight  = 34 // above a row: the hosts' network
	podsHeight = 34 // below a row: the pods'
)

// topology is the hosts as a picture: cards on the network that joins them.
type topology struct {
	layout
	Height       float64
	HostNet, Pod string
	Trunk        float64 // x of the line that joins the rows
	TrunkEnd     float64 // y
	Rows         []cardRow
}

type cardRow struct {
	Bus, PodNet float64 // y of the two networks
	End         float64 // x at which they end
	Cards       []card
}

// card is a host.
type card struct {
	X, Y, W, H   float64
	Name, Role   string
	ControlPlane bool
	Lines        []cardText
	Middle       float64 // x
	Bottom       float64
}

func (c card) TextX() float64 { return c.X + 12 }
func (c card) RoleX() float64 { return c.X + c.W - 12 }
func (c card) NameY() float64 { return c.Y + 22 }

// Foot is where the text below the last row stands.
func (t topology) Foot() float64 { return t.Height - 6 }

type cardText struct {
	Y    float64
	Text string
	Main bool
}

func drawHosts(l layout, run Run) topology {
	t := topology{layout: l, Trunk: 3, HostNet: hostNetworks(run.Hosts)}
	if run.Network.Pods.IsValid() {
		t.Pod = "pods " + run.Network.Pods.String()
		if run.Network.Backend != "" {
			t.Pod += ", " + run.Network.Backend
		}
	}
	w := (l.width - trunk - cardGap*float64(l.cards-1) - 2) / float64(l.cards)
	y := 0.0
	for hosts := range slices.Chunk(run.Hosts, l.cards) {
		row := cardRow{Bus: y + busHeight - 14}
		texts := make([][]cardText, len(hosts))
		most := 0
		for i, h := range hosts {
			texts[i] = lines(h, int(w/charWidth)-2)
			most = max(most, len(texts[i]))
		}
		top := y + busHeight
		height := cardTop + cardLine*float64(most) + 10
		for i, h := range hosts {
			c := card{X: round(trunk + float64(i)*(w+cardGap)), Y: top, W: round(w), H: height, Lines: texts[i],
				Name: fit(h.Name, 18), Role: h.Role, ControlPlane: h.Role == "control-plane"}
			for j := range c.Lines {
				c.Lines[j].Y = top + cardTop + cardLine*float64(j+1)
			}
			c.Middle, c.Bottom = round(c.X+c.W/2), top+height
			row.Cards, row.End = append(row.Cards, c), c.Middle
		}
		y = top + height
		t.TrunkEnd = row.Bus
		if t.Pod != "" {
			row.PodNet = y + 12
			y += podsHeight
		}
		t.Rows = append(t.Rows, row)
	}
	t.Height = y + 4
	return t
}

// lines are what a card says of its host.
func lines(h Host, chars int) []cardText {
	var all []cardText
	say := func(main bool, parts ...string) {
		parts = slices.DeleteFunc(parts, func(p string) bool { return p == "" })
		if len(parts) > 0 {
			all = append(all, cardText{Text: fit(strings.Join(parts, " · "), chars), Main: main})
		}
	}
	address := ""
	if h.Address.IsValid() {
		address = h.Address.String()
	}
	say(true, address, h.interfaceOf())
	if h.Pods.IsValid() {
		say(true, "pods "+h.Pods.String())
	}
	others := h.others()
	for _, o := range others[:min(2, len(others))] {
		say(false, o)
	}
	if more := len(others) - 2; more > 0 {
		say(false, fmt.Sprintf("and %d more", more))
	}
	if h.Node != "" && h.Node != h.Name {
		say(false, "node "+h.Node)
	}
	say(false, h.OS)
	cpus, memory := "", ""
	if h.CPUs > 0 {
		cpus = number(h.CPUs, "CPU", "CPUs")
	}
	if h.Memory > 0 {
		memory = gigabytes(h.Memory)
	}
	say(false, h.Arch, cpus, memory)
	return all
}

// interfaceOf is the interface that has the node's address.
func (h Host) interfaceOf() string {
	for _, i := range h.Interfaces {
		for _, a := range i.Addrs {
			if a.Addr() == h.Address {
				return i.Name
			}
		}
	}
	return ""
}

// others are the addresses that are not the node's, as "eth1 10.0.2.15/24".
func (h Host) others() []string {
	var all []string
	for _, i := range h.Interfaces {
		for _, a := range i.Addrs {
			if a.Addr() != h.Address {
				all = append(all, i.Name+" "+a.String())
			}
		}
	}
	return all
}

// hostNetworks are the networks that the nodes' addresses are in.
func hostNetworks(hosts []Host) string {
	var nets []string
	for _, h := range hosts {
		for _, i := range h.Interfaces {
			for _, a := range i.Addrs {
				if n := a.Masked().String(); a.Addr() == h.Address && !slices.Contains(nets, n) {
					nets = append(nets, n)
				}
			}
		}
	}
	if len(nets) > 2 {
		return strconv.Itoa(len(nets)) + " host networks"
	}
	return strings.Join(nets, ", ")
}
