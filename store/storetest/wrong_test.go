package storetest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder is a testing.TB that remembers failures instead of failing.
type recorder struct {
	testing.TB // for TempDir and the like

	mu       sync.Mutex
	failures []string
	cleanups []func()
}

func (r *recorder) record(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures = append(r.failures, text)
}

func (r *recorder) Helper()                   {}
func (r *recorder) Logf(string, ...any)       {}
func (r *recorder) Errorf(f string, a ...any) { r.record(fmt.Sprintf(f, a...)) }
func (r *recorder) Fatalf(f string, a ...any) { r.record(fmt.Sprintf(f, a...)); panic(r) }
func (r *recorder) Skip(a ...any)             { panic(r) }
func (r *recorder) Cleanup(f func())          { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.failures) > 0
}

// failuresOf runs one check against h and returns what it found.
func failuresOf(t *testing.T, h Harness, c check) []string {
	r := &recorder{}
	h = h.withDefaults()
	h.run(t, func(t *testing.T) {
		r.TB = t
		defer func() {
			for _, f := range slices.Backward(r.cleanups) {
				f()
			}
		}()
		defer func() {
			// r itself is the end of the check; anything else, a wrong
			// store that made it crash.
			if cause := recover(); cause != nil && cause != r {
				r.record(fmt.Sprint("panic: ", cause))
			}
		}()
		c.run(r, h)
	})
	return r.failures
}

// wrong is a store with some of its methods replaced.
type wrong struct {
	store.Store
	list   func(ctx context.Context, prefix string) (store.Snapshot, error)
	watch  func(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error)
	commit func(ctx context.Context, txn store.Txn) (int64, error)
	lease  func(ctx context.Context, ttl time.Duration) (store.Lease, error)
}

func (w *wrong) List(ctx context.Context, prefix string) (store.Snapshot, error) {
	if w.list != nil {
		return w.list(ctx, prefix)
	}
	return w.Store.List(ctx, prefix)
}

func (w *wrong) Watch(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error) {
	if w.watch != nil {
		return w.watch(ctx, prefix, after)
	}
	return w.Store.Watch(ctx, prefix, after)
}

func (w *wrong) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	if w.commit != nil {
		return w.commit(ctx, txn)
	}
	return w.Store.Commit(ctx, txn)
}

func (w *wrong) Lease(ctx context.Context, ttl time.Duration) (store.Lease, error) {
	if w.lease != nil {
		return w.lease(ctx, ttl)
	}
	return w.Store.Lease(ctx, ttl)
}

func (w *wrong) Compact(ctx context.Context, revision int64) error {
	return w.Store.(store.Compacter).Compact(ctx, revision)
}

// batches makes a watch whose batches go through change, which returns what to
// deliver instead of each.
func batches(change func() func(store.Batch) []store.Batch) func(*wrong) {
	return func(w *wrong) {
		w.watch = func(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error) {
			in, err := w.Store.Watch(ctx, prefix, after)
			if err != nil {
				return nil, err
			}
			out, each := make(chan store.Batch), change()
			go func() {
				defer close(out)
				for batch := range in {
					for _, b := range each(batch) {
						select {
						case out <- b:
						case <-ctx.Done():
							return
						}
					}
				}
			}()
			return out, nil
		}
	}
}

// commits makes commits that go through change before they are done.
func commits(change func(store.Txn) store.Txn) func(*wrong) {
	return func(w *wrong) {
		w.commit = func(ctx context.Context, txn store.Txn) (int64, error) {
			return w.Store.Commit(ctx, change(txn))
		}
	}
}

// lists makes snapshots that go through change.
func lists(change func(store.Snapshot) store.Snapshot) func(*wrong) {
	return func(w *wrong) {
		w.list = func(ctx context.Context, prefix string) (store.Snapshot, error) {
			s, err := w.Store.List(ctx, prefix)
			return change(s), err
		}
	}
}

// eachWrite changes every write of a transaction.
func eachWrite(change func(*store.Write)) func(store.Txn) store.Txn {
	return func(txn store.Txn) store.Txn {
		txn.Writes = slices.Clone(txn.Writes)
		for i := range txn.Writes {
			change(&txn.Writes[i])
		}
		return txn
	}
}

// wrongLease is a lease with some of its methods replaced.
type wrongLease struct {
	store.Lease
	ttl       time.Duration
	keepAlive func(ctx context.Context) error
	revoke    func(ctx context.Context) error
}

func (l *wrongLease) TTL() time.Duration {
	if l.ttl != 0 {
		return l.ttl
	}
	return l.Lease.TTL()
}

func (l *wrongLease) KeepAlive(ctx context.Context) error {
	if l.keepAlive != nil {
		return l.keepAlive(ctx)
	}
	return l.Lease.KeepAlive(ctx)
}

func (l *wrongLease) Revoke(ctx context.Context) error {
	if l.revoke != nil {
		return l.revoke(ctx)
	}
	return l.Lease.Revoke(ctx)
}

// leases makes leases that break changes; ttl is what was asked for.
func leases(factor float64, breakIt func(l *wrongLease, ttl time.Duration)) func(*wrong) {
	return func(w *wrong) {
		w.lease = func(ctx context.Context, ttl time.Duration) (store.Lease, error) {
			l, err := w.Store.Lease(ctx, time.Duration(float64(ttl)*factor))
			if err != nil {
				return nil, err
			}
			broken := &wrongLease{Lease: l}
			breakIt(broken, ttl)
			return broken, nil
		}
	}
}

// harnessOf is a right store made wrong.
func harnessOf(plant func(*wrong)) Harness {
	return Harness{
		Virtual: true,
		Open: func(testing.TB) store.Store {
			w := &wrong{Store: memory.New(memory.Options{})}
			plant(w)
			return w
		},
	}
}

// TestSuitePasses shows that what the next test sees is the bug and not the
// wrapping.
func TestSuitePasses(t *testing.T) {
	for _, c := range checks {
		h := harnessOf(func(*wrong) {})
		if c.needs != nil && c.needs(h) != "" {
			continue
		}
		if failures := failuresOf(t, h, c); len(failures) > 0 {
			t.Errorf("check %q fails for a right store: %q", c.name, failures)
		}
	}
}

func TestSuiteCatches(t *testing.T) {
	for _, bug := range wrongStores {
		t.Run(bug.bug, func(t *testing.T) {
			i := slices.IndexFunc(checks, func(c check) bool { return c.name == bug.caughtBy })
			if i < 0 {
				t.Fatalf("there is no check %q", bug.caughtBy)
			}
			failures := failuresOf(t, harnessOf(bug.plant), checks[i])
			if len(failures) == 0 {
				t.Fatalf("check %q passes for a store in which %s", bug.caughtBy, bug.bug)
			}
			t.Logf("%.200s", failures[0])
		})
	}
}

// TestSuiteCatchesReopening is the same for what only reopening shows.
func TestSuiteCatchesReopening(t *testing.T) {
	for name, reopen := range map[string]func(store.Store) store.Store{
		"forgets all": func(store.Store) store.Store { return memory.New(memory.Options{}) },
		"is the same": func(s store.Store) store.Store { return s },
		"renumbers": func(s store.Store) store.Store {
			fresh := memory.New(memory.Options{})
			snapshot, _ := s.List(context.Background(), "")
			for _, item := range snapshot.Items {
				_, _ = fresh.Commit(context.Background(), store.Txn{Writes: []store.Write{store.Put(item.Key, item.Value)}})
			}
			return fresh
		},
	} {
		h := harnessOf(func(*wrong) {})
		h.Reopen = func(t testing.TB, s store.Store) store.Store { return reopen(s) }
		caught := false
		for _, c := range checks {
			if c.needs != nil {
				caught = caught || len(failuresOf(t, h, c)) > 0
			}
		}
		if !caught {
			t.Errorf("a store that %s when it is reopened passes", name)
		}
	}
}
