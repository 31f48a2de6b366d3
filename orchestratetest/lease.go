package orchestratetest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/orchestrate-go/orchestrate/store"
)

// lease is one whose holder renews it for as long as it can, without an event
// for each renewal: when the holder is cut off, or dies, the lease lasts as long
// as it would if the last renewal had been sent at its time, a third of the TTL
// after the one before.
type lease struct {
	client client
	kept   store.Lease // of the store that keeps the items, where it ends only by end
	id     store.LeaseID
	ttl    time.Duration

	// Guarded by world.mu.
	keys    map[string]struct{}
	over    bool
	expiry  *due             // at the store, while nothing renews it
	keepers []chan time.Time // told of renewals: one for each Keep
	began   time.Time        // of Keep
	renewed time.Time        // when the last renewal arrived, while none does
}

var (
	_ store.Lease  = (*lease)(nil)
	_ store.Keeper = (*lease)(nil)
)

// always is a renewal that lasts until another is told.
const always = 100 * 365 * 24 * time.Hour

func (s *shared) grant(c client, ttl time.Duration) (*lease, error) {
	kept, err := s.store.Lease(context.Background(), always)
	if err != nil {
		return nil, err
	}
	l := &lease{client: c, kept: kept, id: kept.ID(), ttl: ttl, keys: map[string]struct{}{}, renewed: time.Now()}
	s.leases[l.id] = l
	c.actor.leases = append(slices.DeleteFunc(c.actor.leases, func(l *lease) bool { return l.over }), l)
	l.countdown()
	return l, nil
}

// countdown has the lease expire its TTL after the last renewal. mu is held.
func (l *lease) countdown() {
	w := l.client.world
	w.cancel(l.expiry)
	l.expiry = w.after(time.Until(l.renewed.Add(l.ttl)), -1, "lease "+string(l.id), func() { l.end() })
}

// end deletes what is under the lease, in one commit. mu is held.
func (l *lease) end() {
	s := l.client.shared
	if l.over {
		return
	}
	l.over = true
	s.world.cancel(l.expiry)
	delete(s.leases, l.id)
	if err := l.kept.Revoke(context.Background()); err != nil {
		panic("orchestratetest: expiry of a lease: " + err.Error()) // the world's store is open
	}
	batch := store.Batch{Revision: s.revision + 1} // as it is to be, one for all
	for _, key := range slices.Sorted(maps.Keys(l.keys)) {
		batch.Changes = append(batch.Changes, store.Change{Item: store.Item{Key: key, Revision: batch.Revision}, Deleted: true})
		delete(s.leased, key)
	}
	l.keys = map[string]struct{}{}
	if len(batch.Changes) > 0 {
		s.publish(s.world.self, batch)
	}
	l.tell(time.Time{})
}

// tell tells the holder of a renewal, or, with the zero time, of the end. mu is
// held.
func (l *lease) tell(sent time.Time) {
	for _, news := range l.keepers {
		select {
		case <-news: // which was not read
		default:
		}
		news <- sent
	}
}

// ID is store.Lease's.
func (l *lease) ID() store.LeaseID { return l.id }

// TTL is store.Lease's.
func (l *lease) TTL() time.Duration { return l.ttl }

// KeepAlive is store.Lease's.
func (l *lease) KeepAlive(ctx context.Context) error {
	return l.client.call(ctx, doing, "keepalive", func() error {
		if l.over {
			return store.ErrLeaseExpired
		}
		l.renewed = time.Now()
		l.countdown()
		return nil
	})
}

// Revoke is store.Lease's.
func (l *lease) Revoke(ctx context.Context) error {
	return l.client.call(ctx, committing, "revoke", func() error {
		l.end()
		return nil
	})
}

// Keep is store.Keeper's.
func (l *lease) Keep(ctx context.Context, patience time.Duration, renewed func(time.Time)) error {
	w := l.client.world
	news := make(chan time.Time, 1)
	w.mu.Lock()
	if len(l.keepers) == 0 {
		l.began = time.Now()
	}
	l.keepers = append(l.keepers, news)
	l.follow()
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		l.keepers = slices.DeleteFunc(l.keepers, func(c chan time.Time) bool { return c == news })
		if len(l.keepers) == 0 && !l.over {
			l.lose()
		}
	}()
	var lost <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-lost:
			return fmt.Errorf("%w: no renewal for %v: %w", store.ErrLeaseExpired, patience, errLost)
		case sent := <-news:
			if sent.IsZero() {
				return l.lost()
			}
			renewed(sent)
			lost = nil
			if d := time.Until(sent.Add(patience)); d < always/2 {
				w.mu.Lock()
				d = l.client.actor.counts(d)
				w.mu.Unlock()
				lost = time.After(d)
			}
		}
	}
}

// lost says why nobody keeps the lease any more.
func (l *lease) lost() error {
	w := l.client.world
	w.mu.Lock()
	defer w.mu.Unlock()
	if l.client.actor.closed {
		return store.ErrClosed
	}
	return store.ErrLeaseExpired
}

// follow has the lease go by whether its holder reaches the store. mu is held.
func (l *lease) follow() {
	switch a := l.client.actor; {
	case l.over:
		l.tell(time.Time{})
	case len(l.keepers) == 0:
	case a.closed:
		l.lose()
		l.tell(time.Time{})
	case a.dead || a.cut || a.hung:
		l.lose()
		l.tell(l.renewed)
	default:
		l.client.world.cancel(l.expiry)
		l.expiry = nil
		l.renewed = time.Time{}
		l.tell(time.Now().Add(always))
	}
}

// lose starts the countdown of a lease that was renewed until now. mu is held.
func (l *lease) lose() {
	if l.expiry != nil {
		return
	}
	// As many thirds as have gone by, without an error that grows with them.
	gone := time.Since(l.began)
	l.renewed = l.began.Add(gone/l.ttl*l.ttl + gone%l.ttl*3/l.ttl*l.ttl/3)
	l.countdown()
}

// connect has the leases of an actor go by what has become of it. mu is held.
func (w *world) connect(a *actor) {
	a.leases = slices.DeleteFunc(a.leases, func(l *lease) bool { return l.over })
	for _, l := range a.leases {
		l.follow()
	}
}
