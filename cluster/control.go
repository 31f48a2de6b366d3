//go:build linux

package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate"
	"github.com/orchestrate-go/orchestrate/cron"
	"github.com/orchestrate-go/orchestrate/identity"
	"github.com/orchestrate-go/orchestrate/network/overlay"
	"github.com/orchestrate-go/orchestrate/remote"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/runtime/registry"
	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/etcd"
	"github.com/orchestrate-go/orchestrate/store/etcd/embed"
)

// ControlOptions say who a control plane is. Name and Members are required.
type ControlOptions struct {
	// Name is this one's in Members.
	Name string
	// Members are the control planes of the fleet and the addresses by which all
	// machines reach them: one, three or five. A fleet begins when more than
	// half of them were opened.
	Members map[string]netip.Addr
	// Authority signs the fleet's certificates. It is the same on every control
	// plane of a fleet that begins; make it once, with [identity.NewAuthority],
	// and hand it to each as the secret that it is. It is kept in the folder, and
	// may be nil the next time. A fleet that begins with one control plane makes
	// its own.
	Authority *identity.Authority
	// Join is the invitation of a control plane that is added to a fleet that
	// runs; see [Control.Invite]. It comes with the Authority too.
	Join *embed.Invitation

	// Ports are the fleet's.
	Ports Ports
	// CertificateTTL is how long certificates are good; see
	// [identity.Options.TTL].
	CertificateTTL time.Duration
	// Etcd has what else etcd is told: of it Heartbeat, Election, History and
	// Quota count.
	Etcd embed.Options
	// Credentials is asked for each registry host that tags are looked up at.
	Credentials func(ctx context.Context, host string) (runtime.Credentials, error)
	// Fleet are further options of [orchestrate.New].
	Fleet []orchestrate.Option
	// Logger; nil discards.
	Logger *slog.Logger
}

// Control is one control plane of a fleet. Make it with [OpenControl].
type Control struct {
	*orchestrate.Fleet
	*loops
	opts ControlOptions

	keys      *identity.Keyring
	self      *identity.Member
	etcd      *embed.Member
	store     *etcd.Store
	access    *etcd.Access
	registrar *identity.Registrar

	closing  sync.Once
	closeErr error
}

// OpenControl opens the control plane whose state is in dir, which is made if it
// is missing, and runs it until [Control.Close]. It returns when this one takes
// part: when a fleet begins, that is when more than half of its control planes
// were opened. If ctx ends before, nothing of it runs. Wrong options are an
// [*OptionError].
func OpenControl(ctx context.Context, dir string, opts ControlOptions) (*Control, error) {
	c := &Control{opts: opts, loops: newLoops()}
	if err := c.open(ctx, dir); err != nil {
		return nil, fmt.Errorf("open control plane %q in %q: %w", opts.Name, dir, errors.Join(err, c.release()))
	}
	return c, nil
}

func (c *Control) open(ctx context.Context, dir string) (err error) {
	member, err := c.identify(ctx, dir)
	if err != nil {
		return err
	}
	o, address := &c.opts, c.opts.Members[c.opts.Name]
	c.run(c.self.Run)
	if c.etcd, err = embed.Start(ctx, member); err != nil {
		return err
	}
	c.store, err = etcd.Open(etcd.Options{
		Endpoints: urls(c.addresses(), o.Ports.Store), Near: c.etcd.Endpoint(),
		TLS: c.self.Client(identity.Is(identity.Control)), Logger: o.Logger,
	})
	if err != nil {
		return err
	}
	c.access = c.store.Access(nodeKeys)
	if err := c.enableAccess(ctx); err != nil {
		return err
	}
	c.registrar, err = identity.NewRegistrar(identity.Options{
		Store: c.store, Keyring: c.keys, Granter: c.access, Hosts: []string{address.String()},
		TTL: o.CertificateTTL, Logger: o.Logger,
	})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", at(address, o.Ports.Join))
	if err != nil {
		return err
	}
	c.run(func(ctx context.Context) error { return c.registrar.Serve(ctx, listener) })
	c.Fleet, err = orchestrate.New(c.store, append([]orchestrate.Option{
		orchestrate.WithLogger(o.Logger), orchestrate.WithAccess(remote.Access(c.store, c.self)),
		orchestrate.WithResolver(&registry.Resolver{Credentials: o.Credentials}), orchestrate.WithSchedules(cron.Parse),
	}, append(slices.Clone(o.Fleet), orchestrate.WithID(o.Name))...)...)
	if err != nil {
		return err
	}
	c.run(c.Fleet.Run)
	c.run(c.keepApart)
	c.run(func(ctx context.Context) error { // the store does without this member, but it is to be known
		select {
		case <-ctx.Done():
			return nil
		case <-c.etcd.Done():
			return c.etcd.Err()
		}
	})
	c.begun()
	return nil
}

// identify makes the control plane's certificate, in its folder, and returns what
// its member of etcd is.
func (c *Control) identify(ctx context.Context, dir string) (member embed.Options, err error) {
	o := &c.opts
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Ports = o.Ports.withDefaults()
	o.CertificateTTL = cmp.Or(o.CertificateTTL, identity.DefaultTTL)
	if dir, err = checkDir(dir); err != nil {
		return member, err
	}
	if err := c.check(); err != nil {
		return member, err
	}
	authority, err := keepAuthority(filepath.Join(dir, "authority"), o.Authority, len(o.Members) == 1 && o.Join == nil)
	if err != nil {
		return member, err
	}
	c.keys = identity.NewKeyring(authority)
	id := identity.ID{Role: identity.Control, Name: o.Name}
	if c.self, err = c.keys.Member(id, []string{o.Members[o.Name].String()}, o.CertificateTTL); err != nil {
		return member, err
	}
	files := filepath.Join(dir, "tls")
	if err := c.self.Mirror(files); err != nil {
		return member, err
	}
	return c.member(dir, files), c.self.Renew(ctx)
}

func (c *Control) check() error {
	o := &c.opts
	if err := checkName(identity.Control, o.Name); err != nil {
		return err
	}
	if _, ok := o.Members[o.Name]; !ok {
		return &OptionError{"Members", fmt.Sprintf("lacks %q; it has this control plane too", o.Name)}
	}
	for name, a := range o.Members {
		if err := checkName(identity.Control, name); err != nil {
			return &OptionError{"Members", err.Error()}
		}
		if err := checkAddr(fmt.Sprintf("Members[%q]", name), a); err != nil {
			return err
		}
	}
	return nil
}

func checkDir(dir string) (string, error) {
	if dir == "" {
		return "", errors.New("the folder is not named; give one of its own, such as /var/lib/myapp/control")
	}
	dir, err := filepath.Abs(dir)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	return dir, err
}

// addresses are those of all control planes, this one first.
func (c *Control) addresses() []netip.Addr {
	all := []netip.Addr{c.opts.Members[c.opts.Name]}
	for _, name := range slices.Sorted(maps.Keys(c.opts.Members)) {
		if name != c.opts.Name {
			all = append(all, c.opts.Members[name])
		}
	}
	return all
}

// member is this control plane's of etcd.
func (c *Control) member(dir, files string) embed.Options {
	o := &c.opts
	certs := embed.TLS{
		Cert: filepath.Join(files, identity.FileCert), Key: filepath.Join(files, identity.FileKey), CA: filepath.Join(files, identity.FileRoots),
	}
	peer := func(name string) string { return "https://" + at(o.Members[name], o.Ports.Peer) }
	options := embed.Options{
		Name: o.Name, Dir: filepath.Join(dir, "etcd"), PeerURL: peer(o.Name), ClientURL: "https://" + at(o.Members[o.Name], o.Ports.Store),
		PeerTLS: certs, ClientTLS: certs, Join: o.Join, Logger: o.Logger,
		Heartbeat: o.Etcd.Heartbeat, Election: o.Etcd.Election, History: o.Etcd.History, Quota: o.Etcd.Quota,
	}
	if o.Join == nil {
		options.Members = map[string]string{}
		for name := range o.Members {
			options.Members[name] = peer(name)
		}
	}
	return options
}

// nodeKeys are what a node's agent and its network use of the store.
func nodeKeys(id identity.ID) (read, write []string) {
	read, write = orchestrate.NodeKeys(id.Name)
	networkRead, networkWrite := overlay.Rights(id.Name)
	return append(read, networkRead...), append(write, networkWrite...)
}

// enableAccess turns etcd's access control on, over elections of etcd: whichever
// control plane comes first does it.
func (c *Control) enableAccess(ctx context.Context) error {
	var all []identity.ID
	for name := range c.opts.Members {
		all = append(all, identity.ID{Role: identity.Control, Name: name})
	}
	for {
		err := c.access.Enable(ctx, all...)
		if err == nil || errors.Is(err, etcd.ErrDenied) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-c.etcd.Done():
			return c.etcd.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// apartEvery is how often it is looked whether the two leaders are on one machine.
const apartEvery = 500 * time.Millisecond

// keepApart moves etcd's lead away from the control plane that leads the fleet.
// Else losing that machine costs an election of etcd and then, since that begins
// the time of every lease anew, all of the lease that the fleet's next leader
// waits for, and not what was left of it.
func (c *Control) keepApart(ctx context.Context) error {
	if len(c.opts.Members) < 3 {
		return nil // the other would lead nothing without this one
	}
	tick := time.NewTicker(apartEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !c.etcd.Leads() {
			continue
		}
		leader, err := store.Election{Store: c.store}.Leader(ctx)
		if err != nil || leader.ID != c.opts.Name {
			continue
		}
		if err := c.etcd.Yield(); err != nil {
			c.opts.Logger.Debug("etcd's leader is where the fleet's is", "error", err)
		}
	}
}

// Store is the fleet's state, for what else an application keeps there. It is
// closed with the control plane.
func (c *Control) Store() *etcd.Store { return c.store }

// Etcd is this control plane's member of etcd, for snapshots and for what else
// there is to do to one.
func (c *Control) Etcd() *embed.Member { return c.etcd }

// Registrar takes machines into the fleet, and revokes them.
func (c *Control) Registrar() *identity.Registrar { return c.registrar }

// Keyring has the authorities that this control plane signs with and trusts.
// A change of authority is to be made on each control plane in turn.
func (c *Control) Keyring() *identity.Keyring { return c.keys }

// Close ends this control plane. The others go on if they are more than half;
// tasks run on in any case. It returns why it had stopped by itself, if it had.
// Closing twice is no error.
func (c *Control) Close() error {
	c.closing.Do(func() { c.closeErr = errors.Join(c.Err(), c.release()) })
	return c.closeErr
}

// release ends and closes what open made.
func (c *Control) release() error {
	var errs []error
	if c.Fleet != nil {
		errs = append(errs, c.Fleet.Close())
	}
	c.stop()
	if c.store != nil {
		errs = append(errs, c.store.Close())
	}
	if c.etcd != nil {
		errs = append(errs, c.etcd.Close())
	}
	return errors.Join(errs...)
}
