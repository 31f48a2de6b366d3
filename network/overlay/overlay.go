//go:build linux

package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/network/bridge"
	"github.com/orchestrate-go/orchestrate/network/overlay/internal/fastpath"
	"github.com/orchestrate-go/orchestrate/store"
)

// DefaultPort is the UDP port that IANA gave VXLAN.
const DefaultPort = 4789

// Defaults of Options.
const (
	DefaultTunnelPort = 51820 // WireGuard's, and the one after it
	DefaultRotate     = 24 * time.Hour
)

// Options of a Driver. Bridge, Store, Node and Underlay are required.
type Options struct {
	// Bridge is this node's part.
	Bridge bridge.Options
	// Store is the fleet's, where nodes find each other.
	Store store.Store
	// Node is the ID of this node, unique in the fleet.
	Node string
	// Underlay is the address by which other nodes reach this one. All nodes
	// have one of the same family.
	Underlay netip.Addr
	// Port is the UDP port, the same on all nodes; DefaultPort when 0.
	Port uint16

	// Direct says to which nodes packets go without VXLAN; [DirectAuto] when
	// empty. Nodes may differ in it.
	Direct Direct

	// FastPath says whether the packets of established flows between nodes pass
	// this node's table and connection tracking by; [FastPathAuto] when empty.
	FastPath FastPath

	// Encryption encrypts all that goes between nodes; nil does not. It takes the
	// place of VXLAN and direct routes, so nodes that have it and nodes that have
	// not do not reach each other's tasks.
	Encryption Encryption
	// TunnelPort is the first of two UDP ports that encrypted packets come to;
	// DefaultTunnelPort when 0.
	TunnelPort uint16
	// Rotate is for how long a key is used; DefaultRotate when 0, at least a
	// second. All nodes should have the same.
	Rotate time.Duration

	joined    func()           // see Driver
	fast      fastpath.Options // its times
	openFast  func(fastpath.Options) (*fastpath.Path, error)
	undivided bool // one slice is all of a network, for tests that know one node
}

// Driver is a node's part of networks over many nodes. It implements
// network.Driver, network.Namespaces and network.Balancer, all safe for
// concurrent use. It reaches other nodes while [Driver.Run] runs; what it has
// made lasts beyond.
type Driver struct {
	*bridge.Driver
	opts Options
	log  *slog.Logger
	host *netlink.Handle

	mu    sync.Mutex // guards what follows, and orders changes of links
	nets  map[string]*overlay
	peers map[string]map[string]slice // by network and key in the store
	seen  bool                        // peers are known
	seal  *seal                       // nil without encryption

	fast    *fastpath.Path // nil where there is none
	fastErr error          // why there is none though there should be

	joined func() // told by the follower of each change it has made true; tests listen
}

// overlay is a network that this node is part of.
type overlay struct {
	name  string
	whole []netip.Prefix
	index int      // of this node's slice
	vni   int      // VXLAN number
	link  int      // index of the interface
	way   underlay // the interface that direct routes are over
}

var (
	_ network.Driver     = (*Driver)(nil)
	_ network.Namespaces = (*Driver)(nil)
	_ network.Balancer   = (*Driver)(nil)
	_ network.Divider    = (*Driver)(nil)
)

// Open returns the driver of this node and adopts what an earlier one made. The
// errors are a [*network.ConfigError] and those of [bridge.Open].
func Open(opts Options) (*Driver, error) {
	wrong := func(field, reason string) (*Driver, error) {
		return nil, &network.ConfigError{Field: field, Reason: reason}
	}
	switch {
	case opts.Store == nil:
		return wrong("store", "is nil; give the fleet's")
	case opts.Node == "" || store.ValidateKey("/"+opts.Node) != nil:
		return wrong("node", fmt.Sprintf("%q is no ID of a node", opts.Node))
	case !opts.Underlay.IsValid() || opts.Underlay.IsUnspecified() || opts.Underlay.IsMulticast() || opts.Underlay.IsLoopback():
		return wrong("underlay", fmt.Sprintf("%v is no address that other nodes reach this one by", opts.Underlay))
	}
	opts.Underlay = opts.Underlay.Unmap()
	opts.Port = cmp.Or(opts.Port, DefaultPort)
	opts.Direct = cmp.Or(opts.Direct, DirectAuto)
	if !slices.Contains([]Direct{DirectAuto, DirectAlways, DirectNever}, opts.Direct) {
		return wrong("direct", fmt.Sprintf("is %q; use %s, %s or %s", opts.Direct, DirectAuto, DirectAlways, DirectNever))
	}
	opts.FastPath = cmp.Or(opts.FastPath, FastPathAuto)
	if !slices.Contains([]FastPath{FastPathAuto, FastPathNever}, opts.FastPath) {
		return wrong("fast path", fmt.Sprintf("is %q; use %s or %s", opts.FastPath, FastPathAuto, FastPathNever))
	}
	opts.TunnelPort = cmp.Or(opts.TunnelPort, DefaultTunnelPort)
	opts.Rotate = cmp.Or(opts.Rotate, DefaultRotate)
	switch {
	case opts.Encryption != nil && opts.TunnelPort == 65535:
		return wrong("tunnel port", "is 65535; there must be one after it")
	case opts.Rotate < time.Second:
		return wrong("rotate", fmt.Sprintf("is %v; use 1s or more", opts.Rotate))
	}
	d := &Driver{
		opts: opts, log: opts.Bridge.Logger,
		nets: map[string]*overlay{}, peers: map[string]map[string]slice{}, joined: opts.joined,
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if d.host, err = dial(opts.Bridge.HostNamespace); err != nil {
		return nil, fmt.Errorf("open overlay network: %w", err)
	}
	way, err := d.underlay()
	if err == nil {
		switch {
		case opts.Encryption != nil:
			d.opts.Bridge.Tunnels = 2
		case opts.Direct != DirectNever:
			d.opts.Bridge.Uplinks = []string{way.name}
		}
		d.opts.Bridge.Forgotten = d.forgotten(opts.Bridge.Forgotten)
		d.Driver, err = bridge.Open(d.opts.Bridge)
	}
	if err != nil {
		d.host.Close()
		return nil, err
	}
	if err = d.TrimLinks(); err == nil && opts.Encryption != nil {
		if d.seal, err = loadSeal(opts.Bridge.Dir, opts.TunnelPort); err == nil {
			err = d.openTunnels()
		}
	}
	if err == nil {
		err = d.openFastPath()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open overlay network: %w", err), d.Close())
	}
	return d, nil
}

// dial opens a netlink socket in the namespace at a path, or in the program's.
func dial(path string) (*netlink.Handle, error) {
	if path == "" {
		return netlink.NewHandle(unix.NETLINK_ROUTE)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return netlink.NewHandleAt(netns.NsHandle(file.Fd()), unix.NETLINK_ROUTE)
}

// What VXLAN puts around a packet: an IPv4 or IPv6 header, one of UDP, its own
// and the inner Ethernet header.
const overhead4, overhead6 = 20 + 8 + 8 + 14, 40 + 8 + 8 + 14

// overhead is what is put around packets that do not go directly.
func (d *Driver) overhead() int {
	switch ipv4, sealed := d.opts.Underlay.Is4(), d.opts.Encryption != nil; {
	case ipv4 && sealed:
		return sealed4
	case sealed:
		return sealed6
	case ipv4:
		return overhead4
	default:
		return overhead6
	}
}

// Ensure implements network.Driver: it takes a slice of the network's subnets
// for this node, and makes it a bridge that is joined to those of other nodes.
// A network of which every slice is taken is [network.ErrExhausted].
func (d *Driver) Ensure(ctx context.Context, n network.Network) error {
	if err := n.Validate(); err != nil {
		return err
	}
	if len(n.Whole) > 0 {
		return &network.ConfigError{Network: n.Name, Field: "whole", Reason: "is for the driver to say; give the ranges of all nodes as subnets"}
	}
	way, err := d.underlay()
	if err != nil {
		return err
	}
	tunnel := way.mtu - d.overhead()
	// Tasks send what fits a direct route. What does not fit VXLAN this node
	// tells them, as a router does.
	most := way.mtu
	if d.opts.Direct == DirectNever || d.seal != nil {
		most = tunnel
	}
	if n.MTU > most {
		return &network.ConfigError{Network: n.Name, Field: "mtu", Reason: fmt.Sprintf("is %d; the underlay has room for %d", n.MTU, most)}
	}
	for i, p := range n.Subnets {
		if i == 0 {
			n.Subnets = append([]netip.Prefix(nil), n.Subnets...)
		}
		n.Subnets[i] = p.Masked()
	}
	mac := hardware(d.opts.Node, n.Name)
	index, err := d.claim(ctx, n.Name, n.Subnets, mac, way)
	if err != nil {
		return fmt.Errorf("network %q: take a slice of %v: %w", n.Name, n.Subnets, err)
	}
	vni := 0
	if d.seal == nil {
		if vni, err = d.number(ctx, n.Name); err != nil {
			return fmt.Errorf("network %q: take a VXLAN number: %w", n.Name, err)
		}
	} else if err := cmp.Or(d.reopenTunnels(), d.publish(ctx)); err != nil {
		return fmt.Errorf("network %q: publish this node's keys: %w", n.Name, err)
	}
	part := n
	part.Whole, part.Subnets = n.Subnets, d.cut(n.Subnets, index)
	part.MTU = cmp.Or(n.MTU, most)
	if err := d.Driver.Ensure(ctx, part); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	o := &overlay{name: n.Name, whole: n.Subnets, index: index, vni: vni, way: way}
	if d.seal == nil {
		o.link, err = d.makeLink(part, vni, min(part.MTU, tunnel), mac)
	}
	if err = cmp.Or(err, d.AdmitLinks(n.Name), d.closeWhole(o)); err != nil {
		return fmt.Errorf("network %q: %w", n.Name, err)
	}
	d.fastNetwork(ctx, o)
	d.nets[n.Name] = o
	return errors.Join(d.reseal(), d.join(n.Name))
}

// Gateways implements network.Divider: those of this node's slice.
func (d *Driver) Gateways(name string) []netip.Addr {
	d.mu.Lock()
	defer d.mu.Unlock()
	o := d.nets[name]
	if o == nil {
		return nil
	}
	return network.Network{Subnets: d.cut(o.whole, o.index)}.Gateways()
}

// Remove implements network.Driver: it gives the node's slice back too.
func (d *Driver) Remove(ctx context.Context, name string) error {
	d.mu.Lock()
	err := d.Driver.Remove(ctx, name)
	if o := d.nets[name]; err == nil && o != nil {
		d.slowNetwork(o)
		delete(d.nets, name)
	}
	d.mu.Unlock()
	if err != nil {
		return err
	}
	if err := release(ctx, d.opts.Store, d.opts.Node, name); err != nil {
		return fmt.Errorf("network %q: give its slice back: %w", name, err)
	}
	return nil
}

// Purge removes everything that drivers of this fleet made on this node, as
// [bridge.Driver.Purge] does, and gives the node's slices back.
func (d *Driver) Purge(ctx context.Context) error {
	d.mu.Lock()
	err := errors.Join(d.resetFastPath(), d.closeTunnels(), d.Driver.Purge(ctx), d.forgetKeys())
	clear(d.nets)
	d.mu.Unlock()
	if err != nil {
		return err
	}
	return Forget(ctx, d.opts.Store, d.opts.Node)
}

// Run follows the other nodes until ctx ends, over failures of the store: what
// is known then goes on to hold. It returns nil when ctx ended.
func (d *Driver) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.follow(ctx, keySlices, (*follower)(d)) })
	if d.seal != nil {
		group.Go(func() error { return d.follow(ctx, keyTunnels, (*sealer)(d)) })
		group.Go(func() error { return d.keepSealed(ctx) })
	}
	if d.fast != nil {
		group.Go(func() error { return d.fast.Run(ctx) })
	}
	return group.Wait()
}

func (d *Driver) follow(ctx context.Context, prefix string, f store.Follower) error {
	const first, most = 50 * time.Millisecond, 5 * time.Second
	pause := first
	for {
		began := time.Now()
		err := store.Follow(ctx, d.opts.Store, prefix, f)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, store.ErrClosed):
			return fmt.Errorf("overlay: %w", err)
		}
		if time.Since(began) > most {
			pause = first
		}
		d.log.Warn("cannot follow the other nodes; trying again", "error", err, "in", pause)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, most)
	}
}

// Close lets go of the node's folder and sockets. What it made stays.
func (d *Driver) Close() error {
	err := d.Driver.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	err = errors.Join(err, d.closeTunnels())
	if d.fast != nil {
		err = errors.Join(err, d.fast.Close())
	}
	d.host.Close()
	return err
}
