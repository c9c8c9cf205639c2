package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/kubewright/kubewright/bootstrap"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/plan"
	"github.com/kubewright/kubewright/bootstrap/spec"
	"github.com/kubewright/kubewright/bootstrap/version"
	"github.com/kubewright/kubewright/cmd/kubewright/report"
	"github.com/kubewright/kubewright/cmd/kubewright/ui"
)

// reported gives a command that runs something the flag that asks for a page about it.
func (a *app) reported(c *cobra.Command) *cobra.Command {
	c.Flags().StringVar(&a.reportPath, "report", "", "write an HTML page about the run to this file: what took the time, what was changed, is it fine")
	return c
}

// page is the page that --report asks for. A nil page, of a run without the flag,
// keeps and writes nothing.
type page struct {
	path string
	rec  *report.Recorder
}

// newPage begins the page of a run and writes a first version of it: a path that cannot
// be written to is told before anything is changed, and a run that is killed leaves a
// page that says so, not that of an earlier run.
func (a *app) newPage(verb string, began time.Time) (*page, error) {
	if a.reportPath == "" {
		return nil, nil
	}
	p := &page{path: a.reportPath, rec: report.New(verb, began)}
	if err := p.write(); err != nil {
		return nil, fault.New(fault.Usage, "name a file in a folder that you may write to", "--report: %w", err)
	}
	return p, nil
}

// over returns a renderer that shows what show does, and tells the page too.
func (p *page) over(show ui.Renderer) ui.Renderer {
	if p == nil {
		return show
	}
	return recording{show, p.rec}
}

// recording is a renderer with a recorder that hears the same.
type recording struct {
	ui.Renderer
	rec *report.Recorder
}

func (r recording) Event(e plan.Event) {
	r.rec.Event(e)
	r.Renderer.Event(e)
}

func (r recording) Notice(text string) {
	r.rec.Notice(time.Now(), text)
	r.Renderer.Notice(text)
}

// describe tells the page what the run is about, as far as it is known.
func (p *page) describe(w *work) {
	if p == nil {
		return
	}
	c := w.Spec
	if w.live != nil && c == nil {
		c = w.live.Spec
	}
	run := report.Run{Verb: string(w.Verb), By: signature(), Kubewright: version.Kubewright, Findings: w.findings}
	if b := w.bundle; b != nil {
		run.Bundle = report.Bundle{Name: b.Name(), Digest: b.Digest()}
		for _, c := range b.Components() {
			run.Bundle.Components = append(run.Bundle.Components, report.Component{Name: c.Name, Version: c.Version})
		}
	}
	for _, t := range w.all() {
		run.Hosts = append(run.Hosts, reportHost(t, w.all()))
	}
	if c != nil {
		run.Cluster = c.Name
		for i := range run.Hosts {
			run.Hosts[i].Pods = podsOf(run.Hosts[i], c.Network.PodCIDR)
		}
		run.Network = report.Network{Backend: string(c.Network.Backend), Pods: c.Network.PodCIDR, Services: c.Network.ServiceCIDR, DNSDomain: c.Network.DNSDomain}
		if i := slices.IndexFunc(run.Hosts, func(h report.Host) bool { return h.Role == string(spec.ControlPlaneRole) }); i >= 0 && run.Hosts[i].Address.IsValid() {
			run.Server = bootstrap.PeopleURL(c, run.Hosts[i].Address)
		}
	}
	p.rec.Describe(run)
}

// reportHost is a target for people. Its address is the one that was wished, or that SSH
// reached if no other host has the same.
func reportHost(t bootstrap.Target, all []bootstrap.Target) report.Host {
	f := t.Facts
	h := report.Host{Name: t.Wish.Name, Node: t.Wish.Node, Role: string(t.Wish.Role), Address: t.Wish.Address,
		OS: f.OS, Kernel: f.Kernel, Arch: f.Arch, CPUs: f.CPUs, Memory: f.MemoryBytes}
	if t.Claim != nil {
		h.Node, h.Role = t.Claim.Node, t.Claim.Role
	}
	same := 0
	for _, o := range all {
		if o.Reached == t.Reached {
			same++
		}
	}
	if !h.Address.IsValid() && same == 1 {
		h.Address = t.Reached
	}
	for _, i := range f.Interfaces {
		shown := report.Interface{Name: i.Name}
		for _, a := range i.Addrs {
			if a.Addr().Is4() && !a.Addr().IsLoopback() {
				shown.Addrs = append(shown.Addrs, a)
			}
		}
		if len(shown.Addrs) > 0 {
			h.Interfaces = append(h.Interfaces, shown)
		}
	}
	return h
}

// podsOf is the share of the pods' range that a host's bridge has already: invalid on
// a host that runs no pods yet.
func podsOf(h report.Host, pods netip.Prefix) netip.Prefix {
	for _, i := range h.Interfaces {
		for _, a := range i.Addrs {
			if pods.Contains(a.Addr()) && !a.IsSingleIP() {
				return a.Masked()
			}
		}
	}
	return netip.Prefix{}
}

// plan tells the page what is going to be done.
func (p *page) plan(lanes []plan.Lane) {
	if p != nil {
		p.rec.Plan(lanes...)
	}
}

// end writes the page of a run that ended with err, and returns err, with its own
// if the page could not be written.
func (p *page) end(err error) error {
	if p == nil {
		return err
	}
	p.rec.End(time.Now(), err)
	if wrong := p.write(); wrong != nil {
		return errors.Join(err, fault.New(fault.StepFailed, "make room for it, or name another file; what the run did on the hosts stands", "--report: %w", wrong))
	}
	return err
}

// write puts the page in the place of an older one at once, whole or not at all. Nobody
// else may read it: it holds no secret, but it is a map of the machines.
func (p *page) write() (err error) {
	file, err := os.CreateTemp(filepath.Dir(p.path), ".report-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(file.Name()) //nolint:errcheck // it has another name by then, or err tells
	if err := errors.Join(p.rec.Render(file), file.Sync(), file.Close()); err != nil {
		return fmt.Errorf("write %s: %w", p.path, err)
	}
	return os.Rename(file.Name(), p.path)
}
