//go:build linux

package bridge

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"

	"github.com/orchestrate-go/orchestrate/network"
)

// Options of a Driver. ID and Dir are required.
type Options struct {
	// ID tells the fleets of one machine apart: 1 to 40 letters, digits,
	// dots, dashes and underscores. The nft table is "orchestrate-ID", and
	// the names of all interfaces derive from it. It must stay the same
	// over restarts.
	ID string
	// Dir is where networks and addresses are written down. One Driver at a
	// time has it.
	Dir string
	// NetNSDir is where namespaces are mounted, a folder of the fleet's own;
	// Dir/netns when empty.
	NetNSDir string
	// HostNamespace is the path of the network namespace that plays the
	// node: bridges, routes and nftables rules are made in it. Empty means
	// the one that the program runs in.
	HostNamespace string
	// MTU of networks that give none; when 0, that of the interface with
	// the default route, or 1500.
	MTU int
	// Uplinks are interfaces of the node by which networks with a
	// Whole reach other nodes by plain routes, beside or instead of a link of
	// their own. What comes in there is of a network when it comes from an
	// address of the network's Whole that the node would answer by the same
	// interface.
	Uplinks []string
	// Tunnels is how many interfaces the networks with a Whole share that prove
	// who sends, see [Driver.TunnelName]. With any, nothing that has an address
	// of a Whole is taken from elsewhere, and Uplinks must be empty.
	Tunnels int
	// Forgotten is called after flows were deleted from connection tracking, as
	// their endpoint is there no longer; nil is for nobody who has to know.
	Forgotten func() `json:"-"`
	// Logger gets what is worth knowing and no error; nil means silence.
	Logger *slog.Logger
}

// Driver is a node's network in the Linux kernel. It implements
// network.Driver, network.Namespaces and network.Balancer, all safe for
// concurrent use.
type Driver struct {
	options  Options
	log      *slog.Logger
	hostNS   *os.File // nil: the program's own
	host     *conn
	state    *state
	table    *table
	locks    locks
	bridged  bool // br_netfilter is there, see ports in doc.go
	closing  sync.Once
	closeErr error

	balancing sync.Mutex // one Program at a time; guards balance; locked before networks
	balance   balance

	networks sync.RWMutex // held for writing while networks change; guards nets
	nets     map[string]*segment

	mu          sync.Mutex // guards what follows
	closed      bool
	attachments map[key]network.Attachment
}

var (
	_ network.Driver     = (*Driver)(nil)
	_ network.Namespaces = (*Driver)(nil)
	_ network.Balancer   = (*Driver)(nil)
)

// segment is a network as this driver holds it.
type segment struct {
	network.Network
	bridge string // name of the interface
	link   string // of the one to other nodes, see Driver.LinkName
	index  int    // of the interface; 0 while it is not there
	mtu    int
	pools  []*network.Pool // in the order of Subnets
}

// key names an attachment: one task's interface on one network.
type key struct{ network, task, iface string }

func keyOf(a network.Attachment) key { return key{a.Network, a.Task, a.Interface} }

var validID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$`)

// Open returns the driver of a fleet on this node. It reads what an earlier
// one wrote down and adopts what that one made; it changes nothing in the
// kernel. It needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN).
func Open(options Options) (*Driver, error) {
	if !validID.MatchString(options.ID) {
		return nil, &network.ConfigError{Field: "id", Reason: fmt.Sprintf("is %q; use 1 to 40 letters, digits, dots, dashes and underscores", options.ID)}
	}
	if options.Dir == "" {
		return nil, &network.ConfigError{Field: "dir", Reason: "is empty; give a folder that outlives the program"}
	}
	dir, err := filepath.Abs(options.Dir)
	if err != nil {
		return nil, fmt.Errorf("open bridge network: %w", err)
	}
	options.Dir = dir
	options.NetNSDir, err = filepath.Abs(cmp.Or(options.NetNSDir, filepath.Join(dir, "netns")))
	if err != nil {
		return nil, fmt.Errorf("open bridge network: %w", err)
	}
	d := &Driver{
		options:     options,
		log:         options.Logger,
		nets:        map[string]*segment{},
		attachments: map[key]network.Attachment{},
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if err := d.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open bridge network %s: %w", options.ID, err), d.Close())
	}
	return d, nil
}

func (d *Driver) open() (err error) {
	if d.state, err = openState(d.options.Dir); err != nil {
		return err
	}
	if err := os.MkdirAll(d.options.NetNSDir, 0o755); err != nil {
		return err
	}
	if d.options.HostNamespace != "" {
		if d.hostNS, err = os.Open(d.options.HostNamespace); err != nil {
			return err
		}
	}
	if d.host, err = dial(d.hostNS); err != nil {
		return err
	}
	d.table = newTable(d.options.ID, d.hostNS, d.options.Uplinks, d.tunnels())
	_, err = os.Stat("/proc/sys/net/bridge")
	d.bridged = err == nil
	if err := d.sweepNamespaces(); err != nil {
		return err
	}
	return d.load()
}

// load takes up what an earlier driver wrote down.
func (d *Driver) load() error {
	saved, err := d.state.loadNetworks()
	if err != nil {
		return err
	}
	for _, n := range saved {
		nw, err := d.newNet(n)
		if err != nil {
			return err
		}
		if link, err := d.host.LinkByName(nw.bridge); err == nil {
			nw.index, nw.mtu = link.Attrs().Index, link.Attrs().MTU
		}
		d.nets[n.Name] = nw
		held, err := d.state.holdings(n.Name)
		if err != nil {
			return err
		}
		// In the order of handing out, so that next-fit goes on.
		slices.SortFunc(held, func(a, b holding) int { return cmp.Compare(a.modified, b.modified) })
		for _, h := range held {
			i := slices.IndexFunc(n.Subnets, h.within)
			if i < 0 || nw.pools[i].Claim(h.address) != nil {
				if err := d.state.release(n.Name, h.address); err != nil {
					return err
				}
				continue
			}
			nw.pools[i].Resume(h.address)
			a := d.attachments[keyOf(h.Attachment)]
			addresses := append(a.Addresses, h.address)
			a = h.Attachment
			a.Addresses = addresses
			d.attachments[keyOf(a)] = a
		}
	}
	for k, a := range d.attachments {
		slices.SortFunc(a.Addresses, bySubnet(d.nets[a.Network].Subnets))
		d.attachments[k] = a
	}
	return nil
}

// newNet returns a network with its pools, not yet in the kernel.
func (d *Driver) newNet(n network.Network) (*segment, error) {
	nw := &segment{Network: n, bridge: d.name("b", n.Name), link: d.LinkName(n.Name)}
	for _, prefix := range n.Subnets {
		pool, err := network.NewPool(prefix)
		if err != nil {
			return nil, err
		}
		nw.pools = append(nw.pools, pool)
	}
	return nw, nil
}

// name derives an interface's name from what it is for. Names are at most 15
// characters (IFNAMSIZ), so 48 bits of a hash carry the fleet, the network
// and the task.
func (d *Driver) name(kind string, parts ...string) string {
	h := sha256.New()
	for _, p := range append([]string{d.options.ID}, parts...) {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return "o" + kind + hex.EncodeToString(h.Sum(nil)[:6])
}

// begin is what every call starts with.
func (d *Driver) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return network.ErrClosed
	}
	return nil
}

// Close lets go of the driver's folder and sockets. What it made stays: tasks
// keep their interfaces and connections, and the next Open adopts them.
func (d *Driver) Close() error {
	d.closing.Do(func() {
		d.mu.Lock()
		d.closed = true
		d.mu.Unlock()
		d.balancing.Lock() // calls that are under way end first
		defer d.balancing.Unlock()
		d.networks.Lock()
		defer d.networks.Unlock()
		if d.host != nil {
			d.host.Close()
		}
		if d.hostNS != nil {
			d.closeErr = errors.Join(d.closeErr, d.hostNS.Close())
		}
		if d.state != nil {
			d.closeErr = errors.Join(d.closeErr, d.state.close())
		}
	})
	return d.closeErr
}

// Purge removes everything that drivers of this fleet made: the nft table,
// the bridges with all that is attached, the namespaces, and what is written
// down. The driver can be used again afterwards. Sysctls of the node stay as
// they are: others may have come to need them.
func (d *Driver) Purge(ctx context.Context) error {
	if err := d.begin(ctx); err != nil {
		return err
	}
	ids, err := d.List(ctx)
	if err != nil {
		return err
	}
	d.balancing.Lock()
	defer d.balancing.Unlock()
	d.networks.Lock()
	defer d.networks.Unlock()

	errs := []error{d.leaveUplinks(nil), d.table.remove(), d.removeTunnels()}
	d.balance = balance{}
	for name, nw := range d.nets {
		errs = append(errs, d.removeLinks(nw), d.state.removeNetwork(name))
		delete(d.nets, name)
	}
	for _, id := range ids {
		errs = append(errs, d.deleteNamespace(id))
	}
	d.mu.Lock()
	clear(d.attachments)
	d.mu.Unlock()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("purge bridge network %s: %w", d.options.ID, err)
	}
	return nil
}

// locks is a lock for each name that is in use.
type locks struct {
	mu   sync.Mutex // guards held
	held map[string]*lockEntry
}

type lockEntry struct {
	sync.Mutex
	users int
}

// lock waits for the lock of a name and returns what unlocks it.
func (l *locks) lock(name string) (unlock func()) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[string]*lockEntry{}
	}
	e := l.held[name]
	if e == nil {
		e = &lockEntry{}
		l.held[name] = e
	}
	e.users++
	l.mu.Unlock()
	e.Lock()
	return func() {
		e.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if e.users--; e.users == 0 {
			delete(l.held, name)
		}
	}
}
