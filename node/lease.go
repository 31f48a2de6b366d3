package node

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/runtime"
	"github.com/orchestrate-go/orchestrate/store"
)

// A node is alive as long as its lease is. The lease lasts for as long as the
// agent is told by its options, and longer in a fleet that is so large that all
// nodes together would renew their leases too often for the store: see
// record.Size, which the leader writes. When that changes, the node gets another
// lease, moves its records to it, and revokes the one before. It is registered all
// the while, so nobody hears of it but by a longer or shorter promise, see
// tenure.go.
//
// So that nodes which begin together, after the store was away, do not come
// together from then on, each renews at an interval of its own, which follows from
// its ID.

// DefaultLeaseTTL is the default of [Options.LeaseTTL].
const DefaultLeaseTTL = 5 * time.Second

// held is a lease that the node is registered under.
type held struct {
	lease        store.Lease
	asked        time.Duration // its TTL, before the store rounded it
	sent         time.Time     // when it, or its last renewal, was asked for
	registration string
	alive        int64 // revision of the node's Alive record
}

// errRelet says that the node is to have another lease.
var errRelet = errors.New("the fleet's size asks for another TTL")

// register keeps the node's record and its lease, and makes them anew when the
// lease is lost.
func (a *Agent) register(ctx context.Context) error {
	started := time.Now().UTC()
	delay := time.Duration(0)
	for {
		began := time.Now()
		err := a.registerOnce(ctx, started)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Since(began) > a.opts.LeaseTTL {
			delay = 0 // it was registered, or has waited long enough in asking
		}
		delay = min(max(2*delay, 50*time.Millisecond), a.opts.LeaseTTL)
		a.log.Warn("this node is not registered; trying again", "error", err, "in", delay)
		if !sleep(ctx, delay) {
			return ctx.Err()
		}
	}
}

// registerOnce is one registration, from the lease to its loss.
func (a *Agent) registerOnce(ctx context.Context, started time.Time) error {
	a.census.read(ctx, a.store)
	sent := time.Now()
	asked := a.census.ttl(a.opts.LeaseTTL)
	lease, err := a.store.Lease(ctx, asked)
	if err != nil {
		return err
	}
	a.out.unlet()
	a.use(lease)
	// A lease's ID may come again in a store that was opened anew.
	h := &held{lease: lease, asked: asked, sent: sent, registration: fmt.Sprintf("%s@%d", lease.ID(), sent.UnixNano())}
	if err := a.enroll(ctx, started, h); err != nil {
		return err
	}
	a.out.relet(lease.ID())
	a.renewed(ctx, h, lease.TTL())(sent)
	defer a.tenure.lapse()
	for {
		if err := a.keep(ctx, h); !errors.Is(err, errRelet) {
			return err
		}
		if h, err = a.relet(ctx, started, h); err != nil {
			return err
		}
	}
}

// enroll writes the node's record and that it is alive. Past the outbox: the
// lease proves nothing to anybody before this is in the store.
func (a *Agent) enroll(ctx context.Context, started time.Time, h *held, ifs ...store.Condition) (err error) {
	_, resizes := a.opts.Runtime.(runtime.Updater)
	data, err := json.Marshal(record.Node{
		Fetches: true, Resizes: resizes,
		Node: a.opts.Node, Version: a.opts.Version, Started: started, Address: a.opts.Address,
		Registration: h.registration, Fence: a.tenure.promise(h.lease.TTL()),
	})
	if err != nil {
		return err
	}
	h.alive, err = a.store.Commit(ctx, store.Txn{If: ifs, Writes: []store.Write{
		store.Put(record.Key(record.Nodes, a.id()), data),
		store.PutLeased(record.Key(record.Alive, a.id()), []byte("{}"), h.lease.ID()),
	}})
	// gofail: var nodeRegistered struct{}
	// die()
	return err
}

// renewed returns what is done at a renewal, under which the node may count on
// ttl at most.
func (a *Agent) renewed(ctx context.Context, h *held, ttl time.Duration) func(sent time.Time) {
	return func(sent time.Time) {
		h.sent = sent
		a.tenure.renew(ctx, h.registration, sent, ttl)
	}
}

// keep renews the lease until it is lost, or there is to be another.
func (a *Agent) keep(ctx context.Context, h *held) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel(nil)
	watch.Go(func() {
		if a.outgrown(ctx, h.asked) {
			cancel(errRelet)
		}
	})
	err := store.KeepEvery(ctx, h.lease, a.interval(h.lease), h.sent, a.renewed(ctx, h, h.lease.TTL()))
	if errors.Is(context.Cause(ctx), errRelet) {
		return errRelet
	}
	return err
}

// outgrown waits until a TTL is not what it should be, and it is this node's turn
// to change that. It reports false when ctx ends.
func (a *Agent) outgrown(ctx context.Context, asked time.Duration) bool {
	for {
		size, changed := a.census.now()
		var turn <-chan time.Time
		if size.TTL(a.opts.LeaseTTL) != asked {
			turn = time.After(time.Duration(a.fraction() * float64(size.Spread())))
		}
		select {
		case <-turn:
			return true
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// relet moves the node to another lease, and keeps the old one meanwhile. With
// an error the node is to be registered anew: what has become of the lease is not
// known then.
func (a *Agent) relet(ctx context.Context, started time.Time, old *held) (*held, error) {
	var mu sync.Mutex // guards old.sent and ttl
	ttl := old.lease.TTL()
	keeping, stop := context.WithCancel(ctx)
	var kept sync.WaitGroup
	defer kept.Wait()
	defer stop()
	kept.Go(func() {
		// Should it be lost, enroll says so.
		_ = store.KeepEvery(keeping, old.lease, a.interval(old.lease), old.sent, func(sent time.Time) {
			mu.Lock()
			defer mu.Unlock()
			old.sent = sent
			a.tenure.renew(ctx, old.registration, sent, ttl)
		})
	})
	next := &held{asked: a.census.ttl(a.opts.LeaseTTL), sent: time.Now(), registration: old.registration}
	var err error
	if next.lease, err = a.store.Lease(ctx, next.asked); err != nil {
		return nil, err
	}
	// A promise of less must be kept before it is given.
	mu.Lock()
	ttl = min(ttl, next.lease.TTL())
	if now := time.Now(); old.sent.After(now) {
		old.sent = now // it was as good as renewed until then, see store.Keeper
	}
	ok := a.tenure.renew(ctx, old.registration, old.sent, ttl)
	mu.Unlock()
	if !ok {
		return nil, errors.New("the runtime cannot hold what must not outlive a shorter lease")
	}
	// Only while it is alive: else someone may have been given its slots.
	if err := a.enroll(ctx, started, next, store.Condition{Key: record.Key(record.Alive, a.id()), Revision: old.alive}); err != nil {
		return nil, err
	}
	a.use(next.lease)
	upTo := a.out.relet(next.lease.ID())
	a.tenure.renew(ctx, next.registration, next.sent, next.lease.TTL())
	a.wg.Go(func() { a.retire(ctx, old.lease, upTo) })
	return next, nil
}

// retire revokes a lease that nothing is under any more once the outbox has
// written up to a point.
func (a *Agent) retire(ctx context.Context, lease store.Lease, upTo uint64) {
	keeping, stop := context.WithCancel(ctx)
	var kept sync.WaitGroup
	kept.Go(func() { _ = store.Keep(keeping, lease) })
	err := a.out.flushed(ctx, upTo)
	stop()
	kept.Wait()
	if err == nil {
		_ = lease.Revoke(ctx) // else it runs out
	}
}

// use has leased records written under a lease from now on.
func (a *Agent) use(lease store.Lease) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lease = lease
}

// leaseID returns the current lease's, or none before the first.
func (a *Agent) leaseID() store.LeaseID {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lease == nil {
		return ""
	}
	return a.lease.ID()
}

// interval is how often the node renews a lease.
func (a *Agent) interval(lease store.Lease) time.Duration { return interval(lease.TTL(), a.fraction()) }

// interval is a third of a TTL, less up to a fifth of that; see
// record.RenewalsPerTTL.
func interval(ttl time.Duration, fraction float64) time.Duration {
	return time.Duration((1 - fraction/5) * float64(ttl/3))
}

// fraction is the node's own number from 0 to 1.
func (a *Agent) fraction() float64 { return fraction(a.id()) }

// fraction spreads names evenly over the numbers from 0 to 1.
func fraction(name string) float64 {
	sum := sha256.Sum256([]byte(name))
	return float64(binary.BigEndian.Uint64(sum[:8])>>11) / (1 << 53)
}

// census is what the agent knows of the fleet's size. It is a [store.Follower].
type census struct {
	mu      sync.Mutex // guards what follows
	known   bool
	size    record.Size
	changed chan struct{} // closed and made anew with each change
}

func newCensus() *census { return &census{changed: make(chan struct{})} }

// Reset takes in a snapshot.
func (c *census) Reset(s store.Snapshot) error {
	var value []byte
	for _, item := range s.Items {
		if item.Key == record.SizeKey {
			value = item.Value
		}
	}
	c.set(value)
	return nil
}

// Apply takes in a change.
func (c *census) Apply(b store.Batch) error {
	for _, change := range b.Changes {
		if change.Item.Key == record.SizeKey {
			c.set(change.Item.Value) // of one that was deleted, nil
		}
	}
	return nil
}

// set takes in a record. One that cannot be read is as good as none.
func (c *census) set(value []byte) {
	var size record.Size
	if json.Unmarshal(value, &size) != nil {
		size = record.Size{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known = true
	if c.size != size {
		c.size = size
		close(c.changed)
		c.changed = make(chan struct{})
	}
}

// read looks at the size, so that the first lease is one that can stay. It is no
// error if it cannot be had.
func (c *census) read(ctx context.Context, s store.Store) {
	c.mu.Lock()
	known := c.known
	c.mu.Unlock()
	if known {
		return
	}
	if item, found, err := store.Get(ctx, s, record.SizeKey); err == nil && found {
		c.set(item.Value)
	}
}

func (c *census) now() (record.Size, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.size, c.changed
}

// ttl is how long leases are to last that would last for base.
func (c *census) ttl(base time.Duration) time.Duration {
	size, _ := c.now()
	return size.TTL(base)
}
