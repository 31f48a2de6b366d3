package orchestratetest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/orchestrate-go/orchestrate/internal/record"
	"github.com/orchestrate-go/orchestrate/store"
)

// shared is the fleet's store: one in memory, whose watches and leases are the
// world's, so that they deliver and expire in its order. Calls are made with
// world.mu held, by the driver.
type shared struct {
	world    *world
	store    store.Store // keeps items and checks conditions
	watches  map[string][]*watch
	lengths  []int // of the watched prefixes, sorted
	waiting  []*watch
	leased   map[string]*lease // by key
	leases   map[store.LeaseID]*lease
	revision int64
	commits  int
}

// watch is one Watch.
type watch struct {
	actor   *actor
	prefix  string
	after   int64
	order   int
	out     chan store.Batch // has room for one
	pending []store.Batch
	queued  bool
	ended   bool
}

// stall is how long a call into a store that cannot be reached takes to fail.
const stall = 2 * time.Second

func newShared(w *world, s store.Store) *shared {
	return &shared{world: w, store: s, watches: map[string][]*watch{}, leased: map[string]*lease{}, leases: map[store.LeaseID]*lease{}}
}

// client is the store as one actor reaches it.
type client struct {
	*shared
	actor *actor
}

var (
	_ store.Store  = client{}
	_ store.Getter = client{}
)

// call makes one call into the store.
func (c client) call(ctx context.Context, class class, key string, do func() error) error {
	for {
		takes, closed := c.world.latency(c.actor, class)
		if closed {
			return cmp.Or(ctx.Err(), store.ErrClosed)
		}
		err := c.actor.enter(ctx, class, key, takes, func() error {
			switch {
			case c.actor.closed:
				return store.ErrClosed
			case c.actor.cut:
				return ErrUnreachable
			}
			return do()
		})
		if err != ErrUnreachable {
			return err
		}
		// As a client does whose packets get lost: it finds out after a while.
		timer := time.NewTimer(stall)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		c.world.mu.Lock()
		cut := c.actor.cut
		c.world.mu.Unlock()
		if cut {
			return ErrUnreachable
		}
	}
}

// List is store.Store's.
func (c client) List(ctx context.Context, prefix string) (s store.Snapshot, err error) {
	err = c.call(ctx, doing, "list "+prefix, func() (err error) {
		s, err = c.store.List(context.Background(), prefix)
		return err
	})
	if k := c.world.clockOf(c.actor); k != nil {
		for i := range s.Items {
			s.Items[i].Value = shift(s.Items[i].Value, k.means)
		}
	}
	return s, err
}

// Get is store.Getter's.
func (c client) Get(ctx context.Context, key string) (item store.Item, found bool, err error) {
	err = c.call(ctx, doing, "get "+key, func() (err error) {
		item, found, err = store.Get(context.Background(), c.store, key)
		return err
	})
	if k := c.world.clockOf(c.actor); k != nil {
		item.Value = shift(item.Value, k.means)
	}
	return item, found, err
}

// Watch is store.Store's.
func (c client) Watch(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error) {
	if err := store.ValidatePrefix(prefix); err != nil {
		return nil, err
	}
	w := &watch{actor: c.actor, prefix: prefix, after: after, out: make(chan store.Batch, 1)}
	err := c.call(ctx, doing, "watch "+prefix, func() error {
		if after < c.revision {
			// What came between the list and this is in the memory's history.
			missed, err := c.missed(prefix, after)
			if err != nil {
				return err
			}
			w.pending = missed
		}
		c.dues()
		w.order = c.world.dues
		if c.watches[prefix] == nil {
			c.watches[prefix] = []*watch{}
			if i, found := slices.BinarySearch(c.lengths, len(prefix)); !found {
				c.lengths = slices.Insert(c.lengths, i, len(prefix))
			}
		}
		c.watches[prefix] = append(c.watches[prefix], w)
		c.notify(w)
		return nil
	})
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() {
		c.world.mu.Lock()
		defer c.world.mu.Unlock()
		c.endWatch(w)
	})
	return w.out, nil
}

func (s *shared) dues() { s.world.dues++ }

// missed are the batches after a revision.
func (s *shared) missed(prefix string, after int64) ([]store.Batch, error) {
	i, _ := slices.BinarySearchFunc(s.world.recent, after+1, func(b store.Batch, r int64) int { return int(b.Revision - r) })
	if len(s.world.recent) == 0 || s.world.recent[0].Revision > after+1 {
		return nil, store.ErrCompacted
	}
	var all []store.Batch
	for _, b := range s.world.recent[i:] {
		if b, ok := under(b, prefix); ok {
			all = append(all, b)
		}
	}
	return all, nil
}

// under is what of a batch is under a prefix.
func under(b store.Batch, prefix string) (store.Batch, bool) {
	n := 0
	for _, c := range b.Changes {
		if strings.HasPrefix(c.Item.Key, prefix) {
			n++
		}
	}
	switch n {
	case 0:
		return b, false
	case len(b.Changes):
		return b, true
	}
	out := store.Batch{Revision: b.Revision, Changes: make([]store.Change, 0, n)}
	for _, c := range b.Changes {
		if strings.HasPrefix(c.Item.Key, prefix) {
			out.Changes = append(out.Changes, c)
		}
	}
	return out, true
}

func (s *shared) endWatch(w *watch) {
	if w.ended {
		return
	}
	w.ended, w.pending = true, nil
	close(w.out)
	rest := slices.DeleteFunc(s.watches[w.prefix], func(o *watch) bool { return o == w })
	if len(rest) == 0 {
		delete(s.watches, w.prefix)
	} else {
		s.watches[w.prefix] = rest
	}
}

// loseWatches has the watches of an actor fall behind all history.
func (s *shared) loseWatches(a *actor) (n int) {
	for _, prefix := range sortedKeys(s.watches) {
		for _, w := range s.watches[prefix] {
			if w.actor == a {
				w.pending = []store.Batch{{Err: store.ErrCompacted}}
				s.notify(w)
				n++
			}
		}
	}
	return n
}

// notify has the driver deliver to w what is pending.
func (s *shared) notify(w *watch) {
	if len(w.pending) > 0 && !w.queued && !w.ended {
		w.queued = true
		s.waiting = append(s.waiting, w)
	}
}

// deliver gives the next batch to each watch that has one and is read, one for
// each actor. mu is held.
func (w *world) deliver() bool {
	s := w.shared
	if len(s.waiting) == 0 {
		return false
	}
	slices.SortFunc(s.waiting, func(a, b *watch) int {
		if a.actor.order != b.actor.order {
			return a.actor.order - b.actor.order
		}
		return a.order - b.order
	})
	given, last := false, (*actor)(nil)
	all := s.waiting
	s.waiting = nil
	for _, t := range all {
		a := t.actor
		if t.ended || len(t.pending) == 0 {
			t.queued = false
			continue
		}
		if a == last || a.hung || a.dead || a.cut || len(t.out) > 0 {
			s.waiting = append(s.waiting, t)
			continue
		}
		b := t.pending[0]
		t.pending = t.pending[1:]
		if a.clock != nil {
			b = shiftBatch(b, a.clock.means)
		}
		if w.scenario.trace != nil {
			w.scenario.trace(fmt.Sprintf("%v %s deliver %s %d", w.since(), a.id, t.prefix, b.Revision))
		}
		t.out <- b
		given, last = true, a
		if b.Err != nil {
			t.queued = false
			s.endWatch(t)
			continue
		}
		if t.queued = len(t.pending) > 0; t.queued {
			s.waiting = append(s.waiting, t)
		}
	}
	return given
}

// Commit is store.Store's.
func (c client) Commit(ctx context.Context, txn store.Txn) (revision int64, err error) {
	if err := txn.Validate(); err != nil {
		return 0, err
	}
	if k := c.world.clockOf(c.actor); k != nil {
		txn = shiftTxn(txn, k.tells)
	}
	if tamper := c.world.scenario.tamper; tamper != nil {
		txn = tamper(c.actor.id, txn)
	}
	err = c.call(ctx, committing, about(txn), func() (err error) {
		if len(txn.If) > 0 && c.world.conflicts(c.actor) {
			c.outrun(txn.If)
		}
		revision, err = c.commit(c.actor, txn)
		if err == nil && c.world.unsure(c.actor) {
			return fmt.Errorf("orchestratetest: the answer to a commit got lost: %w", context.DeadlineExceeded)
		}
		return err
	})
	return revision, err
}

// outrun has someone else be faster than a commit with these conditions, so that
// it conflicts as it must. What nobody else may write is left alone: of leased keys
// all but the leader's, which anyone may delete who deposes it.
func (s *shared) outrun(conditions []store.Condition) {
	for _, c := range conditions {
		item, found, _ := store.Get(context.Background(), s.store, c.Key)
		if !found || item.Revision != c.Revision || item.Lease != "" && c.Key != record.Leader {
			continue
		}
		w := store.Put(item.Key, item.Value)
		if c.Key == record.Leader {
			w = store.Delete(item.Key)
		}
		if _, err := s.commit(s.world.self, store.Txn{Writes: []store.Write{w}}); err != nil {
			panic("orchestratetest: whoever is faster: " + err.Error()) // it writes again what is there
		}
		return
	}
}

// about is what tells a transaction from others of the same actor.
func about(txn store.Txn) string {
	if len(txn.Writes) == 0 {
		return ""
	}
	return txn.Writes[0].Key
}

// commit applies txn and tells the watches.
func (s *shared) commit(a *actor, txn store.Txn) (int64, error) {
	gone := map[string]bool{} // that are deleted, and are there
	for _, w := range txn.Writes {
		if w.Delete {
			_, gone[w.Key], _ = store.Get(context.Background(), s.store, w.Key)
		}
	}
	revision, err := s.store.Commit(context.Background(), txn)
	if err != nil {
		return 0, err
	}
	changes := make([]store.Change, 0, len(txn.Writes))
	for _, w := range txn.Writes {
		if w.Delete && !gone[w.Key] {
			continue
		}
		if old := s.leased[w.Key]; old != nil {
			delete(old.keys, w.Key)
			delete(s.leased, w.Key)
		}
		if w.Delete {
			changes = append(changes, store.Change{Item: store.Item{Key: w.Key, Revision: revision}, Deleted: true})
			continue
		}
		// Not as the caller has it, who may go on to change the value.
		item, _, _ := store.Get(context.Background(), s.store, w.Key)
		if l := s.leases[item.Lease]; l != nil {
			l.keys[item.Key] = struct{}{}
			s.leased[item.Key] = l
		}
		changes = append(changes, store.Change{Item: item})
	}
	if len(changes) > 0 {
		s.publish(a, store.Batch{Revision: revision, Changes: changes})
	}
	return revision, nil
}

// publish tells all of a commit.
func (s *shared) publish(a *actor, batch store.Batch) {
	s.revision = batch.Revision
	s.commits++
	s.world.committed(a, batch)
	s.tell(batch)
}

// tell hands a batch to the watches that it concerns.
func (s *shared) tell(batch store.Batch) {
	type part struct {
		watches []*watch
		changes []store.Change
	}
	if len(batch.Changes) == 1 {
		key := batch.Changes[0].Item.Key
		for _, n := range s.lengths {
			if n > len(key) {
				break
			}
			for _, w := range s.watches[key[:n]] {
				s.give(w, batch)
			}
		}
		return
	}
	parts := map[string]*part{}
	var order []string
	for _, c := range batch.Changes {
		for _, n := range s.lengths {
			if n > len(c.Item.Key) {
				break
			}
			prefix := c.Item.Key[:n]
			p := parts[prefix]
			if p == nil {
				watches := s.watches[prefix]
				if len(watches) == 0 {
					continue
				}
				p = &part{watches: watches}
				parts[prefix] = p
				order = append(order, prefix)
			}
			p.changes = append(p.changes, c)
		}
	}
	for _, prefix := range order {
		p := parts[prefix]
		for _, w := range p.watches {
			s.give(w, store.Batch{Revision: batch.Revision, Changes: p.changes})
		}
	}
}

// give hands a batch to a watch, unless that is to begin later.
func (s *shared) give(w *watch, b store.Batch) {
	if b.Revision > w.after {
		w.pending = append(w.pending, b)
		s.notify(w)
	}
}

// Lease is store.Store's.
func (c client) Lease(ctx context.Context, ttl time.Duration) (store.Lease, error) {
	if ttl <= 0 {
		return nil, &store.TTLError{TTL: ttl}
	}
	var l *lease
	err := c.call(ctx, doing, "lease", func() (err error) {
		l, err = c.grant(c, ttl)
		return err
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

// Close ends all that this actor has to do with the store, which is the world's.
func (c client) Close() error {
	c.world.mu.Lock()
	defer c.world.mu.Unlock()
	if c.actor.closed {
		return nil
	}
	c.actor.closed = true
	for _, prefix := range sortedKeys(c.watches) {
		for _, w := range slices.Clone(c.watches[prefix]) {
			if w.actor == c.actor {
				c.endWatch(w)
			}
		}
	}
	c.world.connect(c.actor)
	c.world.ring()
	return nil
}

var errLost = errors.New("orchestratetest: renewals get lost")
