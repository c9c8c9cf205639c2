package etcd

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/fault"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
)

// text is a snapshot.
type text string

func (s text) WriteSnapshot(_ context.Context, w io.Writer) error {
	_, err := io.WriteString(w, string(s))
	return err
}

// lost is one that ends in the middle.
type lost struct{ err error }

func (l lost) WriteSnapshot(_ context.Context, w io.Writer) error {
	io.WriteString(w, "half") //nolint:errcheck // the reader may be gone
	return l.err
}

// restoring is a host with etcd's tool: it makes data of a snapshot.
func restoring(t *testing.T) (s *hosttest.Sim, argv *[]string) {
	t.Helper()
	s, argv = hosttest.NewSim(t, "cp1"), new([]string)
	s.Otherwise(func(line []string) (hosttest.Answer, bool) {
		switch line[0] {
		case "/opt/kubewright/current/bin/etcdutl":
			return hosttest.Answer{Do: func([]byte) ([]byte, error) {
				*argv = line
				content, ok := s.Get(snapshotFile)
				if !ok {
					return nil, errors.New("there is no snapshot")
				}
				s.Put(restoredData+"/member/snap/db", "made of "+content, 0o600)
				return nil, nil
			}, Half: func() { s.Put(restoredData+"/member/snap/db", "half", 0o600) }}, true
		case "mv":
			return hosttest.Answer{Do: func([]byte) ([]byte, error) {
				for _, name := range []string{"/snap/db", "/" + originName} {
					content, _ := s.Get(restoredData + "/member" + name)
					s.Put(memberDir+name, content, 0o600)
				}
				s.Drop(restoredData + "/member")
				return nil, nil
			}}, true
		}
		return hosttest.Answer{}, false
	})
	return s, argv
}

func restoreOf(from Source) Restore {
	return Restore{Member: Inputs{NodeName: "cp1", Address: netip.MustParseAddr("192.0.2.1")}, From: from, Origin: "abc", Detail: "from a backup"}
}

// restored fails the test unless the host has the data, and nothing else of the restore.
func restored(t *testing.T, s *hosttest.Sim) {
	t.Helper()
	if diff, err := restoreOf(text("data")).Check(t.Context(), s); err != nil || len(diff) > 0 {
		t.Errorf("%v, %v", diff, err)
	}
	if db, _ := s.Get(memberDir + "/snap/db"); db != "made of data" {
		t.Errorf("the data are %q", db)
	}
	if left := s.List(DataDir); !slices.Equal(left, []string{"member"}) {
		t.Errorf("in the folder: %v", left)
	}
}

func TestRestore(t *testing.T) {
	s, argv := restoring(t)
	if err := restoreOf(text("data")).Apply(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	restored(t, s)
	line := strings.Join(*argv, " ")
	for _, want := range []string{"--name cp1 --initial-cluster cp1=https://192.0.2.1:2380 --initial-advertise-peer-urls https://192.0.2.1:2380",
		"--bump-revision 1000000000 --mark-compacted"} {
		if !strings.Contains(line, want) {
			t.Errorf("%s\nlacks %s", line, want)
		}
	}
	if origin, err := Origin(t.Context(), s); err != nil || origin != "abc" {
		t.Errorf("%q, %v", origin, err)
	}
	other := restoreOf(text("data"))
	other.Origin = "another"
	if _, err := other.Check(t.Context(), s); fault.CodeOf(err) != fault.HostTaken {
		t.Errorf("another backup: %v", err)
	}
}

// Data that come from nowhere that is known are never replaced.
func TestRestoreRefuses(t *testing.T) {
	s, _ := restoring(t)
	s.Put(memberDir+"/snap/db", "a living cluster's", 0o600)
	if err := restoreOf(text("data")).Apply(t.Context(), s); fault.CodeOf(err) != fault.HostTaken {
		t.Errorf("%v", err)
	}
	if db, _ := s.Get(memberDir + "/snap/db"); db != "a living cluster's" {
		t.Errorf("the data are %q", db)
	}
}

// A snapshot that does not come whole makes no data, and is not left behind.
func TestRestoreOfHalfASnapshot(t *testing.T) {
	s, _ := restoring(t)
	broken := errors.New("it is altered")
	if err := restoreOf(lost{broken}).Apply(t.Context(), s); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	if left := s.List(DataDir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// Broken off anywhere, it is finished by the next run.
func TestRestoreBrokenOff(t *testing.T) {
	for _, m := range []hosttest.Moment{hosttest.Before, hosttest.In, hosttest.After} {
		for n := 1; ; n++ {
			s, _ := restoring(t)
			s.KillAt(n, m)
			err := restoreOf(text("data")).Apply(t.Context(), s)
			if !s.Gone() {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
			s.Restore()
			if diff, err := restoreOf(text("data")).Check(t.Context(), s); err != nil {
				t.Fatal(err)
			} else if len(diff) > 0 {
				if err := restoreOf(text("data")).Apply(t.Context(), s); err != nil {
					t.Errorf("killed %s operation %d: %v", m, n, err)
				}
			}
			restored(t, s)
		}
	}
}
