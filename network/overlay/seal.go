//go:build linux

package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orchestrate-go/orchestrate/store"
)

// seal is the driver's part of encryption. The driver's mu guards it.
type seal struct {
	path    string // of the file with what is kept
	kept    kept
	tunnels [2]Tunnel // nil while they are not open
	links   [2]int    // their indexes

	fleet fleet
	known bool // fleet has been read

	met      [2]map[Key]TunnelState // as last looked at
	waiting  [2]map[Key]waiting     // for peers that were not met
	unsure   [2]bool                // whether they have the peers that are kept
	received [2]uint64
	heard    [2]time.Time // when received grew last, or since when this runs

	again chan struct{} // holds a token when it is worth looking again soon
}

// kept is what outlives the program, in a file that root alone reads: its keys,
// so that a restart does not need others to learn of new ones, and its peers, so
// that it does not need the store.
type kept struct {
	Tunnels [2]keptTunnel `json:"tunnels"`
}

type keptTunnel struct {
	Made uint64 `json:"made"` // the epoch that the key was made in
	// Next is a private key that is being published, and used once it is.
	Next   Key          `json:"next,omitzero"`
	Config TunnelConfig `json:"config"`
}

// loadSeal reads what an earlier process kept, or makes keys.
func loadSeal(dir string, port uint16) (*seal, error) {
	s := &seal{path: filepath.Join(dir, "tunnels.json"), fleet: fleet{nodes: map[string]ends{}}, again: make(chan struct{}, 1)}
	data, err := os.ReadFile(s.path)
	if err == nil {
		err = json.Unmarshal(data, &s.kept)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	for i := range s.kept.Tunnels {
		c := &s.kept.Tunnels[i].Config
		c.Port = port + uint16(i)
		if c.Private == (Key{}) {
			if c.Private, err = MakeKey(); err != nil {
				return nil, err
			}
		}
		s.heard[i] = time.Now()
	}
	return s, nil
}

// save writes what is kept, in one step.
func (s *seal) save() error {
	data, err := json.Marshal(s.kept)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(s.path), 0o700)
	}
	if err == nil {
		err = os.WriteFile(s.path+".new", data, 0o600)
	}
	if err == nil {
		err = os.Rename(s.path+".new", s.path)
	}
	if err != nil {
		return fmt.Errorf("keep keys: %w", err)
	}
	return nil
}

// configure makes a tunnel have what is kept. Where that fails reseal does it again.
func (s *seal) configure(i int) error {
	err := s.tunnels[i].Configure(s.kept.Tunnels[i].Config)
	s.unsure[i] = err != nil
	return err
}

func (s *seal) lookAgain() {
	select {
	case s.again <- struct{}{}:
	default:
	}
}

// ends are this node's, as others have to know them.
func (d *Driver) ends() ends {
	e := ends{Underlay: d.opts.Underlay}
	for i, t := range d.seal.kept.Tunnels {
		e.Ends[i] = end{t.Config.Private.Public(), t.Config.Port}
	}
	return e
}

// openTunnels makes the tunnels, or takes them over, with the peers that they
// had: all are called, since they may not know that this end has restarted. d.mu
// is held.
func (d *Driver) openTunnels() error {
	way, err := d.underlay()
	if err != nil {
		return err
	}
	if err := d.seal.save(); err != nil {
		return err
	}
	for i := range d.seal.tunnels {
		if d.seal.tunnels[i] != nil {
			continue
		}
		name := d.TunnelName(i)
		t, err := d.opts.Encryption.Open(name, d.opts.Bridge.HostNamespace, way.mtu-d.overhead())
		if err != nil {
			return fmt.Errorf("tunnel %s: %w", name, err)
		}
		d.seal.tunnels[i] = t
		link, err := d.host.LinkByName(name)
		if err != nil {
			return fmt.Errorf("tunnel %s: %w", name, err)
		}
		d.seal.links[i] = link.Attrs().Index
		c := &d.seal.kept.Tunnels[i].Config
		c.Peers = slices.Clone(c.Peers)
		for j := range c.Peers {
			c.Peers[j].Keepalive = keepalive
		}
		if err := d.seal.configure(i); err != nil {
			return fmt.Errorf("tunnel %s: %w", name, err)
		}
	}
	return nil
}

// reopenTunnels opens them after Purge.
func (d *Driver) reopenTunnels() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.openTunnels()
}

func (d *Driver) closeTunnels() error {
	if d.seal == nil {
		return nil
	}
	var errs []error
	for i, t := range d.seal.tunnels {
		if t != nil {
			errs = append(errs, t.Close())
		}
		d.seal.tunnels[i], d.seal.links[i], d.seal.met[i], d.seal.received[i], d.seal.waiting[i] = nil, 0, nil, 0, nil
	}
	return errors.Join(errs...)
}

// forgetKeys removes what is kept. New keys are made at once, for a driver that
// goes on to be used.
func (d *Driver) forgetKeys() error {
	if d.seal == nil {
		return nil
	}
	for i := range d.seal.kept.Tunnels {
		private, err := MakeKey()
		if err != nil {
			return err
		}
		t := &d.seal.kept.Tunnels[i]
		t.Made, t.Next, t.Config.Private, t.Config.Peers = 0, Key{}, private, nil
	}
	if err := os.Remove(d.seal.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// publish tells the others by which keys this node is known, unless they know.
func (d *Driver) publish(ctx context.Context) error {
	key := keyNodes + d.opts.Node
	item, found, err := store.Get(ctx, d.opts.Store, key)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.seal.tunnels[0] == nil {
		return nil // Purge has been here
	}
	if err := d.adopt(item.Value); err != nil {
		return err
	}
	mine, err := json.Marshal(d.ends())
	if err != nil || found && string(item.Value) == string(mine) {
		return err
	}
	_, err = d.opts.Store.Commit(ctx, store.Txn{Writes: []store.Write{store.Put(key, mine)}})
	return err
}

// adopt uses a new key that has been published. d.mu is held.
func (d *Driver) adopt(published []byte) error {
	s := d.seal
	var e ends
	if json.Unmarshal(published, &e) != nil {
		return nil // of this node by an earlier version, or none
	}
	for i := range s.kept.Tunnels {
		t := &s.kept.Tunnels[i]
		if t.Next == (Key{}) || t.Next.Public() != e.Ends[i].Public {
			continue
		}
		t.Config.Private, t.Next = t.Next, Key{}
		t.Config.Peers = slices.Clone(t.Config.Peers)
		for j := range t.Config.Peers {
			t.Config.Peers[j].Keepalive = 0 // reseal decides who calls whom
		}
		s.met[i], s.received[i], s.waiting[i] = nil, 0, nil
		if err := s.save(); err != nil {
			return err
		}
		if s.tunnels[i] != nil {
			if err := s.configure(i); err != nil {
				return err
			}
		}
		s.lookAgain()
	}
	return nil
}

// reseal makes the tunnels know the peers that are known. d.mu is held.
func (d *Driver) reseal() error {
	s := d.seal
	if s == nil || !s.known || !d.seen || s.tunnels[0] == nil || s.tunnels[1] == nil {
		return nil
	}
	shared := map[string]map[string]slice{}
	for name, o := range d.nets {
		count := d.sliceCount(o.whole)
		shared[name] = map[string]slice{}
		for key, peer := range d.peers[name] {
			if _, index, ok := splitKey(key); ok && index != o.index && index < count && peer.Node != d.opts.Node {
				shared[name][key] = peer
			}
		}
	}
	allowed := allowedOf(shared, func(name string, index int) []netip.Prefix { return d.cut(d.nets[name].whole, index) })
	now, changed := time.Now(), [2]bool{}
	var errs []error
	for i := range s.tunnels {
		own := s.kept.Tunnels[i].Config.Private.Public()
		peers, waiting, again := peersOf(s.fleet.nodes, allowed, i, own, s.met[i], s.waiting[i], now)
		if len(again) > 0 { // who was met since the last look is not to lose that
			met, err := s.tunnels[i].Peers()
			if err != nil {
				errs = append(errs, err)
				continue
			}
			s.met[i] = met
			peers, waiting, again = peersOf(s.fleet.nodes, allowed, i, own, met, s.waiting[i], now)
		}
		s.waiting[i] = waiting
		if len(again) == 0 && !s.unsure[i] && reflect.DeepEqual(peers, s.kept.Tunnels[i].Config.Peers) {
			continue
		}
		changed[i] = true
		c := &s.kept.Tunnels[i].Config
		if len(again) > 0 {
			c.Peers = slices.DeleteFunc(slices.Clone(peers), func(p TunnelPeer) bool { return again[p.Public] })
			errs = append(errs, s.tunnels[i].Configure(*c))
		}
		c.Peers = peers
	}
	if changed == [2]bool{} {
		return errors.Join(errs...)
	}
	errs = append(errs, s.save())
	for i := range s.tunnels {
		if changed[i] {
			errs = append(errs, s.configure(i))
		}
	}
	s.lookAgain()
	return errors.Join(errs...)
}

// sealedHop returns by which tunnel a node is sent to, if it can be: nothing
// goes to one whose key is not known.
func (d *Driver) sealedHop(node string) (hop, bool) {
	s := d.seal
	e, ok := s.fleet.nodes[node]
	if !ok || s.tunnels[0] == nil || s.tunnels[1] == nil {
		return hop{}, false
	}
	return hop{link: s.links[choose(s.fleet.epoch.tunnel(), e, s.met)]}, true
}

// sealer is the driver as a [store.Follower] of what concerns encryption.
type sealer Driver

// Reset takes what is in the snapshot.
func (f *sealer) Reset(snapshot store.Snapshot) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.seal.fleet.nodes)
	for _, item := range snapshot.Items {
		f.read(item, false)
	}
	f.seal.known = true
	return f.settle()
}

// Apply follows one commit.
func (f *sealer) Apply(b store.Batch) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range b.Changes {
		f.read(c.Item, c.Deleted)
	}
	return f.settle()
}

func (f *sealer) read(item store.Item, gone bool) {
	if err := f.seal.fleet.read(item.Key, item.Value, gone, time.Now()); err != nil {
		f.log.Error("cannot read a record of tunnels", "key", item.Key, "error", err)
	}
}

func (f *sealer) settle() error {
	f.seal.lookAgain()
	return (*follower)(f).join(f.names())
}

func (f *sealer) names() []string {
	names := make([]string, 0, len(f.nets))
	for name := range f.nets {
		names = append(names, name)
	}
	return names
}

// keepSealed looks at the tunnels until ctx ends: it changes over to those by
// which peers have been met, and renews keys.
func (d *Driver) keepSealed(ctx context.Context) error {
	const first = 10 * time.Millisecond
	most := min(d.opts.Rotate/16, 5*time.Second)
	pause := first
	for {
		all, err := d.look(ctx)
		if err != nil && ctx.Err() == nil {
			d.log.Warn("cannot look after the tunnels; trying again", "error", err)
		}
		if all && err == nil {
			pause = most // all peers are met: nothing is to happen soon
		}
		select {
		case <-ctx.Done():
			return nil
		case <-d.seal.again:
			pause = first
		case <-time.After(pause):
			pause = min(2*pause, most)
		}
	}
}

// look does what is to be done now. All says that all peers have been met.
func (d *Driver) look(ctx context.Context) (all bool, err error) {
	now := time.Now()
	step, all, err := d.meet(now)
	if err != nil {
		return all, err
	}
	number := func() uint64 {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.seal.fleet.epoch.Number
	}()
	switch step {
	case renew:
		if err := d.renew(ctx); err != nil {
			return all, err
		}
	case advance:
		if err := d.advance(ctx, number, now); err != nil {
			return all, err
		}
	}
	if number == 0 {
		if err := d.advance(ctx, 0, now); err != nil {
			return all, err
		}
	}
	return all, d.publish(ctx)
}

// meet takes note of which peers have been met, has the tunnels and routes
// follow, and decides about keys.
func (d *Driver) meet(now time.Time) (next step, all bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.seal
	if !s.known || !d.seen || s.tunnels[0] == nil || s.tunnels[1] == nil {
		return wait, true, nil
	}
	for i, t := range s.tunnels {
		if s.met[i], err = t.Peers(); err != nil {
			return wait, false, err
		}
		var received uint64
		for _, p := range s.met[i] {
			received += p.Received
		}
		if received > s.received[i] {
			s.heard[i] = now
		}
		s.received[i] = received
	}
	if err := (*follower)(d).join((*sealer)(d).names()); err != nil {
		return wait, false, err
	}
	use := s.fleet.epoch.tunnel()
	idle := 1 - use
	r := rotation{
		every: d.opts.Rotate, shift: d.opts.Rotate * time.Duration(hash(d.opts.Node)%64) / 1024,
		elapsed: max(now.Sub(s.fleet.seen), min(now.Sub(s.fleet.epoch.Since), 2*d.opts.Rotate)),
		renewed: s.kept.Tunnels[idle].Made == s.fleet.epoch.Number,
		quiet:   now.Sub(s.heard[idle]),
	}
	all = true
	for _, e := range s.fleet.nodes {
		if e.Underlay == d.opts.Underlay {
			continue
		}
		session := s.met[idle][e.Ends[idle].Public].Handshake
		if choose(use, e, s.met) == idle && now.Sub(session) < sessionLife {
			r.held = true
		}
		for i := range s.met {
			all = all && !s.met[i][e.Ends[i].Public].Handshake.IsZero()
		}
	}
	if s.fleet.epoch.Number == 0 {
		return wait, all, nil
	}
	return r.next(), all, nil
}

// sessionLife is how long a session of WireGuard may be used.
const sessionLife = 3 * time.Minute

// renew makes a new key for the idle tunnel. It is kept first, then published,
// then used: whatever ends the program, no others know a key that this node has
// not. It is published in the epoch in which it was decided, or not at all: who
// learns of the next epoch, in which the tunnel is used, knows the key by then.
func (d *Driver) renew(ctx context.Context) error {
	item, found, err := store.Get(ctx, d.opts.Store, keyEpoch)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.seal
	var now epoch
	if !found || json.Unmarshal(item.Value, &now) != nil || now.Number != s.fleet.epoch.Number || s.tunnels[0] == nil {
		return nil // the epoch is over, or Purge has been here
	}
	idle := 1 - now.tunnel()
	t := &s.kept.Tunnels[idle]
	if t.Next == (Key{}) {
		if t.Next, err = MakeKey(); err != nil {
			return err
		}
	}
	if err := s.save(); err != nil {
		return err
	}
	e := d.ends()
	e.Ends[idle].Public = t.Next.Public()
	mine, err := json.Marshal(e)
	if err != nil {
		return err
	}
	err = d.commit(ctx, item.Unchanged(), store.Put(keyNodes+d.opts.Node, mine))
	if errors.Is(err, store.ErrConflict) {
		return nil
	}
	if err != nil {
		return err
	}
	t.Made = now.Number
	d.log.Info("a new key for the tunnel that is used next", "epoch", now.Number, "key", e.Ends[idle].Public)
	return d.adopt(mine)
}

// advance begins the epoch after one, unless another node has.
func (d *Driver) advance(ctx context.Context, after uint64, now time.Time) error {
	item, found, err := store.Get(ctx, d.opts.Store, keyEpoch)
	if err != nil {
		return err
	}
	condition := store.Absent(keyEpoch)
	if found {
		var e epoch
		if err := json.Unmarshal(item.Value, &e); err != nil || e.Number != after {
			return err
		}
		condition = item.Unchanged()
	}
	value, err := json.Marshal(epoch{Number: after + 1, Since: now})
	if err != nil {
		return err
	}
	if err := d.commit(ctx, condition, store.Put(keyEpoch, value)); err != nil && !errors.Is(err, store.ErrConflict) {
		return err
	}
	return nil
}

// closeWhole keeps what is for a part of a network that no node is known to have
// from leaving by the default route: nobody there knows the network, and what is
// to be encrypted must not go in the clear.
func (d *Driver) closeWhole(o *overlay) error {
	for _, p := range o.whole {
		if d.sliceBits(p) <= p.Bits() {
			continue // all of it is this node's
		}
		err := d.host.RouteReplace(&netlink.Route{Dst: ipNet(p), Type: unix.RTN_BLACKHOLE, Protocol: routeProtocol})
		if err != nil {
			return fmt.Errorf("no route to what is left of %v: %w", p, err)
		}
	}
	return nil
}
