// Package table is the state that the embedded stores have in common: items in
// order, bounded history, watchers and leases, all in memory. It does no I/O
// and decides no durability; a store drafts changes, makes them as durable as
// it promises, and then publishes them.
package table

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate/store"
)

// Options bound the history.
type Options struct {
	History      int    // batches kept
	HistoryBytes int    // bytes of keys and values kept in them
	LeasePrefix  string // of lease IDs, for a store that outlives its leases
}

// Table is a store's state. One writer at a time may use a [Draft] and Publish;
// everything else may be called from any goroutine.
type Table struct {
	opts   Options
	closed chan struct{}  // closed by Close, under mu
	wg     sync.WaitGroup // goroutines of watchers

	mu       sync.RWMutex // guards all below
	reason   error        // why it is closed; nil while it is not
	items    ordered      // changed by Publish alone, so the one writer reads it without mu
	revision int64
	history  history
	prefixes map[string]*audience
	lengths  map[int]int // length of a watched prefix -> how many such prefixes
	leases   map[store.LeaseID]*lease
	granted  int64 // number of leases ever granted, for their names
}

// New returns a table at revision with items, sorted or not. History begins
// there.
func New(opts Options, revision int64, items []store.Item) *Table {
	t := &Table{
		opts:     opts,
		closed:   make(chan struct{}),
		revision: revision,
		history:  history{compacted: revision},
		prefixes: map[string]*audience{},
		lengths:  map[int]int{},
		leases:   map[store.LeaseID]*lease{},
	}
	for _, item := range items {
		t.items.put(&item) // a copy: a pointer into items would keep all of it alive
	}
	return t
}

// Closed is closed when the table is.
func (t *Table) Closed() <-chan struct{} { return t.closed }

// Check returns why no call can be served: the context has ended or the table
// is closed.
func (t *Table) Check(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.reason
}

// List is store.Store's.
func (t *Table) List(ctx context.Context, prefix string) (store.Snapshot, error) {
	if err := store.ValidatePrefix(prefix); err != nil {
		return store.Snapshot{}, err
	}
	if err := ctx.Err(); err != nil {
		return store.Snapshot{}, err
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.reason != nil {
		return store.Snapshot{}, t.reason
	}
	return store.Snapshot{Revision: t.revision, Items: t.items.list(prefix)}, nil
}

// Get is store.Getter's.
func (t *Table) Get(ctx context.Context, key string) (store.Item, bool, error) {
	if err := store.ValidateKey(key); err != nil {
		return store.Item{}, false, err
	}
	if err := ctx.Err(); err != nil {
		return store.Item{}, false, err
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.reason != nil {
		return store.Item{}, false, t.reason
	}
	if item := t.items.get(key); item != nil {
		return *item, true, nil
	}
	return store.Item{}, false, nil
}

// Compact is store.Compacter's.
func (t *Table) Compact(ctx context.Context, revision int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.reason != nil {
		return t.reason
	}
	if revision < 0 || revision > t.revision {
		return &store.RevisionError{Revision: revision, Current: t.revision}
	}
	t.history.compact(revision)
	return nil
}

// Publish makes the changes of d, which was drafted on this table, visible to
// List and Watch.
func (t *Table) Publish(d *Draft) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, batch := range d.batches {
		for _, c := range batch.Changes {
			t.detach(c.Item.Key)
			if c.Deleted {
				t.items.remove(c.Item.Key)
				continue
			}
			item := c.Item // a copy: a pointer into Changes would keep all of it alive
			t.items.put(&item)
			if l := t.leases[item.Lease]; l != nil {
				l.keys[item.Key] = struct{}{}
			}
		}
		t.revision = batch.Revision
		t.history.add(batch, t.opts)
		t.tell(batch)
	}
	for _, id := range d.ended {
		delete(t.leases, id)
	}
}

// detach makes key no longer belong to the lease it was written under.
func (t *Table) detach(key string) {
	if old := t.items.get(key); old != nil && old.Lease != "" {
		if l := t.leases[old.Lease]; l != nil {
			delete(l.keys, key)
		}
	}
}

// Close ends all watches and timers, and makes every later call return reason.
// It says whether it was the first to close. Wait waits for the watches.
func (t *Table) Close(reason error) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.reason != nil {
		return false
	}
	t.reason = reason
	close(t.closed)
	for _, l := range t.leases {
		l.timer.Stop()
	}
	return true
}

// Wait returns when all goroutines of a closed table have ended.
func (t *Table) Wait() { t.wg.Wait() }

// Grant makes a lease. When it is due, or revoked, the table calls expire,
// which must have the one writer publish [Draft.Expire] of it; it is called on
// a goroutine of its own. Revoke calls it with the caller's context and returns
// its error.
func (t *Table) Grant(ctx context.Context, ttl time.Duration, expire func(context.Context, store.LeaseID) error) (store.Lease, error) {
	if ttl <= 0 {
		return nil, &store.TTLError{TTL: ttl}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.reason != nil {
		return nil, t.reason
	}
	t.granted++
	l := &lease{
		table:  t,
		id:     store.LeaseID(fmt.Sprintf("%s%d", t.opts.LeasePrefix, t.granted)),
		ttl:    ttl,
		expire: expire,
		keys:   map[string]struct{}{},
	}
	l.deadline = time.Now().Add(ttl)
	l.timer = time.AfterFunc(ttl, l.due)
	t.leases[l.id] = l
	return l, nil
}
