package kept

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kubewright/kubewright/bootstrap/backup"
	"github.com/kubewright/kubewright/bootstrap/backup/scheduled"
	"github.com/kubewright/kubewright/bootstrap/claim"
	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
	"github.com/kubewright/kubewright/bootstrap/spec"
)

func day(n int) time.Time { return time.Date(2026, time.March, n, 0, 0, 5, 0, time.UTC) }

// keeper is a control-plane host that makes backups by day in dir, "": it makes none.
func keeper(t *testing.T, name, dir string, made ...time.Time) *hosttest.Sim {
	t.Helper()
	s := hosttest.NewSim(t, name)
	s.Put(claim.File, `{"clusterID":"id","cluster":"prod","role":"control-plane","node":"`+name+`"}`, 0o600)
	if dir != "" {
		if err := scheduled.Schedule(scheduled.Inputs{Calendar: "daily", Keep: 9, Recipients: []string{"age1x"}, Dir: dir}).Apply(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	} else {
		dir = spec.DefaultBackupDir
	}
	for _, m := range made {
		s.Put(dir+"/"+backup.FileName("prod", m), "sealed "+m.String(), 0o600)
	}
	return s
}

// looked is what hosts keep.
func looked(t *testing.T, hosts ...*hosttest.Sim) []*Shelf {
	t.Helper()
	var all []*Shelf
	for _, h := range hosts {
		s, err := Look(t.Context(), h, "")
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	return all
}

func TestLook(t *testing.T) {
	s := keeper(t, "cp1", "/srv/my backups", day(3), day(2))
	s.Put("/srv/my backups/.partial-123", "half", 0o600)
	s.Put("/srv/my backups/notes", "no backup", 0o600)
	s.Put("/srv/my backups/"+backup.FileName("another", day(9)), "another", 0o600)
	s.PutLink("/etc/shadow", "/srv/my backups/"+backup.FileName("prod", day(8)))
	got := looked(t, s)[0]
	if got.Schedule != "daily" || got.Dir != "/srv/my backups" || got.Cluster != "prod" || got.Node != "cp1" || got.Since.IsZero() {
		t.Errorf("%+v", got)
	}
	var files string
	for _, f := range got.Files {
		files += fmt.Sprintln(f.Cluster, f.Made.Day(), f.Size)
	}
	if want := fmt.Sprintln("prod", 2, 36) + fmt.Sprintln("prod", 3, 36) + fmt.Sprintln("another", 9, 7); files != want {
		t.Errorf("%s\nwant\n%s", files, want)
	}
	if other, err := Look(t.Context(), s, "/elsewhere"); err != nil || other.Dir != "/elsewhere" || len(other.Files) != 0 {
		t.Errorf("a folder that is not there: %+v, %v", other, err)
	}
	none := looked(t, keeper(t, "cp2", "", day(1)))[0]
	if none.Schedule != "" || none.Dir != spec.DefaultBackupDir || len(none.Files) != 1 {
		t.Errorf("without a timer: %+v", none)
	}
	all := []*Shelf{none, got}
	if on, newest := Newest(all); on != got || newest.Made != day(3) {
		t.Errorf("the newest is %+v", newest)
	}
}

// answering has a host's systemd say when daily comes round after a moment.
func answering(s *hosttest.Sim, after time.Time, n int, zone string) {
	next := after.UTC().Truncate(24 * time.Hour)
	out := "  Original form: daily\nNormalized form: *-*-* 00:00:00\n"
	for i := range n {
		label := "    Next elapse"
		if i > 0 {
			label = fmt.Sprintf("       Iter. #%d", i+1)
		}
		next = next.Add(24 * time.Hour)
		if zone != "UTC" {
			out += label + ": " + next.Add(time.Hour).Format("Mon 2006-01-02 15:04:05 ") + zone + "\n"
			label = "       (in UTC)"
		}
		out += label + ": " + next.Format("Mon 2006-01-02 15:04:05 UTC") + "\n       From now: 3 days ago\n"
	}
	s.Script(hosttest.Answer{Argv: []string{"systemd-analyze", "calendar", "--iterations=" + strconv.Itoa(n),
		"--base-time=@" + strconv.FormatInt(after.Unix(), 10), "--", "daily"}, Stdout: out})
}

func TestOverdue(t *testing.T) {
	midnight := func(n int) time.Time { return day(n).Truncate(24 * time.Hour) }
	for what, c := range map[string]struct {
		made   map[string][]time.Time // by host
		now    time.Time
		missed int
		want   time.Time
	}{
		"young":                {map[string][]time.Time{"cp1": {day(1), day(2)}}, day(3), 1, time.Time{}},
		"being made":           {map[string][]time.Time{"cp1": {day(1), day(2)}}, midnight(3).Add(5 * time.Minute), 1, time.Time{}},
		"one is missed":        {map[string][]time.Time{"cp1": {day(1), day(2)}}, midnight(3).Add(time.Hour), 1, midnight(3)},
		"one, which may be":    {map[string][]time.Time{"cp1": {day(1), day(2)}}, midnight(3).Add(time.Hour), 2, time.Time{}},
		"two are missed":       {map[string][]time.Time{"cp1": {day(1), day(2)}}, midnight(4).Add(time.Hour), 2, midnight(4)},
		"another host made it": {map[string][]time.Time{"cp1": {day(1), day(2)}, "cp2": {day(3)}}, midnight(4).Add(time.Hour), 2, time.Time{}},
	} {
		for _, zone := range []string{"UTC", "CET"} {
			var hosts []*hosttest.Sim
			newest := time.Time{}
			for name, made := range c.made {
				hosts = append(hosts, keeper(t, name, "/b", made...))
				if last := made[len(made)-1]; last.After(newest) {
					newest = last
				}
			}
			for _, h := range hosts {
				answering(h, newest, c.missed, zone)
			}
			if got, err := Overdue(t.Context(), looked(t, hosts...), c.missed, c.now); err != nil || !got.Equal(c.want) {
				t.Errorf("%s: %v, %v; want %v", what, got, err, c.want)
			}
		}
	}
}

// Without a backup it counts from when the schedule was written; without a schedule, never.
func TestOverdueFromTheStart(t *testing.T) {
	s := keeper(t, "cp1", "/b")
	shelves := looked(t, s)
	since := shelves[0].Since
	answering(s, since, 2, "UTC")
	for after, late := range map[time.Duration]bool{23 * time.Hour: false, 49 * time.Hour: true} {
		if got, err := Overdue(t.Context(), shelves, 2, since.Add(after)); err != nil || got.IsZero() == late {
			t.Errorf("%s after it was written: %v, %v", after, got, err)
		}
	}
	if got, err := Overdue(t.Context(), looked(t, keeper(t, "cp1", "")), 2, since.Add(1e6*time.Hour)); err != nil || !got.IsZero() {
		t.Errorf("without a schedule: %v, %v", got, err)
	}
}

// source is a simulated host that gives files away; changed gives others.
type source struct {
	*hosttest.Sim
	changed bool
}

func (s source) CopyFile(ctx context.Context, name string, w io.Writer) error {
	content, err := s.ReadFile(ctx, name)
	if err != nil {
		return err
	}
	if s.changed {
		content = content[:len(content)-1]
	}
	_, err = w.Write(content)
	return err
}

func TestFetch(t *testing.T) {
	s := keeper(t, "cp1", "/b", day(1))
	f := looked(t, s)[0].Files[0]
	content := "sealed " + day(1).String()
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte(content)))
	s.Script(hosttest.Answer{Argv: []string{"sha256sum", "--", "/b/" + f.Name}, Stdout: sum + "  /b/" + f.Name + "\n"})
	var got bytes.Buffer
	if digest, err := Fetch(t.Context(), source{Sim: s}, "/b", f, &got); err != nil || digest != sum || got.String() != content {
		t.Errorf("%q, %s, %v", got.String(), digest, err)
	}
	if _, err := Fetch(t.Context(), source{s, true}, "/b", f, io.Discard); fault.CodeOf(err) != fault.BackupRefused || !strings.Contains(err.Error(), sum) {
		t.Errorf("cut short: %v", err)
	}
	f.Name = "absent"
	if _, err := Fetch(t.Context(), source{Sim: s}, "/b", f, io.Discard); err == nil {
		t.Error("what is not there was fetched")
	}
}
