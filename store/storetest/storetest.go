// Package storetest is the specification of store.Store as tests. Every
// implementation runs it:
//
//	func TestConformance(t *testing.T) {
//		storetest.Run(t, storetest.Harness{
//			Open: func(t testing.TB) store.Store { return mystore.New() },
//		})
//	}
//
// The suite is itself tested with stores that are wrong in one way each; it
// fails for all of them.
package storetest

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orchestrate-go/orchestrate/store"
)

// Harness is what the suite needs of an implementation.
type Harness struct {
	// Open returns a new, empty store, which keeps the history of 300 commits
	// or more. The suite closes it.
	Open func(t testing.TB) store.Store

	// Reopen closes s and opens its state again, as after a restart of the
	// process. Nil for stores that keep nothing.
	Reopen func(t testing.TB, s store.Store) store.Store

	// Shared says that leases outlive the process that took them, so that a
	// reopened store still has their items. Without it they must be gone.
	Shared bool

	// Virtual says that the store's sense of time is package time of this
	// process, so that the suite may run in a testing/synctest bubble, where
	// waiting for a lease takes no time.
	Virtual bool

	// TTL is the shortest lease that the store can keep exactly enough for a
	// test. Default 1 s.
	TTL time.Duration
}

// Run runs the suite, each part as a subtest on a store of its own.
func Run(t *testing.T, h Harness) {
	h = h.withDefaults()
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			if c.needs != nil {
				if lacking := c.needs(h); lacking != "" {
					t.Skip(lacking)
				}
			}
			h.run(t, func(t *testing.T) { c.run(t, h) })
		})
	}
}

func (h Harness) withDefaults() Harness {
	if h.TTL == 0 {
		h.TTL = time.Second
	}
	return h
}

// run calls body where the store's time is the test's.
func (h Harness) run(t *testing.T, body func(t *testing.T)) {
	if h.Virtual {
		synctest.Test(t, body)
	} else {
		body(t)
	}
}

// check is one part of the suite.
type check struct {
	name  string
	run   func(t testing.TB, h Harness)
	needs func(Harness) (lacking string) // nil: nothing; else why the check does not apply
}

var checks = []check{
	{name: "list", run: testList},
	{name: "get", run: testGet},
	{name: "revisions", run: testRevisions},
	{name: "values", run: testValues},
	{name: "conditions", run: testConditions},
	{name: "atomic", run: testAtomic},
	{name: "nothing to do", run: testNothing},
	{name: "invalid keys", run: testInvalidKeys},
	{name: "limits", run: testLimits},
	{name: "counter", run: testCounter},
	{name: "ended context", run: testEndedContext},
	{name: "watch", run: testWatch},
	{name: "watch from the past", run: testWatchPast},
	{name: "watch prefix", run: testWatchPrefix},
	{name: "watch context", run: testWatchContext},
	{name: "watch writers", run: testWatchWriters},
	{name: "slow watcher", run: testSlowWatcher},
	{name: "compaction", run: testCompaction},
	{name: "follow", run: testFollow},
	{name: "lease expiry", run: testLeaseExpiry},
	{name: "lease renewal", run: testLeaseRenewal},
	{name: "lease revocation", run: testLeaseRevocation},
	{name: "lease of many", run: testLeaseMany},
	{name: "lease detached", run: testLeaseDetached},
	{name: "lease invalid", run: testLeaseInvalid},
	{name: "keep", run: testKeep},
	{name: "election", run: testElection},
	{name: "election fence", run: testElectionFence},
	{name: "election deposed", run: testElectionDeposed},
	{name: "close", run: testClose},
	{name: "reopen", run: testReopen, needs: needsReopen},
	{name: "reopen leases", run: testReopenLeases, needs: needsReopen},
}

func needsReopen(h Harness) string {
	if h.Reopen == nil {
		return "the store keeps nothing when it is closed"
	}
	return ""
}

// patience ends a check that waits for what never comes. In virtual time it is
// over at once.
const patience = 30 * time.Second

// open returns a store that is closed with the test, and a context that ends
// with it.
func (h Harness) open(t testing.TB) (context.Context, store.Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*patience)
	s := h.Open(t)
	t.Cleanup(func() {
		cancel()
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return ctx, s
}

// commit commits writes without conditions.
func commit(ctx context.Context, t testing.TB, s store.Store, writes ...store.Write) int64 {
	t.Helper()
	revision, err := s.Commit(ctx, store.Txn{Writes: writes})
	if err != nil {
		t.Fatalf("Commit of %s: %v", describe(writes), err)
	}
	return revision
}

func put(key, value string) store.Write { return store.Put(key, []byte(value)) }

func list(ctx context.Context, t testing.TB, s store.Store, prefix string) store.Snapshot {
	t.Helper()
	snapshot, err := s.List(ctx, prefix)
	if err != nil {
		t.Fatalf("List(%q): %v", prefix, err)
	}
	return snapshot
}

func watch(ctx context.Context, t testing.TB, s store.Store, prefix string, after int64) <-chan store.Batch {
	t.Helper()
	batches, err := s.Watch(ctx, prefix, after)
	if err != nil {
		t.Fatalf("Watch(%q, %d): %v", prefix, after, err)
	}
	return batches
}

func lease(ctx context.Context, t testing.TB, s store.Store, ttl time.Duration) store.Lease {
	t.Helper()
	l, err := s.Lease(ctx, ttl)
	if err != nil {
		t.Fatalf("Lease(%v): %v", ttl, err)
	}
	if l.TTL() < ttl {
		t.Fatalf("Lease(%v).TTL() = %v, want at least what was asked for", ttl, l.TTL())
	}
	return l
}

// receive returns the next batch, which must come and be no error.
func receive(t testing.TB, batches <-chan store.Batch) store.Batch {
	t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case batch, open := <-batches:
		if !open {
			t.Fatalf("watch ended, want a batch")
		}
		if batch.Err != nil {
			t.Fatalf("watch ended with %v, want a batch", batch.Err)
		}
		return batch
	case <-timeout.C:
		t.Fatalf("no batch within %v", patience)
	}
	panic("unreachable")
}

// ended waits until the channel is closed, and returns the error of its last
// batch, if that has one.
func ended(t testing.TB, batches <-chan store.Batch) error {
	t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		select {
		case batch, open := <-batches:
			if !open {
				return nil
			}
			if batch.Err == nil {
				continue
			}
			select {
			case after, open := <-batches:
				if open {
					t.Fatalf("watch sent %+v after a batch with error %v, want it to be the last", after, batch.Err)
				}
				return batch.Err
			case <-timeout.C:
				t.Fatalf("watch sent error %v but did not close its channel", batch.Err)
			}
		case <-timeout.C:
			t.Fatalf("watch did not end within %v", patience)
		}
	}
}

// wait waits for a channel to be closed.
func wait(t testing.TB, done <-chan struct{}, what string) {
	t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case <-done:
	case <-timeout.C:
		t.Fatalf("%s did not happen within %v", what, patience)
	}
}
