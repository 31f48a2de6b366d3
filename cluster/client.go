//go:build linux

package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/cron"
	"github.com/orchestrate-go/orchestrate/identity"
	"github.com/orchestrate-go/orchestrate/remote"
	"github.com/orchestrate-go/orchestrate/runtime/registry"
	"github.com/orchestrate-go/orchestrate/store/etcd"
)

// ClientOptions say who calls. Name and Control are required, and Token the
// first time.
type ClientOptions struct {
	Name    string       // unique among clients and control planes
	Control []netip.Addr // the control planes
	Token   string       // of [Control.NewClientToken]
	Ports   Ports        // the fleet's
	// Fleet are further options of [orchestrate.New]. They are those of the
	// control planes where they matter to what a call refuses and stores:
	// address pools, strategies, a resolver.
	Fleet []orchestrate.Option
	// Logger; nil discards.
	Logger *slog.Logger
}

// Client is a fleet that others run. It has all of its calls, and does not lead.
type Client struct {
	*orchestrate.Fleet
	*loops
	store *etcd.Store

	closing  sync.Once
	closeErr error
}

// Dial opens a fleet from a machine that is none of its own. What it joined as is
// kept in dir. The refusals are those of [identity.Join].
func Dial(ctx context.Context, dir string, opts ClientOptions) (*Client, error) {
	c := &Client{loops: newLoops()}
	if err := c.open(ctx, dir, opts); err != nil {
		return nil, fmt.Errorf("dial the fleet as %q: %w", opts.Name, errors.Join(err, c.release()))
	}
	return c, nil
}

func (c *Client) open(ctx context.Context, dir string, o ClientOptions) (err error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Ports = o.Ports.withDefaults()
	if dir, err = checkDir(dir); err != nil {
		return err
	}
	if err := errors.Join(checkName(identity.Control, o.Name), checkAddrs("Control", o.Control)); err != nil {
		return err
	}
	id := identity.ID{Role: identity.Control, Name: o.Name}
	self, err := joined(ctx, filepath.Join(dir, "identity"), o.Token, id, o.Control, o.Ports, o.Logger)
	if err != nil {
		return err
	}
	c.store, err = etcd.Open(etcd.Options{
		Endpoints: urls(o.Control, o.Ports.Store), TLS: self.Client(identity.Is(identity.Control)), Logger: o.Logger,
	})
	if err != nil {
		return err
	}
	c.Fleet, err = orchestrate.New(c.store, append([]orchestrate.Option{
		orchestrate.WithID(o.Name), orchestrate.WithLogger(o.Logger), orchestrate.WithAccess(remote.Access(c.store, self)),
		orchestrate.WithResolver(&registry.Resolver{}), orchestrate.WithSchedules(cron.Parse),
	}, o.Fleet...)...)
	if err != nil {
		return err
	}
	c.run(self.Run)
	c.begun()
	return nil
}

// Store is the fleet's state. It is closed with the client.
func (c *Client) Store() *etcd.Store { return c.store }

// Close ends all calls. It returns why the client had stopped by itself, such as
// that it was revoked. Closing twice is no error.
func (c *Client) Close() error {
	c.closing.Do(func() { c.closeErr = errors.Join(c.Err(), c.release()) })
	return c.closeErr
}

func (c *Client) release() error {
	var errs []error
	if c.Fleet != nil {
		errs = append(errs, c.Fleet.Close())
	}
	c.stop()
	if c.store != nil {
		errs = append(errs, c.store.Close())
	}
	return errors.Join(errs...)
}
