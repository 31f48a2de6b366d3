//go:build unix

package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/store"
	"github.com/orchestrate-go/orchestrate/store/etcd"
	"github.com/orchestrate-go/orchestrate/store/etcd/internal/etcdtest"
)

// put commits one key, again while etcd is away.
func put(t *testing.T, s store.Store, key string, value []byte) int64 {
	t.Helper()
	for {
		revision, err := s.Commit(t.Context(), store.Txn{Writes: []store.Write{store.Put(key, value)}})
		if err == nil {
			return revision
		}
		if !errors.Is(err, etcd.ErrUnavailable) {
			t.Fatalf("Commit of %s: %v", key, err)
		}
	}
}

// next is the next batch, which must come.
func next(t *testing.T, batches <-chan store.Batch) store.Batch {
	t.Helper()
	timeout := time.NewTimer(time.Minute)
	defer timeout.Stop()
	select {
	case batch, open := <-batches:
		if !open {
			t.Fatal("the watch ended")
		}
		return batch
	case <-timeout.C:
		t.Fatal("no batch within a minute")
	}
	panic("unreachable")
}

// cutOff are proxies for one store alone, and the store.
func cutOff(t *testing.T, c *etcdtest.Cluster) ([]*etcdtest.Proxy, *etcd.Store) {
	t.Helper()
	proxies := c.Proxies()
	var endpoints []string
	for _, p := range proxies {
		endpoints = append(endpoints, p.URL())
	}
	return proxies, dial(t, endpoints)
}

// TestWatchOverRestarts kills and starts the only server under two watches: one
// of what is written all the time, and one that is idle while everything else is
// written and compacted. None may need to list again.
func TestWatchOverRestarts(t *testing.T) {
	c := etcdtest.New(t, 1)
	s := dial(t, c.Endpoints())
	busy, err := s.Watch(t.Context(), "/busy/", 0)
	if err != nil {
		t.Fatal(err)
	}
	idle, err := s.Watch(t.Context(), "/idle/", 0)
	if err != nil {
		t.Fatal(err)
	}
	rounds := 2
	if testing.Short() {
		rounds = 1
	}
	for round := range rounds {
		for i := range 20 {
			want := put(t, s, fmt.Sprint("/busy/", i), fmt.Append(nil, round))
			if got := next(t, busy); got.Revision != want {
				t.Fatalf("round %d: batch at %d, %v; want %d and no gap", round, got.Revision, got.Err, want)
			}
		}
		last := put(t, s, "/else", nil)
		// Longer than a store lets go by without asking how far its watches are.
		pause(t, 7*time.Second)
		if err := s.Compact(t.Context(), last); err != nil {
			t.Fatal(err)
		}
		c.Kill(0)
		c.Start(0)
		want := put(t, s, "/idle/x", fmt.Append(nil, round))
		if got := next(t, idle); got.Revision != want {
			t.Fatalf("round %d: the idle watch got %d, %v; want %d: it was told how far it is", round, got.Revision, got.Err, want)
		}
	}
}

// pause lets time go by, where that is what is tested.
func pause(t *testing.T, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
	}
}

// TestWatchThatLosesItsHistory cuts a client off while what it would have seen
// is compacted: it must be told.
func TestWatchThatLosesItsHistory(t *testing.T) {
	c := etcdtest.New(t, 1)
	other := dial(t, c.Endpoints())
	proxies, s := cutOff(t, c)
	batches, err := s.Watch(t.Context(), "/w/", 0)
	if err != nil {
		t.Fatal(err)
	}
	want := put(t, other, "/w/seen", nil)
	if got := next(t, batches); got.Revision != want {
		t.Fatalf("batch at %d, want %d", got.Revision, want)
	}
	proxies[0].Cut("")
	proxies[0].Drop()
	put(t, other, "/w/missed", nil)
	last := put(t, other, "/w/missed", []byte("again"))
	if err := other.Compact(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	proxies[0].Heal("")
	if got := next(t, batches); !errors.Is(got.Err, store.ErrCompacted) {
		t.Errorf("after its history was compacted the watch got %+v, want ErrCompacted", got)
	}
	if _, open := <-batches; open {
		t.Error("the watch goes on after ErrCompacted")
	}
}

// TestSlowReceiverIsBounded writes much more than a watch may hold before its
// receiver takes any of it.
func TestSlowReceiverIsBounded(t *testing.T) {
	c := etcdtest.New(t, 1)
	s := dial(t, c.Endpoints())
	batches, err := s.Watch(t.Context(), "/w/", 0)
	if err != nil {
		t.Fatal(err)
	}
	const n, large = 128, 1 << 20
	var revisions []int64
	inUse := func() uint64 {
		var memory runtime.MemStats
		runtime.GC()
		runtime.GC() // what pools hold goes with the second
		runtime.ReadMemStats(&memory)
		return memory.HeapAlloc
	}
	before := inUse()
	for range n {
		revisions = append(revisions, put(t, s, "/w/x", make([]byte, large)))
	}
	if now := inUse(); now > before+n*large/2 {
		t.Errorf("%d MiB are in use while a receiver is %d MiB behind, and %d MiB were before: want a fraction", now>>20, n*large>>20, before>>20)
	}
	for i, want := range revisions {
		if got := next(t, batches); got.Revision != want || got.Err != nil {
			t.Fatalf("batch %d is at %d, %v; want %d: nothing lost", i, got.Revision, got.Err, want)
		}
	}
}

// TestListIsOfOneRevision lists many pages while the first and the last item are
// written together, and history is compacted.
func TestListIsOfOneRevision(t *testing.T) {
	c := etcdtest.New(t, 1)
	s := dial(t, c.Endpoints())
	const items = 3000
	for i := 0; i < items; i += store.MaxTxnOps {
		var txn store.Txn
		for j := i; j < min(i+store.MaxTxnOps, items); j++ {
			txn.Writes = append(txn.Writes, store.Put(fmt.Sprintf("/l/k%04d", j), make([]byte, 2000)))
		}
		if _, err := s.Commit(t.Context(), txn); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	writing.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			revision, err := s.Commit(ctx, store.Txn{Writes: []store.Write{
				store.Put("/l/a", fmt.Append(nil, i)), store.Put("/l/z", fmt.Append(nil, i)),
			}})
			if err == nil && i%200 == 0 {
				err = s.Compact(ctx, revision)
			}
			if err != nil && ctx.Err() == nil {
				t.Errorf("Commit: %v", err)
				return
			}
		}
	})
	for range 15 {
		snapshot, err := s.List(t.Context(), "/l/")
		if err != nil {
			t.Errorf("List: %v", err)
			continue
		}
		n := len(snapshot.Items)
		if n < items || n > items+2 {
			t.Errorf("List has %d items, want %d and two", n, items)
		} else if first, last := snapshot.Items[0], snapshot.Items[n-1]; n > items &&
			(first.Key != "/l/a" || last.Key != "/l/z" || string(first.Value) != string(last.Value) || first.Revision != last.Revision) {
			t.Errorf("List at %d begins with %s=%s and ends with %s=%s, want both of one transaction", snapshot.Revision, first.Key, first.Value, last.Key, last.Value)
		}
	}
	cancel()
	writing.Wait()
}

// TestLeaseOfWhoIsCutOff cuts the owner of a lease off until it is over, and
// lets it find out.
func TestLeaseOfWhoIsCutOff(t *testing.T) {
	c := etcdtest.New(t, 3)
	other := dial(t, c.Endpoints())
	proxies, s := cutOff(t, c)
	lease, err := s.Lease(t.Context(), 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	revision, err := s.Commit(t.Context(), store.Txn{Writes: []store.Write{store.PutLeased("/alive", nil, lease.ID())}})
	if err != nil {
		t.Fatal(err)
	}
	gone, err := other.Watch(t.Context(), "/alive", revision)
	if err != nil {
		t.Fatal(err)
	}
	kept := make(chan error, 1)
	go func() { kept <- store.Keep(t.Context(), lease) }()
	for _, p := range proxies {
		p.Cut("")
	}
	if batch := next(t, gone); len(batch.Changes) != 1 || !batch.Changes[0].Deleted {
		t.Errorf("others saw %+v, want the leased item deleted", batch)
	}
	if err := <-kept; !errors.Is(err, store.ErrLeaseExpired) {
		t.Errorf("Keep while cut off: %v, want ErrLeaseExpired", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := lease.KeepAlive(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("KeepAlive while cut off: %v, want the context's error", err)
	}
	for _, p := range proxies {
		p.Heal("")
	}
	for {
		if err = lease.KeepAlive(t.Context()); !errors.Is(err, etcd.ErrUnavailable) {
			break
		}
	}
	if !errors.Is(err, store.ErrLeaseExpired) {
		t.Errorf("KeepAlive once healed: %v, want ErrLeaseExpired", err)
	}
}

// TestNear has a store with a server of its own, as a control plane has. Servers
// that fall silent cost it nothing; and without its own it goes on by the others.
func TestNear(t *testing.T) {
	c := etcdtest.New(t, 3)
	proxies := c.Proxies()
	opts := etcd.Options{Prefix: "/", Logger: etcdtest.Logger()}
	for _, p := range proxies {
		opts.Endpoints = append(opts.Endpoints, p.URL())
	}
	opts.Near = proxies[1].URL()
	s, err := etcd.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	lease, err := s.Lease(t.Context(), 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	seen, err := s.Watch(t.Context(), "/x", put(t, s, "/x", nil))
	if err != nil {
		t.Fatal(err)
	}
	// swift does each kind of call, and has the watch tell of each Commit. It returns the longest that one took.
	swift := func() (most time.Duration) {
		t.Helper()
		for range 10 {
			for what, call := range map[string]func() error{
				"Commit": func() error {
					_, err := s.Commit(t.Context(), store.Txn{Writes: []store.Write{store.Put("/x", nil)}})
					return err
				},
				"Get":       func() error { _, _, err := s.Get(t.Context(), "/x"); return err },
				"List":      func() error { _, err := s.List(t.Context(), "/"); return err },
				"KeepAlive": func() error { return lease.KeepAlive(t.Context()) },
			} {
				began := time.Now()
				err := call()
				if what == "Commit" && err == nil {
					err = next(t, seen).Err
				}
				if err != nil {
					t.Errorf("%s: %v", what, err)
				}
				most = max(most, time.Since(began))
			}
		}
		return most
	}
	proxies[0].Cut("")
	proxies[2].Cut("")
	if took := swift(); took >= time.Second {
		t.Errorf("a call took %v while servers that are not near are silent, want less than a second", took)
	}
	proxies[0].Heal("")
	proxies[2].Heal("")

	// Its own says nothing: the others are asked.
	proxies[1].Cut("")
	if _, _, err := s.Get(t.Context(), "/x"); err != nil {
		t.Errorf("Get while the near server is silent: %v", err)
	}
	proxies[1].Heal("")

	c.Kill(1)
	for range 2 { // the one that finds out, and the one after
		if _, _, err := s.Get(t.Context(), "/x"); err != nil {
			t.Errorf("Get without the near server: %v", err)
		}
	}
	put(t, s, "/x", []byte("last"))
	for {
		batch := next(t, seen)
		if batch.Err != nil {
			t.Fatalf("the watch ended with %v, want it to go on by another server", batch.Err)
		}
		if string(batch.Changes[0].Item.Value) == "last" {
			break
		}
	}
}

// TestLeaseOutlivesAServer keeps a lease while one server after the other is
// stopped as it is, so that connections to it hang.
func TestLeaseOutlivesAServer(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for longer than a lease, twice")
	}
	c := etcdtest.New(t, 3)
	s := dial(t, c.Endpoints())
	lease, err := s.Lease(t.Context(), 9*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	kept := make(chan error, 1)
	go func() { kept <- store.Keep(ctx, lease) }()
	for i := range 2 {
		c.Stop(i)
		pause(t, 10*time.Second) // more than the lease lasts
		c.Continue(i)
	}
	select {
	case err := <-kept:
		t.Errorf("Keep ended with %v while one server of three was stopped", err)
	default:
		cancel()
		<-kept
	}
	cancel()
	if err := lease.KeepAlive(t.Context()); err != nil {
		t.Errorf("KeepAlive: %v, want the lease alive", err)
	}
}

// TestBackAfterAnOutage has a store that was without servers for a while: a call
// that is made once they are back is answered, however long they were away.
func TestBackAfterAnOutage(t *testing.T) {
	c := etcdtest.New(t, 1)
	s, err := etcd.Open(etcd.Options{Endpoints: c.Endpoints(), Prefix: "/", Timeout: 2 * time.Second, Logger: etcdtest.Logger()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	put(t, s, "/x", nil)
	c.Kill(0)
	for end := time.Now().Add(11 * time.Second); time.Now().Before(end); {
		if _, err := s.List(t.Context(), "/"); !errors.Is(err, etcd.ErrUnavailable) {
			t.Fatalf("List without a server: %v, want ErrUnavailable", err)
		}
	}
	c.Start(0)
	put(t, dial(t, c.Endpoints()), "/y", nil) // it serves
	if got, err := s.List(t.Context(), "/"); err != nil || len(got.Items) != 2 {
		t.Errorf("List with a server again: %d items, %v; want 2", len(got.Items), err)
	}
}
