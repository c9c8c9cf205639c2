package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/kubewright/kubewright/bootstrap/certs"
	"github.com/kubewright/kubewright/bootstrap/etcd"
	"github.com/kubewright/kubewright/bootstrap/finding"
	"github.com/kubewright/kubewright/bootstrap/redact"
)

// seat is a control-plane host with what its etcd says.
type seat struct {
	patient
	off     bool          // its etcd is fenced, or no member answers
	members []etcd.Member // as a quorum has them; nil: they are not to be had there
	view    *etcd.View    // of its own member; nil: it does not answer
}

func checkEtcd(ctx context.Context, e *examination, p patient) (finding.Report, error) {
	if !p.controlPlane() {
		return nil, nil
	}
	s := &seat{patient: p}
	e.mu.Lock()
	e.seats = append(e.seats, s)
	e.mu.Unlock()
	reason, err := etcd.Fenced(ctx, p)
	if err != nil {
		return nil, err
	}
	if s.off = reason != ""; s.off {
		return finding.Report{{Code: finding.EtcdFenced, Severity: finding.Error, Message: "etcd is fenced and does not start: " + redact.Text(reason)}}, nil
	}
	client := etcd.NewClient(p, path.Join(certs.Dir, "etcd"))
	defer client.Close() //nolint:errcheck // only read through
	members, err := client.Members(ctx)
	switch {
	case errors.Is(err, etcd.ErrNoQuorum):
		return finding.Report{{Code: finding.EtcdNoLeader, Severity: finding.Error, Message: "etcd has no quorum: " + redact.Text(err.Error()),
			Remedy: "start etcd on the control-plane hosts that lack it: systemctl start etcd; if more than half of them are gone for ever: kubewright recover --from HOST"}}, nil
	case errors.Is(err, etcd.ErrUnreachable):
		s.off = true
		return finding.Report{{Code: finding.EtcdUnreachable, Severity: finding.Error,
			Message: "etcd does not answer: " + redact.Text(err.Error())}}, nil
	case err != nil:
		return nil, err
	}
	s.members = members
	return nil, nil
}

// membership tells of etcd's members, once, and of hosts that have none of them: those of the control plane of before a restore or
// a recovery, turned on again. Which members are the cluster's is said by the API, or nobody is accused.
func (e *examination) membership(ctx context.Context) (finding.Report, error) {
	slices.SortFunc(e.seats, func(a, b *seat) int { return strings.Compare(a.Name(), b.Name()) })
	var report finding.Report
	ours := e.seats
	if e.kube != nil && len(e.seats) > 1 {
		var others []*seat
		var err error
		if ours, others, err = e.apart(ctx); err != nil {
			return nil, err
		}
		for _, s := range others {
			report = append(report, finding.Finding{Code: finding.EtcdOtherCluster, Severity: finding.Error, Host: s.Name(),
				Message: fmt.Sprintf("its etcd, member %s of cluster %s, is not of the cluster that the API belongs to", s.view.ID, s.view.Cluster)})
			e.forgetEtcd(s.Name())
		}
	}
	i := slices.IndexFunc(ours, func(s *seat) bool { return len(s.members) > 0 })
	if i < 0 {
		return report, nil
	}
	report = append(report, checkTally(etcd.Membership(ours[i].members).Tally())...)
	for _, m := range ours[i].members {
		report = append(report, checkMember(m)...)
	}
	for j := range report {
		if report[j].Host == "" {
			report[j].Host = ours[i].Name()
		}
	}
	return report, nil
}

// apart looks which hosts' members are those of the API's cluster, its own first, and which certainly are not.
func (e *examination) apart(ctx context.Context) (ours, others []*seat, err error) {
	var all sync.WaitGroup
	for _, s := range e.seats {
		if s.off || s.claim.ClusterID != e.record.ID {
			continue
		}
		all.Go(func() {
			if v, err := e.self().Look(ctx, s); err == nil {
				s.view = &v
			}
		})
	}
	all.Wait()
	own := e.serving()
	if own == nil {
		return e.seats, nil, nil
	}
	// Asked once more: it has to know of whoever has joined until the others were asked.
	now, err := e.self().Look(ctx, own)
	if err != nil {
		return nil, nil, fmt.Errorf("etcd of %s: %w", own.Name(), err)
	}
	ours = []*seat{own}
	for _, s := range e.seats {
		switch {
		case s == own:
		case s.view != nil && (s.view.Cluster != now.Cluster || !slices.Contains(now.Members, s.view.ID)):
			others = append(others, s)
		default:
			ours = append(ours, s)
		}
	}
	return ours, others, nil
}

// serving is a host whose member of etcd has what the API shows: the one at the API's own address; behind a virtual IP or a name, one
// of those whose nodes report to it, if these agree. nil: none is certain to.
func (e *examination) serving() *seat {
	seen := slices.DeleteFunc(slices.Clone(e.seats), func(s *seat) bool { return s.view == nil })
	if u, err := url.Parse(e.Server); err == nil {
		if at, err := netip.ParseAddr(u.Hostname()); err == nil {
			if i := slices.IndexFunc(seen, func(s *seat) bool { return s.claim.Address == at }); i >= 0 {
				return seen[i]
			}
		}
	}
	var own *seat
	for _, s := range seen {
		n := e.node(s.claim)
		if n == nil || !ready(*n) {
			continue
		}
		if _, controlPlane := n.Labels[controlPlaneLabel]; !controlPlane {
			continue
		}
		if own == nil {
			own = s
		}
		if s.view.Cluster != own.view.Cluster || !slices.Contains(own.view.Members, s.view.ID) {
			return nil
		}
	}
	return own
}

// forgetEtcd takes back what was told of a host's etcd: another cluster's quorum is nobody's to mend.
func (e *examination) forgetEtcd(host string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.report = slices.DeleteFunc(e.report, func(f finding.Finding) bool {
		return f.Host == host && slices.Contains([]finding.Code{finding.EtcdNoLeader, finding.EtcdUnreachable}, f.Code)
	})
}

// fillingQuota is the part of its quota, in percent, from which etcd's database is told.
const fillingQuota = 80

// checkTally notes that the last member makes the cluster no safer.
func checkTally(t etcd.Tally) finding.Report {
	if t.Voters == 0 || t.Voters%2 == 1 {
		return nil
	}
	return finding.Report{{Code: finding.ControlPlanesEven, Severity: finding.Note, Object: strconv.Itoa(t.Voters),
		Message: fmt.Sprintf("etcd has %d members with a vote, and needs %d: it survives the loss of %d, no more than with %d", t.Voters, t.Quorum(), t.Voters-t.Quorum(), t.Voters-1),
		Remedy:  "make it an odd number: kubewright join --control-plane HOST"}}
}

// checkMember says what is wrong with a member of etcd.
func checkMember(m etcd.Member) finding.Report {
	var report finding.Report
	add := func(code finding.Code, severity finding.Severity, format string, args ...any) {
		report = append(report, finding.Finding{Code: code, Severity: severity, Object: m.Title(), Message: fmt.Sprintf(format, args...)})
	}
	if m.Quota > 0 && m.DBSize*100 > m.Quota*fillingQuota {
		add(finding.EtcdFilling, finding.Warning, "the database of etcd member %s has %d MB of %d MB", m.Title(), m.DBSize>>20, m.Quota>>20)
	}
	switch {
	case m.Healthy:
	case m.Full:
		add(finding.EtcdNoSpace, finding.Error, "etcd member %s: %s", m.Title(), m.Trouble)
	case slices.Contains(m.Alarms, etcd.Corrupt):
		add(finding.EtcdDamaged, finding.Error, "etcd member %s: %s", m.Title(), m.Trouble)
	case m.Learner && !m.Started():
		report = append(report, finding.Finding{Code: finding.EtcdMemberDown, Severity: finding.Warning, Object: m.Title(),
			Message: fmt.Sprintf("etcd has let %s in, which has not started: nobody else can join meanwhile", m.Title()),
			Cause:   "a join --control-plane that goes on, or was broken off",
			Remedy:  "run the same join again; or, if it is given up: kubewright etcd forget " + m.ID})
	case m.Learner:
		add(finding.EtcdMemberDown, finding.Warning, "etcd member %s, which has no vote yet, is not healthy: %s", m.Title(), redact.Text(m.Trouble))
	default:
		add(finding.EtcdMemberDown, finding.Error, "etcd member %s is not healthy: %s", m.Title(), redact.Text(m.Trouble))
	}
	return report
}
