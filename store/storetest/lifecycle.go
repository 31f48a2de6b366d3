package storetest

import (
	"errors"
	"fmt"
	"testing"

	"github.com/orchestrate-go/orchestrate/store"
)

func testClose(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	revision := commit(ctx, t, s, put("/a", "1"))
	batches := watch(ctx, t, s, "/", revision)
	unread := watch(ctx, t, s, "/", 0)
	l := lease(ctx, t, s, h.TTL)
	commit(ctx, t, s, leased("/b", l))
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v, want nil, also the second time", err)
		}
	}
	for _, w := range []<-chan store.Batch{batches, unread} {
		if err := ended(t, w); err != nil && !errors.Is(err, store.ErrClosed) {
			t.Errorf("watch ended with %v, want a closed channel or ErrClosed", err)
		}
	}
	_, list := s.List(ctx, "/")
	_, watch := s.Watch(ctx, "/", revision)
	_, commit := s.Commit(ctx, store.Txn{Writes: []store.Write{put("/b", "1")}})
	_, grant := s.Lease(ctx, h.TTL)
	_, _, get := store.Get(ctx, s, "/a")
	for call, err := range map[string]error{
		"List": list, "Watch": watch, "Commit": commit, "Lease": grant, "Get": get,
		"KeepAlive": l.KeepAlive(ctx), "Revoke": l.Revoke(ctx),
	} {
		if !errors.Is(err, store.ErrClosed) {
			t.Errorf("%s after Close: %v, want ErrClosed", call, err)
		}
	}
}

func testReopen(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	const n = 300
	for i := range n {
		commit(ctx, t, s, put(fmt.Sprintf("/k/%03d", i), fmt.Sprint(i)), put("/last", fmt.Sprint(i)), store.Delete(fmt.Sprintf("/k/%03d", i-10)))
	}
	before := list(ctx, t, s, "")
	s = h.Reopen(t, s)
	t.Cleanup(func() { _ = s.Close() })
	after := list(ctx, t, s, "")
	newMirror(t, "", before).equal(t, after)
	if after.Revision < before.Revision {
		t.Fatalf("revision is %d after reopening, was %d; want it never to go back", after.Revision, before.Revision)
	}
	// A watch from before goes on without a gap, or says that it cannot.
	old := before.Items[0].Created
	want := commit(ctx, t, s, put("/last", "new"))
	if want <= before.Revision {
		t.Fatalf("first commit after reopening is at %d, was %d before; want it greater", want, before.Revision)
	}
	batches, err := s.Watch(ctx, "", old)
	if err == nil {
		m := newMirror(t, "", store.Snapshot{Revision: old})
		for batch := range within(t, batches) {
			if err = batch.Err; err != nil {
				break
			}
			if m.revision == old && batch.Revision != old+1 {
				t.Fatalf("watch after %d, from before reopening, begins at %d: a gap", old, batch.Revision)
			}
			m.revision = batch.Revision
			if m.revision == want {
				break
			}
		}
	}
	if err != nil && !errors.Is(err, store.ErrCompacted) {
		t.Errorf("watch from before reopening: %v, want ErrCompacted or no gap", err)
	}
	if batch := receive(t, watch(ctx, t, s, "", after.Revision)); batch.Revision != want {
		t.Errorf("watch after reopening got a batch at %d, want %d", batch.Revision, want)
	}
}

func testReopenLeases(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	l := lease(ctx, t, s, 100*h.TTL)
	revision := commit(ctx, t, s, leased("/l/1", l), leased("/l/2", l), put("/l/none", "x"))
	s = h.Reopen(t, s)
	t.Cleanup(func() { _ = s.Close() })
	got := contents(list(ctx, t, s, "/l/"))
	if h.Shared {
		if want := fmt.Sprintf("/l/1=%s /l/2=%[1]s /l/none=x", l.ID()); got != want {
			t.Errorf("store has %q after reopening, want %q: the lease is alive", got, want)
		}
		return
	}
	if got != "/l/none=x" {
		t.Errorf("store has %q after reopening, want %q: the owner of the lease is dead", got, "/l/none=x")
	}
	if batch := receive(t, watch(ctx, t, s, "/l/", revision)); changesSorted(batch) != "-/l/1 -/l/2" {
		t.Errorf("watch across reopening got %q, want the deletion of the leased items", changes(batch))
	}
	fresh := lease(ctx, t, s, h.TTL)
	if fresh.ID() == l.ID() {
		t.Errorf("lease %q was granted before and after reopening, want names that are used once", l.ID())
	}
	_, err := s.Commit(ctx, store.Txn{Writes: []store.Write{leased("/l/3", l)}})
	if !errors.Is(err, store.ErrLeaseExpired) {
		t.Errorf("Commit under a lease from before reopening: %v, want ErrLeaseExpired", err)
	}
	// A leader that is dead need not be waited for.
	e := store.Election{Store: s, Key: "/l/leader", ID: "me", TTL: 100 * h.TTL}
	if _, err := e.Campaign(ctx); err != nil {
		t.Fatalf("Campaign: %v", err)
	}
	s = h.Reopen(t, s)
	t.Cleanup(func() { _ = s.Close() })
	e.Store = s
	again, err := e.Campaign(ctx)
	if err != nil {
		t.Fatalf("Campaign after reopening: %v", err)
	}
	if err := again.Resign(ctx); err != nil {
		t.Errorf("Resign: %v", err)
	}
}
