package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/store"
)

// leased is the put of a key under a lease.
func leased(key string, l store.Lease) store.Write {
	return store.PutLeased(key, []byte(l.ID()), l.ID())
}

// expectGone receives one batch that deletes exactly keys, and checks List.
func expectGone(ctx context.Context, t testing.TB, s store.Store, batches <-chan store.Batch, want string) {
	t.Helper()
	batch := receive(t, batches)
	if got := changesSorted(batch); got != want {
		t.Fatalf("watch got %q, want %q: the items of the lease, in one commit, and nothing else", got, want)
	}
	for _, c := range batch.Changes {
		if _, found, err := store.Get(ctx, s, c.Item.Key); found || err != nil {
			t.Errorf("Get(%q) after its deletion was watched: %v, %v; want nothing", c.Item.Key, found, err)
		}
	}
}

func testLeaseExpiry(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	l := lease(ctx, t, s, h.TTL)
	other := lease(ctx, t, s, 100*h.TTL)
	if l.ID() == "" || l.ID() == other.ID() {
		t.Fatalf("lease IDs %q and %q, want two names", l.ID(), other.ID())
	}
	for _, ttl := range []time.Duration{h.TTL, h.TTL + h.TTL/2, h.TTL + 1} {
		if got := lease(ctx, t, s, ttl).TTL(); got < ttl {
			t.Errorf("a lease of %v was granted for %v, want as long at least", ttl, got)
		}
	}
	granted := time.Now()
	revision := commit(ctx, t, s, leased("/l/1", l), leased("/l/2", l), leased("/l/other", other), put("/l/none", "x"))
	commit(ctx, t, s, leased("/l/3", l))
	if item, _, _ := store.Get(ctx, s, "/l/1"); item.Lease != l.ID() {
		t.Errorf("item's lease is %q, want %q", item.Lease, l.ID())
	}
	batches := watch(ctx, t, s, "/l/", revision+1)
	expectGone(ctx, t, s, batches, "-/l/1 -/l/2 -/l/3")
	// The lease was granted before the clock was read, so allow for that.
	if lasted := time.Since(granted); lasted < l.TTL()*9/10 {
		t.Errorf("lease of %v ended after %v, want it to last", l.TTL(), lasted)
	}
	if err := l.KeepAlive(ctx); !errors.Is(err, store.ErrLeaseExpired) {
		t.Errorf("KeepAlive of an expired lease: %v, want ErrLeaseExpired", err)
	}
	if err := l.Revoke(ctx); err != nil {
		t.Errorf("Revoke of an expired lease: %v, want nil: it is gone as wanted", err)
	}
	before := list(ctx, t, s, "")
	_, err := s.Commit(ctx, store.Txn{Writes: []store.Write{put("/l/none", "y"), leased("/l/4", l)}})
	if !errors.Is(err, store.ErrLeaseExpired) {
		t.Errorf("Commit under an expired lease: %v, want ErrLeaseExpired", err)
	}
	if after := list(ctx, t, s, ""); after.Revision != before.Revision {
		t.Errorf("the refused commit changed the store")
	}
	if got := contents(list(ctx, t, s, "/l/")); got != "/l/none=x /l/other="+string(other.ID()) {
		t.Errorf("store has %q, want only the items of no or another lease", got)
	}
}

func testLeaseRenewal(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	l := lease(ctx, t, s, h.TTL)
	revision := commit(ctx, t, s, leased("/l/1", l))
	batches := watch(ctx, t, s, "/l/", revision)
	start := time.Now()
	for time.Since(start) < 3*l.TTL() {
		pause(ctx, l.TTL()/3)
		if err := l.KeepAlive(ctx); err != nil {
			t.Fatalf("KeepAlive after %v, renewed every third of %v: %v", time.Since(start), l.TTL(), err)
		}
	}
	if _, found, err := store.Get(ctx, s, "/l/1"); !found || err != nil {
		t.Fatalf("item of a renewed lease: found %v, %v; want it there", found, err)
	}
	renewed := time.Now()
	expectGone(ctx, t, s, batches, "-/l/1")
	if lasted := time.Since(renewed); lasted < l.TTL()*9/10 {
		t.Errorf("lease of %v ended %v after its renewal, want the whole time", l.TTL(), lasted)
	}
}

// pause lets time go by, for tests of what happens in it.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func testLeaseRevocation(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	l := lease(ctx, t, s, 100*h.TTL)
	revision := commit(ctx, t, s, leased("/l/2", l), leased("/l/1", l), put("/l/none", "x"))
	batches := watch(ctx, t, s, "/l/", revision)
	if err := l.Revoke(ctx); err != nil {
		t.Fatalf("Revoke: %v", err)
	}
	if got := contents(list(ctx, t, s, "/l/")); got != "/l/none=x" {
		t.Fatalf("after Revoke the store has %q, want the items of the lease gone", got)
	}
	expectGone(ctx, t, s, batches, "-/l/1 -/l/2")
	if err := l.Revoke(ctx); err != nil {
		t.Errorf("second Revoke: %v, want nil", err)
	}
	if err := l.KeepAlive(ctx); !errors.Is(err, store.ErrLeaseExpired) {
		t.Errorf("KeepAlive of a revoked lease: %v, want ErrLeaseExpired", err)
	}
	if _, err := s.Commit(ctx, store.Txn{Writes: []store.Write{leased("/l/1", l)}}); !errors.Is(err, store.ErrLeaseExpired) {
		t.Errorf("Commit under a revoked lease: %v, want ErrLeaseExpired", err)
	}
	// One without items ends without a trace.
	before := list(ctx, t, s, "").Revision
	if err := lease(ctx, t, s, h.TTL).Revoke(ctx); err != nil {
		t.Errorf("Revoke of a lease without items: %v", err)
	}
	if after := list(ctx, t, s, "").Revision; after != before {
		t.Errorf("revoking a lease without items took revision %d, want %d still", after, before)
	}
}

// testLeaseMany ends a lease that has more items than one transaction writes.
func testLeaseMany(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	l := lease(ctx, t, s, 100*h.TTL)
	var revision int64
	var want []string
	for part := range 3 {
		var writes []store.Write
		for i := range store.MaxTxnOps {
			key := fmt.Sprintf("/l/%d%03d", part, i)
			writes, want = append(writes, leased(key, l)), append(want, "-"+key)
		}
		revision = commit(ctx, t, s, writes...)
	}
	batches := watch(ctx, t, s, "/l/", revision)
	if err := l.Revoke(ctx); err != nil {
		t.Fatalf("Revoke: %v", err)
	}
	if batch := receive(t, batches); changesSorted(batch) != strings.Join(want, " ") {
		t.Errorf("watch got a batch of %d changes, want the %d items of the lease in one commit", len(batch.Changes), len(want))
	}
}

func testLeaseDetached(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	l, other := lease(ctx, t, s, 100*h.TTL), lease(ctx, t, s, 100*h.TTL)
	commit(ctx, t, s, leased("/l/detached", l), leased("/l/moved", l), leased("/l/stays", l), leased("/l/again", l), leased("/l/reborn", l))
	commit(ctx, t, s, put("/l/detached", "mine"), leased("/l/moved", other), leased("/l/again", l), store.Delete("/l/reborn"))
	revision := commit(ctx, t, s, put("/l/reborn", "mine"))
	if item, _, _ := store.Get(ctx, s, "/l/detached"); item.Lease != "" {
		t.Errorf("item written again without lease has lease %q, want none", item.Lease)
	}
	batches := watch(ctx, t, s, "/l/", revision)
	if err := l.Revoke(ctx); err != nil {
		t.Fatalf("Revoke: %v", err)
	}
	expectGone(ctx, t, s, batches, "-/l/again -/l/stays")
	if err := other.Revoke(ctx); err != nil {
		t.Fatalf("Revoke: %v", err)
	}
	expectGone(ctx, t, s, batches, "-/l/moved")
	if got, want := contents(list(ctx, t, s, "/l/")), "/l/detached=mine /l/reborn=mine"; got != want {
		t.Errorf("store has %q, want %q", got, want)
	}
}

func testLeaseInvalid(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	for _, ttl := range []time.Duration{0, -time.Second} {
		_, err := s.Lease(ctx, ttl)
		var bad *store.TTLError
		if !errors.As(err, &bad) || bad.TTL != ttl || !errors.Is(err, store.ErrInvalid) {
			t.Errorf("Lease(%v): %v, want a *TTLError", ttl, err)
		}
	}
	_, err := s.Commit(ctx, store.Txn{Writes: []store.Write{store.PutLeased("/a", nil, "no such lease")}})
	if !errors.Is(err, store.ErrLeaseExpired) {
		t.Errorf("Commit under an unknown lease: %v, want ErrLeaseExpired", err)
	}
	if got := contents(list(ctx, t, s, "")); got != "" {
		t.Errorf("store has %q, want nothing", got)
	}
}

func testKeep(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	l := lease(ctx, t, s, h.TTL)
	commit(ctx, t, s, leased("/l/1", l))
	keeping, cancel := context.WithTimeout(ctx, 3*l.TTL())
	defer cancel()
	if err := store.Keep(keeping, l); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Keep = %v, want it to go on until its context ends", err)
	}
	if _, found, _ := store.Get(ctx, s, "/l/1"); !found {
		t.Fatalf("item of a kept lease is gone")
	}
	if err := l.Revoke(ctx); err != nil {
		t.Fatalf("Revoke: %v", err)
	}
	if err := store.Keep(ctx, l); !errors.Is(err, store.ErrLeaseExpired) {
		t.Errorf("Keep of a revoked lease = %v, want ErrLeaseExpired", err)
	}
}
