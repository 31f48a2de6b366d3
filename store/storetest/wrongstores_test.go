package storetest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/orchestrate-go/orchestrate/store"
)

var errOther = errors.New("some error")

// wrongStores are wrong in one way each.
var wrongStores = []struct {
	bug      string
	caughtBy string // a check that must fail; others may too
	plant    func(*wrong)
}{
	{"a watch loses a batch", "watch writers", batches(func() func(store.Batch) []store.Batch {
		n := 0
		return func(b store.Batch) []store.Batch {
			if n++; n == 20 {
				return nil
			}
			return []store.Batch{b}
		}
	})},
	{"a watch loses one change of a batch", "watch", batches(func() func(store.Batch) []store.Batch {
		return func(b store.Batch) []store.Batch {
			if len(b.Changes) > 2 {
				b.Changes = b.Changes[1:]
			}
			return []store.Batch{b}
		}
	})},
	{"a watch repeats a batch", "watch from the past", batches(func() func(store.Batch) []store.Batch {
		n := 0
		return func(b store.Batch) []store.Batch {
			if n++; n == 2 {
				return []store.Batch{b, b}
			}
			return []store.Batch{b}
		}
	})},
	{"a watch swaps two batches", "watch from the past", batches(func() func(store.Batch) []store.Batch {
		var held []store.Batch
		return func(b store.Batch) []store.Batch {
			if held == nil {
				held = []store.Batch{b}
				return nil
			}
			both := []store.Batch{b, held[0]}
			held = nil
			return both
		}
	})},
	{"a watch splits a batch", "atomic", batches(func() func(store.Batch) []store.Batch {
		return func(b store.Batch) []store.Batch {
			var parts []store.Batch
			for _, c := range b.Changes {
				parts = append(parts, store.Batch{Revision: b.Revision, Changes: []store.Change{c}})
			}
			return append(parts, store.Batch{Err: b.Err})[:max(len(parts), 1)]
		}
	})},
	{"a watch hides deletions", "lease expiry", batches(func() func(store.Batch) []store.Batch {
		return func(b store.Batch) []store.Batch {
			b.Changes = slices.DeleteFunc(slices.Clone(b.Changes), func(c store.Change) bool { return c.Deleted })
			if len(b.Changes) == 0 {
				return nil
			}
			return []store.Batch{b}
		}
	})},
	{"a watch shows a deletion as an empty value", "watch", batches(func() func(store.Batch) []store.Batch {
		return func(b store.Batch) []store.Batch {
			b.Changes = slices.Clone(b.Changes)
			for i := range b.Changes {
				b.Changes[i].Deleted = false
			}
			return []store.Batch{b}
		}
	})},
	{"a watch sends the keys of a batch in another order", "watch", batches(func() func(store.Batch) []store.Batch {
		return func(b store.Batch) []store.Batch {
			b.Changes = slices.Clone(b.Changes)
			slices.Reverse(b.Changes)
			return []store.Batch{b}
		}
	})},
	{"a watch tells the value of a deletion's past", "watch", batches(func() func(store.Batch) []store.Batch {
		return func(b store.Batch) []store.Batch {
			b.Changes = slices.Clone(b.Changes)
			for i := range b.Changes {
				if b.Changes[i].Deleted {
					b.Changes[i].Item.Value = []byte("old")
				}
			}
			return []store.Batch{b}
		}
	})},
	{"a watch begins one late", "watch from the past", func(w *wrong) {
		w.watch = func(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error) {
			return w.Store.Watch(ctx, prefix, after+1)
		}
	}},
	{"a watch always begins now", "watch from the past", func(w *wrong) {
		w.watch = func(ctx context.Context, prefix string, _ int64) (<-chan store.Batch, error) {
			s, err := w.Store.List(ctx, "")
			if err != nil {
				return nil, err
			}
			return w.Store.Watch(ctx, prefix, s.Revision)
		}
	}},
	{"a watch ignores its prefix", "watch prefix", func(w *wrong) {
		w.watch = func(ctx context.Context, _ string, after int64) (<-chan store.Batch, error) {
			return w.Store.Watch(ctx, "", after)
		}
	}},
	{"a watch takes its prefix for a folder", "watch prefix", func(w *wrong) {
		w.watch = func(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error) {
			return w.Store.Watch(ctx, strings.TrimSuffix(prefix, "/")+"/", after)
		}
	}},
	{"a watch ignores its context", "watch context", func(w *wrong) {
		w.watch = func(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error) {
			return w.Store.Watch(context.WithoutCancel(ctx), prefix, after)
		}
	}},
	{"a watch loses what a slow receiver does not take", "slow watcher", func(w *wrong) {
		w.watch = func(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error) {
			in, err := w.Store.Watch(ctx, prefix, after)
			if err != nil {
				return nil, err
			}
			out := make(chan store.Batch, 100)
			go func() {
				defer close(out)
				for batch := range in {
					select {
					case out <- batch:
					default:
					}
				}
			}()
			return out, nil
		}
	}},
	{"a watch goes on where history is lost", "compaction", func(w *wrong) {
		w.watch = func(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error) {
			batches, err := w.Store.Watch(ctx, prefix, after)
			for errors.Is(err, store.ErrCompacted) {
				after++
				batches, err = w.Store.Watch(ctx, prefix, after)
			}
			return batches, err
		}
	}},
	{"a watch outlives its store", "close", func(w *wrong) {
		w.watch = func(ctx context.Context, prefix string, after int64) (<-chan store.Batch, error) {
			in, err := w.Store.Watch(ctx, prefix, after)
			if err != nil {
				return nil, err
			}
			out := make(chan store.Batch)
			go func() {
				defer close(out)
				for batch := range in {
					select {
					case out <- batch:
					case <-ctx.Done():
						return
					}
				}
				<-ctx.Done()
			}()
			return out, nil
		}
	}},
	{"conditions are ignored", "counter", commits(func(txn store.Txn) store.Txn {
		txn.If = nil
		return txn
	})},
	{"only the first condition counts", "conditions", commits(func(txn store.Txn) store.Txn {
		txn.If = txn.If[:min(len(txn.If), 1)]
		return txn
	})},
	{"absence is not checked", "conditions", commits(func(txn store.Txn) store.Txn {
		txn.If = slices.DeleteFunc(slices.Clone(txn.If), func(c store.Condition) bool { return c.Revision == 0 })
		return txn
	})},
	{"a conflict has no facts", "conditions", func(w *wrong) {
		w.commit = func(ctx context.Context, txn store.Txn) (int64, error) {
			revision, err := w.Store.Commit(ctx, txn)
			if errors.Is(err, store.ErrConflict) {
				err = store.ErrConflict
			}
			return revision, err
		}
	}},
	{"a conflict writes nevertheless", "conditions", func(w *wrong) {
		w.commit = func(ctx context.Context, txn store.Txn) (int64, error) {
			revision, err := w.Store.Commit(ctx, txn)
			if errors.Is(err, store.ErrConflict) {
				_, _ = w.Store.Commit(ctx, store.Txn{Writes: txn.Writes})
			}
			return revision, err
		}
	}},
	{"a transaction is split", "atomic", func(w *wrong) {
		w.commit = func(ctx context.Context, txn store.Txn) (revision int64, err error) {
			for _, write := range txn.Writes {
				if revision, err = w.Store.Commit(ctx, store.Txn{Writes: []store.Write{write}}); err != nil {
					return 0, err
				}
			}
			return revision, nil
		}
	}},
	{"a refused transaction is half done", "invalid keys", func(w *wrong) {
		w.commit = func(ctx context.Context, txn store.Txn) (int64, error) {
			revision, err := w.Store.Commit(ctx, txn)
			if errors.Is(err, store.ErrInvalid) && len(txn.Writes) > 1 {
				_, _ = w.Store.Commit(ctx, store.Txn{Writes: txn.Writes[:1]})
			}
			return revision, err
		}
	}},
	{"invalid keys pass", "invalid keys", func(w *wrong) {
		w.commit = func(ctx context.Context, txn store.Txn) (int64, error) {
			revision, err := w.Store.Commit(ctx, txn)
			var key *store.KeyError
			if errors.As(err, &key) {
				return 1, nil
			}
			return revision, err
		}
	}},
	{"limits are not those of the interface", "limits", func(w *wrong) {
		w.commit = func(ctx context.Context, txn store.Txn) (int64, error) {
			if len(txn.Writes) > 100 {
				return 0, &store.LimitError{What: "writes", Got: len(txn.Writes), Max: 100}
			}
			return w.Store.Commit(ctx, txn)
		}
	}},
	{"an empty value deletes", "values", commits(eachWrite(func(w *store.Write) {
		w.Delete = w.Delete || len(w.Value) == 0
	}))},
	{"values end at a zero byte", "values", commits(eachWrite(func(w *store.Write) {
		w.Value = []byte(strings.SplitN(string(w.Value), "\x00", 2)[0])
	}))},
	{"a commit tells the revision before it", "revisions", func(w *wrong) {
		w.commit = func(ctx context.Context, txn store.Txn) (int64, error) {
			revision, err := w.Store.Commit(ctx, txn)
			return max(revision-1, 0), err
		}
	}},
	{"a commit of nothing has a revision of its own", "nothing to do", func(w *wrong) {
		w.commit = func(ctx context.Context, txn store.Txn) (int64, error) {
			before, _ := w.Store.List(ctx, "/")
			revision, err := w.Store.Commit(ctx, txn)
			if err == nil && revision == before.Revision {
				revision++
			}
			return revision, err
		}
	}},
	{"an ended context does not stop a commit", "ended context", func(w *wrong) {
		w.commit = func(ctx context.Context, txn store.Txn) (int64, error) {
			return w.Store.Commit(context.WithoutCancel(ctx), txn)
		}
	}},
	{"the error of a closed store is its own", "close", func(w *wrong) {
		w.commit = func(ctx context.Context, txn store.Txn) (int64, error) {
			revision, err := w.Store.Commit(ctx, txn)
			if errors.Is(err, store.ErrClosed) {
				err = errOther
			}
			return revision, err
		}
	}},
	{"a list is not sorted", "list", lists(func(s store.Snapshot) store.Snapshot {
		slices.Reverse(s.Items)
		return s
	})},
	{"a list takes its prefix for a folder", "list", func(w *wrong) {
		w.list = func(ctx context.Context, prefix string) (store.Snapshot, error) {
			return w.Store.List(ctx, strings.TrimSuffix(prefix, "/")+"/")
		}
	}},
	{"a list tells a revision that is yet to come", "revisions", lists(func(s store.Snapshot) store.Snapshot {
		s.Revision++
		return s
	})},
	{"a list is stale", "counter", func(w *wrong) {
		var mu sync.Mutex
		old := map[string]store.Snapshot{}
		w.list = func(ctx context.Context, prefix string) (store.Snapshot, error) {
			mu.Lock()
			defer mu.Unlock()
			now, err := w.Store.List(ctx, prefix)
			before, ok := old[prefix]
			old[prefix] = now
			if ok && err == nil {
				return before, nil
			}
			return now, err
		}
	}},
	{"creation is forgotten", "revisions", lists(func(s store.Snapshot) store.Snapshot {
		for i := range s.Items {
			s.Items[i].Created = s.Items[i].Revision
		}
		return s
	})},
	{"items do not vanish with their lease", "lease expiry", commits(eachWrite(func(w *store.Write) { w.Lease = "" }))},
	{"a lease with many items ends in several commits", "lease of many", batches(func() func(store.Batch) []store.Batch {
		return func(b store.Batch) (parts []store.Batch) {
			for changes := range slices.Chunk(b.Changes, store.MaxTxnOps) {
				parts = append(parts, store.Batch{Revision: b.Revision, Changes: changes})
			}
			return parts
		}
	})},
	{"a watch shows what became of the writer's value", "values", func(w *wrong) {
		values := map[string][]byte{}
		commits(func(txn store.Txn) store.Txn {
			for _, put := range txn.Writes {
				values[put.Key] = put.Value
			}
			return txn
		})(w)
		batches(func() func(store.Batch) []store.Batch {
			return func(b store.Batch) []store.Batch {
				b.Changes = slices.Clone(b.Changes)
				for i := range b.Changes {
					b.Changes[i].Item.Value = values[b.Changes[i].Item.Key]
				}
				return []store.Batch{b}
			}
		})(w)
	}},
	{"an item keeps its lease when it is written without", "lease detached", func(w *wrong) {
		w.commit = func(ctx context.Context, txn store.Txn) (int64, error) {
			return w.Store.Commit(ctx, eachWrite(func(write *store.Write) {
				if item, found, _ := store.Get(ctx, w.Store, write.Key); found && write.Lease == "" && !write.Delete {
					write.Lease = item.Lease
				}
			})(txn))
		}
	}},
	{"a lease ends early", "lease expiry", leases(0.5, func(l *wrongLease, ttl time.Duration) { l.ttl = ttl })},
	{"a lease tells less than it was asked for", "lease renewal", leases(1, func(l *wrongLease, ttl time.Duration) { l.ttl = ttl / 2 })},
	{"a lease is not renewed", "lease renewal", leases(1, func(l *wrongLease, _ time.Duration) {
		l.keepAlive = func(context.Context) error { return nil }
	})},
	{"a lease that is gone is renewed", "lease revocation", leases(1, func(l *wrongLease, _ time.Duration) {
		l.keepAlive = func(ctx context.Context) error { _ = l.Lease.KeepAlive(ctx); return nil }
	})},
	{"a lease cannot be revoked", "lease revocation", leases(1, func(l *wrongLease, _ time.Duration) {
		l.revoke = func(context.Context) error { return nil }
	})},
	{"a lease is not revoked twice", "lease revocation", leases(1, func(l *wrongLease, _ time.Duration) {
		l.revoke = func(ctx context.Context) error {
			if err := l.KeepAlive(ctx); err != nil {
				return err
			}
			return l.Lease.Revoke(ctx)
		}
	})},
	{"a lease may last no time", "lease invalid", func(w *wrong) {
		w.lease = func(ctx context.Context, ttl time.Duration) (store.Lease, error) {
			return w.Store.Lease(ctx, max(ttl, time.Second))
		}
	}},
	{"unknown leases are ignored", "lease invalid", func(w *wrong) {
		w.commit = func(ctx context.Context, txn store.Txn) (int64, error) {
			revision, err := w.Store.Commit(ctx, txn)
			if errors.Is(err, store.ErrLeaseExpired) {
				return w.Store.Commit(ctx, eachWrite(func(w *store.Write) { w.Lease = "" })(txn))
			}
			return revision, err
		}
	}},
	{"a fence holds when its key is gone", "election fence", func(w *wrong) {
		w.commit = func(ctx context.Context, txn store.Txn) (int64, error) {
			revision, err := w.Store.Commit(ctx, txn)
			var conflict *store.ConflictError
			if errors.As(err, &conflict) && conflict.Got == 0 {
				return w.Store.Commit(ctx, store.Txn{Writes: txn.Writes})
			}
			return revision, err
		}
	}},
}
