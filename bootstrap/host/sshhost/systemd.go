package sshhost

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	sdbus "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
	"github.com/kubewright/kubewright/bootstrap/host"
	"github.com/kubewright/kubewright/bootstrap/redact"
	"golang.org/x/sync/errgroup"
)

const (
	busSocket = "/run/dbus/system_bus_socket"
	// busBridge connects its standard streams to the bus. It works under sudo, and
	// where sshd forwards no sockets.
	busBridge = "systemd-stdio-bridge"

	logLines   = "15"
	logTimeout = 5 * time.Second
)

// D-Bus errors by which systemd says that it knows no such unit.
const (
	noSuchUnit    = "org.freedesktop.systemd1.NoSuchUnit"
	unknownObject = "org.freedesktop.DBus.Error.UnknownObject"
	invalidArgs   = "org.freedesktop.DBus.Error.InvalidArgs" // a template, which is no unit by itself
)

// systemBus is a connection to systemd over the host's system bus.
type systemBus struct {
	*sdbus.Conn
	gone <-chan struct{} // closed when the bus has hung up
}

// systemBus returns the connection to systemd.
func (h *Host) systemBus(ctx context.Context) (*systemBus, error) {
	alive := func(b *systemBus) bool { return b.Connected() }
	return h.bus.get(ctx, alive, func() (*systemBus, error) {
		b, err := await(ctx, h.openBus)
		if err != nil {
			return nil, h.explain(fmt.Errorf("connect to systemd over D-Bus: %w", err))
		}
		return b, nil
	})
}

// openBus makes the two connections that go-systemd wants: one for calls, one for signals.
func (h *Host) openBus() (*systemBus, error) {
	ctx, hangUp := context.WithCancel(context.Background())
	conn, err := sdbus.NewConnection(func() (*dbus.Conn, error) {
		c, err := h.dialBus()
		if err != nil {
			return nil, err
		}
		context.AfterFunc(c.Context(), hangUp) // either will do: without one the other is of no use
		return c, nil
	})
	if err != nil {
		hangUp()
		return nil, err
	}
	return &systemBus{Conn: conn, gone: ctx.Done()}, nil
}

func (h *Host) dialBus() (*dbus.Conn, error) {
	var failures []error
	if len(h.sudo) == 0 {
		conn, err := h.client.Dial("unix", busSocket)
		if err == nil {
			c, err := greet(conn)
			if err == nil {
				return c, nil
			}
			failures = append(failures, fmt.Errorf("%s: %w", busSocket, err))
		} else {
			failures = append(failures, fmt.Errorf("%s: %w", busSocket, err))
		}
	}
	p, err := h.start(busBridge)
	if err == nil {
		var c *dbus.Conn
		if c, err = greet(p); err == nil {
			return c, nil
		}
	}
	return nil, errors.Join(append(failures, fmt.Errorf("%s: %w", busBridge, err))...)
}

// greet says who we are: root, as which the other end of the stream was opened.
func greet(stream interface {
	Read([]byte) (int, error)
	Write([]byte) (int, error)
	Close() error
}) (*dbus.Conn, error) {
	c, err := dbus.NewConn(stream)
	if err != nil {
		return nil, err
	}
	if err = c.Auth([]dbus.Auth{dbus.AuthExternal("0")}); err == nil {
		err = c.Hello()
	}
	if err != nil {
		c.Close() //nolint:errcheck // the first error tells more
		return nil, err
	}
	return c, nil
}

// isBusError tells whether err is a D-Bus error of one of the names.
func isBusError(err error, names ...string) bool {
	var e dbus.Error
	if !errors.As(err, &e) {
		return false
	}
	for _, name := range names {
		if e.Name == name {
			return true
		}
	}
	return false
}

// Units returns the state of units, all asked at once.
func (h *Host) Units(ctx context.Context, names ...string) ([]host.Unit, error) {
	if len(names) == 0 {
		return nil, nil
	}
	bus, err := h.systemBus(ctx)
	if err != nil {
		return nil, err
	}
	units := make([]host.Unit, len(names))
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(statsAtOnce)
	for i, name := range names {
		all.Go(func() error {
			properties, err := bus.GetAllPropertiesContext(ctx, name)
			if isBusError(err, noSuchUnit, unknownObject, invalidArgs) {
				units[i] = host.Unit{Name: name, Load: "not-found", Active: "inactive", Sub: "dead"}
				return nil
			}
			if err != nil {
				return h.explain(fmt.Errorf("state of %s: %w", name, err))
			}
			units[i], err = unit(name, properties)
			return err
		})
	}
	if err := all.Wait(); err != nil {
		return nil, err
	}
	return units, nil
}

// unit reads the properties of a unit.
func unit(name string, properties map[string]any) (host.Unit, error) {
	u := host.Unit{Name: name}
	var entered uint64 // microseconds since 1970
	var pid, restarts uint32
	err := errors.Join(
		property(properties, "LoadState", &u.Load),
		property(properties, "ActiveState", &u.Active),
		property(properties, "SubState", &u.Sub),
		property(properties, "UnitFileState", &u.File),
		property(properties, "FragmentPath", &u.Fragment),
		property(properties, "NeedDaemonReload", &u.Stale),
		property(properties, "ActiveEnterTimestamp", &entered),
	)
	if _, ok := properties["MainPID"]; ok { // services alone have one
		err = errors.Join(err, property(properties, "MainPID", &pid), property(properties, "NRestarts", &restarts),
			property(properties, "StatusText", &u.Status))
	}
	if err != nil {
		return u, fmt.Errorf("state of %s: %w", name, err)
	}
	u.MainPID, u.Restarts = int(pid), int(restarts)
	if entered > 0 {
		u.Started = time.UnixMicro(int64(entered))
	}
	return u, nil
}

func property[T any](properties map[string]any, name string, into *T) error {
	value, ok := properties[name].(T)
	if !ok {
		return fmt.Errorf("property %s is a %T, not a %T", name, properties[name], value)
	}
	*into = value
	return nil
}

// Systemd changes the host's units.
func (h *Host) Systemd() host.Systemd { return systemd{h} }

type systemd struct{ h *Host }

func (s systemd) Reload(ctx context.Context) error {
	bus, err := s.h.systemBus(ctx)
	if err != nil {
		return err
	}
	if err := bus.ReloadContext(ctx); err != nil {
		return s.h.explain(fmt.Errorf("reload systemd: %w", err))
	}
	return nil
}

func (s systemd) Start(ctx context.Context, unit string) error {
	return s.job(ctx, "start", unit, (*sdbus.Conn).StartUnitContext)
}

func (s systemd) Restart(ctx context.Context, unit string) error {
	return s.job(ctx, "restart", unit, (*sdbus.Conn).RestartUnitContext)
}

// Stop also succeeds for a unit that systemd does not know.
func (s systemd) Stop(ctx context.Context, unit string) error {
	err := s.job(ctx, "stop", unit, (*sdbus.Conn).StopUnitContext)
	if isBusError(err, noSuchUnit) {
		return nil
	}
	return err
}

// How systemd's jobs end well.
const (
	jobDone    = "done"
	jobSkipped = "skipped" // it did not apply to the unit in its state
)

// job queues a job for a unit and waits for its end.
func (s systemd) job(ctx context.Context, verb, unit string,
	queue func(*sdbus.Conn, context.Context, string, string, chan<- string) (int, error),
) error {
	bus, err := s.h.systemBus(ctx)
	if err != nil {
		return err
	}
	ended := make(chan string, 1)
	if _, err := queue(bus.Conn, ctx, unit, "replace", ended); err != nil {
		return s.h.explain(fmt.Errorf("%s %s: %w", verb, unit, err))
	}
	select {
	case result := <-ended:
		if result == jobDone || result == jobSkipped {
			return nil
		}
		return &host.UnitError{Unit: unit, Verb: verb, Result: result, Log: s.log(ctx, unit)}
	case <-bus.gone:
		return s.h.explain(fmt.Errorf("wait for %s of %s: the D-Bus connection: %w", verb, unit, net.ErrClosed))
	case <-ctx.Done():
		err := fmt.Errorf("wait for %s of %s: %w", verb, unit, context.Cause(ctx))
		if errors.Is(err, context.DeadlineExceeded) {
			if log := s.log(ctx, unit); log != "" {
				err = fmt.Errorf("%w\n%s", err, log)
			}
		}
		return err
	}
}

// log returns the last lines of a unit's journal, as far as they can be had, also after ctx.
func (s systemd) log(ctx context.Context, unit string) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), logTimeout)
	defer cancel()
	out, err := s.h.Query(ctx, "journalctl", "--unit", unit, "--lines", logLines, "--output", "cat", "--no-pager")
	if err != nil {
		return ""
	}
	return redact.Text(strings.TrimSpace(string(out)))
}

func (s systemd) Enable(ctx context.Context, units ...string) error {
	bus, err := s.h.systemBus(ctx)
	if err != nil {
		return err
	}
	const untilReboot, replaceLinks = false, true
	if _, _, err := bus.EnableUnitFilesContext(ctx, units, untilReboot, replaceLinks); err != nil {
		return s.h.explain(fmt.Errorf("enable %s: %w", strings.Join(units, " "), err))
	}
	return nil
}

func (s systemd) Disable(ctx context.Context, units ...string) error {
	bus, err := s.h.systemBus(ctx)
	if err != nil {
		return err
	}
	const untilReboot = false
	if _, err := bus.DisableUnitFilesContext(ctx, units, untilReboot); err != nil {
		return s.h.explain(fmt.Errorf("disable %s: %w", strings.Join(units, " "), err))
	}
	return nil
}

func (s systemd) ResetFailed(ctx context.Context, unit string) error {
	bus, err := s.h.systemBus(ctx)
	if err != nil {
		return err
	}
	if err := bus.ResetFailedUnitContext(ctx, unit); err != nil && !isBusError(err, noSuchUnit) {
		return s.h.explain(fmt.Errorf("reset-failed %s: %w", unit, err))
	}
	return nil
}
