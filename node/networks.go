package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/network"
	"github.com/orchestrate-go/orchestrate/store"
)

// networks keeps the node's networks true to their records. It is a
// [store.Follower] of [record.Networks].
type networks struct {
	driver network.Driver // may be nil
	log    *slog.Logger
	wake   chan struct{} // a removal is due

	mu      sync.Mutex // guards what follows
	specs   map[string]record.Network
	ensured map[string]record.Network
	removed map[string]bool // ensured once, and without a spec
	changed chan struct{}   // closed and made anew when specs change
	making  map[string]*sync.Mutex
	onSpecs func() // told of each change
}

func newNetworks(d network.Driver, log *slog.Logger) *networks {
	return &networks{
		driver: d, log: log, wake: make(chan struct{}, 1),
		specs: map[string]record.Network{}, ensured: map[string]record.Network{},
		removed: map[string]bool{}, changed: make(chan struct{}), making: map[string]*sync.Mutex{},
		onSpecs: func() {},
	}
}

// Reset takes the networks of the snapshot.
func (n *networks) Reset(s store.Snapshot) error {
	n.mu.Lock()
	for name := range n.specs {
		n.removed[name] = true
	}
	clear(n.specs)
	for _, item := range s.Items {
		n.read(item)
	}
	n.publish()
	return nil
}

// Apply follows one commit.
func (n *networks) Apply(b store.Batch) error {
	n.mu.Lock()
	for _, c := range b.Changes {
		if !c.Deleted {
			n.read(c.Item)
		} else if parts := record.Split(c.Item.Key, record.Networks, 1); parts != nil {
			delete(n.specs, parts[0])
			n.removed[parts[0]] = true
		}
	}
	n.publish()
	return nil
}

// publish unlocks n.mu and tells who waits.
func (n *networks) publish() {
	close(n.changed)
	n.changed = make(chan struct{})
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
	n.onSpecs()
}

func (n *networks) read(item store.Item) {
	parts := record.Split(item.Key, record.Networks, 1)
	if parts == nil {
		return
	}
	var rec record.Network
	if err := json.Unmarshal(item.Value, &rec); err != nil {
		n.log.Error("cannot read a network's record", "key", item.Key, "error", err)
		return
	}
	rec.Name = parts[0]
	n.specs[rec.Name] = rec
	delete(n.removed, rec.Name)
}

// run removes networks whose records are gone, as soon as nothing uses them.
func (n *networks) run(ctx context.Context) error {
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-n.wake:
		case <-again:
		}
		again = nil
		if !n.removeUnused(ctx) {
			again = time.After(2 * time.Second)
		}
	}
}

// removeUnused reports whether nothing is left to remove.
func (n *networks) removeUnused(ctx context.Context) bool {
	n.mu.Lock()
	var names []string
	for name := range n.removed {
		names = append(names, name)
	}
	n.mu.Unlock()
	left := false
	for _, name := range names {
		lock := n.maker(name)
		lock.Lock()
		err := error(nil)
		n.mu.Lock()
		_, back := n.specs[name]
		n.mu.Unlock()
		if n.driver != nil && !back {
			err = n.driver.Remove(ctx, name)
		}
		n.mu.Lock()
		if err == nil {
			delete(n.removed, name)
			delete(n.ensured, name)
		}
		n.mu.Unlock()
		lock.Unlock()
		var inUse *network.InUseError
		if err != nil {
			left = true
			if !errors.As(err, &inUse) {
				n.log.Warn("cannot remove a network; trying again", "network", name, "error", err)
			}
		}
	}
	return !left
}

func (n *networks) maker(name string) *sync.Mutex {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.making[name] == nil {
		n.making[name] = new(sync.Mutex)
	}
	return n.making[name]
}

// specWait is how long a task waits for its network's record, which may come
// a moment after its own.
const specWait = 5 * time.Second

// ensure makes a network true on this node.
func (n *networks) ensure(ctx context.Context, name string) error {
	spec, err := n.await(ctx, name)
	if err != nil {
		return err
	}
	lock := n.maker(name)
	lock.Lock()
	defer lock.Unlock()
	n.mu.Lock()
	done, ok := n.ensured[name]
	n.mu.Unlock()
	if ok && reflect.DeepEqual(done, spec) {
		return nil
	}
	if err := n.driver.Ensure(ctx, spec.Driver()); err != nil {
		return fmt.Errorf("make network %q: %w", name, err)
	}
	n.mu.Lock()
	n.ensured[name] = spec
	n.mu.Unlock()
	n.onSpecs() // its server can listen now
	return nil
}

func (n *networks) await(ctx context.Context, name string) (record.Network, error) {
	limit := time.NewTimer(specWait)
	defer limit.Stop()
	for {
		n.mu.Lock()
		spec, ok := n.specs[name]
		changed := n.changed
		n.mu.Unlock()
		if ok {
			return spec, nil
		}
		select {
		case <-ctx.Done():
			return spec, ctx.Err()
		case <-limit.C:
			return spec, fmt.Errorf("network %q: %w; apply a Network of that name", name, network.ErrNoNetwork)
		case <-changed:
		}
	}
}

// gateways returns the node's addresses on a network.
func (n *networks) gateways(name string) []netip.Addr {
	if d, ok := n.driver.(network.Divider); ok {
		return d.Gateways(name)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.specs[name].Driver().Gateways()
}

// made returns the networks that exist on this node.
func (n *networks) made() []record.Network {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []record.Network
	for _, spec := range n.ensured {
		all = append(all, spec)
	}
	return all
}
