// Package store is where a fleet keeps its state: a flat, ordered key space
// with one revision counter, cut to what orchestration needs from etcd's model.
//
// The words:
//
//   - An Item is a key, its value, and the revisions that made and last changed
//     it. Keys look like paths, "/tasks/node-1/web.3"; see [ValidateKey].
//   - A revision counts commits. Every commit that changes something gets the
//     next one, and all its changes share it.
//   - [Store.List] returns a consistent [Snapshot] of a prefix and its revision.
//   - [Store.Watch] continues from there: every later change, in order, one
//     [Batch] a commit, no gaps; or [ErrCompacted], which says "list again".
//     [Follow] does both, for ever.
//   - [Store.Commit] applies a [Txn]: all writes if all conditions hold, else
//     nothing and a [ConflictError]. This is the only way to write.
//   - A [Lease] is a promise to stay alive. Items written under it vanish, in
//     one commit, when it is not kept.
//   - An [Election] makes one of many candidates the leader, and gives it a
//     [Leadership.Fence] that makes every write of a deposed leader fail.
//
// Read, change, and write back only if nobody was faster:
//
//	item, found, err := store.Get(ctx, s, "/services/default/web")
//	...
//	_, err = s.Commit(ctx, store.Txn{
//		If:     []store.Condition{item.Unchanged()},
//		Writes: []store.Write{store.Put(item.Key, changed)},
//	})
//	if errors.Is(err, store.ErrConflict) {
//		// somebody else wrote it first: read again
//	}
//
// Implementations: store/memory for tests and throw-away fleets, store/bolt for
// one machine (embedded, durable), store/etcd for many. Each runs the conformance suite of
// store/storetest, which is the specification of this interface in code; run it
// when you write one of your own.
//
// Values handed out (by List, Watch, Get) are shared between callers and must
// not be modified. Values handed in are copied before Commit returns.
package store
