package etcd

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/host/hosttest"
)

// view is a Self that sees itself so, or does not answer.
type view struct {
	View
	err error
}

func (v view) Look(context.Context, host.Reader) (View, error) { return v.View, v.err }

// A recovery that goes on finds the copy that an earlier run has begun or made, whether or not etcd runs.
func TestCopyFor(t *testing.T) {
	three, alone := view{View: View{Members: []string{"1", "2", "3"}, Applied: 7}}, view{View: View{Members: []string{"1"}, Leader: "1"}}
	silent := view{err: errors.New("it does not run")}
	for name, c := range map[string]struct {
		self Self
		dirs []string // of copies
		want string   // how it begins
	}{
		"nothing is copied":            {self: three, want: "7"},
		"nothing is copied, silent":    {self: silent, want: "2"}, // a date
		"begun":                        {self: silent, dirs: []string{"7.partial"}, want: "7"},
		"begun, and etcd runs again":   {self: three, dirs: []string{"5.partial"}, want: "5"},
		"begun, after an earlier one":  {self: silent, dirs: []string{"3", "7.partial"}, want: "7"},
		"made":                         {self: silent, dirs: []string{"7"}, want: "7"},
		"made long ago, now once more": {self: three, dirs: []string{"3"}, want: "7"},
		"recovered":                    {self: alone, dirs: []string{"3", "7"}, want: "7"},
		"never was more than one":      {self: alone},
	} {
		t.Run(name, func(t *testing.T) {
			s := hosttest.NewSim(t, "cp1")
			for _, d := range c.dirs {
				s.Advance(1e9)
				s.PutDir(copyPrefix+d, 0o700)
			}
			got, err := CopyFor(t.Context(), s, c.self)
			if err != nil {
				t.Fatal(err)
			}
			if rest, ok := strings.CutPrefix(got, copyPrefix); c.want == "" && got != "" || c.want != "" && (!ok || !strings.HasPrefix(rest, c.want)) {
				t.Errorf("%q, want %s", got, c.want)
			}
		})
	}
}
