package storetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/orchestrate-go/orchestrate/store"
)

func testWatch(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	commit(ctx, t, s, put("/t/a", "1"), put("/t/b", "1"))
	snapshot := list(ctx, t, s, "/t/")
	m := newMirror(t, "/t/", snapshot)
	batches := watch(ctx, t, s, "/t/", snapshot.Revision)
	for _, writes := range [][]store.Write{
		{put("/t/c", "1")},
		{put("/t/b", "2"), put("/t/a", "2"), store.Delete("/t/c")}, // in this order
		{put("/t/c", "3")},
		{store.Delete("/t/c")},
		{put("/t/a", "2")},
	} {
		revision := commit(ctx, t, s, writes...)
		batch := receive(t, batches)
		if batch.Revision != revision || changes(batch) != describe(writes) {
			t.Fatalf("watch got %q at %d, want %q at %d", changes(batch), batch.Revision, describe(writes), revision)
		}
		for _, c := range batch.Changes {
			if want := (store.Item{Key: c.Item.Key, Revision: revision}); c.Deleted && !sameItem(c.Item, want) {
				t.Errorf("deletion has item %+v, want %+v", c.Item, want)
			}
		}
		m.apply(t, batch)
	}
	m.equal(t, list(ctx, t, s, "/t/"))
}

func testWatchPast(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	var revisions []int64
	for i := range 10 {
		revisions = append(revisions, commit(ctx, t, s, put("/t/a", fmt.Sprint(i))))
		commit(ctx, t, s, put("/elsewhere", fmt.Sprint(i)))
	}
	for from := range revisions {
		batches := watch(ctx, t, s, "/t/", revisions[from])
		for i := from + 1; i < len(revisions); i++ {
			batch := receive(t, batches)
			if want := fmt.Sprintf("/t/a=%d", i); batch.Revision != revisions[i] || changes(batch) != want {
				t.Fatalf("watch after %d got %q at %d, want %q at %d", revisions[from], changes(batch), batch.Revision, want, revisions[i])
			}
		}
	}
	// The past and what comes next follow each other without a seam.
	batches := watch(ctx, t, s, "/t/", revisions[8])
	last := commit(ctx, t, s, put("/t/a", "last"))
	for _, want := range []int64{revisions[9], last} {
		if batch := receive(t, batches); batch.Revision != want {
			t.Fatalf("watch after %d got a batch at %d, want %d", revisions[8], batch.Revision, want)
		}
	}
	// From a revision that is yet to come, only what comes after it.
	batches = watch(ctx, t, s, "/t/", last+1)
	commit(ctx, t, s, put("/t/a", "not this"))
	want := commit(ctx, t, s, put("/t/a", "this"))
	if batch := receive(t, batches); batch.Revision != want {
		t.Fatalf("watch after the future %d got a batch at %d, want %d", last+1, batch.Revision, want)
	}
}

func testWatchPrefix(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	start := list(ctx, t, s, "").Revision
	prefixes := []string{"", "/", "/t", "/t/", "/t/n1", "/t/n1/", "/t/n1/a", "/u/"}
	var watches []<-chan store.Batch
	for _, prefix := range prefixes {
		watches = append(watches, watch(ctx, t, s, prefix, start))
	}
	// Each of these commits is a story for some of them, and the last for all.
	for _, writes := range [][]store.Write{
		{put("/t/n1/a", "1"), put("/t/n10/a", "1"), put("/u/x", "1")},
		{put("/t/n1/ab", "1")},
		{put("/u/x", "2"), put("/v", "2")},
		{put("/t/n1", "1")},
		{store.Delete("/t/n1/a"), store.Delete("/u/x")},
		{put("/t/n1/a", "end"), put("/u/x", "end")},
	} {
		commit(ctx, t, s, writes...)
	}
	end := list(ctx, t, s, "")
	for i, prefix := range prefixes {
		m := newMirror(t, prefix, store.Snapshot{Revision: start})
		for m.revision < end.Revision {
			m.apply(t, receive(t, watches[i]))
		}
		m.equal(t, list(ctx, t, s, prefix))
	}
}

func testWatchContext(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	start := list(ctx, t, s, "").Revision
	watching, cancel := context.WithCancel(ctx)
	first := watch(watching, t, s, "/", start)
	other := watch(ctx, t, s, "/", start)
	commit(ctx, t, s, put("/a", "1"))
	receive(t, first)
	cancel()
	if err := ended(t, first); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("watch ended with %v, want a closed channel when its context ends", err)
	}
	commit(ctx, t, s, put("/a", "2"))
	receive(t, other)
	if batch := receive(t, other); changes(batch) != "/a=2" {
		t.Errorf("another watch got %q, want it to go on", changes(batch))
	}
}

// testWatchWriters has many writers and watchers at once. Every watcher must see
// exactly the commits that were acknowledged, whole and in order.
func testWatchWriters(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	const writers, each = 6, 40
	prefixes := []string{"/", "/0/", "/1/", "/0/3"}
	start := list(ctx, t, s, "")

	var mu sync.Mutex
	acknowledged := map[int64]string{} // revision -> what was written
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(w)))
			for range each {
				// Puts only, so that what was written is what changed.
				writes := []store.Write{
					put(fmt.Sprintf("/%d/%d", random.IntN(2), random.IntN(10)), fmt.Sprint(random.Int())),
					put(fmt.Sprintf("/%d/x%d", random.IntN(2), random.IntN(10)), fmt.Sprint(random.Int())),
				}
				revision, err := s.Commit(ctx, store.Txn{Writes: writes})
				if err != nil {
					t.Errorf("Commit: %v", err)
					return
				}
				mu.Lock()
				if other, taken := acknowledged[revision]; taken {
					t.Errorf("revision %d was given to %q and to %q", revision, other, describe(writes))
				}
				acknowledged[revision] = sorted(writes)
				mu.Unlock()
			}
		})
	}
	type seen struct {
		prefix  string
		batches <-chan store.Batch
		mirror  *mirror
	}
	var all []*seen
	for i := range 3 * len(prefixes) { // these start while the writers write
		prefix := prefixes[i%len(prefixes)]
		snapshot := list(ctx, t, s, prefix)
		all = append(all, &seen{prefix, watch(ctx, t, s, prefix, snapshot.Revision), newMirror(t, prefix, snapshot)})
	}
	whole := watch(ctx, t, s, "/", start.Revision)
	wg.Wait()
	if t.Failed() {
		return
	}
	end := commit(ctx, t, s, put("/0/3", "end"), put("/1/3", "end"))
	for _, one := range all {
		for one.mirror.revision < end {
			one.mirror.apply(t, receive(t, one.batches))
		}
		one.mirror.equal(t, list(ctx, t, s, one.prefix))
	}
	m := newMirror(t, "/", start)
	for m.revision < end {
		batch := receive(t, whole)
		m.apply(t, batch)
		if batch.Revision == end {
			break
		}
		want, known := acknowledged[batch.Revision]
		if got := changesSorted(batch); !known || got != want {
			t.Fatalf("watch got %q at %d, want %q: what was committed at that revision", got, batch.Revision, want)
		}
		delete(acknowledged, batch.Revision)
	}
	for revision, writes := range acknowledged {
		t.Errorf("watch did not get %q at %d, which was acknowledged", writes, revision)
	}
}

func changesSorted(batch store.Batch) string {
	batch.Changes = slices.SortedFunc(slices.Values(batch.Changes), func(a, b store.Change) int {
		if a.Item.Key < b.Item.Key {
			return -1
		}
		return 1
	})
	return changes(batch)
}

// testSlowWatcher has a watcher that does not receive while much is written. It
// must hold up nobody, and then either get everything or be told.
func testSlowWatcher(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	snapshot := list(ctx, t, s, "/")
	slow := watch(ctx, t, s, "/", snapshot.Revision)
	const commits = 500
	var revisions []int64
	for i := range commits {
		revisions = append(revisions, commit(ctx, t, s, put(fmt.Sprintf("/k%d", i%7), fmt.Sprint(i))))
	}
	last := revisions[commits-1]
	fromAnywhere(ctx, t, s, revisions)
	m, n := newMirror(t, "/", snapshot), 0
	for batch := range within(t, slow) {
		if errors.Is(batch.Err, store.ErrCompacted) {
			if err := ended(t, slow); err != nil {
				t.Errorf("watch sent an error twice: %v", err)
			}
			return
		}
		if batch.Err != nil {
			t.Fatalf("slow watch ended with %v, want ErrCompacted or all batches", batch.Err)
		}
		m.apply(t, batch)
		if want := fmt.Sprintf("/k%d=%d", n%7, n); changes(batch) != want {
			t.Fatalf("slow watch got %q as number %d, want %q: lost without a word", changes(batch), n, want)
		}
		if n++; batch.Revision == last {
			m.equal(t, list(ctx, t, s, "/"))
			return
		}
	}
	t.Fatalf("slow watch ended after %d batches without a reason", n)
}

// fromAnywhere has a watch begin after each of the revisions, which follow one
// another: the next must come, or word that it is lost.
func fromAnywhere(ctx context.Context, t testing.TB, s store.Store, revisions []int64) {
	t.Helper()
	for i, after := range revisions[:len(revisions)-1] {
		watching, cancel := context.WithCancel(ctx)
		batches, err := s.Watch(watching, "/", after)
		var first store.Batch
		if err == nil {
			for first = range within(t, batches) {
				break
			}
			err = first.Err
		}
		cancel()
		if err == nil && first.Revision != revisions[i+1] || err != nil && !errors.Is(err, store.ErrCompacted) {
			t.Fatalf("a watch after %d begins at %d, %v; want %d or ErrCompacted", after, first.Revision, err, revisions[i+1])
		}
	}
}

// within receives until the channel is closed, and fails if that takes too long.
func within(t testing.TB, batches <-chan store.Batch) func(func(store.Batch) bool) {
	return func(yield func(store.Batch) bool) {
		timeout := time.NewTimer(patience)
		defer timeout.Stop()
		for {
			select {
			case batch, open := <-batches:
				if !open || !yield(batch) {
					return
				}
			case <-timeout.C:
				t.Fatalf("no batch within %v", patience)
			}
		}
	}
}

func testCompaction(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	c, ok := s.(store.Compacter)
	if !ok {
		t.Skip("the store cannot be compacted by hand")
	}
	var revisions []int64
	for i := range 10 {
		revisions = append(revisions, commit(ctx, t, s, put(fmt.Sprintf("/a%d", i), "x")))
	}
	cut := revisions[6]
	for _, revision := range []int64{cut, cut, revisions[2]} { // again and older ones are no error
		if err := c.Compact(ctx, revision); err != nil {
			t.Fatalf("Compact(%d): %v", revision, err)
		}
	}
	var bad *store.RevisionError
	if err := c.Compact(ctx, revisions[9]+1); !errors.As(err, &bad) || !errors.Is(err, store.ErrInvalid) {
		t.Errorf("Compact of the future: %v, want a *RevisionError", err)
	}
	if snapshot := list(ctx, t, s, "/"); len(snapshot.Items) != 10 || snapshot.Revision != revisions[9] {
		t.Errorf("after compaction List has %d items at %d, want 10 at %d: items are not history", len(snapshot.Items), snapshot.Revision, revisions[9])
	}
	for _, after := range []int64{revisions[0], revisions[4]} {
		batches, err := s.Watch(ctx, "/", after)
		if err == nil {
			err = ended(t, batches)
		}
		if !errors.Is(err, store.ErrCompacted) {
			t.Errorf("watch after %d, with history compacted up to %d: %v, want ErrCompacted", after, cut, err)
		}
	}
	batches := watch(ctx, t, s, "/", cut)
	for _, want := range revisions[7:] {
		if batch := receive(t, batches); batch.Revision != want {
			t.Errorf("watch after the compacted revision got a batch at %d, want %d", batch.Revision, want)
		}
	}
}

// testFollow has a follower through writes and, if the store can be compacted, a
// loss of history in the middle.
func testFollow(t testing.TB, h Harness) {
	ctx, s := h.open(t)
	commit(ctx, t, s, put("/f/a", "0"), put("/g", "0"))
	f := follower{news: make(chan any, 1000)}
	following, cancel := context.WithCancel(ctx)
	defer cancel()
	result := make(chan error, 1)
	go func() { result <- store.Follow(following, s, "/f/", f) }()
	var last int64
	for i := range 20 {
		last = commit(ctx, t, s, put(fmt.Sprintf("/f/%d", i%3), fmt.Sprint(i)))
		commit(ctx, t, s, put("/g", fmt.Sprint(i)))
		if c, ok := s.(store.Compacter); ok && i == 10 {
			if err := c.Compact(ctx, last); err != nil {
				t.Fatalf("Compact: %v", err)
			}
		}
	}
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	var m *mirror
	for m == nil || m.revision < last {
		select {
		case news := <-f.news:
			switch news := news.(type) {
			case store.Snapshot:
				m = newMirror(t, "/f/", news)
			case store.Batch:
				if m == nil {
					t.Fatalf("Follow called Apply before Reset")
				}
				m.apply(t, news)
			}
		case err := <-result:
			t.Fatalf("Follow = %v, want it to go on", err)
		case <-timeout.C:
			t.Fatalf("follower has not reached %d within %v", last, patience)
		}
	}
	m.equal(t, list(ctx, t, s, "/f/"))
	cancel()
	select {
	case err := <-result:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Follow = %v, want the context's error", err)
		}
	case <-timeout.C:
		t.Fatalf("Follow did not end with its context")
	}
}

// follower hands on what it is told, for the test to judge on its own
// goroutine.
type follower struct {
	news chan any // store.Snapshot or store.Batch
}

func (f follower) Reset(s store.Snapshot) error {
	f.news <- s
	return nil
}

func (f follower) Apply(b store.Batch) error {
	f.news <- b
	return nil
}
