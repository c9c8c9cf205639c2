package component

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"log/slog"
	"testing"

	"github.com/kubewright/kubewright/bootstrap/version"
)

// example fails if it is told to.
type example struct{ fails string }

func (e *example) Declare(flags *flag.FlagSet) {
	flags.StringVar(&e.fails, "fails", "", "how it fails")
}

func (e *example) Check() error {
	if e.fails == "check" {
		return errors.New("--fails is wrong")
	}
	return nil
}

func (e *example) Run(ctx context.Context, log *slog.Logger) error {
	log.Info("runs")
	if e.fails == "run" {
		return errors.New("it ran out")
	}
	<-ctx.Done()
	return nil
}

func TestCommand(t *testing.T) {
	stopped, stop := context.WithCancel(t.Context())
	stop()
	for _, test := range []struct {
		args   []string
		status int
		out    string
		errs   string // what standard error has
	}{
		{nil, 0, "", "msg=runs"},
		{[]string{"--fails=run"}, 1, "", "example: it ran out\n"},
		{[]string{"--fails=check"}, 2, "", "example: --fails is wrong\n"},
		{[]string{"--fails=check", "more"}, 2, "", "example: unexpected argument \"more\"\n--fails is wrong\n"},
		{[]string{"--nothing"}, 2, "", "-nothing"},
		{[]string{"--help"}, 0, "", "how it fails"},
		{[]string{"--version"}, 0, "example " + version.Kubewright + "\n", ""},
	} {
		var out, errs bytes.Buffer
		status := Component{Name: "example", Options: &example{}}.Command(stopped, test.args, &out, &errs)
		if status != test.status || out.String() != test.out || !bytes.Contains(errs.Bytes(), []byte(test.errs)) {
			t.Errorf("%v: status %d, %q, %q", test.args, status, &out, &errs)
		}
	}
}
